use crate::metadata;

/// The result of a network operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel or the crate that talks to it refused.
    #[error(transparent)]
    Kernel(#[from] crated_netns::Error),
    /// One of several changes was refused; what came before it was taken back, except what the
    /// message names.
    #[error("operation {at}: {cause}{left}")]
    Step {
        /// Place of the operation, from 0.
        at: usize,
        /// Why it was refused.
        cause: Box<Error>,
        /// What could not be taken back.
        left: String,
    },
    /// The records refused.
    #[error(transparent)]
    Records(#[from] metadata::Error),
    /// The request can never succeed.
    #[error("{0}")]
    Invalid(String),
    /// Something has to change first.
    #[error("{0}")]
    Precondition(String),
    /// The object changed since the caller looked.
    #[error("{0}: changed meanwhile, look again")]
    Changed(String),
}
