//! Why a snapshot, apply or diff operation failed.

use std::io;
use std::path::{Path, PathBuf};

/// The outcome of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed, named for what the caller can do about it.
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No snapshot with this key or name.
    #[error("snapshot {0:?} not found")]
    NotFound(String),
    /// A snapshot with this key or name exists already.
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    /// The request can never succeed as it stands.
    #[error("invalid {what}: {reason}")]
    InvalidArgument { what: &'static str, reason: String },
    /// The snapshot is in a state that forbids the operation.
    #[error("snapshot {key:?} {reason}")]
    FailedPrecondition { key: String, reason: String },
    /// This kernel, filesystem or build cannot do it; another implementor may.
    #[error("unsupported: {reason}")]
    Unsupported { reason: String },
    /// The layer is malformed, contradicts itself or tries what no layer may.
    ///
    /// `entry` is the name of the entry concerned, escaped, or empty when the
    /// stream broke between entries.
    #[error("invalid layer at entry {entry:?}: {reason}")]
    InvalidArchive { entry: String, reason: String },
    /// The layer passes a limit of [`ApplyOptions`](crate::ApplyOptions) or of
    /// the format; nothing was cut off silently.
    #[error("layer exceeds {limit} of {max}")]
    LimitExceeded { limit: &'static str, max: u64 },
    /// The byte stream of a layer could not be read or written.
    #[error("{op} layer stream")]
    Stream { op: &'static str, source: io::Error },
    /// Mounting or unmounting failed.
    #[error("mount for {op}")]
    Mount { op: &'static str, source: crated_mount::Error },
    /// The metadata database failed; its last committed state is intact.
    #[error("{op} metadata database")]
    Metadata { op: &'static str, source: DatabaseError },
    /// The filesystem refused `op` on `path`.
    #[error("{op} {}", path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
}

/// What the metadata database reported, opaque so that its engine can change.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DatabaseError(Box<redb::Error>);

impl Error {
    /// An [`Error::Io`] from anything that turns into an [`io::Error`].
    pub(crate) fn io(
        op: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io { op, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// An [`Error::Metadata`] from any of the engine's error types.
    pub(crate) fn metadata(op: &'static str, source: impl Into<redb::Error>) -> Self {
        Self::Metadata { op, source: DatabaseError(Box::new(source.into())) }
    }

    /// An [`Error::InvalidArchive`] for the entry of this raw name.
    pub(crate) fn archive(entry: &[u8], reason: impl Into<String>) -> Self {
        Self::InvalidArchive { entry: printable(entry), reason: reason.into() }
    }

    /// An [`Error::InvalidArgument`].
    pub(crate) fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidArgument { what, reason: reason.into() }
    }

    /// An [`Error::FailedPrecondition`].
    pub(crate) fn precondition(key: &str, reason: impl Into<String>) -> Self {
        Self::FailedPrecondition { key: key.to_owned(), reason: reason.into() }
    }
}

/// A raw name for messages: lossy, and cut so that a hostile layer cannot
/// fill a log with one error.
fn printable(name: &[u8]) -> String {
    let cut = &name[..name.len().min(NAME_SHOWN_BYTES_MAX)];
    let mut text = String::from_utf8_lossy(cut).into_owned();
    if cut.len() < name.len() {
        text.push_str("...");
    }
    text
}

/// Long enough to recognise a path, short enough for one log line.
const NAME_SHOWN_BYTES_MAX: usize = 256;
