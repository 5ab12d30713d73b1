//! Group commit: blobs that arrive together become durable together.
//!
//! A few writers each publish on their own, side by side, and the filesystem's journal joins what
//! they sync. From [`CROWD_MIN`] on that costs more than it brings, so one of them leads a *round*:
//! it writes the small blobs of all who wait, brings their data to the disk in one go, puts them into
//! place, syncs the directory once and wakes the others. Whoever arrives meanwhile waits for the next
//! round, whose leader first lets those come back whom the last round has just set free: a disk
//! that syncs twice for half as many takes twice as long.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::local::dir::Dir;
use crate::local::layout::Layout;
use crate::{Algorithm, Digest};

/// The rounds of one store.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    queue: Mutex<Queue>,
    /// Enough have come for the leader that waits for them.
    gathered: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Entry>,
    /// Somebody leads a round or has been told to.
    led: bool,
    /// How many publish on their own.
    alone: usize,
    /// How many the last round has met: those it published, those who came meanwhile, and those
    /// who were publishing on their own.
    crowd: usize,
    /// How long it took.
    lasted: Duration,
}

#[derive(Debug)]
struct Entry {
    job: Job,
    seat: Arc<Seat>,
}

/// Where one writer waits.
#[derive(Debug, Default)]
struct Seat {
    word: Mutex<Option<Word>>,
    told: Condvar,
}

/// What a waiting writer is told.
#[derive(Debug)]
enum Word {
    /// To lead the next round.
    Lead,
    Done(Result<(), Failure>),
}

/// One blob to be published.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) digest: Digest,
    pub(crate) source: Source,
}

/// Where the data of a blob lies.
#[derive(Debug)]
pub(crate) enum Source {
    /// In memory.
    Bytes(Arc<Vec<u8>>),
    /// In the directory of its ingest, as `data`; with the file, unless it has been synced already.
    Ingest(Arc<Dir>, Option<File>),
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
        let is_crowded = queue.crowd.max(queue.alone + 1) >= CROWD_MIN;
        if !queue.led && !is_crowded {
            queue.alone += 1;
            drop(queue);
            let _alone = Alone(self);
            return publish_all(layout, vec![job]).pop().unwrap_or_else(|| Err(lost()));
        }
        let seat = Arc::new(Seat::default());
        queue.waiting.push(Entry { job, seat: Arc::clone(&seat) });
        if queue.led {
            if queue.waiting.len() >= queue.crowd {
                self.gathered.notify_one();
            }
            drop(queue);
            match seat.wait() {
                Word::Done(outcome) => return outcome,
                Word::Lead => queue = self.lock(),
            }
        }
        queue.led = true;
        self.lead(layout, queue);
        match seat.wait() {
            Word::Done(outcome) => outcome,
            Word::Lead => Err(lost()),
        }
    }

    /// Leads a round of all who wait, the caller among them.
    fn lead(&self, layout: &Layout, mut queue: MutexGuard<'_, Queue>) {
        let until = Instant::now() + (queue.lasted / 2).min(GATHER_MAX);
        while queue.waiting.len() < queue.crowd.min(ROUND_BLOBS_MAX) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.gathered.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let count = queue.waiting.len().min(ROUND_BLOBS_MAX);
        let batch = queue.waiting.drain(..count);
        let (jobs, seats): (Vec<Job>, Vec<Arc<Seat>>) =
            batch.map(|entry| (entry.job, entry.seat)).unzip();
        drop(queue);
        let mut lead = Lead { rounds: self, began: Instant::now(), seats, outcomes: Vec::new() };
        lead.outcomes = publish_all(layout, jobs);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn tell(&self, word: Word) {
        *self.word.lock().unwrap_or_else(PoisonError::into_inner) = Some(word);
        self.told.notify_one();
    }

    fn wait(&self) -> Word {
        let mut word = self.word.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match word.take() {
                Some(word) => return word,
                None => word = self.told.wait(word).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Counts one who publishes on its own.
struct Alone<'a>(&'a Rounds);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.lock().alone -= 1;
    }
}

/// Leadership of one round, handed on however the round ends.
struct Lead<'a> {
    rounds: &'a Rounds,
    began: Instant,
    seats: Vec<Arc<Seat>>,
    /// One for each seat, fewer after a panic.
    outcomes: Vec<Result<(), Failure>>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut queue = self.rounds.lock();
        queue.lasted = self.began.elapsed();
        queue.crowd = self.seats.len() + queue.waiting.len() + queue.alone;
        let next = queue.waiting.first().map(|entry| Arc::clone(&entry.seat));
        queue.led = next.is_some();
        drop(queue);
        let mut outcomes = self.outcomes.drain(..);
        for seat in self.seats.drain(..) {
            seat.tell(Word::Done(outcomes.next().unwrap_or_else(|| Err(lost()))));
        }
        if let Some(next) = next {
            next.tell(Word::Lead);
        }
    }
}

fn lost() -> Failure {
    Failure::Publish(Error::Unavailable { reason: "an earlier commit panicked".to_owned() })
}

/// A blob on its way through the steps of a round.
struct Passing {
    digest: Digest,
    source: Staged,
    outcome: Result<(), Failure>,
}

enum Staged {
    /// In a file without a name.
    Unnamed(File),
    /// In the store's directory of temporary files, under this name.
    Temporary(String, File),
    Ingest(Arc<Dir>, Option<File>),
    Nothing,
}

/// Takes each blob through data, rename and directory, in this order and one step for all at a
/// time. Yields an outcome for each, in order.
fn publish_all(layout: &Layout, jobs: Vec<Job>) -> Vec<Result<(), Failure>> {
    let mut passing: Vec<Passing> = jobs.into_iter().map(|job| stage(layout, job)).collect();
    sync(layout, &mut passing);
    for blob in passing.iter_mut().filter(|blob| blob.outcome.is_ok()) {
        blob.outcome = place(layout, blob);
    }
    for algorithm in Algorithm::ALL {
        let is_placed =
            |blob: &Passing| blob.outcome.is_ok() && blob.digest.algorithm() == algorithm;
        if !passing.iter().any(is_placed) {
            continue;
        }
        if let Err(error) = layout.sync_dir(layout.blobs(algorithm)) {
            for blob in passing.iter_mut().filter(|blob| is_placed(blob)) {
                blob.outcome = Err(take_back(layout, &blob.digest, &error));
            }
        }
    }
    let finish = |blob: Passing| {
        if let (Err(_), Staged::Temporary(name, _)) = (&blob.outcome, &blob.source) {
            layout.drop_temporary(name);
        }
        blob.outcome
    };
    passing.into_iter().map(finish).collect()
}

/// Brings what is in memory into a file.
fn stage(layout: &Layout, job: Job) -> Passing {
    let (source, outcome) = match job.source {
        Source::Ingest(dir, unsynced) => (Staged::Ingest(dir, unsynced), Ok(())),
        Source::Bytes(bytes) => match write(layout, &job.digest, &bytes) {
            Ok(staged) => (staged, Ok(())),
            Err(error) => (Staged::Nothing, Err(Failure::Publish(error))),
        },
    };
    Passing { digest: job.digest, source, outcome }
}

fn write(layout: &Layout, digest: &Digest, bytes: &[u8]) -> Result<Staged> {
    let dir = layout.blobs(digest.algorithm());
    // Goes by itself should anything fail, and never stands in the way of another.
    if let Some(mut file) = dir.create_unnamed(BLOB_MODE).map_err(dir.fail("create in", ""))? {
        file.write_all(bytes).map_err(dir.fail("write", digest.hex()))?;
        return Ok(Staged::Unnamed(file));
    }
    let (name, mut file) = layout.create_temporary(BLOB_MODE)?;
    if let Err(error) = file.write_all(bytes) {
        layout.drop_temporary(&name);
        return Err(layout.temporary.fail("write", &name)(error));
    }
    Ok(Staged::Temporary(name, file))
}

/// Makes the data of each blob durable, or sees to it that no name of it becomes durable before.
fn sync(layout: &Layout, passing: &mut [Passing]) {
    let mut unsynced: Vec<(&Digest, &File, &mut Result<(), Failure>)> = passing
        .iter_mut()
        .filter(|blob| blob.outcome.is_ok())
        .filter_map(|blob| match &blob.source {
            Staged::Unnamed(file) | Staged::Temporary(_, file) | Staged::Ingest(_, Some(file)) => {
                Some((&blob.digest, file, &mut blob.outcome))
            }
            Staged::Ingest(_, None) | Staged::Nothing => None,
        })
        .collect();
    let is_crowd = unsynced.len() >= CROWD_MIN;
    let failed = |digest: &Digest, error: io::Error| {
        let dir = layout.blobs(digest.algorithm());
        Err(Failure::Sync(dir.fail("sync data of", digest.hex())(error)))
    };
    if is_crowd && layout.journal_keeps_order {
        // All on their way before the first is waited for.
        for (_, file, _) in &unsynced {
            // Tells of itself below.
            let _ = layout.start_writing(file);
        }
        for (digest, file, outcome) in &mut unsynced {
            if let Err(error) = layout.finish_writing(file) {
                **outcome = failed(digest, error);
            }
        }
        return;
    }
    // Should it fail, each file tells for itself below whether it was the one.
    if is_crowd && layout.sync_filesystem().is_ok() {
        return;
    }
    let sync_one = |(digest, file, outcome): &mut (&Digest, &File, &mut Result<(), Failure>)| {
        if let Err(error) = layout.sync_file(file) {
            **outcome = failed(digest, error);
        }
    };
    match unsynced.as_mut_slice() {
        [] => {}
        [one] => sync_one(one),
        // Side by side: the journal joins them.
        several if several.len() < CROWD_MIN => thread::scope(|scope| {
            for one in several {
                scope.spawn(move || sync_one(one));
            }
        }),
        many => many.iter_mut().for_each(sync_one),
    }
}

fn place(layout: &Layout, blob: &Passing) -> Result<(), Failure> {
    let target = layout.blobs(blob.digest.algorithm());
    let failed =
        |error: io::Error| Failure::Publish(target.fail("publish", blob.digest.hex())(error));
    let renamed = match &blob.source {
        Staged::Unnamed(file) => {
            return target.link_unnamed(file, blob.digest.hex()).map_err(failed);
        }
        Staged::Temporary(name, _) => layout.temporary.rename(name, target, blob.digest.hex()),
        Staged::Ingest(dir, _) => dir.rename("data", target, blob.digest.hex()),
        Staged::Nothing => return Err(Failure::Missing),
    };
    renamed.map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Failure::Missing,
        _ => failed(error),
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

/// From here on a round is cheaper than a sync for each; below, syncing the whole filesystem would
/// needlessly wait for the dirty pages of others.
const CROWD_MIN: usize = 16;

/// Blobs are never changed.
const BLOB_MODE: u32 = 0o444;

/// Bounds how long the first of a round waits for the last.
const ROUND_BLOBS_MAX: usize = 1024;

/// Bounds how long a leader waits for others, however slow the disk.
const GATHER_MAX: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn layout() -> (Layout, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("store");
        (Layout::open(&path, None).unwrap(), root)
    }

    #[test]
    fn one_that_fails_takes_nobody_with_it() {
        let (layout, _root) = layout();
        let rounds = Rounds::default();
        let together = Barrier::new(40);
        thread::scope(|scope| {
            for number in 0..40_u8 {
                let (layout, rounds, together) = (&layout, &rounds, &together);
                scope.spawn(move || {
                    for turn in 0..3 {
                        let bytes = vec![number, turn];
                        let digest = Digest::of(&bytes);
                        // One of them has lost its directory.
                        let is_lost = number == 7;
                        let source = match is_lost {
                            true => {
                                let dir = layout.ingest.create_dir("gone", 0o755).unwrap();
                                Source::Ingest(Arc::new(dir), None)
                            }
                            false => Source::Bytes(Arc::new(bytes)),
                        };
                        together.wait();
                        let outcome =
                            rounds.publish(layout, Job { digest: digest.clone(), source });
                        match is_lost {
                            true => assert!(matches!(outcome, Err(Failure::Missing))),
                            false => outcome.unwrap(),
                        }
                        assert_eq!(layout.stat_blob(&digest).is_ok(), !is_lost);
                    }
                });
            }
        });
        assert_eq!(layout.temporary.entries().unwrap().count(), 0);
        let queue = rounds.lock();
        assert!(!queue.led && queue.waiting.is_empty() && queue.alone == 0);
    }

    #[test]
    fn a_leader_that_panics_hands_on_and_tells_its_round() {
        let rounds = Rounds::default();
        let seats = [Arc::new(Seat::default()), Arc::new(Seat::default())];
        let next = Arc::new(Seat::default());
        let job = Job { digest: Digest::of(b""), source: Source::Bytes(Arc::default()) };
        rounds.lock().waiting.push(Entry { job, seat: Arc::clone(&next) });
        drop(Lead {
            rounds: &rounds,
            began: Instant::now(),
            seats: seats.to_vec(),
            outcomes: vec![Ok(())],
        });
        assert!(matches!(seats[0].wait(), Word::Done(Ok(()))));
        assert!(matches!(seats[1].wait(), Word::Done(Err(Failure::Publish(_)))));
        assert!(matches!(next.wait(), Word::Lead));
        assert!(rounds.lock().led);
    }
}
