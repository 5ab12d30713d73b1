//! A mount that lives as long as a scope.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::detach::{detach_stack_once, detach_tree_once, detach_tree_retrying};
use crate::{Backend, DetachFlags, Error, Mount, Result, attach_all_with};

/// Mounts attached in a private directory for as long as this value lives.
///
/// The directory has a random name and mode 0700; the tree is one level below,
/// so nobody else gets at set-user-id programs in it. Dropping detaches, lazily
/// if something still uses the tree, and then removes the two directories with
/// rmdir(2) only: if a mount should survive, its contents do too.
#[derive(Debug)]
pub struct TempMount {
    dir: PrivateDir,
    /// All mounts are at the tree's root, so none is missed by looking there.
    stacked: bool,
    closed: bool,
}

impl TempMount {
    /// Attaches `mounts` in a fresh directory below `temp_root`, which is made
    /// with mode 0700 if it is missing.
    ///
    /// Without any mounts the tree is an empty directory.
    ///
    /// # Errors
    ///
    /// Those of [`attach_all`](crate::attach_all), and [`Error::Io`] for the
    /// directory. After an error neither mount nor directory is left.
    pub fn attach(mounts: &[Mount], temp_root: &Path) -> Result<Self> {
        Self::attach_with(mounts, temp_root, Backend::detect())
    }

    /// [`attach`](Self::attach) through a chosen kernel interface.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach).
    pub fn attach_with(mounts: &[Mount], temp_root: &Path, backend: Backend) -> Result<Self> {
        let at_root = |mount: &Mount| mount.target.trim_start_matches('/').is_empty();
        let stacked = mounts.iter().all(at_root);
        let temp = Self { dir: PrivateDir::create(temp_root)?, stacked, closed: false };
        attach_all_with(mounts, temp.path(), backend)?;
        Ok(temp)
    }

    /// Where the tree is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Detaches now, waiting a bounded time for users to go away before it
    /// turns lazy, and reports what a drop could only log.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] or [`Error::Io`] if a mount or directory is left.
    pub fn close(mut self) -> Result<()> {
        self.closed = true;
        if !self.detach_quickly() && detach_tree_retrying(self.path(), DetachFlags::NONE).is_err() {
            detach_tree_once(self.path(), DetachFlags::LAZY)?;
        }
        self.dir.remove()
    }

    /// The usual end: nobody uses the tree, and the list of all mounts, long on
    /// a busy host, need not be read. False if there is more to it.
    fn detach_quickly(&self) -> bool {
        self.stacked && detach_stack_once(self.path()).is_ok()
    }
}

impl Drop for TempMount {
    fn drop(&mut self) {
        if self.closed || self.detach_quickly() {
            return;
        }
        // No waiting here: a drop may run anywhere.
        let detached = detach_tree_once(self.path(), DetachFlags::NONE)
            .or_else(|_| detach_tree_once(self.path(), DetachFlags::LAZY));
        if let Err(error) = detached {
            tracing::warn!(%error, path = ?self.path(), "temporary mount stays behind");
        }
    }
}

/// `<parent>/crated-mount-<random>/tree`, the outer directory with mode 0700.
#[derive(Debug)]
pub(crate) struct PrivateDir {
    tree: PathBuf,
    removed: bool,
}

impl PrivateDir {
    pub(crate) fn create(parent: &Path) -> Result<Self> {
        let private = |recursive| {
            let mut builder = DirBuilder::new();
            builder.mode(0o700).recursive(recursive);
            builder
        };
        private(true)
            .create(parent)
            .map_err(|cause| Error::io("create directory", parent, cause))?;
        for _ in 0..NAMES_MAX {
            let outer = parent.join(random_name()?);
            match private(false).create(&outer) {
                Ok(()) => {
                    let dir = Self { tree: outer.join("tree"), removed: false };
                    private(false)
                        .create(&dir.tree)
                        .map_err(|cause| Error::io("create directory", &dir.tree, cause))?;
                    return Ok(dir);
                }
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(Error::io("create directory", &outer, cause)),
            }
        }
        let cause = io::ErrorKind::AlreadyExists;
        Err(Error::io("create a private directory in", parent, cause))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.tree
    }

    /// Removes both directories, which must be empty and no mount points.
    pub(crate) fn remove(&mut self) -> Result<()> {
        self.removed = true;
        let outer = self.tree.parent();
        for path in [Some(self.tree.as_path()), outer].into_iter().flatten() {
            match fs::remove_dir(path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove directory", path, cause));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "private directory stays behind");
        }
    }
}

fn random_name() -> Result<String> {
    let mut bytes = [0_u8; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|errno| Error::io("read random bytes for", Path::new("crated-mount-"), errno))?;
    Ok(format!("crated-mount-{:016x}", u64::from_ne_bytes(bytes)))
}

/// With 64 random bits the first name is free; this bounds a hostile directory.
const NAMES_MAX: usize = 16;
