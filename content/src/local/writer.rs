use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::OFlags;

use crate::error::{Error, Result};
use crate::local::checkpoint::{Checkpoint, Slots};
use crate::local::dir::Dir;
use crate::local::ingest::{self, Record};
use crate::local::round::{Failure, Job, Source};
use crate::local::sink::Sink;
use crate::local::syncing::Syncing;
use crate::local::{Backend, Inner, labels, timestamp};
use crate::lock::Guard;
use crate::{
    Algorithm, Commit, Digest, Hasher, Info, Ingest, LabelUpdate, Labels, Status, Writer, check,
};

/// The part of a writer the rest of the store may look at.
#[derive(Debug)]
pub(crate) struct Live {
    state: Mutex<LiveState>,
}

#[derive(Debug)]
pub(crate) struct LiveState {
    pub(crate) status: Status,
    pub(crate) fate: Fate,
}

/// What has been decided about a live ingest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    Aborted,
    /// Too late to abort.
    Committing,
}

impl Live {
    pub(crate) fn lock(&self) -> MutexGuard<'_, LiveState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob on its way into a directory.
///
/// The first bytes stay in memory: most blobs of an image are so small that giving them a
/// directory of their own would cost more than everything else.
#[derive(Debug)]
pub(crate) struct LocalWriter {
    store: Arc<Inner>,
    live: Arc<Live>,
    ingest: Ingest,
    algorithm: Algorithm,
    /// Bytes so far.
    taken: u64,
    body: Body,
    /// Set by the first failed write: what was taken since the last checkpoint is uncertain.
    broken: bool,
    /// Releases the reference, last.
    _guard: Guard,
}

#[derive(Debug)]
enum Body {
    Small(Arc<Vec<u8>>, Box<Hasher>),
    Spilled(Box<Spilled>),
    /// Committed or given up.
    Gone,
}

/// An ingest with a directory.
#[derive(Debug)]
struct Spilled {
    dir: Arc<Dir>,
    sink: Sink,
    slots: Slots,
    syncing: Syncing,
    dir_is_synced: bool,
    /// Where this writer began, when everything before is known to be synced; a value no offset
    /// has otherwise.
    synced: u64,
}

impl LocalWriter {
    pub(crate) fn open(store: Arc<Inner>, ingest: &Ingest, guard: Guard) -> Result<Self> {
        let key = ingest::key(&ingest.reference);
        let mut ingest = ingest.clone();
        ingest.total = ingest.total.filter(|total| *total > 0);
        let record = store.read_ingest(&key)?;
        let record = record.filter(|record| record.reference == ingest.reference);
        let now = SystemTime::now();
        let mut status = Status {
            reference: ingest.reference.clone(),
            offset: 0,
            total: ingest.total,
            expected: ingest.expected.clone(),
            started_at: now,
            updated_at: now,
        };
        let live =
            |status| Arc::new(Live { state: Mutex::new(LiveState { status, fate: Fate::Open }) });
        let Some(mut record) = record else {
            // Whatever else bears the name is no ingest of ours.
            store.remove_ingest(&key)?;
            let small = ingest.total.is_none_or(|total| total <= SMALL_SIZE_BYTES as u64);
            let algorithm = algorithm(ingest.expected.as_ref());
            let mut writer = Self {
                live: live(status),
                store,
                ingest,
                algorithm,
                taken: 0,
                body: Body::Small(Arc::default(), Box::new(Hasher::new(algorithm))),
                broken: false,
                _guard: guard,
            };
            if !small && let Err(error) = writer.spill() {
                writer.body = Body::Gone;
                // The failure that counts is the first.
                let _ = writer.store.remove_ingest(&key);
                return Err(error);
            }
            return Ok(writer);
        };
        if let (Some(recorded), Some(total)) = (record.total, ingest.total)
            && recorded != total
        {
            tracing::info!(reference = ingest.reference, recorded, total, "ingest starts over");
            (record.offset, record.checkpoint) = (0, None);
        }
        status.offset = record.offset;
        status.total = ingest.total.or(record.total);
        status.expected = ingest.expected.clone().or_else(|| record.expected.clone());
        (status.started_at, status.updated_at) = (record.started_at, record.updated_at);
        ingest.total = status.total;
        ingest.expected = status.expected.clone();
        let spilled = resume(&store, &key, &ingest, &status, &record)?;
        Ok(Self {
            algorithm: algorithm(ingest.expected.as_ref()),
            taken: status.offset,
            live: live(status),
            store,
            ingest,
            body: Body::Spilled(Box::new(spilled)),
            broken: false,
            _guard: guard,
        })
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Gives the ingest a directory and moves what is in memory there.
    fn spill(&mut self) -> Result<()> {
        let state = self.live.lock();
        if state.fate == Fate::Aborted {
            return Err(Error::IngestNotFound(self.ingest.reference.clone()));
        }
        let Body::Small(bytes, _) = &self.body else { return Ok(()) };
        let parent = &self.store.layout.ingest;
        let key = ingest::key(&self.ingest.reference);
        let dir = parent.create_dir(&key, 0o755)?;
        let slots = ingest::create(&dir, &state.status)?;
        let failed = || dir.fail("write", "data");
        let backend = self.store.backend_for(self.ingest.total);
        let total = self.ingest.total;
        let empty = Hasher::new(self.algorithm);
        let sink = Sink::open(&dir, "data", empty.clone(), total, backend).map_err(failed())?;
        let mut spilled = Spilled::new(Arc::new(dir), sink, slots);
        let start = Checkpoint::of(&empty, spilled.sink.length_is_progress(), self.store.epoch);
        let dir = Arc::clone(&spilled.dir);
        let failed = || dir.fail("write", "data");
        spilled.slots.write(start, false).map_err(dir.fail("write", "checkpoint"))?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let count = spilled.sink.write(rest).map_err(failed())?;
            rest = &rest[count..];
        }
        drop(state);
        self.body = Body::Spilled(Box::new(spilled));
        Ok(())
    }

    /// Takes all of `bytes`.
    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let Body::Small(buffer, hasher) = &mut self.body {
            if buffer.len() + bytes.len() <= SMALL_SIZE_BYTES {
                Arc::make_mut(buffer).extend_from_slice(bytes);
                hasher.update(bytes);
                self.taken += bytes.len() as u64;
                return Ok(());
            }
            self.spill().map_err(into_io)?;
        }
        let Body::Spilled(spilled) = &mut self.body else {
            return Err(io::ErrorKind::NotFound.into());
        };
        while !bytes.is_empty() {
            let count = spilled.sink.write(bytes)?;
            bytes = &bytes[count..];
            self.taken += count as u64;
            spilled.keep_checkpoint(&self.store)?;
        }
        Ok(())
    }

    /// The hash of everything taken.
    fn state(&mut self) -> Result<Hasher> {
        match &mut self.body {
            Body::Small(_, hasher) => Ok((**hasher).clone()),
            Body::Spilled(spilled) => {
                spilled.sink.state().map_err(spilled.dir.fail("hash", "data"))
            }
            Body::Gone => Err(Error::IngestNotFound(self.ingest.reference.clone())),
        }
    }

    /// Tells the rest of the store how far the ingest came.
    fn report(&self) {
        let mut state = self.live.lock();
        state.status.offset = self.taken;
        state.status.updated_at = SystemTime::now();
    }

    fn refuse_broken(&self) -> io::Result<()> {
        match self.broken {
            true => Err(io::Error::other("an earlier write of this ingest failed")),
            false => Ok(()),
        }
    }

    /// The digest of everything taken, under another algorithm than the running one.
    fn rehash(&self, algorithm: Algorithm) -> Result<Digest> {
        match &self.body {
            Body::Small(bytes, _) => Ok(Digest::of_with(algorithm, bytes)),
            Body::Spilled(spilled) => {
                let mut hasher = Hasher::new(algorithm);
                hash_file(spilled.sink.file(), &mut hasher, self.taken)
                    .map_err(spilled.dir.fail("read", "data"))?;
                Ok(hasher.digest())
            }
            Body::Gone => Err(Error::IngestNotFound(self.ingest.reference.clone())),
        }
    }

    /// Publishes what was verified. The digest is held by the caller.
    fn publish(&mut self, digest: &Digest) -> Result<()> {
        let source = match &mut self.body {
            Body::Small(bytes, _) => Source::Bytes(Arc::clone(bytes)),
            Body::Spilled(spilled) => {
                let file = spilled.sink.file();
                let failed = || spilled.dir.fail("seal", "data");
                file.set_permissions(PermissionsExt::from_mode(0o444)).map_err(failed())?;
                rustix::fs::futimens(file, &labels::touch())
                    .map_err(spilled.dir.fail("seal", "data"))?;
                let file = file.try_clone().map_err(failed())?;
                let unsynced = if self.taken > JOINT_SYNC_SIZE_BYTES_MAX {
                    // On this thread, beside those of other large blobs.
                    if let Err(error) = self.store.layout.sync_file(&file) {
                        let error = spilled.dir.fail("sync", "data")(error);
                        return Err(self.lose(error));
                    }
                    None
                } else {
                    Some(file)
                };
                Source::Ingest(Arc::clone(&spilled.dir), unsynced)
            }
            Body::Gone => return Err(Error::IngestNotFound(self.ingest.reference.clone())),
        };
        let job = Job { digest: digest.clone(), source };
        let outcome = self.store.rounds.publish(&self.store.layout, job);
        outcome.map_err(|failure| match failure {
            Failure::Sync(error) => self.lose(error),
            Failure::Missing => Error::IngestNotFound(self.ingest.reference.clone()),
            Failure::Publish(error) => error,
        })
    }

    /// After a failed sync the cache may hold bytes the disk does not, marked clean: a later sync
    /// would succeed and prove nothing. So they are dropped.
    fn lose(&mut self, error: Error) -> Error {
        if let Body::Spilled(spilled) = &mut self.body {
            let cleared = spilled.slots.clear().and_then(|()| spilled.sink.truncate());
            if let Err(error) = cleared {
                tracing::warn!(reference = self.ingest.reference, %error, "cannot drop lost bytes");
            }
            self.broken = true;
        }
        error
    }

    fn try_commit(&mut self, commit: &Commit) -> Result<Info> {
        let labels = LabelUpdate::Replace(commit.labels.clone()).apply(&Labels::new());
        check::labels(&labels)?;
        let failed = |source| Error::Io {
            op: "finish ingest",
            path: self.ingest.reference.clone().into(),
            source,
        };
        self.refuse_broken().map_err(failed)?;
        if let Body::Spilled(spilled) = &mut self.body
            && let Err(error) = spilled.sink.settle()
        {
            self.broken = true;
            return Err(failed(error));
        }
        if let Body::Spilled(spilled) = &mut self.body
            && let Err(error) = spilled.syncing.finish()
        {
            let error = failed(error);
            return Err(self.lose(error));
        }
        let size_bytes = self.taken;
        let digest = self.state()?.digest();
        let digest = check::commit(commit, size_bytes, digest, || {
            self.rehash(algorithm(commit.digest.as_ref()))
        })?;
        {
            let mut state = self.live.lock();
            if state.fate == Fate::Aborted {
                return Err(Error::IngestNotFound(self.ingest.reference.clone()));
            }
            state.fate = Fate::Committing;
        }
        let store = Arc::clone(&self.store);
        let held = store.busy.hold(&digest);
        if store.is_stored(&digest, size_bytes)? {
            self.discard();
            return Err(Error::AlreadyExists(digest));
        }
        if labels.is_empty() {
            labels::remove(&store.layout, &digest)?;
        } else {
            labels::write(&store.layout, &digest, &labels)?;
        }
        self.publish(&digest)?;
        let info = match labels.is_empty() {
            true => store.unlabelled_info_of(&digest)?,
            false => store.info_of(&digest)?,
        };
        drop(held);
        self.discard();
        Ok(info)
    }

    /// Removes what is left of the ingest. Failing to is no failure of the commit: it will be
    /// collected as an old ingest.
    fn discard(&mut self) {
        let spilled = matches!(self.body, Body::Spilled(_));
        self.body = Body::Gone;
        if spilled
            && let Err(error) = self.store.remove_ingest(&ingest::key(&self.ingest.reference))
        {
            tracing::warn!(reference = self.ingest.reference, %error, "cannot remove ingest");
        }
    }

    /// Leaves the ingest such that the next writer can resume it.
    fn close(&mut self) -> Result<()> {
        if self.live.lock().fate == Fate::Aborted {
            return Ok(());
        }
        if matches!(self.body, Body::Small(..)) {
            self.spill()?;
        }
        let Body::Spilled(spilled) = &mut self.body else { return Ok(()) };
        if self.broken {
            return Ok(());
        }
        let dir = Arc::clone(&spilled.dir);
        spilled.sink.settle().map_err(dir.fail("write", "data"))?;
        let state = spilled.sink.state().map_err(dir.fail("hash", "data"))?;
        let closed = Checkpoint::of(&state, true, self.store.epoch);
        if self.taken == spilled.synced {
            spilled.slots.write(closed, false).map_err(dir.fail("write", "checkpoint"))?;
            return Ok(());
        }
        if let Err(error) = spilled.sync(&self.store) {
            return Err(self.lose(dir.fail("sync", "data")(error)));
        }
        spilled.slots.write(closed, true).map_err(dir.fail("write", "checkpoint"))?;
        let updated_at = timestamp::format(self.live.lock().status.updated_at);
        dir.write_small("updatedat", updated_at.as_bytes())
            .map_err(dir.fail("write", "updatedat"))?;
        Ok(())
    }
}

/// Opens the directory of an earlier writer.
fn resume(
    store: &Inner,
    key: &str,
    ingest: &Ingest,
    status: &Status,
    record: &Record,
) -> Result<Spilled> {
    let parent = &store.layout.ingest;
    let dir = parent.open_dir(key).map_err(parent.fail("open", key))?;
    let failed = || dir.fail("resume", "data");
    let offset = record.offset;
    let algorithm = algorithm(ingest.expected.as_ref());
    let saved = record.checkpoint.as_ref().and_then(|saved| saved.hasher(algorithm));
    let mut hasher = saved.unwrap_or_else(|| Hasher::new(algorithm));
    let data = dir.read_file("data").map_err(failed())?;
    store.count_hashed_again(offset.saturating_sub(hasher.size_bytes()));
    hash_file(&data, &mut hasher, offset).map_err(failed())?;
    // A commit that failed late has sealed it.
    data.set_permissions(PermissionsExt::from_mode(0o644)).map_err(failed())?;
    let mut slots = ingest::reopen(&dir, status, record)?;
    let backend = store.backend_for(ingest.total);
    // Whatever the old slots say about the length, it is exact from here until `sink` extends it:
    // the slot that describes the new state has to be there first.
    let by_length = backend == Backend::Buffered;
    let file = dir.open_file("data", OFlags::WRONLY, 0).map_err(failed())?;
    file.set_len(offset).map_err(failed())?;
    let resumed = Checkpoint::of(&hasher, by_length, store.epoch);
    slots.write(resumed.clone(), false).map_err(dir.fail("write", "checkpoint"))?;
    let sink = Sink::open(&dir, "data", hasher, ingest.total, backend).map_err(failed())?;
    if sink.length_is_progress() != by_length {
        let mut resumed = resumed;
        resumed.length_is_progress = sink.length_is_progress();
        slots.write(resumed, false).map_err(dir.fail("write", "checkpoint"))?;
    }
    let mut spilled = Spilled::new(Arc::new(dir), sink, slots);
    if record.checkpoint.as_ref().is_some_and(|saved| saved.synced && saved.offset == offset) {
        spilled.synced = offset;
    }
    Ok(spilled)
}

/// Feeds `hasher` from where it stands up to `end`.
fn hash_file(file: &std::fs::File, hasher: &mut Hasher, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; HASH_SIZE_BYTES];
    while hasher.size_bytes() < end {
        let left = usize::try_from(end - hasher.size_bytes()).unwrap_or(usize::MAX);
        let piece = &mut buffer[..left.min(HASH_SIZE_BYTES)];
        file.read_exact_at(piece, hasher.size_bytes())?;
        hasher.update(piece);
    }
    Ok(())
}

impl Spilled {
    fn new(dir: Arc<Dir>, sink: Sink, slots: Slots) -> Self {
        let syncing = Syncing::new();
        Self { dir, sink, slots, syncing, dir_is_synced: false, synced: u64::MAX }
    }

    /// Writes a checkpoint once every byte it covers is in the file.
    fn keep_checkpoint(&mut self, store: &Arc<Inner>) -> io::Result<()> {
        let Some(state) = self.sink.landed()? else { return Ok(()) };
        let by_length = self.sink.length_is_progress();
        let checkpoint = Checkpoint::of(&state, by_length, store.epoch);
        self.slots.write(checkpoint.clone(), false)?;
        if !self.syncing.is_due(checkpoint.offset)? {
            return Ok(());
        }
        let data = self.sink.file().try_clone()?;
        let slot = self.slots.prepare(checkpoint, true)?;
        let (store, dir) = (Arc::clone(store), Arc::clone(&self.dir));
        let first = !self.syncing.has_finished();
        self.syncing.start(move || {
            store.layout.sync_file(&data)?;
            if first {
                ingest::sync(&store.layout.ingest, &dir)?;
            }
            slot.write()
        });
        Ok(())
    }

    /// Makes what is in the file survive a power cut, and the way to it.
    fn sync(&mut self, store: &Inner) -> io::Result<()> {
        self.syncing.finish()?;
        store.layout.sync_file(self.sink.file())?;
        if !self.dir_is_synced {
            ingest::sync(&store.layout.ingest, &self.dir)?;
            self.dir_is_synced = true;
        }
        Ok(())
    }
}

impl Write for LocalWriter {
    /// Takes all of `bytes` or fails for good.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.refuse_broken()?;
        if let Err(error) = self.append(bytes) {
            self.broken = true;
            return Err(error);
        }
        self.report();
        Ok(bytes.len())
    }

    /// Nothing to do: bytes become durable by commit and are kept for resumption by drop.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer for LocalWriter {
    fn status(&self) -> Status {
        self.live.lock().status.clone()
    }

    fn digest(&mut self) -> Result<Digest> {
        Ok(self.state()?.digest())
    }

    fn truncate(&mut self) -> Result<()> {
        let start = Hasher::new(self.algorithm);
        match &mut self.body {
            Body::Small(bytes, hasher) => {
                Arc::make_mut(bytes).clear();
                **hasher = start;
            }
            Body::Spilled(spilled) => {
                // Whether it succeeded is of no interest: what it synced is to go.
                let _ = spilled.syncing.finish();
                let by_length = spilled.sink.length_is_progress();
                let empty = Checkpoint::of(&start, by_length, self.store.epoch);
                let truncated = spilled
                    .slots
                    .clear()
                    .and_then(|()| spilled.slots.write(empty, false))
                    .and_then(|()| spilled.sink.truncate());
                if let Err(error) = truncated {
                    self.broken = true;
                    return Err(spilled.dir.fail("truncate", "data")(error));
                }
                spilled.syncing = Syncing::new();
                spilled.synced = u64::MAX;
            }
            Body::Gone => {}
        }
        self.broken = false;
        self.taken = 0;
        self.report();
        Ok(())
    }

    fn commit(mut self: Box<Self>, commit: &Commit) -> Result<Info> {
        let result = self.try_commit(commit);
        let mut state = self.live.lock();
        if state.fate == Fate::Committing {
            state.fate = Fate::Open;
        }
        drop(state);
        result
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(reference = self.ingest.reference, %error, "ingest not left in order");
        }
        self.store.forget_live(&self.ingest.reference, &self.live);
    }
}

fn algorithm(expected: Option<&Digest>) -> Algorithm {
    expected.map_or(Algorithm::Sha256, Digest::algorithm)
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::Io { source, .. } => source,
        other => io::Error::new(io::ErrorKind::NotFound, other),
    }
}

/// What stays in memory: room for the indexes, manifests and configs of nearly every image.
const SMALL_SIZE_BYTES: usize = 64 * 1024;

/// Larger blobs are synced by their own thread, so that nobody waits for them.
const JOINT_SYNC_SIZE_BYTES_MAX: u64 = 1024 * 1024;

/// Small enough to hash what was read from cache.
const HASH_SIZE_BYTES: usize = 256 * 1024;
