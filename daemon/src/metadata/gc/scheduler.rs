//! When to collect.
//!
//! Clients prepare a snapshot and create the container that refers to it in a second call, without
//! a lease. What keeps the snapshot alive in between is that collections are rare: they are
//! triggered by deletions and by many changes, paced by how long they take, and never follow a
//! mere creation at once. The rules here are those clients were written against.

use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Collector, Report};
use crate::metadata::batch::lock;
use crate::metadata::{Error, Result};

/// When to collect.
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

/// Runs collections on a thread of its own. Dropping it ends the thread after the run under way.
pub struct Scheduler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// The outcome of a run, as told to those who waited for it.
type Outcome = Result<Arc<Report>, String>;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    mutations: u64,
    deletions: u64,
    waiters: Vec<mpsc::Sender<Outcome>>,
    /// When what a run spared is no longer fresh, and counts like a deletion.
    revisit: Option<Instant>,
    runs: u64,
    stopped: bool,
}

impl Scheduler {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system has no thread to give.
    pub fn start(collector: Collector, config: Config) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let observed = shared.clone();
        collector.db().observe(move |dirty| observed.note(dirty));
        let pace = Pace::new(config);
        let running = shared.clone();
        let thread = std::thread::Builder::new()
            .name("gc".to_owned())
            .spawn(move || running.run(&collector, pace))
            .map_err(|source| Error::Io { op: "starting thread", path: "gc".into(), source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Collects, and returns when a run that began after this call, cleanup of the stores
    /// included, is over. Callers that come together share a run. Blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Collection`] when the run failed or the scheduler stops.
    pub fn collect_and_wait(&self) -> Result<Arc<Report>> {
        let (sender, outcome) = mpsc::channel();
        {
            let mut state = lock(&self.shared.state);
            if state.stopped {
                return Err(stopping());
            }
            state.waiters.push(sender);
        }
        self.shared.changed.notify_all();
        match outcome.recv() {
            Ok(Ok(report)) => Ok(report),
            Ok(Err(reason)) => Err(Error::Collection { reason }),
            Err(mpsc::RecvError) => Err(stopping()),
        }
    }

    /// Runs since the start, failed ones included.
    pub fn runs(&self) -> u64 {
        lock(&self.shared.state).runs
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        lock(&self.shared.state).stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("garbage collector thread panicked");
        }
    }
}

impl Shared {
    /// Counts one committed change.
    fn note(&self, dirty: bool) {
        let mut state = lock(&self.state);
        state.mutations += 1;
        state.deletions += u64::from(dirty);
        // A plain change alone never starts a run; waking the thread for it would be waste.
        if dirty {
            self.changed.notify_all();
        }
    }

    fn run(&self, collector: &Collector, mut pace: Pace) {
        loop {
            let Some(waiters) = self.wait(&mut pace) else { return };
            // Someone who waits wants everything gone that is not referred to.
            let spare = waiters.is_empty().then_some(SPARE);
            let outcome = collector.collect(spare);
            match &outcome {
                Ok(report) => {
                    pace.succeeded(report.elapsed);
                    if report.spared > 0 {
                        lock(&self.state).revisit.get_or_insert(Instant::now() + SPARE);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "garbage collection failed");
                    pace.failed();
                }
            }
            lock(&self.state).runs += 1;
            let outcome = outcome.map(Arc::new).map_err(|error| error.to_string());
            for waiter in waiters {
                // One who no longer waits does not mind.
                let _ = waiter.send(outcome.clone());
            }
        }
    }

    /// Waits until a run is to begin and takes those who wait for it; `None` when it is over.
    fn wait(&self, pace: &mut Pace) -> Option<Vec<mpsc::Sender<Outcome>>> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                state.waiters.clear();
                return None;
            }
            let now = Instant::now();
            if state.revisit.take_if(|at| *at <= now).is_some() {
                state.deletions += 1;
            }
            match pace.decide(now, &state) {
                Decision::Run => {
                    (state.mutations, state.deletions) = (0, 0);
                    return Some(std::mem::take(&mut state.waiters));
                }
                Decision::Wait(until) => {
                    let until = state.revisit.map_or(until, |at| until.min(at));
                    state = self
                        .changed
                        .wait_timeout(state, until.saturating_duration_since(now))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        }
    }
}

/// What to do now.
#[derive(Debug, PartialEq)]
enum Decision {
    Run,
    Wait(Instant),
}

/// When the next run is due.
#[derive(Debug)]
struct Pace {
    config: Config,
    due: Instant,
    interval: Duration,
    /// No run has ended yet: the first is unconditional.
    first: bool,
    spent: Duration,
    runs: u32,
}

impl Pace {
    fn new(config: Config) -> Self {
        let due = Instant::now() + config.startup_delay;
        let interval = Duration::from_secs(1);
        Self { config, due, interval, first: true, spent: Duration::ZERO, runs: 0 }
    }

    fn decide(&mut self, now: Instant, state: &State) -> Decision {
        let asked = !state.waiters.is_empty();
        let many =
            self.config.deletion_threshold > 0 && state.deletions >= self.config.deletion_threshold;
        if asked || many {
            self.due = self.due.min(now + self.config.schedule_delay);
        }
        if now < self.due {
            return Decision::Wait(self.due);
        }
        let worthwhile = asked
            || self.first
            || state.deletions > 0
            || self.config.mutation_threshold > 0
                && state.mutations >= self.config.mutation_threshold;
        if worthwhile {
            return Decision::Run;
        }
        self.due = now + self.interval;
        Decision::Wait(self.due)
    }

    fn succeeded(&mut self, elapsed: Duration) {
        self.first = false;
        self.spent += elapsed;
        self.runs += 1;
        let threshold = self.config.pause_threshold.min(PAUSE_THRESHOLD_MAX);
        if threshold > 0.0 {
            let average = (self.spent / self.runs).max(COLLECTION_MIN);
            self.interval = average.div_f64(threshold) - average;
        }
        self.due = Instant::now() + self.interval;
    }

    fn failed(&mut self) {
        self.first = false;
        self.due = Instant::now() + self.interval + Duration::from_secs(1);
    }
}

fn stopping() -> Error {
    Error::Collection { reason: "the daemon is stopping".to_owned() }
}

/// A larger share than half would make collecting the daemon's main work.
const PAUSE_THRESHOLD_MAX: f64 = 0.5;

/// The time a run is taken to need at least; runs on small databases would follow each other
/// without pause otherwise.
const COLLECTION_MIN: Duration = Duration::from_millis(5);

/// Age up to which runs that nobody asked for leave blobs and active snapshots alone: longer than
/// any client takes from storing one to referring to it.
const SPARE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(config: Config) -> Pace {
        let mut pace = Pace::new(Config { startup_delay: Duration::ZERO, ..config });
        pace.succeeded(Duration::ZERO);
        pace
    }

    fn counted(mutations: u64, deletions: u64) -> State {
        State { mutations, deletions, ..State::default() }
    }

    #[test]
    fn the_first_run_is_unconditional_and_later_ones_need_a_reason() {
        let mut pace = Pace::new(Config::default());
        let start = pace.due;
        assert_eq!(pace.decide(start, &State::default()), Decision::Run);
        pace.succeeded(Duration::ZERO);
        let due = pace.due;
        assert!(matches!(pace.decide(due, &counted(99, 0)), Decision::Wait(_)));
        let due = pace.due;
        assert_eq!(pace.decide(due, &counted(100, 0)), Decision::Run);
        assert_eq!(pace.decide(due, &counted(1, 1)), Decision::Run);
    }

    #[test]
    fn short_runs_are_a_quarter_second_apart() {
        let pace = pace(Config::default());
        assert_eq!(pace.interval, Duration::from_millis(245));
    }

    #[test]
    fn long_runs_are_further_apart_in_proportion() {
        let mut pace = Pace::new(Config::default());
        pace.succeeded(Duration::from_millis(100));
        assert_eq!(pace.interval, Duration::from_millis(4900));
        let mut pace = Pace::new(Config { pause_threshold: 0.9, ..Config::default() });
        pace.succeeded(Duration::from_millis(100));
        assert_eq!(pace.interval, Duration::from_millis(100));
        let mut pace = Pace::new(Config { pause_threshold: -1.0, ..Config::default() });
        pace.succeeded(Duration::from_millis(100));
        assert_eq!(pace.interval, Duration::from_secs(1));
    }

    #[test]
    fn deletions_do_not_hurry_a_run_unless_configured() {
        let mut lazy = pace(Config::default());
        let before = lazy.due - Duration::from_millis(200);
        assert_eq!(lazy.decide(before, &counted(5, 5)), Decision::Wait(lazy.due));
        let mut eager = pace(Config { deletion_threshold: 5, ..Config::default() });
        let before = eager.due - Duration::from_millis(200);
        assert_eq!(eager.decide(before, &counted(5, 5)), Decision::Run);
    }

    #[test]
    fn those_who_wait_are_served_after_the_delay() {
        let config = Config { schedule_delay: Duration::from_millis(50), ..Config::default() };
        let mut pace = pace(config);
        let now = pace.due - Duration::from_millis(200);
        let state = State { waiters: vec![mpsc::channel().0], ..State::default() };
        let due = now + Duration::from_millis(50);
        assert_eq!(pace.decide(now, &state), Decision::Wait(due));
        assert_eq!(pace.decide(due, &state), Decision::Run);
    }

    #[test]
    fn a_failure_costs_one_more_second() {
        let mut pace = pace(Config::default());
        let before = Instant::now();
        pace.failed();
        assert!(pace.due >= before + pace.interval + Duration::from_secs(1));
        let due = pace.due;
        assert!(matches!(pace.decide(due, &State::default()), Decision::Wait(_)));
    }
}
