//! Garbage collection: what nothing refers to is removed, first from the records, then from the
//! stores below.
//!
//! # How a collection goes
//!
//! 1. *Mark.* A view of the database is taken, and each namespace's objects and references are
//!    read from it and followed from the roots. Writers go on; every object they create or change
//!    from here on is noted down.
//! 2. *Sweep.* What was not marked is removed, unless one of the noted objects leads to it: in
//!    many small transactions, between which writers go on, and what refers before what it refers
//!    to. Whatever is still there is complete. Only these transactions make writers wait.
//! 3. *Clean up.* Where objects were removed, by this or by clients, the stores below are walked
//!    for what no record names. Each such object is taken alone, looked up again, and removed;
//!    objects that a running call holds are left for the next time. Snapshots go children first.
//!
//! A collection never removes anything that was reachable at its start, nor anything that became
//! reachable while it ran.
//!
//! # What is a root, and what refers to what
//!
//! Roots are leases and images that have not expired, containers, ingests within their time,
//! content and snapshots labelled `containerd.io/gc.root…`, and what sandboxes name. Images refer
//! to their target, containers to their snapshot, snapshots to their parent, shared ingests to
//! their blob, leases to their resources, and everything to what its labels name ([`labels`]). A
//! lease labelled `containerd.io/gc.flat` holds its resources without what their labels name.

use std::collections::BTreeSet;
use std::time::Duration;

use crated_content::Digest;

use super::Namespace;

pub use self::collector::Collector;
pub use self::scheduler::{Config, Scheduler};

mod cleanup;
mod collector;
mod graph;
pub mod labels;
mod mark;
mod scheduler;
mod sweep;
mod time;

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
    /// A network namespace.
    Netns(String),
    /// A network link.
    Link {
        /// Id of its network namespace, or `host`.
        netns: String,
        /// Its id there.
        id: String,
    },
}

/// Which stores may hold something nobody knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Dirty {
    pub(super) content: bool,
    pub(super) network: bool,
    pub(super) snapshotters: BTreeSet<String>,
}

/// What one collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Records removed, sorted.
    pub removed: Vec<(Namespace, Node)>,
    /// Blobs and ingests removed from the content store.
    pub blobs_removed: usize,
    /// Snapshots removed from snapshotters.
    pub snapshots_removed: usize,
    /// Networks removed.
    pub networks_removed: usize,
    /// Objects that nothing refers to and that were left because they are fresh.
    pub spared: usize,
    /// How long marking and sweeping took.
    pub elapsed: Duration,
    /// How long the sweep made writers wait.
    pub pause: Duration,
    /// How long the cleanup of the stores below took.
    pub cleanup: Duration,
}

pub use self::labels::LABEL_EXPIRE;
pub(super) use self::labels::LABEL_PREFIX;

#[cfg(test)]
mod tests;
