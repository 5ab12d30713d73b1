//! What the daemon does in several steps: composed of the primitives' traits, without naming any
//! implementor.
//!
//! ```text
//!  registry ─ Fetcher ─► bytes ─ Writer ─► content
//!                          │                 │ Provider, for what was there
//!                          ▼                 ▼
//!                        inflate ─ Applier ─► active snapshot ─ commit ─► chain of snapshots
//! ```
//!
//! [`pull`] walks an image from its root, stores every document and layer, and unpacks the chosen
//! manifests. [`fetch`] brings one blob into the store, from the offset an earlier attempt
//! reached; `arrive` carries its bytes, to the store and at once to whoever unpacks them.
//! [`import`] takes an archive apart; [`stored`] makes what is there a source like a registry.
//! [`unpack`] turns one layer into a snapshot, `chain` the layers of an image into a chain.
//! [`flight`] sees to it that nothing is done twice at the same time.
//!
//! # Promises
//!
//! - An image name appears after everything it needs is stored, verified and unpacked.
//! - A layer's snapshot is committed only when the bytes, their uncompressed form and the chain
//!   are what the configuration names; a failed one is removed.
//! - What was verified stays for the next attempt, under the lease of the call.
//! - Two pulls that need the same blob, or the same layer in one snapshotter and namespace, fetch
//!   and unpack it once.

pub mod counters;
pub mod fetch;
pub mod flight;
pub mod import;
pub mod pull;
pub mod stored;
pub mod unpack;

mod arrive;
mod chain;
mod error;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crated_distribution::{Limits, Quota};
use tokio::sync::Semaphore;

pub use error::{Error, Result};

use self::counters::Counters;
use self::flight::Flights;
use crate::metrics::Metrics;

/// Blobs that arrive side by side, of all pulls: enough for the slowest registry, and a bound on
/// connections and memory.
const FETCHING_MAX: usize = 8;

/// Layers unpacked side by side, of all pulls: each keeps about two cores busy and some 8 MiB.
const UNPACKING_MIN: usize = 2;
const UNPACKING_MAX: usize = 6;

/// What all pulls of a daemon have in common.
#[derive(Debug)]
pub struct Shared {
    /// What was done so far.
    pub counters: Counters,
    /// How long the stages took.
    metrics: Arc<Metrics>,
    /// Blobs on their way, by digest.
    fetches: Flights,
    /// Layers being unpacked, by namespace, snapshotter and chain.
    applies: Flights,
    fetching: Arc<Semaphore>,
    unpacking: Arc<Semaphore>,
    quota: Quota,
}

impl Shared {
    /// Nothing done yet. What will be done shows in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let cores = std::thread::available_parallelism().map_or(UNPACKING_MIN, usize::from);
        let unpacking = cores.clamp(UNPACKING_MIN, UNPACKING_MAX);
        let counters = Counters::default();
        counters.register(&metrics);
        Self {
            counters,
            metrics,
            fetches: Flights::default(),
            applies: Flights::default(),
            fetching: Arc::new(Semaphore::new(FETCHING_MAX)),
            unpacking: Arc::new(Semaphore::new(unpacking)),
            quota: Quota::new(&Limits::default()),
        }
    }

    /// Connections and memory that all resolvers share.
    pub fn quota(&self) -> Quota {
        self.quota.clone()
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

/// A name that no other call has, now or after a restart.
fn unique(purpose: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{purpose}-{nanos}-{}-{number}", std::process::id())
}
