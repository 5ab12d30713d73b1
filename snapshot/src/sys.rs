//! The calls of btrfs (creating, copying, finding and deleting subvolumes) and
//! those of project quotas.
#![allow(unsafe_code, reason = "calls of filesystems, which no crate wraps")]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};
use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl, opcode};

/// The argument of every call used here: 4096 bytes, fields at fixed places.
#[repr(C, align(8))]
struct Arguments([u8; ARGUMENTS_BYTES]);

const ARGUMENTS_BYTES: usize = 4096;
const MAGIC: u8 = 0x94;
const DESTROY: Opcode = opcode::write::<Arguments>(MAGIC, 15);
const LOOK_UP: Opcode = opcode::read_write::<Arguments>(MAGIC, 18);
const SNAPSHOT: Opcode = opcode::write::<Arguments>(MAGIC, 23);
const CREATE: Opcode = opcode::write::<Arguments>(MAGIC, 24);

/// Where `btrfs_ioctl_vol_args_v2` has its flags and its name.
const FLAGS_AT: usize = 16;
const NAME_AT: usize = 56;
/// Where the older `btrfs_ioctl_vol_args` has its name.
const OLD_NAME_AT: usize = 8;

/// Longest name of a subvolume.
const NAME_BYTES_MAX: usize = 255;

const READ_ONLY: u64 = 1 << 1;

/// Inode number of the root directory of every subvolume.
pub(crate) const SUBVOLUME_ROOT_INODE: u64 = 256;

/// Has the kernel begin writing all dirty pages of `file`, and does not wait for them.
/// See sync_file_range(2).
pub(crate) fn begin_writing(file: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the descriptor is open while it is borrowed; no memory is passed.
    let done =
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    match done {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// Makes an empty subvolume `name` in `dir`.
pub(crate) fn create_subvolume(dir: impl AsFd, name: &CStr) -> Result<()> {
    let arguments = Arguments::new().name(NAME_AT, name)?;
    // SAFETY: CREATE takes a btrfs_ioctl_vol_args_v2, which is what Arguments
    // lays out: size and alignment match, all of it is initialised, and the
    // kernel only reads it.
    unsafe { ioctl(dir, Setter::<CREATE, Arguments>::new(arguments)) }
}

/// Makes `name` in `dir` a snapshot of the subvolume `source`.
pub(crate) fn snapshot_subvolume(
    source: impl AsFd,
    dir: impl AsFd,
    name: &CStr,
    read_only: bool,
) -> Result<()> {
    let flags = if read_only { READ_ONLY } else { 0 };
    let source = i64::from(source.as_fd().as_raw_fd());
    let arguments = Arguments::new()
        .put(0, &source.to_ne_bytes())
        .put(FLAGS_AT, &flags.to_ne_bytes())
        .name(NAME_AT, name)?;
    // SAFETY: SNAPSHOT takes a btrfs_ioctl_vol_args_v2, which is what Arguments
    // lays out: size and alignment match, all of it is initialised, the kernel
    // only reads it, and the descriptor in it stays open during the call.
    unsafe { ioctl(dir, Setter::<SNAPSHOT, Arguments>::new(arguments)) }
}

/// Deletes the subvolume `name` in `dir` and all it holds.
pub(crate) fn destroy_subvolume(dir: impl AsFd, name: &CStr) -> Result<()> {
    let arguments = Arguments::new().name(OLD_NAME_AT, name)?;
    // SAFETY: DESTROY takes a btrfs_ioctl_vol_args, which is what Arguments
    // lays out: size and alignment match, all of it is initialised, and the
    // kernel only reads it.
    unsafe { ioctl(dir, Setter::<DESTROY, Arguments>::new(arguments)) }
}

/// The id of the subvolume that the open directory `dir` is in.
pub(crate) fn subvolume_id(dir: impl AsFd) -> Result<u64> {
    let mut arguments = Arguments::new().put(8, &SUBVOLUME_ROOT_INODE.to_ne_bytes());
    // SAFETY: LOOK_UP takes a btrfs_ioctl_ino_lookup_args, which is what
    // Arguments lays out: size and alignment match, and whatever bytes the
    // kernel writes into it are valid for an array of bytes.
    unsafe { ioctl(dir, Updater::<LOOK_UP, Arguments>::new(&mut arguments)) }?;
    let mut id = [0; 8];
    id.copy_from_slice(&arguments.0[..8]);
    Ok(u64::from_ne_bytes(id))
}

impl Arguments {
    fn new() -> Self {
        Self([0; ARGUMENTS_BYTES])
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn name(self, at: usize, name: &CStr) -> Result<Self> {
        match name.count_bytes() {
            0..=NAME_BYTES_MAX => Ok(self.put(at, name.to_bytes())),
            _ => Err(Errno::NAMETOOLONG),
        }
    }
}

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FileAttributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// What is made in a directory gets its project.
const INHERIT_PROJECT: u32 = 0x200;
const GET_ATTRIBUTES: Opcode = opcode::read::<FileAttributes>(b'X', 31);
const SET_ATTRIBUTES: Opcode = opcode::write::<FileAttributes>(b'X', 32);

/// Puts a directory, and what will be made in it, into `project`.
pub(crate) fn set_project(dir: impl AsFd, project: u32) -> Result<()> {
    // SAFETY: FS_IOC_FSGETXATTR writes one fsxattr, which is what
    // FileAttributes lays out, and any bytes are valid in its fields.
    let mut attributes = unsafe { ioctl(&dir, Getter::<GET_ATTRIBUTES, FileAttributes>::new()) }?;
    attributes.project = project;
    attributes.flags |= INHERIT_PROJECT;
    // SAFETY: FS_IOC_FSSETXATTR reads one fsxattr, which is what
    // FileAttributes lays out; all of it is initialised.
    unsafe { ioctl(&dir, Setter::<SET_ATTRIBUTES, FileAttributes>::new(attributes)) }
}

/// `struct if_dqblk` of `linux/quota.h`: limits and use of one project.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProjectQuota {
    hard_limit_kib: u64,
    soft_limit_kib: u64,
    pub(crate) used_bytes: u64,
    inodes_hard_limit: u64,
    inodes_soft_limit: u64,
    pub(crate) used_inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

const LIMITS_ARE_VALID: u32 = 1;
const PROJECT: libc::c_int = 2;

/// Limits what `project` may hold on the filesystem of `dir`; zero is no limit.
pub(crate) fn limit_project(dir: impl AsFd, project: u32, kib_max: u64) -> Result<()> {
    let mut quota = ProjectQuota {
        hard_limit_kib: kib_max,
        valid: LIMITS_ARE_VALID,
        ..ProjectQuota::default()
    };
    quotactl(dir, libc::Q_SETQUOTA, project, &mut quota)
}

/// What `project` holds on the filesystem of `dir`.
pub(crate) fn project_usage(dir: impl AsFd, project: u32) -> Result<ProjectQuota> {
    let mut quota = ProjectQuota::default();
    quotactl(dir, libc::Q_GETQUOTA, project, &mut quota)?;
    Ok(quota)
}

fn quotactl(
    dir: impl AsFd,
    command: libc::c_int,
    project: u32,
    quota: &mut ProjectQuota,
) -> Result<()> {
    let command = (command << 8) | PROJECT;
    // SAFETY: quotactl_fd(2) takes a descriptor, which stays open during the
    // call, a command, an id, and for the two commands used here a pointer to
    // an if_dqblk, which is what ProjectQuota lays out; any bytes the kernel
    // writes are valid in its fields.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            dir.as_fd().as_raw_fd(),
            command,
            project,
            std::ptr::from_mut(quota),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
