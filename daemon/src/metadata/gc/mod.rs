//! Garbage collection: what nothing refers to is removed, first from the records, then from the
//! stores below.

use std::collections::BTreeSet;
use std::time::Duration;

use crated_content::Digest;

use super::Namespace;

pub use self::scheduler::{Config, Scheduler};

mod scheduler;

/// An object of one namespace, as the collector sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Node {
    /// A blob.
    Content(Digest),
    /// A snapshot.
    Snapshot {
        /// The snapshotter that keeps it.
        snapshotter: String,
        /// Its key or name.
        key: String,
    },
    /// An image.
    Image(String),
    /// A container.
    Container(String),
    /// A sandbox.
    Sandbox(String),
    /// A lease.
    Lease(String),
    /// A blob on its way in, by the client's reference.
    Ingest(String),
}

/// Which stores may hold something nobody knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Dirty {
    pub(super) content: bool,
    pub(super) snapshotters: BTreeSet<String>,
}

/// What one collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Records removed.
    pub removed: Vec<(Namespace, Node)>,
    /// Blobs and ingests removed from the content store.
    pub blobs_removed: usize,
    /// Snapshots removed from snapshotters.
    pub snapshots_removed: usize,
    /// How long it took, cleanup of the stores included.
    pub elapsed: Duration,
    /// How long writers had to wait for it.
    pub pause: Duration,
}
