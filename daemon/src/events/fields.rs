//! The fields of event bodies that filters can name.

use std::collections::BTreeMap;

use crated_api::any::{name, unpack};
use crated_api::events as pb;
use prost_types::Any;

/// The text of the field at `path` of a known event; `None` for unknown events, unknown fields,
/// numbers and times, and whatever is unset.
pub(super) fn field(event: &Any, path: &[String]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let known = KNOWN.iter().find(|(known, _)| *known == name(&event.type_url))?;
    (known.1)(event, first, rest).filter(|text| !text.is_empty())
}

type Lookup = fn(&Any, &str, &[String]) -> Option<String>;

/// Declares how to look fields up: the message, then its text fields, then special ones.
macro_rules! known {
    ($($full:literal => $message:ident { $($field:ident),* } $(+ $special:expr)?;)*) => {
        const KNOWN: &[(&str, Lookup)] = &[$(
            ($full, |event, first, rest| {
                let message: pb::$message = unpack(event).ok()?;
                match first {
                    $(stringify!($field) => Some(message.$field),)*
                    _ => {
                        let _ = (&message, rest);
                        known!(@special message, first, rest $(, $special)?)
                    }
                }
            }),
        )*];
    };
    (@special $message:ident, $first:ident, $rest:ident) => { None };
    (@special $message:ident, $first:ident, $rest:ident, $special:expr) => {
        ($special)(&$message, $first, $rest)
    };
}

known! {
    "containerd.events.ContainerCreate" => ContainerCreate { id, image }
        + |message: &pb::ContainerCreate, first: &str, rest: &[String]| match (first, rest) {
            ("runtime", [part]) if part == "name" => {
                message.runtime.as_ref().map(|runtime| runtime.name.clone())
            }
            _ => None,
        };
    "containerd.events.ContainerUpdate" => ContainerUpdate { id, image, snapshot_key }
        + |message: &pb::ContainerUpdate, first: &str, rest: &[String]| {
            labels(&message.labels, first, rest)
        };
    "containerd.events.ContainerDelete" => ContainerDelete { id };
    "containerd.events.ContentCreate" => ContentCreate { digest };
    "containerd.events.ContentDelete" => ContentDelete { digest };
    "containerd.services.images.v1.ImageCreate" => ImageCreate { name }
        + |message: &pb::ImageCreate, first: &str, rest: &[String]| {
            labels(&message.labels, first, rest)
        };
    "containerd.services.images.v1.ImageUpdate" => ImageUpdate { name }
        + |message: &pb::ImageUpdate, first: &str, rest: &[String]| {
            labels(&message.labels, first, rest)
        };
    "containerd.services.images.v1.ImageDelete" => ImageDelete { name };
    "containerd.events.NamespaceCreate" => NamespaceCreate { name }
        + |message: &pb::NamespaceCreate, first: &str, rest: &[String]| {
            labels(&message.labels, first, rest)
        };
    "containerd.events.NamespaceUpdate" => NamespaceUpdate { name }
        + |message: &pb::NamespaceUpdate, first: &str, rest: &[String]| {
            labels(&message.labels, first, rest)
        };
    "containerd.events.NamespaceDelete" => NamespaceDelete { name };
    "containerd.events.SnapshotPrepare" => SnapshotPrepare { key, parent, snapshotter };
    "containerd.events.SnapshotCommit" => SnapshotCommit { key, name, snapshotter };
    "containerd.events.SnapshotRemove" => SnapshotRemove { key, snapshotter };
    "containerd.events.SandboxCreate" => SandboxCreate { sandbox_id };
    "containerd.events.SandboxStart" => SandboxStart { sandbox_id };
    "containerd.events.SandboxExit" => SandboxExit { sandbox_id };
    "containerd.events.TaskCreate" => TaskCreate { container_id, bundle, checkpoint }
        + |message: &pb::TaskCreate, first: &str, rest: &[String]| match (first, rest) {
            ("io", [part]) => {
                let io = message.io.as_ref()?;
                match part.as_str() {
                    "stdin" => Some(io.stdin.clone()),
                    "stdout" => Some(io.stdout.clone()),
                    "stderr" => Some(io.stderr.clone()),
                    "terminal" => io.terminal.then(|| "true".to_owned()),
                    _ => None,
                }
            }
            _ => None,
        };
    "containerd.events.TaskStart" => TaskStart { container_id };
    "containerd.events.TaskDelete" => TaskDelete { container_id, id };
    "containerd.events.TaskExit" => TaskExit { container_id, id };
    "containerd.events.TaskOOM" => TaskOom { container_id };
    "containerd.events.TaskExecAdded" => TaskExecAdded { container_id, exec_id };
    "containerd.events.TaskExecStarted" => TaskExecStarted { container_id, exec_id };
    "containerd.events.TaskPaused" => TaskPaused { container_id };
    "containerd.events.TaskResumed" => TaskResumed { container_id };
    "containerd.events.TaskCheckpointed" => TaskCheckpointed { container_id, checkpoint };
}

fn labels(labels: &BTreeMap<String, String>, first: &str, rest: &[String]) -> Option<String> {
    (first == "labels").then(|| labels.get(&rest.join(".")).cloned()).flatten()
}
