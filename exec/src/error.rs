use std::{io, path::PathBuf};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed, named for what the caller can do about it.
///
/// Every variant but [`Error::Io`] carries a whole sentence, because most of
/// them arrive over a wire (from a shim) or from a runtime's log, and go to
/// the user unchanged. [`Error::class`] is the part programs decide on.
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The task, process or binary named does not exist, or is gone already.
    #[error("{0}")]
    NotFound(String),
    /// Something of this id exists; choose another id or use what is there.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request can never succeed as it is.
    #[error("{0}")]
    InvalidArgument(String),
    /// The state of the object forbids this now.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The other side refuses this caller.
    #[error("{0}")]
    PermissionDenied(String),
    /// A limit is reached; retry when load is lower.
    #[error("{0}")]
    ResourceExhausted(String),
    /// The other side cannot be reached; it may come back.
    #[error("{0}")]
    Unavailable(String),
    /// No answer within the time allowed; what was asked may still happen.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// The caller gave up, or the other side did.
    #[error("{0}")]
    Canceled(String),
    /// The other side does not know this operation.
    #[error("{0}")]
    Unimplemented(String),
    /// Something that must not happen did.
    #[error("{0}")]
    Internal(String),
    /// The runtime or the shim failed in its own words.
    #[error("{0}")]
    Unknown(String),
    /// The system refused `op` on `path`.
    #[error("{op} {}", path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
}

/// The class of an [`Error`]: the status codes gRPC and ttrpc share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
#[allow(missing_docs, reason = "the names are those of the codes")]
#[non_exhaustive]
pub enum Class {
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

impl Class {
    /// The status code on the wire.
    pub fn code(self) -> i32 {
        self as i32
    }
}

impl Error {
    /// What kind of failure this is, without its story.
    pub fn class(&self) -> Class {
        match self {
            Error::NotFound(_) => Class::NotFound,
            Error::AlreadyExists(_) => Class::AlreadyExists,
            Error::InvalidArgument(_) => Class::InvalidArgument,
            Error::FailedPrecondition(_) => Class::FailedPrecondition,
            Error::PermissionDenied(_) => Class::PermissionDenied,
            Error::ResourceExhausted(_) => Class::ResourceExhausted,
            Error::Unavailable(_) => Class::Unavailable,
            Error::DeadlineExceeded(_) => Class::DeadlineExceeded,
            Error::Canceled(_) => Class::Canceled,
            Error::Unimplemented(_) => Class::Unimplemented,
            Error::Internal(_) => Class::Internal,
            Error::Unknown(_) => Class::Unknown,
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Class::NotFound,
                io::ErrorKind::PermissionDenied => Class::PermissionDenied,
                io::ErrorKind::TimedOut => Class::DeadlineExceeded,
                _ => Class::Unknown,
            },
        }
    }

    /// The error a wire status stands for. Codes without a variant of their
    /// own become [`Error::Unknown`].
    pub fn from_code(code: i32, message: String) -> Self {
        match code {
            1 => Error::Canceled(message),
            3 => Error::InvalidArgument(message),
            4 => Error::DeadlineExceeded(message),
            5 => Error::NotFound(message),
            6 => Error::AlreadyExists(message),
            7 => Error::PermissionDenied(message),
            8 => Error::ResourceExhausted(message),
            9 => Error::FailedPrecondition(message),
            12 => Error::Unimplemented(message),
            13 => Error::Internal(message),
            14 => Error::Unavailable(message),
            _ => Error::Unknown(message),
        }
    }

    /// The message with all causes behind it, for a wire or a log line.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// Puts the step that failed before the message and keeps the class.
    #[must_use]
    pub fn context(self, step: &str) -> Self {
        let class = self.class();
        Error::from_code(class.code(), format!("{step}: {}", self.report()))
    }

    pub(crate) fn io(
        op: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Error::Io { op, path: path.into(), source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_the_class_and_the_causes() {
        let cause = io::Error::from(io::ErrorKind::NotFound);
        let error = Error::io("open", "/no/such", cause).context("create task");
        assert_eq!(error.class(), Class::NotFound);
        assert_eq!(error.to_string(), "create task: open /no/such: entity not found");
    }

    #[test]
    fn every_class_survives_the_wire() {
        for code in [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14] {
            assert_eq!(Error::from_code(code, "x".into()).class().code(), code);
        }
    }
}
