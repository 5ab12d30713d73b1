//! Errors of every layer to gRPC codes: the only place where that happens.
//!
//! Clients decide by the code, and the older ones by the text too. A message therefore ends in the
//! words of its class behind a colon, `image "x": not found`, which the Go client cuts off again.

use std::error::Error as StdError;
use std::io;

use tonic::{Code, Status};

use crate::blocking::Panicked;
use crate::error::chain;
use crate::{events, filters, metadata, mounts, network, pipeline, programs};

impl From<Panicked> for Status {
    fn from(error: Panicked) -> Self {
        status(Code::Internal, &error)
    }
}

impl From<filters::Error> for Status {
    fn from(error: filters::Error) -> Self {
        status(Code::InvalidArgument, &error)
    }
}

impl From<events::Error> for Status {
    fn from(error: events::Error) -> Self {
        match error {
            events::Error::Invalid(error) => from_metadata(error),
            error => status(Code::ResourceExhausted, &error),
        }
    }
}

impl From<metadata::Error> for Status {
    fn from(error: metadata::Error) -> Self {
        from_metadata(error)
    }
}

impl From<network::Error> for Status {
    fn from(error: network::Error) -> Self {
        use network::Error;
        let text = chain(&error);
        let code = match error {
            Error::Kernel(error) => netns(&error),
            Error::Step { cause, .. } => Self::from(*cause).code(),
            Error::Records(error) => return from_metadata(error),
            Error::Invalid(_) => Code::InvalidArgument,
            Error::Changed(_) => Code::Aborted,
            _ => Code::FailedPrecondition,
        };
        message(code, text)
    }
}

/// A refusal of the kernel, as the network crate sorted it.
fn netns(error: &crated_netns::Error) -> Code {
    use crated_netns::Error;
    match error {
        Error::InvalidName { .. } | Error::InvalidValue { .. } => Code::InvalidArgument,
        Error::OutOfRange { .. } => Code::OutOfRange,
        Error::NotFound { .. } => Code::NotFound,
        Error::AlreadyExists { .. } => Code::AlreadyExists,
        Error::Busy { .. }
        | Error::InUse { .. }
        | Error::Refused { .. }
        | Error::Unreachable { .. }
        | Error::Stale { .. } => Code::FailedPrecondition,
        Error::Unsupported { .. } => Code::Unimplemented,
        Error::Limit { .. } => Code::ResourceExhausted,
        Error::Permission { .. } => Code::PermissionDenied,
        Error::Interrupted { .. } => Code::Unavailable,
        Error::TimedOut { .. } => Code::DeadlineExceeded,
        Error::Malformed { .. } | Error::WorkerLost { .. } => Code::Internal,
        _ => Code::Unknown,
    }
}

/// A failure of the metadata layer.
pub fn from_metadata(error: metadata::Error) -> Status {
    use metadata::Error;
    let code = match error {
        Error::Content(error) => return content(&error),
        Error::Snapshot(error) => return snapshot(&error),
        Error::NotFound { .. } | Error::LeaseNotFound { .. } => Code::NotFound,
        Error::AlreadyExists { .. } => Code::AlreadyExists,
        Error::InvalidArgument { .. } => Code::InvalidArgument,
        Error::FailedPrecondition { .. } => Code::FailedPrecondition,
        Error::Unimplemented { .. } => Code::Unimplemented,
        Error::InUse { .. } => Code::Unavailable,
        Error::Damaged { .. } => Code::DataLoss,
        Error::Internal { .. } | Error::Collection { .. } => Code::Internal,
        Error::Io { ref source, .. } => of_io(source),
        _ => Code::Unknown,
    };
    status(code, &error)
}

/// A failure of a content store, one of a namespace or one below.
pub fn from_content(error: crated_content::Error) -> Status {
    from_metadata(error.into())
}

/// A failure of a snapshotter, one of a namespace or one below, of an applier or of a differ.
pub fn from_snapshot(error: crated_snapshot::Error) -> Status {
    from_metadata(error.into())
}

/// A failure of a runtime or of a shim.
pub fn from_exec(error: &crated_exec::Error) -> Status {
    message(Code::from_i32(error.class().code()), error.report())
}

fn content(error: &crated_content::Error) -> Status {
    use crated_content::Error;
    let code = match error {
        Error::NotFound(_) | Error::IngestNotFound(_) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::Locked { .. } | Error::Unavailable { .. } => Code::Unavailable,
        Error::DigestMismatch { .. } | Error::SizeMismatch { .. } => Code::FailedPrecondition,
        Error::InvalidDigest { .. } | Error::InvalidArgument { .. } => Code::InvalidArgument,
        Error::OutOfRange { .. } => Code::OutOfRange,
        Error::Corrupt { .. } => Code::DataLoss,
        Error::Io { source, .. } => of_io(source),
        _ => Code::Unknown,
    };
    status(code, error)
}

fn snapshot(error: &crated_snapshot::Error) -> Status {
    use crated_snapshot::Error;
    let code = match error {
        Error::NotFound(_) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::InvalidArgument { .. } | Error::InvalidArchive { .. } => Code::InvalidArgument,
        Error::FailedPrecondition { .. } => Code::FailedPrecondition,
        Error::Unsupported { .. } => Code::Unimplemented,
        Error::LimitExceeded { .. } => Code::ResourceExhausted,
        Error::Io { source, .. } | Error::Stream { source, .. } => of_io(source),
        _ => Code::Unknown,
    };
    status(code, error)
}

/// A failure of a registry, a layout or one of their documents.
pub fn from_distribution(error: &crated_distribution::Error) -> Status {
    use crated_distribution::Error;
    let code = match error {
        _ if error.is_not_found() => Code::NotFound,
        Error::InvalidReference { .. }
        | Error::InvalidDigest { .. }
        | Error::InvalidArgument { .. } => Code::InvalidArgument,
        Error::AlreadyExists { .. } => Code::AlreadyExists,
        Error::Unsupported { .. } => Code::Unimplemented,
        Error::LimitExceeded { .. } => Code::ResourceExhausted,
        Error::DigestMismatch { .. } | Error::Oversized { .. } | Error::InvalidDocument { .. } => {
            Code::FailedPrecondition
        }
        Error::TooManyRequests { .. } | Error::Transport { .. } | Error::UnexpectedEof { .. } => {
            Code::Unavailable
        }
        Error::Timeout { .. } => Code::DeadlineExceeded,
        _ => Code::Unknown,
    };
    status(code, error)
}

/// A failure of a step of a pull.
pub fn from_pipeline(error: pipeline::Error) -> Status {
    use pipeline::Error;
    let text = chain(&error);
    let code = match error {
        Error::Registry(error) => from_distribution(&error).code(),
        Error::Content { source, .. } => from_metadata(metadata::Error::from(source)).code(),
        Error::Snapshot { source, .. } => from_metadata(metadata::Error::from(source)).code(),
        Error::Metadata(error) => from_metadata(error).code(),
        Error::DiffId { .. } => Code::FailedPrecondition,
        Error::Vanished { .. } | Error::Panicked(_) => Code::Internal,
    };
    message(code, text)
}

/// A refusal of an image verifier.
pub fn from_verifier(error: programs::Rejection) -> Status {
    let code = match error {
        programs::Rejection::Rejected { .. } => Code::PermissionDenied,
        _ => Code::Unknown,
    };
    status(code, &error)
}

/// A failure of activating mounts.
pub fn from_mounts(error: &mounts::Error) -> Status {
    use mounts::Error;
    let code = match error {
        // How clients learn that they can do it alone.
        Error::Plain { .. } => Code::Unimplemented,
        Error::AlreadyExists { .. } => Code::AlreadyExists,
        Error::NotFound { .. } => Code::NotFound,
        Error::InvalidArgument { .. } => Code::InvalidArgument,
        Error::Io { source, .. } => of_io(source),
        _ => Code::Unknown,
    };
    status(code, error)
}

/// A failure of reading or writing bytes.
pub fn from_io(error: &io::Error) -> Status {
    status(of_io(error), error)
}

/// A request that can never succeed.
pub fn invalid(reason: impl std::fmt::Display) -> Status {
    message(Code::InvalidArgument, reason.to_string())
}

/// Something the request needs is missing.
pub fn not_found(object: impl std::fmt::Display) -> Status {
    message(Code::NotFound, object.to_string())
}

/// A request that cannot succeed before something else changes.
pub fn precondition(reason: impl std::fmt::Display) -> Status {
    message(Code::FailedPrecondition, reason.to_string())
}

/// A position where nothing is.
pub fn out_of_range(reason: impl std::fmt::Display) -> Status {
    message(Code::OutOfRange, reason.to_string())
}

/// Something this daemon does not do.
pub fn unimplemented(what: impl std::fmt::Display) -> Status {
    message(Code::Unimplemented, what.to_string())
}

/// An error with all its causes, under `code`.
pub fn status(code: Code, error: &(dyn StdError + 'static)) -> Status {
    message(code, chain(error))
}

/// A text under `code`, ending in the words of its class.
fn message(code: Code, text: String) -> Status {
    let Some(class) = class(code) else { return Status::new(code, text) };
    let object = text.strip_suffix(class).map_or(text.as_str(), str::trim_end);
    match object.strip_suffix(':').unwrap_or(object) {
        "" => Status::new(code, class),
        object => Status::new(code, format!("{object}: {class}")),
    }
}

/// The words by which clients know a code, where they know it by words.
fn class(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::InvalidArgument => "invalid argument",
        Code::NotFound => "not found",
        Code::AlreadyExists => "already exists",
        Code::PermissionDenied => "permission denied",
        Code::FailedPrecondition => "failed precondition",
        Code::ResourceExhausted => "resource exhausted",
        Code::OutOfRange => "out of range",
        Code::Unimplemented => "not implemented",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data loss",
        Code::Internal => "internal",
        _ => return None,
    })
}

fn of_io(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        io::ErrorKind::UnexpectedEof => Code::DataLoss,
        // Of a proxy plugin: files and directories fail otherwise.
        io::ErrorKind::NotConnected => Code::Unavailable,
        io::ErrorKind::TimedOut => Code::DeadlineExceeded,
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use crated_content::Digest;

    use super::*;

    #[test]
    fn messages_end_in_their_class_once() {
        let missing = from_content(crated_content::Error::NotFound(Digest::of(b"")));
        assert_eq!(missing.code(), Code::NotFound);
        assert!(missing.message().ends_with(": not found"), "{}", missing.message());
        assert!(!missing.message().contains("not found: not found"));

        let invalid = from_metadata(metadata::Error::invalid("namespace", "must not be empty"));
        assert_eq!(invalid.message(), "namespace: must not be empty: invalid argument");
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let source = io::Error::from(io::ErrorKind::StorageFull);
        let error = crated_content::Error::Io { op: "write", path: "/x".into(), source };
        assert_eq!(from_content(error).code(), Code::ResourceExhausted);
    }
}
