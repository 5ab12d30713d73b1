//! Layers as read-only images, one file each, with overlays on top.
//!
//! ```text
//! snapshots/<id>/fs           the files of an active snapshot, as for overlayfs
//! snapshots/<id>/work         overlayfs' own
//! snapshots/<id>/layer.erofs  the image of a committed one, in their place
//! layers/<id>/                where that image is mounted while it is used
//! ```
//!
//! Committing packs `fs` into the image, whiteouts and opaque directories
//! included, then writes the record, then deletes `fs`. A crash in between
//! leaves files nobody looks at, which `cleanup` deletes.
//!
//! The images are mounted by the snapshotter, so that what it gives out are
//! plain overlay and bind mounts which every client can attach.

use std::path::{Path, PathBuf};

pub(crate) use self::layers::Layers;
pub use self::write::write_erofs;
use crate::error::Result;
use crate::metastore::SyncMode;
use crate::overlay::{OverlayOptions, OverlaySnapshotter};

mod format;
mod layers;
mod plan;
mod write;

/// How an [`ErofsSnapshotter`] works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErofsOptions {
    /// Directory of its own, made with mode 0700 when missing.
    pub root: PathBuf,
    /// Options added to every overlay mount.
    pub mount_options: Vec<String>,
    /// Leaves the images of layers mounted when the snapshotter is dropped, for
    /// daemons whose clients attach mounts while they restart. Without it
    /// nothing stays mounted, and mounts given out are of no use afterwards;
    /// what was attached by then stays attached and whole.
    pub keep_mounted: bool,
    /// When commits reach the disk.
    pub sync: SyncMode,
}

/// Keeps each committed layer as an EROFS image and stacks them with overlayfs.
///
/// An image takes less room than its files and is one object to delete, send
/// or verify. It is mounted from its file since Linux 6.12, before that by a
/// loop device which goes with the mount.
#[derive(Debug)]
pub struct ErofsSnapshotter {
    inner: OverlaySnapshotter,
}

impl ErofsSnapshotter {
    /// Opens or makes the snapshotter below `options.root`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`](crate::Error::Unsupported) when the kernel cannot
    /// mount EROFS images or overlays there; else those of
    /// [`OverlaySnapshotter::open`].
    pub fn open(options: ErofsOptions) -> Result<Self> {
        let ErofsOptions { root, mount_options, keep_mounted, sync } = options;
        let overlay = OverlayOptions { root, mount_options, sync, ..OverlayOptions::default() };
        Ok(Self { inner: OverlaySnapshotter::open_packed(overlay, keep_mounted)? })
    }

    /// The directory everything is kept in.
    pub fn root(&self) -> &Path {
        self.inner.root()
    }

    /// Whether id-mapped mounts spare the copy for user namespaces.
    pub fn remaps_ids(&self) -> bool {
        self.inner.remaps_ids()
    }

    /// Whether a snapshot without a parent can be committed on top of one.
    pub fn rebases(&self) -> bool {
        self.inner.rebases()
    }
}

crate::snapshotter::forward_to_inner!(ErofsSnapshotter, std::convert::identity);
