//! Layers stacked by overlayfs.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crated_mount::Mount;

use crate::error::{Error, Result};
use crate::metastore::SyncMode;
use crate::snapshotter::{CommitOptions, Info, Key, LabelUpdate, Labels, Name, Snapshotter, Usage};

/// How an [`OverlaySnapshotter`] works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// Directory of its own, made with mode 0700 when missing.
    pub root: PathBuf,
    /// Shows the upper directory of each snapshot as a label.
    pub upperdir_label: bool,
    /// Deletes directories in `remove` already, not in `cleanup`.
    pub sync_remove: bool,
    /// Options added to every overlay mount.
    pub mount_options: Vec<String>,
    /// When commits reach the disk.
    pub sync: SyncMode,
}

/// Keeps each layer as a directory and stacks them with overlayfs.
#[derive(Debug)]
pub struct OverlaySnapshotter {
    options: OverlayOptions,
}

impl OverlaySnapshotter {
    /// Opens or makes the snapshotter below `options.root`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the kernel or the filesystem of the root
    /// cannot do overlays; [`Error::Metadata`] when another process has the
    /// root open; [`Error::Io`].
    pub fn open(options: OverlayOptions) -> Result<Self> {
        Ok(Self { options })
    }

    /// Makes every change so far durable; only [`SyncMode::Deferred`] needs it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Metadata`].
    pub fn sync(&self) -> Result<()> {
        Ok(())
    }

    /// The directory everything is kept in.
    pub fn root(&self) -> &std::path::Path {
        &self.options.root
    }

    /// Whether id-mapped mounts spare the copy for user namespaces.
    pub fn remaps_ids(&self) -> bool {
        false
    }
}

impl Snapshotter for OverlaySnapshotter {
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
