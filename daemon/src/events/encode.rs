//! Metadata events in the form clients decode.

use crated_api::any::pack;
use crated_api::events as pb;
use prost_types::Any;

use crate::metadata::Event;

/// The wire form of `event`.
pub(super) fn encode(event: Event) -> Any {
    match event {
        Event::ContainerCreate { id, image, runtime } => pack(&pb::ContainerCreate {
            id,
            image: image.unwrap_or_default(),
            runtime: Some(pb::container_create::Runtime {
                name: runtime.name,
                options: runtime.options,
            }),
        }),
        Event::ContainerUpdate { id, image, labels, snapshot_key } => pack(&pb::ContainerUpdate {
            id,
            image: image.unwrap_or_default(),
            labels,
            snapshot_key: snapshot_key.unwrap_or_default(),
        }),
        Event::ContainerDelete { id } => pack(&pb::ContainerDelete { id }),
        Event::ContentCreate { digest, size_bytes } => pack(&pb::ContentCreate {
            digest: digest.to_string(),
            size: i64::try_from(size_bytes).unwrap_or(i64::MAX),
        }),
        Event::ContentDelete { digest } => pack(&pb::ContentDelete { digest: digest.to_string() }),
        Event::ImageCreate { name, labels } => pack(&pb::ImageCreate { name, labels }),
        Event::ImageUpdate { name, labels } => pack(&pb::ImageUpdate { name, labels }),
        Event::ImageDelete { name } => pack(&pb::ImageDelete { name }),
        Event::NamespaceCreate { name, labels } => pack(&pb::NamespaceCreate { name, labels }),
        Event::NamespaceUpdate { name, labels } => pack(&pb::NamespaceUpdate { name, labels }),
        Event::NamespaceDelete { name } => pack(&pb::NamespaceDelete { name }),
        Event::SnapshotPrepare { key, parent, snapshotter } => {
            pack(&pb::SnapshotPrepare { key, parent: parent.unwrap_or_default(), snapshotter })
        }
        Event::SnapshotCommit { key, name, snapshotter } => {
            pack(&pb::SnapshotCommit { key, name, snapshotter })
        }
        Event::SnapshotRemove { key, snapshotter } => {
            pack(&pb::SnapshotRemove { key, snapshotter })
        }
    }
}
