//! Filesystems from layers of change.
//!
//! A [`Snapshotter`] keeps filesystems as chains of committed layers and gives
//! out [`Mount`]s for writable or read-only tips. An [`Applier`] unpacks the
//! byte stream of a layer into such a tip; a [`Differ`] turns the difference
//! of two filesystems back into a stream.
//!
//! The crate neither downloads nor stores layers, does not mount what it hands
//! out (except to look into it), and knows nothing of images or namespaces.

#[cfg(not(target_os = "linux"))]
compile_error!("crated-snapshot keeps Linux filesystems, on Linux");

pub use crated_mount::Mount;

pub use crate::aufs::AufsSnapshotter;
pub use crate::btrfs::BtrfsSnapshotter;
pub use crate::diff::{
    Applied, Applier, ApplyOptions, Compression, DiffOptions, Diffed, Differ, Encoder,
    RATIO_FREE_BYTES, SNIFF_BYTES, TarApplier, Target, WalkingDiffer, Whiteouts,
    ZSTD_WINDOW_LOG_MAX, apply_tar, chain_id,
};
pub use crate::error::{DatabaseError, Error, Result};
pub use crate::metastore::{MetaStore, Snapshot, SyncMode};
pub use crate::native::NativeSnapshotter;
pub use crate::overlay::{
    GID_MAPPING_LABEL, OverlayOptions, OverlaySnapshotter, UID_MAPPING_LABEL, UPPERDIR_LABEL,
};
pub use crate::snapshotter::{
    CommitOptions, Info, KEY_LENGTH_MAX, Key, Kind, LabelUpdate, Labels, Name, Snapshotter, Usage,
};

mod aufs;
mod btrfs;
mod copy;
mod diff;
mod directories;
mod error;
mod metastore;
mod native;
mod overlay;
mod snapshotter;
mod sys;
mod tar;
#[cfg(feature = "testsuite")]
pub mod testsuite;
mod tree;
mod usage;
