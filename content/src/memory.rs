use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::lock::{Guard, Locks};
use crate::{
    Algorithm, Commit, Digest, Hasher, Info, Ingest, IngestManager, Ingester, LabelUpdate, Labels,
    Manager, Provider, ReaderAt, Status, Writer, check,
};

/// A store in memory: the test double of this crate, and proof that its traits need no disk.
///
/// Clones share the content. Nothing survives the process, and memory is the only limit.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    locks: Locks,
}

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<Digest, Blob>,
    ingests: BTreeMap<String, Arc<Mutex<Partial>>>,
}

#[derive(Clone, Debug)]
struct Blob {
    bytes: Arc<[u8]>,
    created_at: SystemTime,
    updated_at: SystemTime,
    labels: Labels,
}

#[derive(Debug)]
struct Partial {
    bytes: Vec<u8>,
    hasher: Hasher,
    total: Option<u64>,
    expected: Option<Digest>,
    started_at: SystemTime,
    updated_at: SystemTime,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blob {
    fn info(&self, digest: &Digest) -> Info {
        Info {
            digest: digest.clone(),
            size_bytes: self.bytes.len() as u64,
            created_at: self.created_at,
            updated_at: self.updated_at,
            labels: self.labels.clone(),
        }
    }
}

impl Partial {
    fn new(ingest: &Ingest) -> Self {
        let now = SystemTime::now();
        Self {
            bytes: Vec::new(),
            hasher: Hasher::new(algorithm(ingest.expected.as_ref())),
            total: ingest.total,
            expected: ingest.expected.clone(),
            started_at: now,
            updated_at: now,
        }
    }

    /// Adapts what an earlier writer left to what this one announces.
    fn resume(&mut self, ingest: &Ingest) {
        if ingest.total.is_some() && self.total.is_some() && ingest.total != self.total {
            *self = Self::new(ingest);
            return;
        }
        self.total = ingest.total.or(self.total);
        if ingest.expected.is_some() {
            self.expected = ingest.expected.clone();
        }
        let algorithm = algorithm(self.expected.as_ref());
        if self.hasher.algorithm() != algorithm {
            self.hasher = Hasher::new(algorithm);
            self.hasher.update(&self.bytes);
        }
    }

    fn status(&self, reference: &str) -> Status {
        Status {
            reference: reference.to_owned(),
            offset: self.bytes.len() as u64,
            total: self.total,
            expected: self.expected.clone(),
            started_at: self.started_at,
            updated_at: self.updated_at,
        }
    }
}

impl Provider for MemoryStore {
    fn info(&self, digest: &Digest) -> Result<Info> {
        let state = self.state();
        let blob = state.blobs.get(digest).ok_or_else(|| Error::NotFound(digest.clone()))?;
        Ok(blob.info(digest))
    }

    fn reader(&self, digest: &Digest) -> Result<Box<dyn ReaderAt>> {
        let state = self.state();
        let blob = state.blobs.get(digest).ok_or_else(|| Error::NotFound(digest.clone()))?;
        Ok(Box::new(MemoryReader { bytes: Arc::clone(&blob.bytes) }))
    }
}

impl Ingester for MemoryStore {
    fn writer(&self, ingest: &Ingest) -> Result<Box<dyn Writer>> {
        check::ingest(ingest)?;
        if let Some(expected) = &ingest.expected
            && self.state().blobs.contains_key(expected)
        {
            return Err(Error::AlreadyExists(expected.clone()));
        }
        let guard = self.shared.locks.take(&ingest.reference)?;
        let partial = {
            let mut state = self.state();
            let slot = state
                .ingests
                .entry(ingest.reference.clone())
                .or_insert_with(|| Arc::new(Mutex::new(Partial::new(ingest))));
            Arc::clone(slot)
        };
        lock(&partial).resume(ingest);
        Ok(Box::new(MemoryWriter {
            store: self.clone(),
            reference: ingest.reference.clone(),
            partial,
            _guard: guard,
        }))
    }
}

impl IngestManager for MemoryStore {
    fn status(&self, reference: &str) -> Result<Status> {
        let state = self.state();
        let partial = state
            .ingests
            .get(reference)
            .ok_or_else(|| Error::IngestNotFound(reference.to_owned()))?;
        Ok(lock(partial).status(reference))
    }

    fn statuses(&self) -> Result<Vec<Status>> {
        let state = self.state();
        Ok(state.ingests.iter().map(|(name, partial)| lock(partial).status(name)).collect())
    }

    fn abort(&self, reference: &str) -> Result<()> {
        let removed = self.state().ingests.remove(reference);
        removed.map(drop).ok_or_else(|| Error::IngestNotFound(reference.to_owned()))
    }
}

impl Manager for MemoryStore {
    fn update(&self, digest: &Digest, update: &LabelUpdate) -> Result<Info> {
        let mut state = self.state();
        let blob = state.blobs.get_mut(digest).ok_or_else(|| Error::NotFound(digest.clone()))?;
        let labels = update.apply(&blob.labels);
        check::labels(&labels)?;
        blob.labels = labels;
        blob.updated_at = SystemTime::now();
        Ok(blob.info(digest))
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        let mut from = Bound::Unbounded;
        loop {
            // One step at a time, so that `visit` may call the store.
            let next = {
                let state = self.state();
                let mut rest = state.blobs.range((from, Bound::Unbounded));
                rest.next().map(|(digest, blob)| blob.info(digest))
            };
            let Some(info) = next else { return Ok(()) };
            from = Bound::Excluded(info.digest.clone());
            if visit(info).is_break() {
                return Ok(());
            }
        }
    }

    fn delete(&self, digest: &Digest) -> Result<()> {
        let removed = self.state().blobs.remove(digest);
        removed.map(drop).ok_or_else(|| Error::NotFound(digest.clone()))
    }
}

struct MemoryReader {
    bytes: Arc<[u8]>,
}

impl ReaderAt for MemoryReader {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let rest = &self.bytes[start..];
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

struct MemoryWriter {
    store: MemoryStore,
    reference: String,
    partial: Arc<Mutex<Partial>>,
    /// Releases the reference, last.
    _guard: Guard,
}

impl Write for MemoryWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut partial = lock(&self.partial);
        partial.bytes.extend_from_slice(bytes);
        partial.hasher.update(bytes);
        partial.updated_at = SystemTime::now();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer for MemoryWriter {
    fn status(&self) -> Status {
        lock(&self.partial).status(&self.reference)
    }

    fn digest(&mut self) -> Result<Digest> {
        Ok(lock(&self.partial).hasher.digest())
    }

    fn truncate(&mut self) -> Result<()> {
        let mut partial = lock(&self.partial);
        partial.bytes.clear();
        partial.hasher = Hasher::new(partial.hasher.algorithm());
        partial.updated_at = SystemTime::now();
        Ok(())
    }

    fn commit(self: Box<Self>, commit: &Commit) -> Result<Info> {
        let partial = lock(&self.partial);
        let size_bytes = partial.bytes.len() as u64;
        let digest = check::commit(commit, size_bytes, partial.hasher.digest(), || {
            let expected = commit.digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
            Ok(Digest::of_with(expected, &partial.bytes))
        })?;
        let labels = LabelUpdate::Replace(commit.labels.clone()).apply(&Labels::new());
        check::labels(&labels)?;
        let bytes: Arc<[u8]> = partial.bytes.as_slice().into();
        drop(partial);

        let mut state = self.store.state();
        let ours = state.ingests.get(&self.reference);
        if !ours.is_some_and(|ours| Arc::ptr_eq(ours, &self.partial)) {
            return Err(Error::IngestNotFound(self.reference.clone()));
        }
        state.ingests.remove(&self.reference);
        if state.blobs.contains_key(&digest) {
            return Err(Error::AlreadyExists(digest));
        }
        let now = SystemTime::now();
        let blob = Blob { bytes, created_at: now, updated_at: now, labels };
        let info = blob.info(&digest);
        state.blobs.insert(digest, blob);
        Ok(info)
    }
}

fn lock(partial: &Mutex<Partial>) -> MutexGuard<'_, Partial> {
    partial.lock().unwrap_or_else(PoisonError::into_inner)
}

fn algorithm(expected: Option<&Digest>) -> Algorithm {
    expected.map_or(Algorithm::Sha256, Digest::algorithm)
}
