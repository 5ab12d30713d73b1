//! System calls that have no safe face elsewhere. The crate's only unsafe code.
#![allow(unsafe_code, reason = "raw system calls; each block makes one and says why it is sound")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags};

/// What mount_setattr(2) changes.
#[derive(Debug, Default)]
pub(crate) struct MountAttr<'fd> {
    pub(crate) set: Option<MountAttrFlags>,
    pub(crate) clear: Option<MountAttrFlags>,
    pub(crate) propagation: Option<MountPropagationFlags>,
    /// Shows the mount through this user namespace.
    pub(crate) user_namespace: Option<BorrowedFd<'fd>>,
}

/// Changes the mount that `mount` refers to, with all below it if `recursive`.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    change: &MountAttr<'_>,
) -> rustix::io::Result<()> {
    let bits = |flags: Option<MountAttrFlags>| flags.map_or(0, |flags| u64::from(flags.bits()));
    let mut attr = libc::mount_attr {
        attr_set: bits(change.set),
        attr_clr: bits(change.clear),
        propagation: change.propagation.map_or(0, |flags| u64::from(flags.bits())),
        userns_fd: 0,
    };
    if let Some(namespace) = change.user_namespace {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = namespace.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `attr` is a live, initialised
    // structure of the size passed, and both descriptors are borrowed for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

/// Whether the calls of the new interface reach the kernel.
///
/// Each gets arguments that it must refuse before it looks at privileges, so
/// `ENOSYS` and the `EPERM` of a filter differ from the kernel's `EINVAL`.
pub(crate) fn new_mount_api_answers() -> bool {
    const UNKNOWN_FLAG: libc::c_long = 0x0800_0000;
    let null = std::ptr::null::<libc::c_void>();
    // SAFETY: -1 is no descriptor and the flags are unknown; the call fails
    // before it reads any pointer.
    let config = unsafe { libc::syscall(libc::SYS_fsconfig, -1, UNKNOWN_FLAG, null, null, 0) };
    let config = check(config);
    // SAFETY: the flags are unknown; the call fails before it reads the path.
    let tree = check(unsafe { libc::syscall(libc::SYS_open_tree, -1, c"".as_ptr(), UNKNOWN_FLAG) });
    // SAFETY: the flags are unknown; the call fails before it reads a pointer.
    let setattr =
        unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), UNKNOWN_FLAG, null, 0) };
    [config, tree, check(setattr)].iter().all(|answer| *answer == Err(Errno::INVAL))
}

/// Gives this thread a working directory of its own.
pub(crate) fn unshare_working_directory() -> rustix::io::Result<()> {
    // SAFETY: only the filesystem attributes are unshared (root, working
    // directory, umask); descriptors and memory stay as every other thread has
    // them, so no borrowed descriptor changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
}

/// A process that sleeps in a user namespace of its own until it is killed.
#[derive(Debug)]
pub(crate) struct NamespaceChild {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

/// Starts a [`NamespaceChild`]. It dies with the calling thread at the latest.
pub(crate) fn clone_into_user_namespace() -> io::Result<NamespaceChild> {
    let mut pidfd: RawFd = -1;
    // No exit signal: a caller that reaps its children must not see this one.
    let flags = libc::CLONE_NEWUSER | libc::CLONE_PIDFD;
    let zero: libc::c_long = 0;
    let parent = std::process::id();
    // SAFETY: without CLONE_VM and with no stack this is fork(2): the child runs
    // on a copy of this memory and returns here with 0, where it calls only
    // `sleep_until_killed`. `pidfd` outlives the call that fills it.
    let pid = unsafe { clone(flags.into(), &raw mut pidfd, zero) };
    match pid {
        0 => sleep_until_killed(parent),
        pid if pid > 0 => {
            // SAFETY: the kernel just made this descriptor for us alone.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(NamespaceChild { pid: pid as u32, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// clone(2) with its first two arguments in the order of this architecture;
/// the third slot, the parent's thread id, is where CLONE_PIDFD answers.
///
/// # Safety
///
/// As for fork(2) in a process with threads: in the child only calls that are
/// async-signal-safe.
unsafe fn clone(flags: libc::c_long, pidfd: *mut RawFd, zero: libc::c_long) -> libc::c_long {
    #[cfg(target_arch = "s390x")]
    let (first, second) = (zero, flags);
    #[cfg(not(target_arch = "s390x"))]
    let (first, second) = (flags, zero);
    // SAFETY: the caller's promise; see above for the arguments.
    unsafe { libc::syscall(libc::SYS_clone, first, second, pidfd, zero, zero) }
}

fn sleep_until_killed(parent: u32) -> ! {
    // SAFETY: prctl is async-signal-safe, and this request takes no pointer.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: getppid is async-signal-safe and cannot fail.
    while unsafe { libc::getppid() } as u32 == parent {
        // SAFETY: poll is async-signal-safe; with no descriptors it reads none.
        // Waking now and then notices a parent that died before the prctl.
        unsafe { libc::poll(std::ptr::null_mut(), 0, 1000) };
    }
    // SAFETY: _exit is async-signal-safe and ends this process without running
    // anything of the parent's.
    unsafe { libc::_exit(0) }
}

/// The number of a free loop device, made if there was none.
pub(crate) fn loop_find_free(control: &File) -> rustix::io::Result<u32> {
    // SAFETY: this request takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    check(number.into()).map(|number| number as u32)
}

/// Binds `backing` to the loop device and has it freed with its last user.
pub(crate) fn loop_configure(
    device: &File,
    backing: &File,
    read_only: bool,
    name: &[u8],
) -> rustix::io::Result<()> {
    let mut config = LoopConfig {
        fd: backing.as_fd().as_raw_fd() as u32,
        block_size: 0,
        info: LoopInfo {
            numbers: [0; 5],
            words: [0; 3],
            flags: LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 },
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // For people who read /sys; cut short, with the final NUL kept.
    let shown = name.len().min(config.info.file_name.len() - 1);
    config.info.file_name[..shown].copy_from_slice(&name[..shown]);
    // SAFETY: `config` has the layout of `struct loop_config`, is initialised,
    // and lives through the call; the kernel only reads it.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    check(result.into()).map(drop)
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct loop_info64`: device, inode, rdevice, offset, sizelimit; then number,
/// encryption type and key size.
#[repr(C)]
struct LoopInfo {
    numbers: [u64; 5],
    words: [u32; 3],
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

const _: () = assert!(size_of::<LoopConfig>() == 304 && size_of::<LoopInfo>() == 232);

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

fn check(result: libc::c_long) -> rustix::io::Result<libc::c_long> {
    if result >= 0 {
        return Ok(result);
    }
    let errno = io::Error::last_os_error();
    Err(Errno::from_io_error(&errno).unwrap_or(Errno::IO))
}
