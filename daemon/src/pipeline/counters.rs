//! What the pipeline did since the daemon started, for whoever measures it.

use crate::metrics::{Counter, Metrics};

/// Counts that only grow. Reading them costs nothing and stops nobody.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) blobs_fetched: Counter,
    pub(super) bytes_fetched: Counter,
    pub(super) blobs_found: Counter,
    pub(super) blobs_imported: Counter,
    pub(super) fetches_awaited: Counter,
    pub(super) layers_applied: Counter,
    pub(super) layers_applied_in_one_pass: Counter,
    pub(super) layers_applied_again: Counter,
    pub(super) layers_found: Counter,
    pub(super) applies_awaited: Counter,
    pub(super) failures: Counter,
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
        Counts {
            blobs_fetched: self.blobs_fetched.get(),
            bytes_fetched: self.bytes_fetched.get(),
            blobs_found: self.blobs_found.get(),
            blobs_imported: self.blobs_imported.get(),
            fetches_awaited: self.fetches_awaited.get(),
            layers_applied: self.layers_applied.get(),
            layers_applied_in_one_pass: self.layers_applied_in_one_pass.get(),
            layers_applied_again: self.layers_applied_again.get(),
            layers_found: self.layers_found.get(),
            applies_awaited: self.applies_awaited.get(),
            failures: self.failures.get(),
        }
    }

    /// Shows them among the metrics of the daemon.
    pub(super) fn register(&self, metrics: &Metrics) {
        for (name, help, counter) in [
            (
                "blobs_fetched",
                "Blobs that came from registries and were verified",
                &self.blobs_fetched,
            ),
            ("bytes_fetched", "Bytes of bodies that came from registries", &self.bytes_fetched),
            ("blobs_found", "Blobs that were asked for and were there", &self.blobs_found),
            ("blobs_imported", "Blobs that came in archives", &self.blobs_imported),
            (
                "fetches_awaited",
                "Fetches that waited for the same of another pull",
                &self.fetches_awaited,
            ),
            ("layers_applied", "Layers that became snapshots", &self.layers_applied),
            (
                "layers_applied_in_one_pass",
                "Layers unpacked as they arrived",
                &self.layers_applied_in_one_pass,
            ),
            ("layers_applied_again", "Layers unpacked a second time", &self.layers_applied_again),
            ("layers_found", "Layers whose snapshot was there", &self.layers_found),
            (
                "applies_awaited",
                "Layers that waited for another pull to unpack them",
                &self.applies_awaited,
            ),
            ("failures", "Pulls that failed", &self.failures),
        ] {
            metrics.register(&format!("crated_pull_{name}"), help, counter.clone());
        }
    }
}

pub(super) fn count(counter: &Counter) {
    count_by(counter, 1);
}

pub(super) fn count_by(counter: &Counter, by: u64) {
    counter.inc_by(by);
}
