use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::time::SystemTime;

use crate::{Digest, Result};

/// Labels of a blob: opaque to the store, meaningful to the layers above.
pub type Labels = BTreeMap<String, String>;

/// What the store knows of one committed blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The name of the blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// When it was committed.
    pub created_at: SystemTime,
    /// When it was committed or its labels last changed, whichever is later.
    pub updated_at: SystemTime,
    /// Its labels; none has an empty value.
    pub labels: Labels,
}

/// What the store knows of one ingest: a blob on its way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The caller's name of the ingest.
    pub reference: String,
    /// Bytes received so far.
    pub offset: u64,
    /// Bytes announced in all, when known.
    pub total: Option<u64>,
    /// The digest announced, when known.
    pub expected: Option<Digest>,
    /// When the first writer opened it.
    pub started_at: SystemTime,
    /// When bytes last arrived.
    pub updated_at: SystemTime,
}

/// Which ingest to open and what is known of the blob beforehand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingest {
    /// The caller's name of the ingest: any text of 1 to [`REFERENCE_LEN_MAX`] bytes without NUL.
    pub reference: String,
    /// Bytes to come in all, when known. Lets a store reserve space.
    pub total: Option<u64>,
    /// The digest the bytes will have, when known. Selects the algorithm of the running digest.
    pub expected: Option<Digest>,
}

impl Ingest {
    /// An ingest called `reference`, nothing known beforehand.
    pub fn new(reference: impl Into<String>) -> Self {
        Self { reference: reference.into(), ..Self::default() }
    }

    /// Announces the size in bytes.
    #[must_use]
    pub fn total(mut self, size_bytes: u64) -> Self {
        self.total = Some(size_bytes);
        self
    }

    /// Announces the digest.
    #[must_use]
    pub fn expected(mut self, digest: Digest) -> Self {
        self.expected = Some(digest);
        self
    }
}

impl From<&str> for Ingest {
    fn from(reference: &str) -> Self {
        Self::new(reference)
    }
}

impl From<String> for Ingest {
    fn from(reference: String) -> Self {
        Self::new(reference)
    }
}

/// What must hold for a commit to succeed, and the labels the blob starts with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// The length the bytes must have; `None` accepts any.
    pub size_bytes: Option<u64>,
    /// The digest the bytes must have; `None` accepts any.
    pub digest: Option<Digest>,
    /// Labels of the new blob; entries with an empty value are left out.
    pub labels: Labels,
}

impl Commit {
    /// Demands the digest.
    pub fn expecting(digest: Digest) -> Self {
        Self { digest: Some(digest), ..Self::default() }
    }
}

/// A change to the labels of a blob. A label with an empty value does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelUpdate {
    /// These labels and no others.
    Replace(Labels),
    /// Set the named ones, remove those given as `None` or empty, leave the rest.
    Merge(BTreeMap<String, Option<String>>),
}

impl LabelUpdate {
    /// `labels` after the change. Every [`Manager`] shares this arithmetic.
    pub fn apply(&self, labels: &Labels) -> Labels {
        let mut changed = match self {
            Self::Replace(new) => new.clone(),
            Self::Merge(changes) => {
                let mut merged = labels.clone();
                for (key, value) in changes {
                    match value {
                        Some(value) => merged.insert(key.clone(), value.clone()),
                        None => merged.remove(key),
                    };
                }
                merged
            }
        };
        changed.retain(|_, value| !value.is_empty());
        changed
    }
}

/// Answers what is stored and hands out readers.
///
/// All methods may be called concurrently.
pub trait Provider: Send + Sync {
    /// Size, times and labels of a blob.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound) when the blob is not in the store,
    /// [`Error::Corrupt`](crate::Error::Corrupt) when something else stands in its place.
    fn info(&self, digest: &Digest) -> Result<Info>;

    /// Opens a blob for reading.
    ///
    /// The reader stays valid when the blob is deleted meanwhile: it never sees other bytes than
    /// those committed.
    ///
    /// # Errors
    ///
    /// As [`info`](Self::info).
    fn reader(&self, digest: &Digest) -> Result<Box<dyn ReaderAt>>;
}

/// Random access to the bytes of one blob. Shared freely between threads.
pub trait ReaderAt: Send + Sync {
    /// Length of the blob in bytes.
    fn size_bytes(&self) -> u64;

    /// Reads into `buf` from `offset` and returns how many bytes; fewer than asked only at the
    /// end, 0 at or behind it.
    ///
    /// # Errors
    ///
    /// What the storage says; `UnexpectedEof` when the blob has been truncated underneath.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// Takes blobs in.
pub trait Ingester: Send + Sync {
    /// Opens the ingest `ingest.reference`, new or where an earlier writer left it.
    ///
    /// A resumed writer reports in [`Writer::status`] how many bytes are already there; the
    /// caller continues from that offset or calls [`Writer::truncate`]. An ingest whose recorded
    /// total differs from `ingest.total` starts over at 0.
    ///
    /// # Errors
    ///
    /// - [`Error::AlreadyExists`](crate::Error::AlreadyExists): `ingest.expected` is stored and
    ///   readable.
    /// - [`Error::Locked`](crate::Error::Locked): another writer of this reference is alive.
    /// - [`Error::InvalidArgument`](crate::Error::InvalidArgument): the reference is empty, too
    ///   long or holds a NUL.
    fn writer(&self, ingest: &Ingest) -> Result<Box<dyn Writer>>;
}

/// One blob on its way in, owned by one caller.
///
/// Bytes arrive through [`io::Write`] and stay invisible to readers until
/// [`commit`](Self::commit). Dropping a writer keeps what was written and releases the reference,
/// so the next writer of the same reference resumes there; what a power cut leaves of an
/// uncommitted ingest is a prefix of it, or nothing.
pub trait Writer: io::Write + Send {
    /// Progress so far.
    fn status(&self) -> Status;

    /// The digest of the bytes so far, under the algorithm of the expected digest, sha256 if none
    /// was announced.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when bytes had to be read back and could not.
    fn digest(&mut self) -> Result<Digest>;

    /// Forgets every byte and starts again at offset 0.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when the storage refuses.
    fn truncate(&mut self) -> Result<()>;

    /// Publishes the blob under its digest, ends the ingest and releases the reference.
    ///
    /// Returns once the blob would survive a power cut. Whatever the outcome the reference is
    /// free when this returns.
    ///
    /// # Errors
    ///
    /// - [`Error::SizeMismatch`](crate::Error::SizeMismatch),
    ///   [`Error::DigestMismatch`](crate::Error::DigestMismatch): nothing became visible; the
    ///   ingest stays listed until aborted.
    /// - [`Error::AlreadyExists`](crate::Error::AlreadyExists): the blob was there first and is
    ///   readable; the ingest is gone and `commit.labels` were not applied.
    /// - [`Error::IngestNotFound`](crate::Error::IngestNotFound): the ingest was aborted under
    ///   this writer.
    /// - [`Error::Io`](crate::Error::Io): nothing may be assumed durable; the ingest stays.
    fn commit(self: Box<Self>, commit: &Commit) -> Result<Info>;
}

/// Lists and drops blobs on their way in.
pub trait IngestManager: Send + Sync {
    /// Progress of one ingest.
    ///
    /// # Errors
    ///
    /// [`Error::IngestNotFound`](crate::Error::IngestNotFound).
    fn status(&self, reference: &str) -> Result<Status>;

    /// Progress of every ingest, ordered by reference. One that ends meanwhile may be missing.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io).
    fn statuses(&self) -> Result<Vec<Status>>;

    /// Drops an ingest and its bytes, also under a live writer, whose commit then fails.
    ///
    /// # Errors
    ///
    /// [`Error::IngestNotFound`](crate::Error::IngestNotFound).
    fn abort(&self, reference: &str) -> Result<()>;
}

/// Changes and enumerates what is stored.
pub trait Manager: Send + Sync {
    /// Changes the labels and returns the blob's new state. Durable when it returns; concurrent
    /// updates of one blob happen one after the other.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound);
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when a key and its value together
    /// exceed [`LABEL_LEN_MAX`] bytes.
    fn update(&self, digest: &Digest, update: &LabelUpdate) -> Result<Info>;

    /// Calls `visit` for every blob until it breaks, in no promised order and with bounded memory.
    /// Blobs committed or deleted meanwhile may or may not be seen. `visit` may call the store.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io).
    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()>;

    /// Removes a blob and its labels. Open readers keep working.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    fn delete(&self, digest: &Digest) -> Result<()>;
}

/// A whole content store. Implemented by everything that has the four parts.
pub trait Store: Provider + Ingester + IngestManager + Manager {}

impl<T: Provider + Ingester + IngestManager + Manager + ?Sized> Store for T {}

/// Longest reference in bytes: clients build them from image names and digests, several hundred
/// bytes long; beyond this it is an attack or a mistake.
pub const REFERENCE_LEN_MAX: usize = 4096;

/// Longest label, key and value together, in bytes: the limit containerd clients know.
pub const LABEL_LEN_MAX: usize = 4096;
