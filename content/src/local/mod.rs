//! A store in a directory.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::{
    Digest, Info, Ingest, IngestManager, Ingester, LabelUpdate, Manager, Provider, ReaderAt,
    Status, Writer,
};

/// Blobs in a directory of a local filesystem.
///
/// Clones share the store.
#[derive(Clone, Debug)]
pub struct LocalStore {
    root: PathBuf,
}

/// How bytes travel to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// io_uring where it works and pays, buffered writes elsewhere.
    #[default]
    Auto,
    /// io_uring with direct I/O for every ingest; opening fails where it does not work.
    Uring,
    /// Plain buffered writes.
    Buffered,
}

/// Options of a [`LocalStore`].
#[derive(Clone, Debug, Default)]
pub struct Builder {
    backend: Backend,
}

impl Builder {
    /// How bytes travel to the disk.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Opens the store in `root`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when another process holds the root.
    pub fn open(self, root: impl AsRef<Path>) -> Result<LocalStore> {
        Ok(LocalStore {
            root: root.as_ref().to_owned(),
        })
    }
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

    /// Drops ingests nobody writes to whose last byte arrived longer than `older_than` ago.
    /// Returns their references.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn collect_ingests(&self, older_than: Duration) -> Result<Vec<String>> {
        let _ = older_than;
        Err(self.unavailable())
    }

    fn unavailable(&self) -> Error {
        Error::Unavailable {
            reason: format!("{} is not open", self.root.display()),
        }
    }
}

impl Provider for LocalStore {
    fn info(&self, _: &Digest) -> Result<Info> {
        Err(self.unavailable())
    }

    fn reader(&self, _: &Digest) -> Result<Box<dyn ReaderAt>> {
        Err(self.unavailable())
    }
}

impl Ingester for LocalStore {
    fn writer(&self, _: &Ingest) -> Result<Box<dyn Writer>> {
        Err(self.unavailable())
    }
}

impl IngestManager for LocalStore {
    fn status(&self, _: &str) -> Result<Status> {
        Err(self.unavailable())
    }

    fn statuses(&self) -> Result<Vec<Status>> {
        Err(self.unavailable())
    }

    fn abort(&self, _: &str) -> Result<()> {
        Err(self.unavailable())
    }
}

impl Manager for LocalStore {
    fn update(&self, _: &Digest, _: &LabelUpdate) -> Result<Info> {
        Err(self.unavailable())
    }

    fn walk(&self, _: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        Err(self.unavailable())
    }

    fn delete(&self, _: &Digest) -> Result<()> {
        Err(self.unavailable())
    }
}
