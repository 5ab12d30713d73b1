use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::Digest;

/// The result of a content operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a content operation failed, named for what the caller can do about it.
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No blob with this digest, or it was removed meanwhile. Fetch it.
    #[error("content {0} not found")]
    NotFound(Digest),
    /// No ingest with this reference. Start one.
    #[error("ingest {0:?} not found")]
    IngestNotFound(String),
    /// The blob is in the store and readable: the caller may carry on as if it had written it.
    #[error("content {0} already exists")]
    AlreadyExists(Digest),
    /// Another live writer holds this reference. Retry once it is done.
    #[error("ingest {reference:?} is locked since {}", humane(*since))]
    Locked { reference: String, since: SystemTime },
    /// The bytes received do not hash to the digest promised. Abort and fetch again.
    #[error("unexpected commit digest {actual}, expected {expected}")]
    DigestMismatch { expected: Digest, actual: Digest },
    /// The bytes received are not as many as promised. Sizes in bytes.
    #[error("unexpected commit size {actual}, expected {expected}")]
    SizeMismatch { expected: u64, actual: u64 },
    /// The text is not a digest of an allowed algorithm.
    #[error("invalid digest {text:?}: {reason}")]
    InvalidDigest { text: String, reason: &'static str },
    /// The request can never succeed as it stands: `what` names the argument, `reason` the rule.
    #[error("invalid {what}: {reason}")]
    InvalidArgument { what: &'static str, reason: String },
    /// The offset lies behind the end of the blob. Both in bytes.
    #[error("offset {offset} is beyond the end at {size_bytes}")]
    OutOfRange { offset: u64, size_bytes: u64 },
    /// What the store holds for this digest is not what was committed. Fetch it again: a commit
    /// of the same digest replaces a quarantined blob.
    #[error("content {digest} is corrupt: {reason}")]
    Corrupt { digest: Digest, reason: String },
    /// The store cannot serve now, for example because another process holds its root.
    #[error("content store unavailable: {reason}")]
    Unavailable { reason: String },
    /// The operating system refused `op` on `path`.
    #[error("{op} {}", path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    /// Whether the operating system said the storage is full: space or quota has to be freed
    /// before a retry can succeed.
    pub fn is_storage_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// Seconds before now, the form in which a lock's age is useful to a person.
fn humane(since: SystemTime) -> String {
    match since.elapsed() {
        Ok(age) => format!("{:.1} s ago", age.as_secs_f64()),
        Err(_) => "a moment ago".to_owned(),
    }
}
