//! Group commit: blobs that arrive together become durable together.
//!
//! The first caller leads: it syncs the data of every blob waiting, renames them into place, syncs
//! the directory once and wakes the others. Whoever arrives meanwhile waits for the next round,
//! which one of them leads. So a round is as large as the disk is slow, and a lone blob waits for
//! nobody.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::local::dir::Dir;
use crate::local::layout::Layout;
use crate::{Algorithm, Digest};

/// The rounds of one store.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<(u64, Job)>,
    done: HashMap<u64, Result<(), Failure>>,
    led: bool,
    next_ticket: u64,
}

/// One blob to be published.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) digest: Digest,
    pub(crate) source: Source,
    /// The data, unless it has been synced already.
    pub(crate) unsynced: Option<File>,
}

/// Where the data of a blob lies.
#[derive(Debug)]
pub(crate) enum Source {
    /// In the store's directory of temporary files, under this name.
    Temporary(String),
    /// In the directory of its ingest, as `data`.
    Ingest(Arc<Dir>),
}

/// The step that failed. The caller has to treat each differently.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The data could not be synced and must not be trusted any more, whatever a later sync says.
    Sync(Error),
    /// The source is gone.
    Missing,
    /// It could not be put into place, or not durably.
    Publish(Error),
}

impl Rounds {
    /// Publishes one blob; returns once it is durable under its name. The caller holds the digest.
    pub(crate) fn publish(&self, layout: &Layout, job: Job) -> Result<(), Failure> {
        let mut queue = self.lock();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.waiting.push((ticket, job));
        loop {
            if let Some(outcome) = queue.done.remove(&ticket) {
                return outcome;
            }
            if queue.led {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let count = queue.waiting.len().min(ROUND_BLOBS_MAX);
            let batch: Vec<(u64, Job)> = queue.waiting.drain(..count).collect();
            if batch.is_empty() {
                // Neither waiting nor done: it was lost with a leader that panicked.
                let reason = "an earlier commit panicked".to_owned();
                return Err(Failure::Publish(Error::Unavailable { reason }));
            }
            queue.led = true;
            drop(queue);
            let mut lead = Lead { rounds: self, outcomes: Vec::new() };
            lead.outcomes = run(layout, batch);
            drop(lead);
            queue = self.lock();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leadership of one round, given up however the round ends.
struct Lead<'a> {
    rounds: &'a Rounds,
    outcomes: Vec<Outcome>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut queue = self.rounds.lock();
        queue.done.extend(self.outcomes.drain(..));
        queue.led = false;
        self.rounds.changed.notify_all();
    }
}

type Outcome = (u64, Result<(), Failure>);

/// One round. Yields an outcome for every job.
fn run(layout: &Layout, batch: Vec<(u64, Job)>) -> Vec<Outcome> {
    let (synced, mut outcomes) = sync(layout, batch);
    let mut published = Vec::with_capacity(synced.len());
    for (ticket, job) in synced {
        match place(layout, &job) {
            Ok(()) => published.push((ticket, job.digest)),
            Err(failure) => outcomes.push((ticket, Err(failure))),
        }
    }
    for algorithm in Algorithm::ALL {
        let of_this = |(_, digest): &(u64, Digest)| digest.algorithm() == algorithm;
        if !published.iter().any(of_this) {
            continue;
        }
        let result = layout.sync_dir(layout.blobs(algorithm));
        for (ticket, digest) in published.iter().filter(|entry| of_this(entry)) {
            let outcome = match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(take_back(layout, digest, error)),
            };
            outcomes.push((*ticket, outcome));
        }
    }
    outcomes
}

/// Makes the data of each blob durable; those that failed come back as outcomes.
fn sync(layout: &Layout, batch: Vec<(u64, Job)>) -> (Vec<(u64, Job)>, Vec<Outcome>) {
    let unsynced = batch.iter().filter(|(_, job)| job.unsynced.is_some()).count();
    // Should it fail, each file tells for itself below whether it was the one.
    let all = unsynced >= SYNCFS_BLOBS_MIN && layout.sync_filesystem().is_ok();
    let mut synced = Vec::with_capacity(batch.len());
    let mut outcomes = Vec::with_capacity(batch.len());
    for (ticket, job) in batch {
        let result = match &job.unsynced {
            Some(file) if !all => layout.sync_file(file),
            _ => Ok(()),
        };
        match result {
            Ok(()) => synced.push((ticket, job)),
            Err(error) => {
                let dir = layout.blobs(job.digest.algorithm());
                let error = dir.fail("sync data of", job.digest.hex())(error);
                outcomes.push((ticket, Err(Failure::Sync(error))));
            }
        }
    }
    (synced, outcomes)
}

fn place(layout: &Layout, job: &Job) -> Result<(), Failure> {
    let target = layout.blobs(job.digest.algorithm());
    let renamed = match &job.source {
        Source::Temporary(name) => layout.temporary.rename(name, target, job.digest.hex()),
        Source::Ingest(dir) => dir.rename("data", target, job.digest.hex()),
    };
    renamed.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::Missing,
        _ => Failure::Publish(target.fail("publish", job.digest.hex())(error)),
    })
}

/// A blob whose name may not be durable must not be reported as existing to the next writer.
fn take_back(layout: &Layout, digest: &Digest, error: &Error) -> Failure {
    let dir = layout.blobs(digest.algorithm());
    if let Err(error) = dir.remove_file(digest.hex()) {
        tracing::warn!(%digest, %error, "content that is not durable could not be taken back");
    }
    let source = match error {
        Error::Io { source, .. } => match source.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => source.kind().into(),
        },
        _ => io::ErrorKind::Other.into(),
    };
    Failure::Publish(dir.fail("sync directory of", digest.hex())(source))
}

/// From here on one sync of the whole filesystem is cheaper than one per file; below it would
/// needlessly wait for the dirty pages of others.
const SYNCFS_BLOBS_MIN: usize = 16;

/// Bounds how long the first of a round waits for the last.
const ROUND_BLOBS_MAX: usize = 1024;
