use std::path::PathBuf;
use std::sync::Arc;

/// The result of a metadata operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error is about: the kind of object, in the words of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Object {
    /// A container record.
    Container,
    /// A blob in a namespace.
    Content,
    /// An image record.
    Image,
    /// A blob on its way in.
    Ingest,
    /// A lease.
    Lease,
    /// A network link.
    Link,
    /// A network namespace.
    Netns,
    /// A namespace.
    Namespace,
    /// A sandbox record.
    Sandbox,
    /// A snapshot.
    Snapshot,
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Container => "container",
            Self::Content => "content",
            Self::Image => "image",
            Self::Ingest => "ingest",
            Self::Lease => "lease",
            Self::Link => "link",
            Self::Netns => "network namespace",
            Self::Namespace => "namespace",
            Self::Sandbox => "sandbox",
            Self::Snapshot => "snapshot",
        })
    }
}

/// Why a metadata operation failed, named for what the caller can do about it.
///
/// Messages of [`NotFound`](Self::NotFound) and [`AlreadyExists`](Self::AlreadyExists) end in the
/// words old clients look for.
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The namespace holds no such object. Create it.
    #[error("{object} {id:?}: not found")]
    NotFound { object: Object, id: String },
    /// The lease named in the request does not exist, so nothing was added to it.
    #[error("lease does not exist: {id:?}: not found")]
    LeaseNotFound { id: String },
    /// The object is there already; the caller may carry on with it.
    #[error("{object} {id:?}: already exists")]
    AlreadyExists { object: Object, id: String },
    /// The request can never succeed as it stands.
    #[error("{what}: {reason}: invalid argument")]
    InvalidArgument { what: String, reason: String },
    /// The request cannot succeed in the present state; `reason` says what to change first.
    #[error("{object} {id:?}: {reason}: failed precondition")]
    FailedPrecondition { object: Object, id: String, reason: String },
    /// The request names something this daemon does not know.
    #[error("{what}: not implemented")]
    Unimplemented { what: String },
    /// The content store below failed.
    #[error(transparent)]
    Content(crated_content::Error),
    /// The snapshotter below failed.
    #[error(transparent)]
    Snapshot(crated_snapshot::Error),
    /// The database cannot be used and was left untouched. Restore `path` from a backup, or have
    /// `crated fsck --repair` set it aside and rebuild the records that content and snapshots
    /// prove. Without records the collector would remove both, so the daemon does not start.
    #[error("metadata database {} refused: {reason}; restore it, or run crated fsck", path.display())]
    Damaged { path: PathBuf, reason: String },
    /// The database was written by a newer release and was left untouched. Use that release.
    #[error(
        "metadata database {} refused: layout {found} was written by a newer release, this one \
         knows {known}",
        path.display()
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    /// Another process holds the database.
    #[error("metadata database {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    /// The storage refused a transaction on `path`; nothing of it took effect.
    #[error("{step} metadata database {}", path.display())]
    Storage { step: &'static str, path: PathBuf, source: Arc<redb::Error> },
    /// The operating system refused `op` on `path`.
    #[error("{op} {}", path.display())]
    Io { op: &'static str, path: PathBuf, source: std::io::Error },
    /// A garbage collection failed; the next one tries again.
    #[error("garbage collection: {reason}")]
    Collection { reason: String },
    /// The daemon has a defect; the operation took no effect.
    #[error("internal: {reason}")]
    Internal { reason: String },
}

impl Error {
    /// A missing object.
    pub fn not_found(object: Object, id: impl Into<String>) -> Self {
        Self::NotFound { object, id: id.into() }
    }

    /// An object that is there already.
    pub fn already_exists(object: Object, id: impl Into<String>) -> Self {
        Self::AlreadyExists { object, id: id.into() }
    }

    /// An argument that breaks a rule.
    pub fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidArgument { what: what.into(), reason: reason.into() }
    }
}

/// Finds the metadata error again that a decorator had to pass as an error of the store.
impl From<crated_content::Error> for Error {
    fn from(error: crated_content::Error) -> Self {
        match error {
            crated_content::Error::Io { op, path, source } => match source.downcast::<Self>() {
                Ok(metadata) => metadata,
                Err(source) => Self::Content(crated_content::Error::Io { op, path, source }),
            },
            other => Self::Content(other),
        }
    }
}

/// Finds the metadata error again that a decorator had to pass as an error of the snapshotter.
impl From<crated_snapshot::Error> for Error {
    fn from(error: crated_snapshot::Error) -> Self {
        match error {
            crated_snapshot::Error::Io { op, path, source } => match source.downcast::<Self>() {
                Ok(metadata) => metadata,
                Err(source) => Self::Snapshot(crated_snapshot::Error::Io { op, path, source }),
            },
            other => Self::Snapshot(other),
        }
    }
}
