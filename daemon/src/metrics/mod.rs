//! What operators measure: counters and histograms of one daemon, read over HTTP in the text form
//! that Prometheus scrapes.
//!
//! ```text
//!  gRPC calls ── CallLayer ──┐
//!  pulls ────── stage() ─────┤
//!  ingests, collections ─────┼──► Metrics ── encode() ──► /v1/metrics, debug dump
//!  other parts ─ register() ─┤
//!  /proc, records, shims ────┘ (looked at when asked)
//! ```
//!
//! Names that containerd exports keep their meaning; what is crated's own starts with `crated_`.
//! Label values are names out of this program or of namespaces, never what an image or a registry
//! said.

pub mod calls;
mod process;
pub mod server;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Metric, Registry};

pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;

use self::calls::Calls;
use self::process::Process;
use crate::metadata::gc::Report;
use crate::services::version::{REVISION, VERSION};

/// Histograms with one set of labels each.
pub type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// All metrics of one daemon.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Calls over gRPC.
    pub calls: Calls,
    /// Bytes taken into the content store.
    pub ingest_bytes: Counter,
    stages: Histograms<Stage>,
    collections: Family<Outcome, Counter>,
    collection_seconds: Histogram,
    pause_seconds: Histogram,
    removed: Family<Kind, Counter>,
    containers: Family<InNamespace, Gauge>,
    shims: Family<InNamespace, Gauge>,
    process: Process,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InNamespace {
    namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
    revision: &'static str,
}

impl Metrics {
    /// Metrics that all stand at zero. With `per_method`, call durations are kept by method too.
    pub fn new(per_method: bool) -> Self {
        let mut registry = Registry::default();
        let build = Family::<Build, Counter>::default();
        build.get_or_create(&Build { version: VERSION, revision: REVISION }).inc();
        registry.register("containerd_build_info", "What runs", build);
        let this = Self {
            calls: Calls::register(&mut registry, per_method),
            process: Process::register(&mut registry),
            registry: Mutex::new(registry),
            ingest_bytes: Counter::default(),
            stages: Family::new_with_constructor(seconds),
            collections: Family::default(),
            collection_seconds: seconds(),
            pause_seconds: seconds(),
            removed: Family::default(),
            containers: Family::default(),
            shims: Family::default(),
        };
        let gc = "Collections of garbage by how they ended";
        this.register("containerd_gc_collections", gc, this.collections.clone());
        let gc = "How long collections took, cleanup of the stores included";
        this.register("containerd_gc_gc_seconds", gc, this.collection_seconds.clone());
        let pause = "How long collections made writers of records wait";
        this.register("crated_gc_pause_seconds", pause, this.pause_seconds.clone());
        let removed = "Objects that collections removed";
        this.register("crated_gc_removed", removed, this.removed.clone());
        let ingest = "Bytes taken into the content store";
        this.register("crated_ingest_bytes", ingest, this.ingest_bytes.clone());
        let stages = "How long the stages of pulls took";
        this.register("crated_pull_stage_seconds", stages, this.stages.clone());
        this.register("crated_containers", "Records of containers", this.containers.clone());
        this.register("crated_shims", "Shims that the daemon is connected to", this.shims.clone());
        this
    }

    /// Adds a metric of another part: a [`Counter`], [`Gauge`], [`Histogram`] or a family of them,
    /// of which the part keeps a clone to count with. `_total` is put behind a counter's name.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry().register(name, help, metric);
    }

    /// Measures a stage of a pull from now until the answer is dropped: `resolve` a name, `fetch` a
    /// blob, `unpack` a layer, `commit` it, `settle` all of them on the disk.
    pub fn stage(&self, stage: &'static str) -> Timer {
        Timer {
            histogram: self.stages.get_or_create_owned(&Stage { stage }),
            since: Instant::now(),
        }
    }

    /// Counts a collection that ended.
    pub fn collected(&self, report: Option<&Report>) {
        let status = if report.is_some() { "success" } else { "fail" };
        self.collections.get_or_create(&Outcome { status }).inc();
        let Some(report) = report else { return };
        self.collection_seconds.observe((report.elapsed + report.cleanup).as_secs_f64());
        self.pause_seconds.observe(report.pause.as_secs_f64());
        let counts = [
            ("record", report.removed.len()),
            ("blob", report.blobs_removed),
            ("snapshot", report.snapshots_removed),
        ];
        for (kind, count) in counts {
            self.removed.get_or_create(&Kind { kind }).inc_by(count as u64);
        }
    }

    /// Sets what is only known by looking: containers and shims by namespace, and the process.
    pub fn sample(&self, containers: &[(String, usize)], shims: &[(String, usize)]) {
        for (family, counts) in [(&self.containers, containers), (&self.shims, shims)] {
            // A namespace without any is left out, as one that never had any is.
            family.clear();
            for (namespace, count) in counts {
                let namespace = InNamespace { namespace: namespace.clone() };
                family.get_or_create(&namespace).set(i64::try_from(*count).unwrap_or(i64::MAX));
            }
        }
        self.process.sample();
    }

    /// All metrics in the text form of OpenMetrics 1.0, which Prometheus reads.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &self.registry());
        text
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(false)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Measures until it is dropped.
#[derive(Debug)]
#[must_use = "what is dropped at once measures nothing"]
pub struct Timer {
    histogram: Histogram,
    since: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.histogram.observe(self.since.elapsed().as_secs_f64());
    }
}

/// A histogram of durations, from a record looked up to a layer unpacked.
pub fn seconds() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
    ])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_counted_is_exported_under_the_known_names() {
        let metrics = Metrics::default();
        metrics.collected(None);
        let report =
            Report { blobs_removed: 3, elapsed: Duration::from_millis(2), ..Report::default() };
        metrics.collected(Some(&report));
        metrics.ingest_bytes.inc_by(7);
        drop(metrics.stage("resolve"));
        let own = Counter::<u64>::default();
        metrics.register("crated_of_another_part", "Counted elsewhere", own.clone());
        own.inc();
        metrics.sample(&[("default".to_owned(), 2)], &[]);
        let text = metrics.encode();
        for line in [
            "containerd_gc_collections_total{status=\"success\"} 1",
            "containerd_gc_collections_total{status=\"fail\"} 1",
            "containerd_gc_gc_seconds_count 1",
            "crated_gc_removed_total{kind=\"blob\"} 3",
            "crated_ingest_bytes_total 7",
            "crated_pull_stage_seconds_count{stage=\"resolve\"} 1",
            "crated_of_another_part_total 1",
            "crated_containers{namespace=\"default\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains("process_open_fds ") && text.ends_with("# EOF\n"), "{text}");
        metrics.sample(&[], &[]);
        assert!(!metrics.encode().contains("crated_containers{"), "gone with the last of them");
    }
}
