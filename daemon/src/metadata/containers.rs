//! Containers: what to run, not the running of it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crated_content::LabelUpdate;
use prost_types::Any;

use super::{Db, Labels, Result, Scope};

/// Which runtime runs a container, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Runtime {
    /// The name of the runtime, `io.containerd.runc.v2` for example; never empty.
    pub name: String,
    /// Options the runtime understands, kept byte for byte.
    pub options: Option<Any>,
}

/// One container record.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// An identifier, unique in its namespace.
    pub id: String,
    /// Labels; none has an empty value.
    pub labels: Labels,
    /// The image it was made from, which need not exist.
    pub image: Option<String>,
    /// What runs it.
    pub runtime: Runtime,
    /// The runtime specification, kept byte for byte.
    pub spec: Any,
    /// The snapshotter that holds its root filesystem.
    pub snapshotter: Option<String>,
    /// The snapshot that is its root filesystem; requires a snapshotter.
    pub snapshot_key: Option<String>,
    /// Data of clients, kept byte for byte. No key is empty.
    pub extensions: BTreeMap<String, Any>,
    /// The sandbox it belongs to.
    pub sandbox: Option<String>,
    /// When it was created.
    pub created_at: SystemTime,
    /// When it was created or last changed.
    pub updated_at: SystemTime,
}

/// What to change about a container; `None` leaves a part as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerUpdate {
    /// The labels.
    pub labels: Option<LabelUpdate>,
    /// The specification.
    pub spec: Option<Any>,
    /// Extensions to set; others stay, as clients have come to expect.
    pub extensions: BTreeMap<String, Any>,
    /// The image name; `Some(None)` clears it.
    pub image: Option<Option<String>>,
    /// The snapshot key; `Some(None)` clears it.
    pub snapshot_key: Option<Option<String>>,
    /// The update is refused unless the container has this snapshotter.
    pub require_snapshotter: Option<Option<String>>,
    /// The update is refused unless the container has the runtime of this name.
    pub require_runtime: Option<String>,
}

impl ContainerUpdate {
    /// Everything that may change taken from `container`, and the demand that the rest is equal:
    /// an update without a mask.
    pub fn replace(container: Container) -> Self {
        Self {
            labels: Some(LabelUpdate::Replace(container.labels)),
            spec: Some(container.spec),
            extensions: container.extensions,
            image: Some(container.image),
            snapshot_key: Some(container.snapshot_key),
            require_snapshotter: Some(container.snapshotter),
            require_runtime: Some(container.runtime.name),
        }
    }
}

/// The container records.
#[derive(Clone)]
pub struct Containers {
    db: Db,
}
