//! The database file, and the door every read and write goes through.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::batch::Batches;
use super::engine::Engine;
use super::events::{Event, EventSink};
use super::gc::{Dirty, Node};
use super::holders::Holders;
use super::txn::{ReadTx, WriteTx};
use super::{Containers, Images, Leases, Namespace, Namespaces, Result, migrate};

/// The metadata of the daemon: one handle, cheap to clone, safe to use from many threads.
///
/// Each method of the record stores it hands out is one transaction: durable when it returns,
/// without any trace when it fails. Writers that arrive together share one commit; readers see the
/// last commit and never wait for writers.
///
/// All calls block for at most one commit, so they belong on a blocking thread.
#[derive(Clone)]
pub struct Db {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) engine: Engine,
    pub(super) batches: Batches,
    pub(super) holders: Holders,
    pub(super) barrier: Mutex<Barrier>,
    pub(super) dirty: Mutex<Dirty>,
    /// A reference was removed since the last collection.
    pub(super) reference_removed: AtomicBool,
    pub(super) commits: AtomicU64,
    /// Held for the length of a collection.
    pub(super) collecting: Mutex<()>,
    sink: Arc<dyn EventSink>,
    observer: OnceLock<Box<dyn Fn(bool) + Send + Sync>>,
}

/// What a collection under way has to know of writers that overtake it.
#[derive(Default)]
pub(super) struct Barrier {
    /// Objects touched since the collection's view was taken.
    pub(super) log: Option<Vec<(Namespace, Node)>>,
    /// Objects touched in the batch that is not committed yet.
    pub(super) batch: Vec<(Namespace, Node)>,
}

impl Db {
    /// Opens the database below `root`, the daemon's persistent directory, and creates it when
    /// there is none. Events of committed changes go to `sink`.
    ///
    /// Every page is verified, so that a damaged file is refused here and not found out later.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`](super::Error::Damaged) when the file is not a database of this version
    /// or fails verification; [`Error::InUse`](super::Error::InUse) when another daemon holds it;
    /// [`Error::Io`](super::Error::Io) and [`Error::Storage`](super::Error::Storage).
    pub fn open(root: &Path, sink: Arc<dyn EventSink>) -> Result<Self> {
        let (database, path) = migrate::open(root)?;
        Ok(Self {
            inner: Arc::new(Inner {
                engine: Engine::new(database, path),
                batches: Batches::default(),
                holders: Holders::default(),
                barrier: Mutex::default(),
                dirty: Mutex::new(Dirty::default()),
                reference_removed: AtomicBool::new(false),
                commits: AtomicU64::new(0),
                collecting: Mutex::default(),
                sink,
                observer: OnceLock::new(),
            }),
        })
    }

    /// The namespace records.
    pub fn namespaces(&self) -> Namespaces {
        Namespaces::new(self.clone())
    }

    /// The image records.
    pub fn images(&self) -> Images {
        Images::new(self.clone())
    }

    /// The container records.
    pub fn containers(&self) -> Containers {
        Containers::new(self.clone())
    }

    /// The leases.
    pub fn leases(&self) -> Leases {
        Leases::new(self.clone())
    }

    /// Durable commits since the database was opened. Several writers may share one.
    pub fn commits(&self) -> u64 {
        self.inner.commits.load(Ordering::Relaxed)
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// A view of the last commit.
    pub(super) fn read(&self) -> Result<ReadTx> {
        ReadTx::begin(&self.inner.engine)
    }

    /// Runs `operation` in a transaction, alone or together with others, and returns when that is
    /// durable. When `operation` fails, none of what it wrote is kept.
    pub(super) fn write<T, F>(&self, operation: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut WriteTx<'_, '_>) -> Result<T> + Send + 'static,
    {
        self.inner.batches.run(&self.inner, operation)
    }

    /// Has `observer` called after each commit that wrote something, once per operation, saying
    /// whether a reference was removed since the last collection. The first observer stays.
    pub(super) fn observe(&self, observer: impl Fn(bool) + Send + Sync + 'static) {
        let _ = self.inner.observer.set(Box::new(observer));
    }
}

impl Inner {
    pub(super) fn publish(&self, events: Vec<(Namespace, Event)>) {
        for (namespace, event) in events {
            self.sink.emit(&namespace, event);
        }
    }

    pub(super) fn notify(&self, dirty: bool) {
        if dirty {
            self.reference_removed.store(true, Ordering::Release);
        }
        if let Some(observer) = self.observer.get() {
            observer(self.reference_removed.load(Ordering::Acquire));
        }
    }
}
