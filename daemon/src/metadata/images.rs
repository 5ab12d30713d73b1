//! Images: names for targets, the roots of the garbage collector.

use std::time::SystemTime;

use crated_content::{Digest, LabelUpdate};

use super::{Db, Labels, Result, Scope};

/// What an image points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The media type of the blob.
    pub media_type: String,
    /// The blob, normally an index or a manifest.
    pub digest: Digest,
    /// Length of the blob in bytes; never 0.
    pub size_bytes: u64,
    /// Annotations of the descriptor.
    pub annotations: Labels,
}

/// A name for a target in one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name: any text, normally a reference.
    pub name: String,
    /// Labels; none has an empty value.
    pub labels: Labels,
    /// What the name stands for.
    pub target: Target,
    /// When it was created.
    pub created_at: SystemTime,
    /// When it was created or last changed.
    pub updated_at: SystemTime,
}

/// What to change about an image; `None` leaves a part as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUpdate {
    /// The labels.
    pub labels: Option<LabelUpdate>,
    /// The whole target, annotations included.
    pub target: Option<Target>,
    /// The annotations of the target, after `target` was replaced.
    pub annotations: Option<LabelUpdate>,
}

/// The image records.
#[derive(Clone)]
pub struct Images {
    db: Db,
}
