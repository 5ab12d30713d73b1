//! The crate's unsafe code: what runs between fork and exec, and `waitid`.
#![allow(unsafe_code, reason = "pre_exec, and waitid with its union, have no safe face")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    os::unix::process::CommandExt,
    process::Command,
};

use nix::libc;

/// Gives the child `fds` as descriptors 3, 4, … in this order.
///
/// The command owns them; they are closed in this process when it is dropped.
pub fn pass_fds(command: &mut Command, fds: Vec<OwnedFd>) -> &mut Command {
    let first: RawFd = 3;
    // Above every target, so that no copy overwrites a source.
    let above = first + fds.len() as RawFd;
    // SAFETY: as above: only fcntl and dup2 run in the child. The numbers
    // stay valid because the closure owns the descriptors.
    unsafe {
        command.pre_exec(move || {
            let mut raised = [-1; FDS_MAX];
            for (slot, fd) in raised.iter_mut().zip(&fds) {
                *slot = check(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above))?;
            }
            for (target, source) in (first..above).zip(raised) {
                check(libc::dup2(source, target))?;
            }
            Ok(())
        })
    }
}

/// Most descriptors [`pass_fds`] passes.
pub const FDS_MAX: usize = 8;

/// The pid of a child that has ended and is not reaped yet; it stays so.
pub(crate) fn ended_child() -> io::Result<Option<u32>> {
    // SAFETY: siginfo_t is plain data for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a valid place to write a siginfo_t to.
    check(unsafe { libc::waitid(libc::P_ALL, 0, &mut info, flags) })?;
    // SAFETY: waitid filled the fields of a child's signal, or left the zeroes.
    let pid = unsafe { info.si_pid() };
    Ok(u32::try_from(pid).ok().filter(|pid| *pid != 0))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes over a descriptor the parent process passed at this number.
fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: F_SETFD only changes a flag, and fails on a closed number.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the number is open, and by this function's contract nobody else
    // in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Which of the two processes came back from [`fork_alone`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The one that called, with the other's pid.
    Parent(u32),
    /// The new one.
    Child,
}

/// Splits a process that has one thread in two.
///
/// The child goes on with the same memory and descriptors. That is quicker than starting the
/// same program again, and sound only while no other thread can hold a lock.
///
/// # Errors
///
/// When there are more threads, or no more processes may be made.
pub fn fork_alone() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("only a process with one thread may fork"));
    }
    // SAFETY: there is no other thread, so that nothing is locked or half changed in the child.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid.unsigned_abs())),
    }
}

/// Cuts a fresh child off from where it came from: a session of its own, nothing on standard
/// streams, and no descriptor open but `kept`, which is returned anew.
///
/// Call it in the child of [`fork_alone`], before anything else opens descriptors.
///
/// # Errors
///
/// When the system refuses one of the steps; the process is of no use then.
pub fn cut_off(kept: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::IntoRawFd;
    rustix::process::setsid()?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    let number: RawFd = 3;
    let kept = kept.into_raw_fd();
    if kept != number {
        // SAFETY: dup2 between numbers; what was open at the target belonged to the parent.
        check(unsafe { libc::dup2(kept, number) })?;
    }
    // SAFETY: by this function's contract nothing in this process owns a descriptor from here on.
    check(unsafe { libc::close_range(4, u32::MAX, 0) })?;
    inherited_fd(number)
}

/// Sends a signal through a pidfd; any number the kernel knows, also 0.
pub(crate) fn pidfd_signal(fd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call, and a null
    // siginfo asks the kernel to fill in the usual one.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Watches a descriptor with the running tokio runtime.
///
/// # Errors
///
/// `PermissionDenied` for what cannot be watched, such as a regular file.
pub(crate) fn watch(
    fd: OwnedFd,
    interest: tokio::io::Interest,
) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    #[allow(
        deprecated,
        reason = "the successor is unsafe and newer than the tokio we ask for; \
                                  an OwnedFd keeps the promise both want"
    )]
    tokio::io::unix::AsyncFd::with_interest(fd, interest)
}
