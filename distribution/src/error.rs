//! What can go wrong, named for what the caller can do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::Digest;

/// The result of every operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a registry, a layout or a document failed.
///
/// No message carries a secret: query strings and user names are cut from every address before
/// it enters an error, and credentials have no printable form at all.
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not an image reference. Nothing was sent anywhere.
    #[error("invalid reference {input:?}: {reason}")]
    InvalidReference { input: String, reason: &'static str },
    /// The text is not a digest this crate can verify. Nothing was sent anywhere.
    #[error("invalid digest {input:?}: {reason}")]
    InvalidDigest { input: String, reason: &'static str },
    /// Another argument is unusable; the caller must change it.
    #[error("invalid {what}: {reason}")]
    InvalidArgument { what: &'static str, reason: String },
    /// A document from the other side is malformed, ambiguous or contradicts its descriptor.
    #[error("invalid {what}: {reason}")]
    InvalidDocument { what: String, reason: String },
    /// A document or an answer is larger, deeper or longer than the limit allows.
    #[error("{what} exceeds the limit of {limit}")]
    LimitExceeded { what: String, limit: u64 },
    /// No such image, blob, platform or host.
    #[error("{what}: not found")]
    NotFound { what: String },
    /// The object is there already; for a push this is success.
    #[error("{what}: already exists")]
    AlreadyExists { what: String },
    /// The registry wants other credentials, or none will do.
    #[error("{host}: {reason}")]
    Denied { host: String, reason: String },
    /// Our own policy refuses to send the request: a redirect, realm or upload location leads
    /// somewhere the configuration does not trust.
    #[error("refused to follow {url} named by {host}: {reason}")]
    Refused { host: String, url: String, reason: &'static str },
    /// The other side, or this crate, does not implement what was asked for.
    #[error("unsupported: {what}")]
    Unsupported { what: String },
    /// The body ended early and could not be resumed; what arrived is still usable as a prefix.
    #[error("{what}: unexpected EOF: have {have} of {want} bytes")]
    UnexpectedEof { what: String, have: u64, want: u64 },
    /// The body is longer than its descriptor says; nothing of it may be used.
    #[error("{what}: body is longer than the {want} bytes promised")]
    Oversized { what: String, want: u64 },
    /// The bytes are not what the digest names; discard them, never resume from them.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch { expected: Digest, actual: Digest },
    /// The registry answered with a status that means failure.
    #[error("unexpected status from {method} request to {url}: {status}{message}")]
    Status { method: &'static str, url: String, status: u16, message: String },
    /// The registry asks to come back later; attempts were used up.
    #[error("{host}: too many requests, try again later")]
    TooManyRequests { host: String, retry_after: Option<Duration> },
    /// The connection could not be made or broke. `reason` holds the whole cause.
    #[error("{method} {url}: {reason}")]
    Transport { method: &'static str, url: String, reason: String },
    /// The other side was too slow in `step`.
    #[error("{host}: {step} took longer than {limit:?}: i/o timeout")]
    Timeout { host: String, step: &'static str, limit: Duration },
    /// A configuration file is unusable.
    #[error("{}:{line}: {reason}", path.display())]
    Config { path: PathBuf, line: usize, reason: String },
    /// A credential helper or configuration could not answer for `host`.
    #[error("credentials for {host}: {reason}")]
    Credentials { host: String, reason: String },
    /// The filesystem refused `op` on `path`.
    #[error("{op} {}: {source}", path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    /// Whether the error says that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Status { status: 404, .. })
    }

    /// Whether other credentials could help.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Status { status: 401 | 403, .. })
    }

    /// Whether the same request may succeed later without any change by the caller.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Transport { .. }
            | Self::Timeout { .. }
            | Self::UnexpectedEof { .. }
            | Self::TooManyRequests { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    pub(crate) fn document(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidDocument { what: what.into(), reason: reason.into() }
    }

    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { op, path, source }
    }
}
