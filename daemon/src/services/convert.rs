//! Messages to domain types and back: the only place where that happens.

pub mod answers;

use std::collections::BTreeMap;
use std::time::SystemTime;

use crated_api::services::{containers, content, images, leases, namespaces, snapshots};
use crated_api::types;
use crated_content::{Digest, Labels};
use crated_mount::Mount;
use crated_snapshot::Kind;
use prost::Message as _;
use prost_types::{FieldMask, Timestamp};
use tonic::Status;

use super::status::invalid;
use crate::metadata::{
    Container, ContainerUpdate, Image, ImageUpdate, LabelUpdate, Lease, NamespaceRecord, Resource,
    Runtime, Sandbox, SandboxUpdate, Target,
};

/// A time that stands for "never" in every client: January of the year 1.
pub const NEVER: Timestamp = Timestamp { seconds: -62_135_596_800, nanos: 0 };

/// A time as clients expect it.
pub fn timestamp(time: SystemTime) -> Timestamp {
    time.into()
}

/// A time a client sent.
pub fn system_time(time: Timestamp) -> Result<SystemTime, Status> {
    SystemTime::try_from(time).map_err(|_| invalid(format!("timestamp {time}: out of range")))
}

/// A digest a client sent.
pub fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(super::status::from_content)
}

/// An optional text: clients send the empty one for none.
pub fn optional(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// An optional size: clients send zero, or less, for none.
pub fn optional_size(size: i64) -> Option<u64> {
    u64::try_from(size).ok().filter(|size| *size > 0)
}

/// A size for the wire. No file is larger than what its signed type holds.
pub fn size(size_bytes: u64) -> i64 {
    i64::try_from(size_bytes).unwrap_or(i64::MAX)
}

/// Drops labels with an empty value: they do not exist.
pub fn labels(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

/// A blob, for the wire.
pub fn content_info(info: crated_content::Info) -> content::v1::Info {
    content::v1::Info {
        digest: info.digest.to_string(),
        size: size(info.size_bytes),
        created_at: Some(timestamp(info.created_at)),
        updated_at: Some(timestamp(info.updated_at)),
        labels: info.labels,
    }
}

/// An unfinished write, for the wire.
pub fn content_status(status: crated_content::Status) -> content::v1::Status {
    content::v1::Status {
        started_at: Some(timestamp(status.started_at)),
        updated_at: Some(timestamp(status.updated_at)),
        r#ref: status.reference,
        offset: size(status.offset),
        total: size(status.total.unwrap_or(0)),
        expected: status.expected.map_or_else(String::new, |digest| digest.to_string()),
    }
}

/// An image, for the wire.
pub fn image(image: Image) -> images::v1::Image {
    images::v1::Image {
        name: image.name,
        labels: image.labels,
        target: Some(descriptor(image.target)),
        created_at: Some(timestamp(image.created_at)),
        updated_at: Some(timestamp(image.updated_at)),
    }
}

/// The target of an image, for the wire.
pub fn descriptor(target: Target) -> types::Descriptor {
    types::Descriptor {
        media_type: target.media_type,
        digest: target.digest.to_string(),
        size: size(target.size_bytes),
        annotations: target.annotations,
    }
}

/// The target of an image a client sent.
///
/// # Errors
///
/// InvalidArgument when it is missing or malformed.
pub fn target(descriptor: Option<types::Descriptor>) -> Result<Target, Status> {
    let Some(descriptor) = descriptor else { return Err(invalid("image target: missing")) };
    Ok(Target {
        digest: digest(&descriptor.digest)?,
        size_bytes: optional_size(descriptor.size)
            .ok_or_else(|| invalid(format!("image target size {}", descriptor.size)))?,
        media_type: descriptor.media_type,
        annotations: descriptor.annotations,
    })
}

/// Which parts of an image to change, and to what.
pub fn image_update(
    mask: Option<FieldMask>,
    image: images::v1::Image,
) -> Result<ImageUpdate, Status> {
    let annotations = || image.target.clone().map(|target| target.annotations).unwrap_or_default();
    let mut update = ImageUpdate::default();
    for path in Paths::new(mask, &["labels", "target"]).iter() {
        match path {
            ("labels", key) => change(&mut update.labels, key, &image.labels),
            ("target", None) => update.target = Some(target(image.target.clone())?),
            ("annotations", key) => change(&mut update.annotations, key, &annotations()),
            (field, _) => return Err(unknown_path("image", field)),
        }
    }
    Ok(update)
}

/// A container record, for the wire.
pub fn container(container: Container) -> containers::v1::Container {
    containers::v1::Container {
        id: container.id,
        labels: container.labels,
        image: container.image.unwrap_or_default(),
        runtime: Some(containers::v1::container::Runtime {
            name: container.runtime.name,
            options: container.runtime.options,
        }),
        spec: Some(container.spec),
        snapshotter: container.snapshotter.unwrap_or_default(),
        snapshot_key: container.snapshot_key.unwrap_or_default(),
        created_at: Some(timestamp(container.created_at)),
        updated_at: Some(timestamp(container.updated_at)),
        extensions: container.extensions,
        sandbox: container.sandbox.unwrap_or_default(),
    }
}

/// A container record a client sent. Its times are those of the store, not of the client.
pub fn container_record(record: containers::v1::Container) -> Result<Container, Status> {
    let id = &record.id;
    let runtime = record.runtime.unwrap_or_default();
    let spec = record.spec.ok_or_else(|| invalid(format!("container {id:?}: spec is missing")))?;
    Ok(Container {
        runtime: Runtime { name: runtime.name, options: runtime.options },
        labels: labels(record.labels),
        image: optional(record.image),
        spec,
        snapshotter: optional(record.snapshotter),
        snapshot_key: optional(record.snapshot_key),
        extensions: record.extensions,
        sandbox: optional(record.sandbox),
        created_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
        id: record.id,
    })
}

/// Which parts of a container to change, and to what.
pub fn container_update(
    mask: Option<FieldMask>,
    record: containers::v1::Container,
) -> Result<ContainerUpdate, Status> {
    let paths = Paths::new(mask, &[]);
    if paths.is_empty() {
        return Ok(ContainerUpdate::replace(container_record(record)?));
    }
    let mut update = ContainerUpdate::default();
    for path in paths.iter() {
        match path {
            ("labels", key) => change(&mut update.labels, key, &record.labels),
            ("spec", None) => {
                let missing = || invalid(format!("container {:?}: spec is missing", record.id));
                update.spec = Some(record.spec.clone().ok_or_else(missing)?);
            }
            ("extensions", None) => update.extensions = record.extensions.clone(),
            ("extensions", Some(key)) => {
                if let Some(value) = record.extensions.get(key) {
                    update.extensions.insert(key.to_owned(), value.clone());
                }
            }
            ("image", None) => update.image = Some(optional(record.image.clone())),
            ("snapshotkey", None) => {
                update.snapshot_key = Some(optional(record.snapshot_key.clone()));
            }
            (field, _) => return Err(unknown_path("container", field)),
        }
    }
    Ok(update)
}

/// A sandbox record, for the wire.
pub fn sandbox(sandbox: Sandbox) -> types::Sandbox {
    types::Sandbox {
        sandbox_id: sandbox.id,
        runtime: Some(types::sandbox::Runtime {
            name: sandbox.runtime.name,
            options: sandbox.runtime.options,
        }),
        spec: sandbox.spec,
        labels: sandbox.labels,
        created_at: Some(timestamp(sandbox.created_at)),
        updated_at: Some(timestamp(sandbox.updated_at)),
        extensions: sandbox.extensions,
        sandboxer: sandbox.sandboxer,
    }
}

/// A sandbox record a client sent. Its times are those of the store, not of the client.
pub fn sandbox_record(record: types::Sandbox) -> Sandbox {
    let runtime = record.runtime.unwrap_or_default();
    Sandbox {
        id: record.sandbox_id,
        labels: labels(record.labels),
        runtime: Runtime { name: runtime.name, options: runtime.options },
        spec: record.spec,
        extensions: record.extensions,
        sandboxer: record.sandboxer,
        created_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
    }
}

/// Which parts of a sandbox to change, and to what. No fields stand for all of them.
pub fn sandbox_update(
    fields: Vec<String>,
    record: &types::Sandbox,
) -> Result<SandboxUpdate, Status> {
    let mask = Some(FieldMask { paths: fields });
    let mut update = SandboxUpdate::default();
    for path in Paths::new(mask, &["labels", "extensions", "spec", "runtime"]).iter() {
        match path {
            ("labels", key) => change(&mut update.labels, key, &record.labels),
            ("extensions", None) => update.replace_extensions = Some(record.extensions.clone()),
            ("extensions", Some(key)) => {
                update.extensions.insert(key.to_owned(), record.extensions.get(key).cloned());
            }
            ("spec", None) => update.spec = Some(record.spec.clone()),
            ("runtime", None) => {
                let runtime = record.runtime.clone().unwrap_or_default();
                update.runtime = Some(Runtime { name: runtime.name, options: runtime.options });
            }
            (field, _) => return Err(unknown_path("sandbox", field)),
        }
    }
    Ok(update)
}

/// A lease, for the wire.
pub fn lease(lease: Lease) -> leases::v1::Lease {
    leases::v1::Lease {
        id: lease.id,
        created_at: Some(timestamp(lease.created_at)),
        labels: lease.labels,
    }
}

/// A resource of a lease, for the wire.
pub fn resource(resource: Resource) -> leases::v1::Resource {
    leases::v1::Resource { id: resource.id, r#type: resource.kind }
}

/// A resource a client sent.
///
/// # Errors
///
/// InvalidArgument when it is missing.
pub fn resource_named(resource: Option<leases::v1::Resource>) -> Result<Resource, Status> {
    let resource = resource.ok_or_else(|| invalid("lease resource: missing"))?;
    Ok(Resource { kind: resource.r#type, id: resource.id })
}

/// A namespace, for the wire.
pub fn namespace(record: NamespaceRecord) -> namespaces::v1::Namespace {
    namespaces::v1::Namespace { name: record.name.to_string(), labels: record.labels }
}

/// Which labels of a namespace to change: all of them, or single ones.
pub fn namespace_update(mask: Option<FieldMask>, labels: Labels) -> Result<LabelUpdate, Status> {
    if mask.as_ref().is_some_and(|mask| mask.paths.iter().any(|path| path == "labels")) {
        return Err(unknown_path("namespace", "labels"));
    }
    label_update("namespace", mask, labels)
}

/// Which labels of an object to change, where nothing else can change.
pub fn label_update(
    object: &str,
    mask: Option<FieldMask>,
    labels: Labels,
) -> Result<LabelUpdate, Status> {
    let mut update = None;
    for path in Paths::new(mask, &["labels"]).iter() {
        match path {
            ("labels", key) => change(&mut update, key, &labels),
            (field, _) => return Err(unknown_path(object, field)),
        }
    }
    Ok(update.unwrap_or(LabelUpdate::Merge(BTreeMap::new())))
}

/// The same change in the words of a snapshotter.
pub fn snapshot_labels(update: LabelUpdate) -> crated_snapshot::LabelUpdate {
    match update {
        LabelUpdate::Replace(labels) => crated_snapshot::LabelUpdate::Replace(labels),
        LabelUpdate::Merge(changes) => crated_snapshot::LabelUpdate::Merge(changes),
    }
}

/// A snapshot, for the wire.
pub fn snapshot_info(info: crated_snapshot::Info) -> snapshots::v1::Info {
    let kind = match info.kind {
        Kind::View => snapshots::v1::Kind::View,
        Kind::Active => snapshots::v1::Kind::Active,
        Kind::Committed => snapshots::v1::Kind::Committed,
    };
    snapshots::v1::Info {
        name: info.name,
        parent: info.parent.map_or_else(String::new, String::from),
        kind: kind.into(),
        created_at: Some(timestamp(info.created_at)),
        updated_at: Some(timestamp(info.updated_at)),
        labels: info.labels,
    }
}

/// A mount, for the wire.
pub fn mount(mount: Mount) -> types::Mount {
    types::Mount {
        r#type: mount.kind,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    }
}

/// Mounts, for the wire.
pub fn mounts(mounts: Vec<Mount>) -> Vec<types::Mount> {
    mounts.into_iter().map(mount).collect()
}

/// A mount a client sent.
pub fn mount_from(mount: types::Mount) -> Mount {
    Mount { kind: mount.r#type, source: mount.source, target: mount.target, options: mount.options }
}

/// Mounts a client sent.
pub fn mounts_from(mounts: Vec<types::Mount>) -> Vec<Mount> {
    mounts.into_iter().map(mount_from).collect()
}

/// The paths of a field mask, or those that no mask stands for.
struct Paths(Vec<String>);

impl Paths {
    fn new(mask: Option<FieldMask>, default: &[&str]) -> Self {
        match mask {
            Some(mask) if !mask.paths.is_empty() => Self(mask.paths),
            _ => Self(default.iter().map(|path| (*path).to_owned()).collect()),
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each path as a field and the key in its map. A key is everything behind the first dot:
    /// keys have dots and slashes of their own.
    fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.0.iter().map(|path| match path.split_once('.') {
            Some((field @ ("labels" | "annotations" | "extensions"), key)) if !key.is_empty() => {
                (field, Some(key))
            }
            _ => (path.as_str(), None),
        })
    }
}

/// Adds one path of a mask to the change of a map: the whole map, or one key of it.
fn change(update: &mut Option<LabelUpdate>, key: Option<&str>, labels: &Labels) {
    match (key, &mut *update) {
        (None, _) => *update = Some(LabelUpdate::Replace(labels.clone())),
        // The whole map has the key already.
        (Some(_), Some(LabelUpdate::Replace(_))) => {}
        (Some(key), _) => {
            let value = labels.get(key).filter(|value| !value.is_empty()).cloned();
            let change = (key.to_owned(), value);
            match update {
                Some(LabelUpdate::Merge(changes)) => drop(changes.insert(change.0, change.1)),
                _ => *update = Some(LabelUpdate::Merge(BTreeMap::from([change]))),
            }
        }
    }
}

fn unknown_path(object: &str, field: &str) -> Status {
    invalid(format!("cannot update field {field:?} of {object}"))
}

/// A registry's descriptor as messages have it.
pub fn descriptor_of(descriptor: &crated_distribution::Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: size(descriptor.size_bytes),
        annotations: descriptor.annotations.clone(),
    }
}

/// A time as labels have it, `2026-01-31T23:59:59Z`.
pub fn rfc3339(time: SystemTime) -> String {
    Timestamp::from(time).to_string()
}

/// A pid of a container, with the joined process it belongs to.
pub fn process_pid(process: crated_exec::ProcessPid) -> crated_api::tasks::ProcessInfo {
    use crated_exec::proto::runc::ProcessDetails;
    let info = process.exec_id.map(|exec_id| prost_types::Any {
        type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
        value: ProcessDetails { exec_id }.encode_to_vec(),
    });
    crated_api::tasks::ProcessInfo { pid: process.pid, info }
}

/// How to make a checkpoint.
pub fn checkpoint_options(
    options: Option<prost_types::Any>,
) -> Result<crated_exec::proto::runc::CheckpointOptions, Status> {
    let Some(options) = options else { return Ok(Default::default()) };
    let name = crated_api::any::name(&options.type_url);
    if name != "containerd.runc.v1.CheckpointOptions" {
        return Err(invalid(format!("checkpoint options of unknown type {name:?}")));
    }
    crated_exec::proto::runc::CheckpointOptions::decode(options.value.as_slice())
        .map_err(|error| invalid(format!("checkpoint options: {error}")))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn mask(paths: &[&str]) -> Option<FieldMask> {
        Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
    }

    fn labels_of(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_key_is_all_that_follows_the_first_dot() {
        let labels = labels_of(&[("containerd.io/gc.root", "now"), ("other", "kept")]);
        let update =
            label_update("content", mask(&["labels.containerd.io/gc.root"]), labels).unwrap();
        let expected = BTreeMap::from([("containerd.io/gc.root".into(), Some("now".into()))]);
        assert_eq!(update, LabelUpdate::Merge(expected));
    }

    #[test]
    fn a_key_without_value_is_removed() {
        let update =
            label_update("content", mask(&["labels.a", "labels.b"]), labels_of(&[("a", "")]));
        let expected = BTreeMap::from([("a".into(), None), ("b".into(), None)]);
        assert_eq!(update.unwrap(), LabelUpdate::Merge(expected));
    }

    #[test]
    fn no_mask_and_the_whole_map_replace() {
        let labels = labels_of(&[("a", "1")]);
        for mask in [None, mask(&[]), mask(&["labels"]), mask(&["labels.x", "labels"])] {
            let update = label_update("content", mask, labels.clone()).unwrap();
            assert_eq!(update, LabelUpdate::Replace(labels.clone()));
        }
    }

    #[test]
    fn unknown_paths_are_refused() {
        for path in ["size", "labels.", "label.a", ""] {
            let error = label_update("content", mask(&[path]), Labels::new()).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{path}");
        }
        assert!(namespace_update(mask(&["labels"]), Labels::new()).is_err());
        assert!(namespace_update(mask(&["labels.a"]), Labels::new()).is_ok());
    }

    #[test]
    fn the_snapshot_key_of_a_container_is_one_word() {
        let record = containers::v1::Container {
            snapshot_key: "k".into(),
            ..containers::v1::Container::default()
        };
        let update = container_update(mask(&["snapshotkey"]), record.clone()).unwrap();
        assert_eq!(update.snapshot_key, Some(Some("k".into())));
        assert_eq!(update.labels, None);
        assert!(container_update(mask(&["snapshot_key"]), record).is_err());
    }

    #[test]
    fn never_is_the_year_one() {
        assert_eq!(NEVER.to_string(), "0001-01-01T00:00:00Z");
    }
}
