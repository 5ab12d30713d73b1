//! `ctr containers`

use std::collections::BTreeMap;

use crated_api::FieldMask;
use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{
    Container, DeleteContainerRequest, GetContainerRequest, ListContainersRequest,
    UpdateContainerRequest,
};
use crated_api::services::snapshots::v1::RemoveSnapshotRequest;
use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_api::services::tasks::v1::GetRequest;
use crated_api::services::tasks::v1::tasks_client::TasksClient;
use crated_api::tasks::Status;
use serde_json::{Value, json};

use crate::connect::{Daemon, client};
use crate::error::{Error, Result};
use crate::output::{self, Padding, Table};
use crate::spec::split_pair;
use crate::time;

/// What to do with containers.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List containers.
    #[command(visible_alias = "ls")]
    List {
        /// Print only their ids.
        #[arg(short, long)]
        quiet: bool,
        /// Filters, such as `image==x`.
        filters: Vec<String>,
    },
    /// Show all about a container.
    Info {
        /// Show only its runtime specification.
        #[arg(long)]
        spec: bool,
        /// Its id.
        id: String,
    },
    /// Set labels of a container; an empty value clears one.
    Label {
        /// Its id.
        id: String,
        /// Labels given as KEY=VALUE.
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Delete containers, which must not run.
    #[command(visible_aliases = ["rm", "del", "remove"])]
    Delete {
        /// Leave their snapshots.
        #[arg(long)]
        keep_snapshot: bool,
        /// Their ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Runs one of them.
pub(crate) async fn run(daemon: &Daemon, command: Command) -> Result<()> {
    let mut client = client!(daemon, ContainersClient);
    match command {
        Command::List { quiet, filters } => {
            let request = ListContainersRequest { filters };
            list(client.list(request).await?.into_inner().containers, quiet);
        }
        Command::Info { spec, id } => {
            let container = get(daemon, &id).await?;
            let shown = if spec { spec_of(&container) } else { describe(&container) };
            let text = serde_json::to_string_pretty(&shown).map_err(Error::malformed(id))?;
            output::line(text);
        }
        Command::Label { id, labels } => {
            let labels: BTreeMap<_, _> =
                labels.iter().map(|pair| split_pair(pair)).collect::<Result<_>>()?;
            let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
            let request = UpdateContainerRequest {
                container: Some(Container { id, labels, ..Container::default() }),
                update_mask: Some(FieldMask { paths }),
            };
            client.update(request).await?;
        }
        Command::Delete { keep_snapshot, ids } => {
            for id in ids {
                delete(daemon, &id, keep_snapshot).await?;
            }
        }
    }
    Ok(())
}

/// The record of one container.
pub(crate) async fn get(daemon: &Daemon, id: &str) -> Result<Container> {
    let request = GetContainerRequest { id: id.to_owned() };
    let answer = client!(daemon, ContainersClient).get(request).await?.into_inner();
    answer.container.ok_or_else(|| Error::Refused(format!("container {id:?}: empty answer")))
}

/// Deletes a container's record and, unless asked to keep it, its writable layer.
pub(crate) async fn delete(daemon: &Daemon, id: &str, keep_snapshot: bool) -> Result<()> {
    let container = get(daemon, id).await?;
    let request = GetRequest { container_id: id.to_owned(), ..GetRequest::default() };
    match client!(daemon, TasksClient).get(request).await.map_err(Error::from) {
        Ok(answer) => {
            let status = answer.into_inner().process.unwrap_or_default().status();
            if !matches!(status, Status::Stopped | Status::Created) {
                let status = super::tasks::word(status);
                let reason = format!("cannot delete a non stopped container {id:?}: {status}");
                return Err(Error::Refused(reason));
            }
            super::tasks::delete(daemon, id, "").await?;
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    if !keep_snapshot && !container.snapshot_key.is_empty() {
        let request = RemoveSnapshotRequest {
            snapshotter: container.snapshotter,
            key: container.snapshot_key,
        };
        match client!(daemon, SnapshotsClient).remove(request).await.map_err(Error::from) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    let request = DeleteContainerRequest { id: id.to_owned() };
    client!(daemon, ContainersClient).delete(request).await?;
    Ok(())
}

fn list(containers: Vec<Container>, quiet: bool) {
    if quiet {
        containers.iter().for_each(|container| output::line(&container.id));
        return;
    }
    let mut table = Table::new(Padding::Wide, ["CONTAINER", "IMAGE", "RUNTIME", ""]);
    for container in containers {
        let image = if container.image.is_empty() { "-".to_owned() } else { container.image };
        let runtime = container.runtime.unwrap_or_default().name;
        table.row([container.id, image, runtime, String::new()]);
    }
    table.print();
}

fn spec_of(container: &Container) -> Value {
    container
        .spec
        .as_ref()
        .and_then(|spec| serde_json::from_slice(&spec.value).ok())
        .unwrap_or_default()
}

/// With the names that containerd's client prints.
fn describe(container: &Container) -> Value {
    let moment = |at: Option<crated_api::Timestamp>| at.map(time::from_wire).map(time::rfc3339);
    let runtime = container.runtime.clone().unwrap_or_default();
    let options = runtime.options.map(|any| json!({"type_url": any.type_url, "value": any.value}));
    json!({
        "ID": container.id,
        "Labels": container.labels,
        "Image": container.image,
        "Runtime": {"Name": runtime.name, "Options": options},
        "SnapshotKey": container.snapshot_key,
        "Snapshotter": container.snapshotter,
        "CreatedAt": moment(container.created_at),
        "UpdatedAt": moment(container.updated_at),
        "Extensions": container.extensions.keys().collect::<Vec<_>>(),
        "SandboxID": container.sandbox,
        "Spec": spec_of(container),
    })
}
