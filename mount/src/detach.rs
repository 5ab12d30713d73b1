//! Detaching: one mount, a stack, or a tree, and never anything but mounts.
//!
//! A mount that is busy is tried again for [`BUSY_WAIT_MAX`] in all, because most
//! users of a mount are processes about to end. The call itself can take longer
//! where a filesystem does: writing back, or a server that does not answer.

use std::fs;
use std::ops::BitOr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, openat, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::target::magic_path;
use crate::{Error, Result, holders, mountinfo};

/// How to detach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DetachFlags(u32);

impl DetachFlags {
    /// Wait for users to go away, a bounded time.
    pub const NONE: Self = Self(0);
    /// Take it out of the tree now; the kernel ends it with its last user.
    pub const LAZY: Self = Self(1);
    /// Abort pending requests of network filesystems and FUSE.
    pub const FORCE: Self = Self(2);

    /// Whether all of `other` is set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn bits(self) -> UnmountFlags {
        let mut bits = UnmountFlags::empty();
        bits.set(UnmountFlags::DETACH, self.contains(Self::LAZY));
        bits.set(UnmountFlags::FORCE, self.contains(Self::FORCE));
        bits
    }
}

impl BitOr for DetachFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Detaches the topmost mount at `path`, whose last component is not followed
/// should it be a symbolic link.
///
/// # Errors
///
/// - [`Error::NotMounted`]: nothing is mounted there, or nothing is there.
/// - [`Error::Busy`]: still in use after the retries; names the holders found.
/// - [`Error::Io`]: the kernel refused for another reason.
pub fn detach(path: &Path, flags: DetachFlags) -> Result<()> {
    let mut patience = Patience::new();
    loop {
        match detach_once(path, flags) {
            Err(Error::Busy { .. }) if patience.wait() => {}
            answer => return answer.map_err(with_holders),
        }
    }
}

/// Detaches every mount stacked at `path`; nothing mounted there is success.
/// As in [`detach`], nothing is ever mounted at a symbolic link.
///
/// # Errors
///
/// Those of [`detach`], save [`Error::NotMounted`].
pub fn detach_all(path: &Path) -> Result<()> {
    until_not_mounted(path, || detach(path, DetachFlags::NONE))
}

/// [`detach_all`] without waiting for anybody.
pub(crate) fn detach_stack_once(path: &Path) -> Result<()> {
    until_not_mounted(path, || detach_once(path, DetachFlags::NONE))
}

fn until_not_mounted(path: &Path, mut detach: impl FnMut() -> Result<()>) -> Result<()> {
    for _ in 0..STACK_MAX {
        match detach() {
            Ok(()) => {}
            Err(Error::NotMounted { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(Error::io("detach the whole stack at", path, Errno::LOOP))
}

/// Detaches every mount at or below `root`, children first. Deletes nothing.
///
/// # Errors
///
/// - [`Error::InvalidArgument`] for `/`, which nobody means, and for a symbolic
///   link, which could mean anything.
/// - [`Error::Incomplete`] lists what is still attached and why; the rest is
///   detached.
pub fn detach_recursive(root: &Path) -> Result<()> {
    detach_recursive_with(root, DetachFlags::NONE)
}

/// [`detach_recursive`] with flags for each mount.
///
/// # Errors
///
/// As [`detach_recursive`].
pub fn detach_recursive_with(root: &Path, flags: DetachFlags) -> Result<()> {
    detach_tree_retrying(root, flags)
}

pub(crate) fn detach_tree_retrying(root: &Path, flags: DetachFlags) -> Result<()> {
    detach_tree(root, flags, Patience::new())
}

/// Without waiting for anybody.
pub(crate) fn detach_tree_once(root: &Path, flags: DetachFlags) -> Result<()> {
    detach_tree(root, flags, Patience::none())
}

fn detach_tree(root: &Path, flags: DetachFlags, mut patience: Patience) -> Result<()> {
    let Some(root) = as_listed(root)? else {
        return Ok(());
    };
    for _ in 0..STACK_MAX {
        let mounts = below(&root)?;
        let total = mounts.len();
        let results = mounts.iter().map(|mount| mount.detach(flags));
        let failures: Vec<_> = results.filter_map(Result::err).collect();
        let progress = failures.len() < total;
        let only_busy = failures.iter().all(|error| matches!(error, Error::Busy { .. }));
        if total == 0 {
            return Ok(());
        }
        // After progress the rest may be free, or come to light.
        let again = progress || (only_busy && patience.wait());
        if !again {
            let failures = failures.into_iter().map(with_holders).collect();
            return Err(Error::Incomplete { path: root, failures });
        }
    }
    Err(Error::io("detach everything below", &root, Errno::LOOP))
}

fn detach_once(path: &Path, flags: DetachFlags) -> Result<()> {
    match unmount(path, flags.bits() | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(Error::Busy { path: path.to_owned(), holders: Vec::new() }),
        // Also the answer for a mount that an outer user namespace locked.
        Err(errno @ Errno::INVAL) if is_mount_point(path) => Err(Error::io("detach", path, errno)),
        Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => {
            Err(Error::NotMounted { path: path.to_owned() })
        }
        Err(errno) => Err(Error::io("detach", path, errno)),
    }
}

fn is_mount_point(path: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    statx(CWD, path, flags, StatxFlags::empty())
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// A mount found in the list, with how deep in the tree of mounts it is.
#[derive(Debug)]
struct Found {
    id: u64,
    path: PathBuf,
    depth: usize,
}

impl Found {
    /// Detaches this very mount, not another that covers it by now.
    fn detach(&self, flags: DetachFlags) -> Result<()> {
        let Some(top) = self.open_if_on_top()? else {
            return Err(Error::io("reach mount to detach at", &self.path, Errno::NOENT));
        };
        if flags.contains(DetachFlags::LAZY) {
            return unmount(magic_path(top.as_fd()), flags.bits())
                .map_err(|errno| Error::io("detach", &self.path, errno));
        }
        // The descriptor itself would keep the mount busy.
        drop(top);
        detach_once(&self.path, flags)
    }

    fn open_if_on_top(&self) -> Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(CWD, &self.path, flags, Mode::empty()) {
            Ok(fd) => Ok((mount_id(&fd) == Some(self.id)).then_some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(Error::io("open", &self.path, errno)),
        }
    }
}

/// By way of fdinfo rather than statx(2), which asks the filesystem, and that
/// may be one whose server is dead.
fn mount_id(fd: &OwnedFd) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    line.trim().parse().ok()
}

/// Mounts at or below `root`, those deepest in the tree of mounts first. A mount
/// over another's root counts as its child, so stacks come apart from the top.
fn below(root: &Path) -> Result<Vec<Found>> {
    // Of this thread, which may have a mount namespace of its own.
    let path = Path::new("/proc/thread-self/mountinfo");
    let text = fs::read(path).map_err(|cause| Error::io("read", path, cause))?;
    let all = mountinfo::parse(&text)?;
    let parents: std::collections::HashMap<_, _> =
        all.iter().map(|info| (info.id, info.parent)).collect();
    let depth = |mut id: u64| {
        let mut depth = 0;
        while let Some(parent) = parents.get(&id).filter(|parent| **parent != id) {
            depth += 1;
            id = *parent;
            if depth > parents.len() {
                break;
            }
        }
        depth
    };
    let inside = all.iter().filter(|info| info.mount_point.starts_with(root));
    let mut found: Vec<_> = inside
        .map(|info| Found { id: info.id, path: info.mount_point.clone(), depth: depth(info.id) })
        .collect();
    found.sort_by_key(|mount| std::cmp::Reverse(mount.depth));
    Ok(found)
}

/// `root` as the kernel lists it; `None` when there is no such place. Of the last
/// component nothing is asked but whether it is a link, which no filesystem that
/// hangs has a say in when it is a mount's root.
fn as_listed(root: &Path) -> Result<Option<PathBuf>> {
    let refuse = || Err(Error::invalid("root", root.to_string_lossy(), "is no tree of its own"));
    let Some(name) = root.file_name() else {
        return refuse();
    };
    let parent = match root.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if root.read_link().is_ok() {
        return Err(Error::invalid("root", root.to_string_lossy(), "is a symbolic link"));
    }
    match parent.canonicalize() {
        Ok(parent) => Ok(Some(parent.join(name))),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("resolve", parent, cause)),
    }
}

fn with_holders(error: Error) -> Error {
    match error {
        Error::Busy { path, .. } => {
            // Links to what is open show it as the kernel lists it.
            let listed = as_listed(&path).ok().flatten();
            let holders = listed.map(|listed| holders(&listed)).unwrap_or_default();
            Error::Busy { path, holders }
        }
        other => other,
    }
}

/// Time left for waiting, in growing steps.
#[derive(Debug)]
struct Patience {
    deadline: Instant,
    pause: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { deadline: Instant::now() + BUSY_WAIT_MAX, pause: Duration::from_millis(1) }
    }

    fn none() -> Self {
        Self { deadline: Instant::now(), pause: Duration::ZERO }
    }

    /// Waits a moment; false when there is no time left.
    fn wait(&mut self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        thread::sleep(self.pause.min(left));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }
}

/// How long a busy mount is waited for, in all.
pub const BUSY_WAIT_MAX: Duration = Duration::from_millis(2500);

/// Short enough to notice soon, long enough not to burn a core.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Mounts stacked on one place, or rounds over a tree, before somebody else must
/// be adding them as fast as they go.
const STACK_MAX: usize = 4096;
