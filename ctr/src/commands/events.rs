//! `ctr events`

use crated_api::Any;
use crated_api::events;
use crated_api::services::events::v1::SubscribeRequest;
use crated_api::services::events::v1::events_client::EventsClient;
use prost::Message;

use crate::connect::{Daemon, client};
use crate::error::Result;
use crate::{output, time};

/// Which events to show.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Filters, such as `topic~=^/tasks/`; all events without one.
    filters: Vec<String>,
}

/// Prints events until the daemon ends the stream.
pub(crate) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<()> {
    let request = SubscribeRequest { filters: arguments.filters };
    let mut stream = client!(daemon, EventsClient).subscribe(request).await?.into_inner();
    while let Some(envelope) = stream.message().await? {
        let moment = envelope.timestamp.map(time::from_wire).map(time::verbose);
        let body = envelope.event.map(|event| describe(&event)).unwrap_or_default();
        output::line(format!(
            "{} {} {} {body}",
            moment.unwrap_or_default(),
            envelope.namespace,
            envelope.topic
        ));
    }
    Ok(())
}

/// The body as JSON-like text; an unknown one as its type and size.
fn describe(event: &Any) -> String {
    macro_rules! known {
        ($($message:ident: $fields:expr),+ $(,)?) => {
            match event.type_url.rsplit('.').next().unwrap_or_default() {
                $(stringify!($message) => {
                    events::$message::decode(event.value.as_slice()).map($fields).ok()
                })+
                _ => None,
            }
        };
    }
    let fields = known! {
        ContainerCreate: |e| serde_json::json!({"id": e.id, "image": e.image}),
        ContainerUpdate: |e| serde_json::json!({"id": e.id, "image": e.image, "labels": e.labels}),
        ContainerDelete: |e| serde_json::json!({"id": e.id}),
        ContentCreate: |e| serde_json::json!({"digest": e.digest, "size": e.size}),
        ContentDelete: |e| serde_json::json!({"digest": e.digest}),
        ImageCreate: |e| serde_json::json!({"name": e.name, "labels": e.labels}),
        ImageUpdate: |e| serde_json::json!({"name": e.name, "labels": e.labels}),
        ImageDelete: |e| serde_json::json!({"name": e.name}),
        NamespaceCreate: |e| serde_json::json!({"name": e.name, "labels": e.labels}),
        NamespaceUpdate: |e| serde_json::json!({"name": e.name, "labels": e.labels}),
        NamespaceDelete: |e| serde_json::json!({"name": e.name}),
        SnapshotPrepare: |e| serde_json::json!({"key": e.key, "parent": e.parent}),
        SnapshotCommit: |e| serde_json::json!({"key": e.key, "name": e.name}),
        SnapshotRemove: |e| serde_json::json!({"key": e.key}),
        TaskCreate: |e| serde_json::json!({
            "container_id": e.container_id, "bundle": e.bundle, "pid": e.pid,
        }),
        TaskStart: |e| serde_json::json!({"container_id": e.container_id, "pid": e.pid}),
        TaskDelete: |e| serde_json::json!({
            "container_id": e.container_id, "id": e.id, "pid": e.pid,
            "exit_status": e.exit_status,
        }),
        TaskExit: |e| serde_json::json!({
            "container_id": e.container_id, "id": e.id, "pid": e.pid,
            "exit_status": e.exit_status,
        }),
        TaskOom: |e| serde_json::json!({"container_id": e.container_id}),
        TaskExecAdded: |e| serde_json::json!({
            "container_id": e.container_id, "exec_id": e.exec_id,
        }),
        TaskExecStarted: |e| serde_json::json!({
            "container_id": e.container_id, "exec_id": e.exec_id, "pid": e.pid,
        }),
        TaskPaused: |e| serde_json::json!({"container_id": e.container_id}),
        TaskResumed: |e| serde_json::json!({"container_id": e.container_id}),
    };
    match fields {
        Some(fields) => fields.to_string(),
        None => format!("{} ({} bytes)", event.type_url, event.value.len()),
    }
}
