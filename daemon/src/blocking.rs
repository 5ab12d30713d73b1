//! The one bridge from async services to blocking primitives.
//!
//! Storage, mounts and the metadata database block. Their calls run on tokio's blocking threads,
//! in one of two lanes, so that neither kind of work can starve the other:
//!
//! - [`quick`](Blocking::quick): records and small files. Many at a time.
//! - [`bulk`](Blocking::bulk): layers and blobs, work that moves bytes for as long as it takes.
//!   As many at a time as keep the disks busy.
//!
//! A lane is full when its permits are out; the next caller waits without holding a thread. A
//! permit is held only while the work runs, never while a client is waited for, and work that has
//! begun runs to its end even if the caller goes away: nothing is left half done.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task;
use tracing::Span;

/// Blocking threads the runtime must offer: both lanes, and some for whoever waits on a proxy or
/// looks at the daemon.
pub const THREADS_MAX: usize = QUICK_MAX + BULK_MAX + 64;

/// Calls at a time in the quick lane: a collection of garbage may hold up every writer at once,
/// and readers must still get through.
const QUICK_MAX: usize = 384;

/// Calls at a time in the bulk lane: enough to hide waiting for the disk on any machine.
const BULK_MAX: usize = 64;

/// Runs blocking work beside the async services. Clones share the lanes.
#[derive(Clone, Debug)]
pub struct Blocking {
    quick: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
}

/// The work panicked. The panic has been reported on standard error; what the work guarded with
/// locks or transactions is as if it had not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("internal: blocking work panicked")]
#[non_exhaustive]
pub struct Panicked;

impl Blocking {
    /// Two empty lanes.
    pub fn new() -> Self {
        Self {
            quick: Arc::new(Semaphore::new(QUICK_MAX)),
            bulk: Arc::new(Semaphore::new(BULK_MAX)),
        }
    }

    /// Runs work on records and small files.
    ///
    /// # Errors
    ///
    /// [`Panicked`].
    pub async fn quick<T, F>(&self, work: F) -> Result<T, Panicked>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        run(&self.quick, work).await
    }

    /// Runs work that moves bytes.
    ///
    /// # Errors
    ///
    /// [`Panicked`].
    pub async fn bulk<T, F>(&self, work: F) -> Result<T, Panicked>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        run(&self.bulk, work).await
    }
}

impl Blocking {
    /// Runs short work that looks at the daemon, and so must not wait behind what it looks at: in
    /// no lane, on a thread kept free for it.
    ///
    /// # Errors
    ///
    /// [`Panicked`].
    pub async fn apart<T, F>(&self, work: F) -> Result<T, Panicked>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        task::spawn_blocking(work).await.map_err(|_| Panicked)
    }
}

impl Default for Blocking {
    fn default() -> Self {
        Self::new()
    }
}

async fn run<T, F>(lane: &Arc<Semaphore>, work: F) -> Result<T, Panicked>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let permit = Arc::clone(lane).acquire_owned().await.expect("lanes are never closed");
    let span = Span::current();
    let work = move || {
        // Held by the work, not by the caller: a caller that gives up must not let another in
        // while the thread is still busy.
        let _permit = permit;
        span.in_scope(work)
    };
    task::spawn_blocking(work).await.map_err(|_| Panicked)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_full_bulk_lane_leaves_the_quick_lane_free() {
        let blocking = Blocking::new();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(std::sync::Mutex::new(gate));
        let mut held = Vec::new();
        for _ in 0..BULK_MAX {
            let (blocking, gate) = (blocking.clone(), Arc::clone(&gate));
            held.push(tokio::spawn(async move {
                blocking.bulk(move || gate.lock().unwrap().recv().is_err()).await
            }));
        }

        assert_eq!(blocking.quick(|| 1).await, Ok(1));
        drop(release);
        for work in held {
            work.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_that_call_only() {
        let blocking = Blocking::new();
        assert_eq!(blocking.quick(|| panic!("on purpose")).await, Err::<(), _>(Panicked));
        assert_eq!(blocking.quick(|| 2).await, Ok(2));
    }
}
