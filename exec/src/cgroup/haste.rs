//! The wait before the first move of a process into a cgroup, taken early.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use super::Cgroup;

/// Makes moves into cgroups quick for a moment.
///
/// After a pause the kernel lets the first move of any process into any cgroup wait for an RCU
/// grace period, 8 to 18 ms; moves that follow at once take 0.1 ms. Whoever knows that a
/// container is about to be created says so with [`Haste::expect`]. A thread then moves this
/// process to where it is already, which changes nothing but takes that wait, beside the work
/// that comes before the container's own move.
///
/// Without cgroups to write to nothing happens: this saves time and is no condition of anything.
#[derive(Clone, Debug, Default)]
pub struct Haste {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    running: bool,
}

impl Haste {
    /// Expects nothing yet; no thread runs until something is.
    pub fn new() -> Self {
        Haste::default()
    }

    /// Says that a process will be moved soon. Returns at once; may be called often.
    pub fn expect(&self) {
        let mut state = self.shared.lock();
        state.until = Some(Instant::now() + WINDOW);
        if state.running {
            self.shared.changed.notify_one();
            return;
        }
        let Some(procs) = own_procs() else { return };
        let shared = Arc::downgrade(&self.shared);
        let thread = std::thread::Builder::new().name("cgroup-haste".into()).stack_size(STACK);
        state.running = thread.spawn(move || keep_ready(&shared, &procs)).is_ok();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a move is expected; false when none has been for long.
    fn wait(&self) -> bool {
        let expected = |state: &State| state.until.is_some_and(|until| until > Instant::now());
        let mut state = self.lock();
        if expected(&state) {
            let paused = self.changed.wait_timeout(state, PAUSE);
            drop(paused);
            return true;
        }
        let waited = self.changed.wait_timeout(state, IDLE);
        state = waited.map_or_else(|e| e.into_inner().0, |(state, _)| state);
        if !expected(&state) {
            state.running = false;
        }
        state.running
    }
}

/// Runs until nothing has been expected for a while, or nobody can expect anything any more.
fn keep_ready(shared: &Weak<Shared>, procs: &Path) {
    let own = std::process::id().to_string();
    while let Some(shared) = shared.upgrade() {
        let moved = fs::OpenOptions::new().write(true).open(procs);
        // A cgroup that does not take its own process takes none of this from anyone.
        let _ = moved.and_then(|mut procs| procs.write_all(own.as_bytes()));
        if !shared.wait() {
            return;
        }
    }
}

/// Where this process would be moved to if it were not there.
fn own_procs() -> Option<PathBuf> {
    let cgroup = Cgroup::of(std::process::id()).ok()?;
    Some(cgroup.folder().ok()?.join("cgroup.procs"))
}

/// How long moves stay quick after they were expected: from the preparation of a root file
/// system to the runtime's move it is 20 to 60 ms.
const WINDOW: Duration = Duration::from_millis(60);

/// The kernel forgets within a grace period, two or three of its ticks.
const PAUSE: Duration = Duration::from_millis(4);

/// How long the thread outlives the last expectation.
const IDLE: Duration = Duration::from_secs(1);

/// It opens a file and writes a number.
const STACK: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expecting_moves_nobody_and_ends_by_itself() {
        let before = fs::read_to_string("/proc/self/cgroup").unwrap();
        let haste = Haste::new();
        for _ in 0..100 {
            haste.expect();
        }
        let shared = Arc::downgrade(&haste.shared);
        assert_eq!(fs::read_to_string("/proc/self/cgroup").unwrap(), before);
        drop(haste);
        let until = Instant::now() + Duration::from_secs(60);
        while shared.strong_count() > 0 {
            assert!(Instant::now() < until, "the thread outlives its owner");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
