//! The database file, and the door every read and write goes through.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::batch::Batches;
use super::engine::Engine;
use super::events::{Event, EventSink, NoEvents};
use super::gc::{Dirty, Node};
use super::holders::Holders;
use super::txn::{ReadTx, WriteTx};
use super::{
    Containers, Images, Leases, Namespace, Namespaces, Networks, Result, Sandboxes, identity,
    migrate,
};
use crate::error::chain;

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
    /// Where network namespaces are pinned.
    pub(super) pins: OnceLock<PathBuf>,
    /// Deletes the networks whose deletion has begun.
    pub(super) network_cleaner: OnceLock<NetworkCleaner>,
}

/// See [`Db::clean_networks_with`].
pub(super) type NetworkCleaner = Box<dyn Fn() -> Result<usize, String> + Send + Sync>;

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
        let db = Self::over(migrate::open(root)?, sink);
        if let Some(reason) = identity::mismatch(&db)? {
            let path = db.inner.engine.path.to_path_buf();
            return Err(super::Error::Damaged { path, reason });
        }
        if let Err(error) = db.count_start() {
            // On a full disk nothing can be written, and the daemon is what makes room again. A
            // start that is not counted only makes an older copy harder to tell.
            tracing::warn!(error = chain(&error), "start of the daemon not counted");
        }
        Ok(db)
    }

    /// Opens the database below `root` to be checked, and says why it is to be taken for lost, if
    /// it is. With `repair`, a database that cannot be read is set aside and a new one opened;
    /// without, one in memory takes its place.
    ///
    /// # Errors
    ///
    /// As [`Db::open`], except for what is taken for a loss.
    pub fn open_for_check(root: &Path, repair: bool) -> Result<(Self, Option<String>)> {
        let over = |opened| Self::over(opened, Arc::new(NoEvents));
        let reason = if migrate::exists(root) {
            match migrate::open(root) {
                Ok(opened) => {
                    let db = over(opened);
                    let mismatch = identity::mismatch(&db)?;
                    return Ok((db, mismatch));
                }
                Err(super::Error::Damaged { reason, .. }) if repair => {
                    migrate::set_aside(root)?;
                    reason
                }
                Err(super::Error::Damaged { reason, .. }) => reason,
                Err(error) => return Err(error),
            }
        } else {
            "there is none".to_owned()
        };
        let opened = if repair { migrate::open(root)? } else { migrate::in_memory()? };
        Ok((over(opened), Some(reason)))
    }

    /// Notes in the database and beside it that both belong together from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`](super::Error::Storage) and [`Error::Io`](super::Error::Io).
    pub fn count_start(&self) -> Result<()> {
        identity::count_start(self)
    }

    fn over((database, path): (redb::Database, Arc<Path>), sink: Arc<dyn EventSink>) -> Self {
        Self {
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
                pins: OnceLock::new(),
                network_cleaner: OnceLock::new(),
            }),
        }
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

    /// The sandbox records.
    pub fn sandboxes(&self) -> Sandboxes {
        Sandboxes::new(self.clone())
    }

    /// The leases.
    pub fn leases(&self) -> Leases {
        Leases::new(self.clone())
    }

    /// The records of networks.
    pub fn networks(&self) -> Networks {
        Networks::new(self.clone())
    }

    /// Where network namespaces are pinned: a container that joins one of them refers to its
    /// record. The first directory stays.
    pub fn pins_are_in(&self, directory: &Path) {
        let _ = self.inner.pins.set(directory.to_path_buf());
    }

    /// Has collections call `clean` after they began to delete networks; it answers with how many
    /// are gone. The first one stays.
    pub fn clean_networks_with(
        &self,
        clean: impl Fn() -> Result<usize, String> + Send + Sync + 'static,
    ) {
        let _ = self.inner.network_cleaner.set(Box::new(clean));
    }

    /// Durable commits since the database was opened. Several writers may share one.
    pub fn commits(&self) -> u64 {
        self.inner.commits.load(Ordering::Relaxed)
    }

    /// What running operations hold at this moment, a line each, for a person to read.
    pub fn held(&self) -> Vec<String> {
        self.inner.holders.lines()
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
