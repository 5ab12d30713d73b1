//! Syncs of a growing ingest, beside its writer: what a power cut takes is bounded, and the writer
//! never waits for the disk.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// At most one sync at a time, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Syncing {
    running: Option<JoinHandle<io::Result<()>>>,
    has_finished: bool,
    began: Instant,
    /// The offset from which on the next is worth while.
    next: u64,
}

impl Syncing {
    pub(crate) fn new() -> Self {
        let began = Instant::now();
        Self { running: None, has_finished: false, began, next: INTERVAL_SIZE_BYTES }
    }

    /// Whether the next sync should start now that the ingest has come to `offset`. Fails when the
    /// last one did: the kernel tells of a lost page once, so this must not go unheard.
    pub(crate) fn is_due(&mut self, offset: u64) -> io::Result<bool> {
        if self.running.as_ref().is_some_and(JoinHandle::is_finished) {
            self.finish()?;
        }
        let due = self.running.is_none() && offset >= self.next && self.began.elapsed() >= INTERVAL;
        if due {
            self.began = Instant::now();
            self.next = offset + INTERVAL_SIZE_BYTES;
        }
        Ok(due)
    }

    /// Whether one has ever succeeded.
    pub(crate) fn has_finished(&self) -> bool {
        self.has_finished
    }

    /// Runs `sync` beside; not at all where no thread can be had, which costs nothing but more
    /// bytes to fetch again after a power cut.
    pub(crate) fn start(&mut self, sync: impl FnOnce() -> io::Result<()> + Send + 'static) {
        let thread = thread::Builder::new().name("crated-sync".to_owned()).spawn(sync);
        match thread {
            Ok(thread) => self.running = Some(thread),
            Err(error) => tracing::debug!(%error, "no thread to sync beside"),
        }
    }

    /// Waits for the one that runs.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let Some(thread) = self.running.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the syncing thread panicked")))?;
        self.has_finished = true;
        Ok(())
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        // It holds the store, which is to be free when its last writer is gone.
        if let Err(error) = self.finish() {
            tracing::warn!(%error, "an unfinished ingest could not be synced");
        }
    }
}

/// What a power cut takes at most of an ingest that grows slowly.
const INTERVAL_SIZE_BYTES: u64 = 64 * 1024 * 1024;

/// What a power cut takes at most of one that grows quickly: a disk that is always syncing writes
/// at half its speed.
const INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// One whose last sync began long ago.
    fn rested() -> Syncing {
        let mut syncing = Syncing::new();
        let long_ago = Instant::now().checked_sub(INTERVAL);
        syncing.began = long_ago.expect("the machine runs for a second");
        syncing
    }

    #[test]
    fn a_sync_is_due_after_both_bytes_and_time() {
        let mut syncing = rested();
        assert!(!syncing.is_due(INTERVAL_SIZE_BYTES - 1).unwrap());
        assert!(syncing.is_due(INTERVAL_SIZE_BYTES).unwrap());
        syncing.began = Instant::now() + INTERVAL;
        assert!(!syncing.is_due(4 * INTERVAL_SIZE_BYTES).unwrap(), "too soon after the last");
    }

    #[test]
    fn one_sync_runs_at_a_time_and_its_failure_is_heard() {
        let mut syncing = rested();
        assert!(syncing.is_due(INTERVAL_SIZE_BYTES).unwrap());
        let (release, released) = channel::<()>();
        syncing.start(move || {
            let _ = released.recv();
            Err(io::Error::from_raw_os_error(libc::EIO))
        });
        syncing.began = rested().began;
        assert!(!syncing.is_due(9 * INTERVAL_SIZE_BYTES).unwrap(), "one is running");
        drop(release);
        assert_eq!(syncing.finish().unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(!syncing.has_finished());
        syncing.start(|| Ok(()));
        syncing.finish().unwrap();
        assert!(syncing.has_finished());
    }
}
