//! The storage engine under the tables, and how it comes back after the disk failed it.
//!
//! After an I/O error, a full disk for example, the engine refuses further writes, because it
//! cannot know what reached the disk. Opening the file again settles that. Reads go on until then;
//! the next write reopens the file first, so a daemon whose disk was full works again as soon as
//! there is room, and deleting is possible before that: space for the file is reserved when it
//! grows, so that a change which fits into the file needs no more of the disk.

use std::fs::File;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{BackendError, Database, ReadTransaction, ReadableDatabase, StorageBackend};

use super::txn::storage;
use super::{Error, Result, migrate};

/// See the module.
pub(super) struct Engine {
    pub(super) path: Arc<Path>,
    database: RwLock<Option<Database>>,
    failed: AtomicBool,
}

impl Engine {
    pub(super) fn new(database: Database, path: Arc<Path>) -> Self {
        Self { path, database: RwLock::new(Some(database)), failed: AtomicBool::new(false) }
    }

    /// A view of the last commit.
    pub(super) fn begin_read(&self) -> Result<ReadTransaction> {
        {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(database) = &*database {
                let begun = database.begin_read();
                return begun.map_err(|error| storage("reading", &self.path, error.into()));
            }
        }
        self.reopen()?;
        self.begin_read_once()
    }

    /// Runs `write`, after reopening the file if the last one that ran failed.
    pub(super) fn write<T>(&self, write: impl FnOnce(&Database) -> Result<T>) -> Result<T> {
        if self.failed.load(Ordering::Acquire) {
            self.reopen()?;
        }
        let outcome = {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            write(database.as_ref().ok_or_else(|| self.closed())?)
        };
        if outcome.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        outcome
    }

    fn begin_read_once(&self) -> Result<ReadTransaction> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let begun = database.as_ref().ok_or_else(|| self.closed())?.begin_read();
        begun.map_err(|error| storage("reading", &self.path, error.into()))
    }

    fn reopen(&self) -> Result<()> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // The old handle holds the lock on the file, so it has to go first.
        drop(database.take());
        *database = Some(migrate::open_file(&self.path, false)?);
        self.failed.store(false, Ordering::Release);
        tracing::warn!(path = %self.path.display(), "metadata database reopened after a failure");
        Ok(())
    }

    fn closed(&self) -> Error {
        storage("reopening", &self.path, redb::Error::DatabaseClosed)
    }
}

/// A file whose space is on the disk before the engine counts on it.
#[derive(Debug)]
pub(super) struct Reserved {
    inner: FileBackend,
    file: File,
}

impl Reserved {
    pub(super) fn new(file: File) -> Result<Self, redb::DatabaseError> {
        let own = file.try_clone()?;
        Ok(Self { inner: FileBackend::new(file)?, file: own })
    }

    /// Allocates the bytes from `start` to `end`; where the filesystem cannot, growing has to do.
    fn reserve(&self, start: u64, end: u64) -> std::io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(&self.file, FallocateFlags::empty(), start, end - start) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => {
                self.file.set_len(start)?;
                Err(error.into())
            }
        }
    }
}

impl StorageBackend for Reserved {
    fn len(&self) -> std::io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        let now = self.inner.len()?;
        if len > now {
            self.reserve(now, len)?;
        }
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> std::io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
