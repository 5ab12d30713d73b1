//! Filesystems from layers of change.
//!
//! A [`Snapshotter`] keeps filesystems as chains of committed layers and gives
//! out [`Mount`]s for writable or read-only tips. An [`Applier`] unpacks the
//! byte stream of a layer into such a tip; a [`Differ`] turns the difference
//! of two filesystems back into a stream.
//!
//! | Snapshotter | Keeps a layer as | Needs |
//! |---|---|---|
//! | [`OverlaySnapshotter`] | a directory, stacked by overlayfs | overlayfs |
//! | [`ErofsSnapshotter`] | a read-only image, stacked by overlayfs | overlayfs and erofs |
//! | [`BtrfsSnapshotter`] | a subvolume | a root on btrfs |
//! | [`NativeSnapshotter`] | a full copy | nothing |
//! | [`AufsSnapshotter`] | a directory, stacked by aufs | a kernel with aufs |
//!
//! Layers come from people nobody trusts. [`TarApplier`] resolves every path
//! beneath a directory held open, changes only files it holds open, limits
//! every length, and refuses what readers in use disagree about.
//!
//! A commit returns before its files are on the disk. One flush makes all
//! layers of an image survive a power cut, seconds later or in
//! [`Snapshotter::settle`]; what a cut finds unsettled is told apart at the
//! next start, dropped, and can be made again ([`SyncMode`]).
//!
//! The crate neither fetches nor stores layers, attaches no mounts except to
//! look into them, and knows nothing of images or namespaces. Everything
//! blocks: callers with a runtime bring their own threads.
//!
//! ```no_run
//! use crated_snapshot::{
//!     Applier, ApplyOptions, CommitOptions, Key, Labels, Name, OverlayOptions,
//!     OverlaySnapshotter, Snapshotter, TarApplier,
//! };
//!
//! let root = "/var/lib/example/overlay".into();
//! let snapshots = OverlaySnapshotter::open(OverlayOptions { root, ..Default::default() })?;
//! let key = Key::new("unpacking")?;
//! let mounts = snapshots.prepare(&key, None, &Labels::new())?;
//! let mut layer: &[u8] = &[0; 1024];
//! let applied = TarApplier::default().apply(&mut layer, &mounts, &ApplyOptions::default())?;
//! snapshots.commit(&Name::new(applied.diff_id)?, &key, &CommitOptions::default())?;
//! # Ok::<(), crated_snapshot::Error>(())
//! ```
//!
//! # Features
//!
//! - `testsuite`: the promises of the traits as functions, for implementors.
//! - `isal`: gzip is decoded by ISA-L, which has to be installed, in two thirds of the time.

#[cfg(not(target_os = "linux"))]
compile_error!("crated-snapshot keeps Linux filesystems, on Linux");

pub use crated_mount::Mount;

pub use crate::aufs::AufsSnapshotter;
pub use crate::btrfs::BtrfsSnapshotter;
pub use crate::diff::{
    Applied, Applier, ApplyOptions, Assumed, Compression, DiffOptions, Diffed, Differ, Encoder,
    RATIO_FREE_BYTES, SNIFF_BYTES, TarApplier, Target, WalkingDiffer, Whiteouts,
    ZSTD_WINDOW_LOG_MAX, apply_tar, chain_id,
};
pub use crate::erofs::{ErofsOptions, ErofsSnapshotter, write_erofs};
pub use crate::error::{DatabaseError, Error, Result};
pub use crate::metastore::{MetaStore, Snapshot, SyncMode};
pub use crate::native::NativeSnapshotter;
pub use crate::overlay::{
    GID_MAPPING_LABEL, OverlayOptions, OverlaySnapshotter, UID_MAPPING_LABEL, UPPERDIR_LABEL,
};
pub use crate::quota::QUOTA_LABEL;
pub use crate::snapshotter::{
    CommitOptions, Info, KEY_LENGTH_MAX, Key, Kind, LabelUpdate, Labels, Name, Snapshotter, Usage,
};

pub use crate::tree::remove_tree;

mod aufs;
mod btrfs;
mod copy;
mod diff;
mod directories;
mod erofs;
mod error;
#[cfg(feature = "isal")]
mod isal;
mod metastore;
mod native;
mod overlay;
mod quota;
mod settler;
mod shelf;
mod snapshotter;
mod sys;
mod tar;
#[cfg(feature = "testsuite")]
pub mod testsuite;
mod tree;
mod usage;
