//! Why a command failed, in the words that a person at a terminal reads.

use std::io;

/// A failed command. `ctr` prints it after its own name and ends with exit code 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The daemon cannot be reached.
    #[error("failed to dial {address:?}: {cause}")]
    Connect {
        /// The socket that was tried.
        address: String,
        /// What the transport said.
        cause: String,
    },
    /// The daemon refused a call.
    #[error("{}", worded(.0))]
    Call(#[from] tonic::Status),
    /// A local file or stream failed.
    #[error("{step} {object}: {source}")]
    Io {
        /// What was attempted.
        step: &'static str,
        /// On what.
        object: String,
        /// What the system said.
        source: io::Error,
    },
    /// What was asked for cannot be done as asked.
    #[error("{0}")]
    Refused(String),
    /// A document from the daemon does not read as it must.
    #[error("{object}: {cause}")]
    Malformed {
        /// The document.
        object: String,
        /// What is wrong with it.
        cause: String,
    },
}

impl Error {
    /// Wraps an I/O error with the step and object concerned.
    pub(crate) fn io(step: &'static str, object: impl ToString) -> impl FnOnce(io::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Io { step, object, source }
    }

    /// A document that does not parse.
    pub(crate) fn malformed<E: std::fmt::Display>(object: impl ToString) -> impl FnOnce(E) -> Self {
        let object = object.to_string();
        move |cause| Self::Malformed { object, cause: cause.to_string() }
    }

    /// Whether the daemon said that the object does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Call(status) if status.code() == tonic::Code::NotFound)
    }
}

/// What every command returns.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// The daemon's message, ending in its error class as containerd's clients print it.
fn worded(status: &tonic::Status) -> String {
    let class = match status.code() {
        tonic::Code::NotFound => "not found",
        tonic::Code::AlreadyExists => "already exists",
        tonic::Code::InvalidArgument => "invalid argument",
        tonic::Code::FailedPrecondition => "failed precondition",
        tonic::Code::Unavailable => "unavailable",
        tonic::Code::Unimplemented => "not implemented",
        _ => "",
    };
    let message = status.message();
    if class.is_empty() || message.ends_with(class) {
        message.to_owned()
    } else {
        format!("{message}: {class}")
    }
}
