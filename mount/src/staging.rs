//! A private place where mounts are attached for the moment in which the
//! kernel insists on it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use crate::target::magic_path;
use crate::temp::PrivateDir;
use crate::{Error, Result};

/// Mounts stacked on one private directory, each reached by its descriptor.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: PrivateDir,
    mounts: Vec<OwnedFd>,
    /// How many of them are attached.
    attached: usize,
}

impl Staging {
    pub(crate) fn attach(mounts: Vec<OwnedFd>) -> Result<Self> {
        let dir = PrivateDir::create(&std::env::temp_dir())?;
        let mut staging = Self { dir, mounts, attached: 0 };
        for mount in &staging.mounts {
            let path = staging.dir.path();
            move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(|errno| Error::io("stage a layer at", path, errno))?;
            staging.attached += 1;
        }
        Ok(staging)
    }

    /// A path to each mount, in order, valid while this value lives.
    pub(crate) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.mounts.iter().map(|mount| magic_path(mount.as_fd()))
    }

    pub(crate) fn close(mut self) -> Result<()> {
        self.detach()
    }

    /// From the top of the stack down; a mount that another covers would leave
    /// that one behind.
    fn detach(&mut self) -> Result<()> {
        let mut first_failure = Ok(());
        while self.attached > 0 {
            self.attached -= 1;
            let path = magic_path(self.mounts[self.attached].as_fd());
            let result = unmount(path, UnmountFlags::DETACH);
            first_failure = first_failure.and(result);
        }
        first_failure.map_err(|errno| Error::io("detach staged layers at", self.dir.path(), errno))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!(%error, "staged layers stay behind");
        }
    }
}
