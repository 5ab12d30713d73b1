//! Why a step failed, with the object it was about.

use crated_distribution::Digest;

use crate::blocking::Panicked;
use crate::metadata;

/// The result of every step.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a pull failed, named after the part that refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry, or what it sent.
    #[error(transparent)]
    Registry(#[from] crated_distribution::Error),
    /// The content store.
    #[error("store {object}")]
    Content {
        /// The blob or ingest.
        object: String,
        /// The store's reason.
        source: crated_content::Error,
    },
    /// The snapshotter or the applier.
    #[error("unpack {object}")]
    Snapshot {
        /// The layer or snapshot.
        object: String,
        /// Their reason.
        source: crated_snapshot::Error,
    },
    /// The metadata.
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
    /// The layer unfolds to something else than the configuration names.
    #[error(
        "layer {layer}: wrong diff id calculated on extraction: expected {expected}, got {actual}"
    )]
    DiffId {
        /// The layer's blob.
        layer: Digest,
        /// What the configuration names.
        expected: Digest,
        /// What came out.
        actual: String,
    },
    /// A snapshot that was said to exist cannot be found.
    #[error("snapshot {name}: exists for the snapshotter but cannot be found")]
    Vanished {
        /// Its name.
        name: String,
    },
    /// A blocking step panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl Error {
    pub(super) fn content(object: impl ToString) -> impl FnOnce(crated_content::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Content { object, source }
    }

    pub(super) fn snapshot(object: impl ToString) -> impl FnOnce(crated_snapshot::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Snapshot { object, source }
    }
}
