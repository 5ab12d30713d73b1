//! The thread that settles commits while nobody waits for it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Error, Result};

/// Runs a function some time after it was last asked to, and when dropped.
#[derive(Debug)]
pub(crate) struct Settler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    asked: bool,
    stopping: bool,
}

/// From the first commit of a batch to its flush. Long enough for the layers
/// of an image to share one, short enough that a power cut hardly ever takes
/// an image somebody has begun to rely on.
const BATCH: Duration = Duration::from_secs(2);

impl Settler {
    pub(crate) fn start(settle: impl Fn() -> Result<()> + Send + 'static) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let work = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("snapshot-settle".into())
            .spawn(move || {
                while work.wait() {
                    if let Err(error) = settle() {
                        tracing::warn!(%error, "commits stay unsettled, trying again");
                        work.ask();
                    }
                }
                if let Err(error) = settle() {
                    tracing::warn!(%error, "commits stay unsettled at the end");
                }
            })
            .map_err(|e| Error::io("spawn", "settling thread", e))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has the function run within seconds.
    pub(crate) fn wake(&self) {
        self.shared.ask();
    }
}

impl Shared {
    fn ask(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).asked = true;
        self.changed.notify_one();
    }

    /// Waits for work, and then for more of it; false when it is time to stop.
    fn wait(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |state: &mut State| !state.asked && !state.stopping;
        let state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        let running = |state: &mut State| !state.stopping;
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, BATCH, running)
            .unwrap_or_else(PoisonError::into_inner);
        state.asked = false;
        !state.stopping
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the settling thread panicked");
        }
    }
}
