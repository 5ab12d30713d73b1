//! What the kernel says of this process.

use std::fs;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The process, under the names that Prometheus' own libraries use.
#[derive(Debug, Default)]
pub(super) struct Process {
    memory_bytes: Gauge,
    descriptors: Gauge,
    threads: Gauge,
    started: Gauge<f64, AtomicU64>,
}

impl Process {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        let memory = "Resident memory in bytes";
        registry.register("process_resident_memory_bytes", memory, this.memory_bytes.clone());
        registry.register("process_open_fds", "Open descriptors", this.descriptors.clone());
        registry.register("process_threads", "Threads", this.threads.clone());
        let started = "Start of the process, in seconds since 1970";
        registry.register("process_start_time_seconds", started, this.started.clone());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        this.started.set(now.as_secs_f64());
        this
    }

    pub(super) fn sample(&self) {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<i64>().ok()
        };
        if let Some(kibibytes) = field("VmRSS:") {
            self.memory_bytes.set(kibibytes << 10);
        }
        if let Some(threads) = field("Threads:") {
            self.threads.set(threads);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            self.descriptors.set(i64::try_from(entries.count()).unwrap_or(i64::MAX));
        }
    }
}
