//! When to collect.

use std::time::Duration;

use super::Report;
use crate::metadata::{Content, Db, Result, Snapshots};

/// When to collect; the defaults are those clients were tuned against.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Largest share of time spent collecting, at most 0.5; 0 or less means a run per second.
    pub pause_threshold: f64,
    /// Deletions that start a run at once; 0 for never.
    pub deletion_threshold: u64,
    /// Changes after which the next due run takes place; 0 for never.
    pub mutation_threshold: u64,
    /// Delay between the demand for a run and its start.
    pub schedule_delay: Duration,
    /// Delay between the start of the daemon and the first run, which is unconditional.
    pub startup_delay: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pause_threshold: 0.02,
            deletion_threshold: 0,
            mutation_threshold: 100,
            schedule_delay: Duration::ZERO,
            startup_delay: Duration::from_millis(100),
        }
    }
}

/// Runs collections on a thread of its own. Dropping it ends the thread after the current run.
pub struct Scheduler {}
