//! A store of one's own: counts what is read and written, and leaves the rest to another store.
//!
//! Run with `cargo run --example custom_store --features testsuite`.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crated_content::{
    Commit, Digest, Info, Ingest, IngestManager, Ingester, LabelUpdate, Manager, MemoryStore,
    Provider, ReaderAt, Result, Status, Store, Writer, read_blob, testsuite, write_blob,
};

/// Counts the bytes that pass.
struct Counting<S> {
    inner: S,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    read: AtomicU64,
    written: AtomicU64,
}

impl<S: Store> Counting<S> {
    fn new(inner: S) -> Self {
        Self { inner, counts: Arc::default() }
    }
}

impl<S: Store> Provider for Counting<S> {
    fn info(&self, digest: &Digest) -> Result<Info> {
        self.inner.info(digest)
    }

    fn reader(&self, digest: &Digest) -> Result<Box<dyn ReaderAt>> {
        let inner = self.inner.reader(digest)?;
        Ok(Box::new(CountingReader { inner, counts: Arc::clone(&self.counts) }))
    }
}

impl<S: Store> Ingester for Counting<S> {
    fn writer(&self, ingest: &Ingest) -> Result<Box<dyn Writer>> {
        let inner = self.inner.writer(ingest)?;
        Ok(Box::new(CountingWriter { inner, counts: Arc::clone(&self.counts) }))
    }
}

impl<S: Store> IngestManager for Counting<S> {
    fn status(&self, reference: &str) -> Result<Status> {
        self.inner.status(reference)
    }

    fn statuses(&self) -> Result<Vec<Status>> {
        self.inner.statuses()
    }

    fn abort(&self, reference: &str) -> Result<()> {
        self.inner.abort(reference)
    }
}

impl<S: Store> Manager for Counting<S> {
    fn update(&self, digest: &Digest, update: &LabelUpdate) -> Result<Info> {
        self.inner.update(digest, update)
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        self.inner.walk(visit)
    }

    fn delete(&self, digest: &Digest) -> Result<()> {
        self.inner.delete(digest)
    }
}

struct CountingReader {
    inner: Box<dyn ReaderAt>,
    counts: Arc<Counts>,
}

impl ReaderAt for CountingReader {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.inner.read_at(buf, offset)?;
        self.counts.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

struct CountingWriter {
    inner: Box<dyn Writer>,
    counts: Arc<Counts>,
}

impl Write for CountingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.counts.written.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Writer for CountingWriter {
    fn status(&self) -> Status {
        self.inner.status()
    }

    fn digest(&mut self) -> Result<Digest> {
        self.inner.digest()
    }

    fn truncate(&mut self) -> Result<()> {
        self.inner.truncate()
    }

    fn commit(self: Box<Self>, commit: &Commit) -> Result<Info> {
        self.inner.commit(commit)
    }
}

fn main() -> Result<()> {
    let store = Counting::new(MemoryStore::new());
    let digest = write_blob(&store, "greeting", b"hello")?;
    read_blob(&store, &digest, 1024)?;
    assert_eq!(store.counts.written.load(Ordering::Relaxed), 5);
    assert_eq!(store.counts.read.load(Ordering::Relaxed), 5);

    // Each promise can be checked by itself; `store_testsuite!` makes tests of all of them.
    testsuite::commit_rejects_wrong_digest(&Counting::new(MemoryStore::new()));
    testsuite::a_dropped_writer_leaves_its_bytes_for_the_next(&Counting::new(MemoryStore::new()));
    Ok(())
}
