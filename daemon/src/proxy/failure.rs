use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

use crate::error::chain;

/// Why a proxy gave no answer, or a refusal for one.
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It answered, and refused.
    #[error("{}", .0.message())]
    Refused(Status),
    /// Nobody answers on its socket. Start it; the next call connects again.
    #[error("proxy plugin {name:?} at {}: {reason}", address.display())]
    Dead { name: String, address: PathBuf, reason: String },
    /// It did not answer in time.
    #[error("proxy plugin {name:?} at {}: no answer in {limit:?}", address.display())]
    Late { name: String, address: PathBuf, limit: std::time::Duration },
}

impl Failure {
    /// What `status` means. One that was made on this side has a cause; those of peers have none.
    pub(super) fn new(name: &str, address: &Path, status: Status) -> Self {
        match status.source() {
            None => Self::Refused(status),
            Some(cause) => Self::Dead {
                name: name.to_owned(),
                address: address.to_path_buf(),
                reason: chain(cause),
            },
        }
    }

    /// The refusal, if it is one.
    pub(super) fn refusal(&self) -> Option<&Status> {
        match self {
            Self::Refused(status) => Some(status),
            Self::Dead { .. } | Self::Late { .. } => None,
        }
    }

    /// As an error of the operating system, whose kind says what it was.
    pub(super) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Dead { .. } => io::ErrorKind::NotConnected,
            Self::Late { .. } => io::ErrorKind::TimedOut,
            Self::Refused(status) => match status.code() {
                Code::Unavailable => io::ErrorKind::NotConnected,
                Code::DeadlineExceeded => io::ErrorKind::TimedOut,
                Code::ResourceExhausted => io::ErrorKind::StorageFull,
                Code::DataLoss => io::ErrorKind::UnexpectedEof,
                Code::NotFound => io::ErrorKind::NotFound,
                _ => io::ErrorKind::Other,
            },
        };
        io::Error::new(kind, self)
    }
}

/// For services that pass the answers of a proxy on.
impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(status) => status,
            Failure::Dead { .. } => Self::unavailable(format!("{failure}: unavailable")),
            Failure::Late { .. } => Self::deadline_exceeded(failure.to_string()),
        }
    }
}
