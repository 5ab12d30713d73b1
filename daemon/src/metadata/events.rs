//! What the metadata store tells the world.

use crated_content::Digest;

use super::{Labels, Namespace, Runtime};

/// A change that has been made and is durable.
#[allow(missing_docs, reason = "the fields are those of the objects named")]
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A container record was created.
    ContainerCreate { id: String, image: Option<String>, runtime: Runtime },
    /// A container record changed.
    ContainerUpdate {
        id: String,
        image: Option<String>,
        labels: Labels,
        snapshot_key: Option<String>,
    },
    /// A container record was removed.
    ContainerDelete { id: String },
    /// A blob became visible in the namespace.
    ContentCreate { digest: Digest, size_bytes: u64 },
    /// A blob is no longer visible in the namespace.
    ContentDelete { digest: Digest },
    /// An image was created.
    ImageCreate { name: String, labels: Labels },
    /// An image changed.
    ImageUpdate { name: String, labels: Labels },
    /// An image was removed, by a client or by the collector.
    ImageDelete { name: String },
    /// A namespace was created explicitly.
    NamespaceCreate { name: String, labels: Labels },
    /// The labels of a namespace changed.
    NamespaceUpdate { name: String, labels: Labels },
    /// A namespace was removed.
    NamespaceDelete { name: String },
    /// An active snapshot was prepared. Views are not announced.
    SnapshotPrepare { key: String, parent: Option<String>, snapshotter: String },
    /// An active snapshot was committed as `name`.
    SnapshotCommit { key: String, name: String, snapshotter: String },
    /// A snapshot was removed, by a client or by the collector.
    SnapshotRemove { key: String, snapshotter: String },
}

impl Event {
    /// The topic the event is published under.
    pub fn topic(&self) -> &'static str {
        match self {
            Self::ContainerCreate { .. } => "/containers/create",
            Self::ContainerUpdate { .. } => "/containers/update",
            Self::ContainerDelete { .. } => "/containers/delete",
            Self::ContentCreate { .. } => "/content/create",
            Self::ContentDelete { .. } => "/content/delete",
            Self::ImageCreate { .. } => "/images/create",
            Self::ImageUpdate { .. } => "/images/update",
            Self::ImageDelete { .. } => "/images/delete",
            Self::NamespaceCreate { .. } => "/namespaces/create",
            Self::NamespaceUpdate { .. } => "/namespaces/update",
            Self::NamespaceDelete { .. } => "/namespaces/delete",
            Self::SnapshotPrepare { .. } => "/snapshot/prepare",
            Self::SnapshotCommit { .. } => "/snapshot/commit",
            Self::SnapshotRemove { .. } => "/snapshot/remove",
        }
    }
}

/// Where events go. Called after the change is durable, in the order of the changes.
pub trait EventSink: Send + Sync {
    /// Takes note of `event` in `namespace`. Must not block: every writer would wait.
    fn emit(&self, namespace: &Namespace, event: Event);
}

/// Forgets every event.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvents;

impl EventSink for NoEvents {
    fn emit(&self, _: &Namespace, _: Event) {}
}
