//! A store in a directory.
//!
//! ```text
//! <root>/                            owned by the user of the process, writable by nobody else
//!   lock                             locked by the one process using the root; holds its pid
//!   blobs/<algorithm>/<hex>          committed blobs, read-only; mtime is when they were committed
//!   labels/<algorithm>/<hex>         their labels in JSON; mtime is when they last changed
//!   ingest/<sha256 of reference>/    blobs on their way in
//!     ref                            the reference, as given
//!     data                           the bytes so far
//!     startedat updatedat            RFC 3339
//!     total expected                 decimal bytes; digest; only when announced
//!     checkpoint                     hash state and how much of data can be trusted
//!   tmp/                             files about to be renamed; cleared when the store opens
//!   quarantine/                      damaged blobs, each with a .reason; for a person to look at
//! ```
//!
//! `blobs` and `ingest` are laid out as containerd does, so that its tools can read them and a root
//! can change hands; the other entries are ignored by it.
//!
//! # What survives
//!
//! A commit syncs the data, renames it into `blobs` and syncs that directory, in this order, and
//! only then returns: whatever a power cut leaves under `blobs` is whole, and everything
//! acknowledged is there. Labels are durable when the call returns. A deletion is not: after a
//! power cut the blob may be back, possibly without its labels.
//!
//! An unfinished ingest is durable when its writer is dropped. If the process is killed instead,
//! the next resumes at most 8 MiB before the last byte taken; after a power cut, or when the
//! filesystem was mounted anew in between, what came after the last sync is gone: the last 64 MiB
//! or the last second or two, whichever is more. What resumes is a prefix of what was written, never anything
//! else. Up to 64 KiB are kept in memory until the writer is dropped and go with a killed process.
//!
//! # Page cache
//!
//! Blobs that took the direct way are not in the page cache: whoever needs the bytes at once
//! should take them while they pass, as an unpacker beside the ingest does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::Stat;

use crate::error::{Error, Result};
use crate::local::busy::Busy;
use crate::local::checkpoint::Epoch;
use crate::local::dir::{fail, is_absent};
use crate::local::ingest::Record;
use crate::local::layout::Layout;
use crate::local::round::Rounds;
use crate::local::writer::{Fate, Live, LocalWriter};
use crate::lock::Locks;
use crate::{
    Algorithm, Digest, Info, Ingest, IngestManager, Ingester, LabelUpdate, Labels, Manager,
    Provider, ReaderAt, Status, Writer, check,
};

mod busy;
mod checkpoint;
mod dir;
mod direct;
mod hashing;
mod ingest;
mod labels;
mod layout;
mod probe;
mod round;
mod scrub;
mod sink;
mod syncing;
mod timestamp;
mod writer;

#[cfg(feature = "testsuite")]
pub use self::layout::OmittedSync;
pub use self::scrub::{Damage, Scrub, ScrubReport};

/// Gives back the memory that this process keeps for the next large blob of any store, some 16 MiB
/// after a few of them. Worth calling while nothing is written; the next writer takes a little
/// longer. Answers with the number of buffers given back.
pub fn release_buffers() -> usize {
    direct::release_idle()
}

/// Blobs in a directory of a local filesystem. The layout and what survives a crash are described
/// in the [module](self).
///
/// Clones share the store; the root is free for another process when the last clone and the last
/// writer are gone.
#[derive(Clone, Debug)]
pub struct LocalStore {
    inner: Arc<Inner>,
}

/// How bytes travel to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// io_uring with direct I/O for blobs from 256 KiB where that works, buffered writes elsewhere.
    #[default]
    Auto,
    /// io_uring with direct I/O whatever the size; opening the store fails where it does not work.
    Uring,
    /// Plain buffered writes.
    Buffered,
}

/// Options of a [`LocalStore`].
#[derive(Clone, Debug, Default)]
pub struct Builder {
    backend: Backend,
    omitted_sync: Option<layout::OmittedSync>,
}

impl Builder {
    /// How bytes travel to the disk.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Leaves out a step of the durability protocol, so that a test of power cuts can show that it
    /// would notice. Never for real content.
    #[cfg(feature = "testsuite")]
    #[must_use]
    pub fn omit_sync(mut self, step: OmittedSync) -> Self {
        self.omitted_sync = Some(step);
        self
    }

    /// Opens the store in `root`, creating it if absent.
    ///
    /// # Errors
    ///
    /// - [`Error::Unavailable`]: another process holds the root and is named; others may write to
    ///   it; or [`Backend::Uring`] was demanded and does not work here.
    /// - [`Error::Io`]: the root is a symbolic link, no directory, or the storage refuses.
    pub fn open(self, root: impl AsRef<Path>) -> Result<LocalStore> {
        let root = root.as_ref();
        let layout = Layout::open(root, self.omitted_sync)?;
        let uring = match self.backend {
            Backend::Buffered => false,
            Backend::Auto if !probe::has_device(&layout) => false,
            Backend::Auto => match probe::direct_io(&layout) {
                Ok(()) => true,
                Err(error) => {
                    tracing::info!(%error, "no direct io_uring, ingesting through the cache");
                    false
                }
            },
            Backend::Uring => {
                probe::direct_io(&layout).map_err(|error| Error::Unavailable {
                    reason: format!("io_uring with direct I/O on {}: {error}", root.display()),
                })?;
                true
            }
        };
        let epoch = Epoch::of(&layout.root).map_err(fail("identify mount of", root))?;
        let inner = Inner {
            layout,
            epoch,
            uring,
            uring_always: self.backend == Backend::Uring,
            locks: Locks::default(),
            live: Mutex::default(),
            busy: Busy::default(),
            rounds: Rounds::default(),
            hashed_again: AtomicU64::new(0),
        };
        Ok(LocalStore { inner: Arc::new(inner) })
    }
}

/// The state shared by all clones and writers of a store.
#[derive(Debug)]
pub(crate) struct Inner {
    layout: Layout,
    epoch: Epoch,
    uring: bool,
    uring_always: bool,
    locks: Locks,
    /// Ingests with a live writer.
    live: Mutex<BTreeMap<String, Arc<Live>>>,
    busy: Busy,
    rounds: Rounds,
    /// Bytes read back to restore the hash of resumed ingests.
    hashed_again: AtomicU64,
}

impl LocalStore {
    /// Opens the store in `root` with default options, creating it if absent.
    ///
    /// # Errors
    ///
    /// As [`Builder::open`].
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::builder().open(root)
    }

    /// Options to open a store with.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// How many bytes were read back since the store was opened to restore the hash of ingests
    /// that were resumed: at most 8 MiB for each, unless their algorithm is blake3.
    pub fn bytes_hashed_again(&self) -> u64 {
        self.inner.hashed_again.load(Ordering::Relaxed)
    }

    /// Drops ingests nobody writes to whose last byte arrived longer than `older_than` ago, and
    /// remains of ingests that are no longer whole. Returns the references dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; what could be dropped has been.
    pub fn collect_ingests(&self, older_than: Duration) -> Result<Vec<String>> {
        let now = SystemTime::now();
        // A time ahead of the clock is no age: such an ingest stays.
        let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age >= older_than);
        let dir = &self.inner.layout.ingest;
        let mut dropped = Vec::new();
        let mut first_error = None;
        for key in dir.entries().map_err(dir.fail("list", ""))? {
            let key = key.map_err(dir.fail("list", ""))?;
            match self.inner.collect_ingest(&key, is_old) {
                Ok(reference) => dropped.extend(reference),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(dropped), Err)
    }
}

impl Inner {
    fn count_hashed_again(&self, size_bytes: u64) {
        self.hashed_again.fetch_add(size_bytes, Ordering::Relaxed);
    }

    /// Drops one ingest if it is old and nobody writes to it. Returns its reference, unless it was
    /// a remainder without one.
    fn collect_ingest(
        &self,
        key: &str,
        is_old: impl Fn(SystemTime) -> bool,
    ) -> Result<Option<String>> {
        let Some(record) = self.read_ingest(key)? else {
            let dir = &self.layout.ingest;
            match dir.stat(key) {
                // A writer creating it right now has just touched it.
                Ok(stat) if modified(&stat).elapsed().is_ok_and(|age| age >= JUNK_AGE) => {
                    self.remove_ingest(key)?;
                }
                Ok(_) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(dir.fail("stat", key)(error)),
            }
            return Ok(None);
        };
        // Holding the reference keeps writers away while it is judged again and removed.
        let Ok(_guard) = self.locks.take(&record.reference) else { return Ok(None) };
        match self.read_ingest(key)? {
            Some(record) if is_old(record.updated_at) => {
                self.remove_ingest(key)?;
                Ok(Some(record.reference))
            }
            _ => Ok(None),
        }
    }

    fn read_ingest(&self, key: &str) -> Result<Option<Record>> {
        let parent = &self.layout.ingest;
        let dir = match parent.open_dir(key) {
            Ok(dir) => dir,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            Err(error) => return Err(parent.fail("open", key)(error)),
        };
        Record::read(&dir, self.epoch).map_err(parent.fail("read ingest", key))
    }

    /// Removes an ingest directory; being absent is fine.
    fn remove_ingest(&self, key: &str) -> Result<()> {
        match self.layout.ingest.remove_all(key) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.layout.ingest.fail("remove ingest", key)(error))
            }
            _ => Ok(()),
        }
    }

    /// The way to the disk for an ingest of `total` bytes.
    fn backend_for(&self, total: Option<u64>) -> Backend {
        let large = total.is_none_or(|total| total >= URING_SIZE_BYTES_MIN);
        if self.uring && (large || self.uring_always) { Backend::Uring } else { Backend::Buffered }
    }

    /// Whether a good blob of that size is in place. What stands there otherwise is moved aside.
    fn is_stored(&self, digest: &Digest, size_bytes: u64) -> Result<bool> {
        let reason = match self.layout.stat_blob(digest) {
            Ok(stat) if stat.st_size as u64 == size_bytes => return Ok(true),
            Ok(stat) => format!("has {} bytes instead of {size_bytes}", stat.st_size),
            Err(Error::NotFound(_)) => return Ok(false),
            Err(Error::Corrupt { reason, .. }) => reason,
            Err(error) => return Err(error),
        };
        self.layout.set_aside(digest, &reason)?;
        Ok(false)
    }

    fn info_of(&self, digest: &Digest) -> Result<Info> {
        let stat = self.layout.stat_blob(digest)?;
        Ok(info(digest, &stat, labels::read(&self.layout, digest)?))
    }

    /// The same of a blob that has no labels, which its holder knows.
    fn unlabelled_info_of(&self, digest: &Digest) -> Result<Info> {
        let stat = self.layout.stat_blob(digest)?;
        Ok(info(digest, &stat, (Labels::new(), None)))
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a writer's entry out of the table, unless it is another's by now.
    fn forget_live(&self, reference: &str, live: &Arc<Live>) {
        let mut table = self.live();
        if table.get(reference).is_some_and(|entry| Arc::ptr_eq(entry, live)) {
            table.remove(reference);
        }
    }
}

impl Provider for LocalStore {
    fn info(&self, digest: &Digest) -> Result<Info> {
        self.inner.info_of(digest)
    }

    fn reader(&self, digest: &Digest) -> Result<Box<dyn ReaderAt>> {
        let (file, stat) = self.inner.layout.open_blob(digest)?;
        Ok(Box::new(FileReader { file, size_bytes: stat.st_size as u64 }))
    }
}

impl Ingester for LocalStore {
    fn writer(&self, ingest: &Ingest) -> Result<Box<dyn Writer>> {
        check::ingest(ingest)?;
        let inner = &self.inner;
        if let Some(expected) = &ingest.expected
            // While somebody publishes it, it may be visible and not yet durable.
            && !inner.busy.is_held(expected)
        {
            match inner.layout.stat_blob(expected) {
                // One of another length is damaged, and replaced by the commit.
                Ok(stat) if ingest.total.is_some_and(|total| total != stat.st_size as u64) => {}
                Ok(_) => return Err(Error::AlreadyExists(expected.clone())),
                Err(Error::NotFound(_) | Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let guard = inner.locks.take(&ingest.reference)?;
        let writer = LocalWriter::open(Arc::clone(inner), ingest, guard)?;
        inner.live().insert(ingest.reference.clone(), Arc::clone(writer.live()));
        Ok(Box::new(writer))
    }
}

impl IngestManager for LocalStore {
    fn status(&self, reference: &str) -> Result<Status> {
        let live = self.inner.live().get(reference).cloned();
        if let Some(live) = live {
            let state = live.lock();
            return match state.fate {
                Fate::Aborted => Err(Error::IngestNotFound(reference.to_owned())),
                Fate::Open | Fate::Committing => Ok(state.status.clone()),
            };
        }
        match self.inner.read_ingest(&ingest::key(reference))? {
            Some(record) if record.reference == reference => Ok(record.status()),
            _ => Err(Error::IngestNotFound(reference.to_owned())),
        }
    }

    fn statuses(&self) -> Result<Vec<Status>> {
        let mut statuses = BTreeMap::new();
        let dir = &self.inner.layout.ingest;
        for key in dir.entries().map_err(dir.fail("list", ""))? {
            let key = key.map_err(dir.fail("list", ""))?;
            if let Some(record) = self.inner.read_ingest(&key)? {
                statuses.insert(record.reference.clone(), record.status());
            }
        }
        // Last, since they know better than their directories do.
        let live: Vec<_> = self.inner.live().values().cloned().collect();
        for live in live {
            let state = live.lock();
            match state.fate {
                Fate::Aborted => statuses.remove(&state.status.reference),
                Fate::Open | Fate::Committing => {
                    statuses.insert(state.status.reference.clone(), state.status.clone())
                }
            };
        }
        Ok(statuses.into_values().collect())
    }

    fn abort(&self, reference: &str) -> Result<()> {
        let not_found = || Error::IngestNotFound(reference.to_owned());
        let key = ingest::key(reference);
        let live = self.inner.live().get(reference).cloned();
        if let Some(live) = live {
            // Held over the removal, so that the writer does not create the directory meanwhile.
            let mut state = live.lock();
            if state.fate != Fate::Open {
                return Err(not_found());
            }
            state.fate = Fate::Aborted;
            return self.inner.remove_ingest(&key);
        }
        match self.inner.layout.ingest.remove_all(&key) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_found()),
            result => result.map_err(self.inner.layout.ingest.fail("remove ingest", &key)),
        }
    }
}

impl Manager for LocalStore {
    fn update(&self, digest: &Digest, update: &LabelUpdate) -> Result<Info> {
        let inner = &self.inner;
        let _held = inner.busy.hold(digest);
        let info = inner.info_of(digest)?;
        labels::write(&inner.layout, digest, &update.apply(&info.labels))?;
        inner.info_of(digest)
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        self.inner.each_digest(&mut |digest| {
            match self.inner.info_of(&digest) {
                Ok(info) => return Ok(visit(info)),
                Err(Error::NotFound(_)) => {}
                Err(error @ Error::Corrupt { .. }) => {
                    tracing::warn!(%digest, %error, "walk leaves out damaged content");
                }
                Err(error) => return Err(error),
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn delete(&self, digest: &Digest) -> Result<()> {
        let inner = &self.inner;
        let _held = inner.busy.hold(digest);
        let dir = inner.layout.blobs(digest.algorithm());
        match dir.remove_file(digest.hex()) {
            Ok(()) => {}
            Err(error) if is_absent(&error) => return Err(Error::NotFound(digest.clone())),
            // Not ours, so not ours to empty.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                inner.layout.set_aside(digest, "not a regular file")?;
            }
            Err(error) => return Err(dir.fail("delete", digest.hex())(error)),
        }
        labels::remove(&inner.layout, digest)
    }
}

impl Inner {
    /// Calls `visit` for every name under `blobs` that is a digest.
    fn each_digest(&self, visit: &mut dyn FnMut(Digest) -> Result<ControlFlow<()>>) -> Result<()> {
        for algorithm in Algorithm::ALL {
            let dir = self.layout.blobs(algorithm);
            for name in dir.entries().map_err(dir.fail("list", ""))? {
                let name = name.map_err(dir.fail("list", ""))?;
                let Ok(digest) = format!("{algorithm}:{name}").parse() else { continue };
                if visit(digest)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(feature = "testsuite")]
pub(crate) fn decode_checkpoint(bytes: &[u8]) {
    checkpoint::decode(bytes);
}

struct FileReader {
    file: File,
    size_bytes: u64,
}

impl ReaderAt for FileReader {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.size_bytes.saturating_sub(offset);
        let wanted = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut count = 0;
        while count < wanted {
            match self.file.read_at(&mut buf[count..wanted], offset + count as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }
}

fn info(digest: &Digest, stat: &Stat, labels: (Labels, Option<SystemTime>)) -> Info {
    let (labels, changed_at) = labels;
    let created_at = modified(stat);
    Info {
        digest: digest.clone(),
        size_bytes: stat.st_size as u64,
        created_at,
        updated_at: changed_at.map_or(created_at, |at| at.max(created_at)),
        labels,
    }
}

/// The modification time of what was looked at.
fn modified(stat: &Stat) -> SystemTime {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let since = Duration::new(seconds, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}

/// Below this the set-up of direct I/O costs more than it saves.
const URING_SIZE_BYTES_MIN: u64 = 256 * 1024;

/// A directory without its files for this long was left by a crash, not by a writer at work.
const JUNK_AGE: Duration = Duration::from_secs(60);
