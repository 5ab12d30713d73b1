//! What the pipeline did since the daemon started, for whoever measures it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts that only grow. Reading them costs nothing and stops nobody.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) blobs_fetched: AtomicU64,
    pub(super) bytes_fetched: AtomicU64,
    pub(super) blobs_found: AtomicU64,
    pub(super) blobs_imported: AtomicU64,
    pub(super) fetches_awaited: AtomicU64,
    pub(super) layers_applied: AtomicU64,
    pub(super) layers_applied_in_one_pass: AtomicU64,
    pub(super) layers_applied_again: AtomicU64,
    pub(super) layers_found: AtomicU64,
    pub(super) applies_awaited: AtomicU64,
    pub(super) failures: AtomicU64,
}

/// All of them at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Blobs and documents that came from a registry and were verified.
    pub blobs_fetched: u64,
    /// Bytes of bodies that came from registries, those of failed fetches included.
    pub bytes_fetched: u64,
    /// Blobs that were asked for and were there.
    pub blobs_found: u64,
    /// Blobs that came in archives.
    pub blobs_imported: u64,
    /// Fetches that waited for the same one of somebody else.
    pub fetches_awaited: u64,
    /// Layers that became snapshots.
    pub layers_applied: u64,
    /// Those of them that were unpacked while their bytes arrived.
    pub layers_applied_in_one_pass: u64,
    /// Layers unpacked a second time, because they meant something else on the layers below.
    pub layers_applied_again: u64,
    /// Layers whose snapshot was there.
    pub layers_found: u64,
    /// Layers that waited for somebody else who was unpacking them.
    pub applies_awaited: u64,
    /// Pulls that failed.
    pub failures: u64,
}

impl Counters {
    /// The counts at this moment.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            blobs_fetched: of(&self.blobs_fetched),
            bytes_fetched: of(&self.bytes_fetched),
            blobs_found: of(&self.blobs_found),
            blobs_imported: of(&self.blobs_imported),
            fetches_awaited: of(&self.fetches_awaited),
            layers_applied: of(&self.layers_applied),
            layers_applied_in_one_pass: of(&self.layers_applied_in_one_pass),
            layers_applied_again: of(&self.layers_applied_again),
            layers_found: of(&self.layers_found),
            applies_awaited: of(&self.applies_awaited),
            failures: of(&self.failures),
        }
    }
}

pub(super) fn count(counter: &AtomicU64) {
    count_by(counter, 1);
}

pub(super) fn count_by(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
