//! `ctr snapshots`

use std::collections::BTreeMap;

use crated_api::FieldMask;
use crated_api::services::content::v1::DeleteContentRequest;
use crated_api::services::content::v1::content_client::ContentClient;
use crated_api::services::diff::v1::DiffRequest;
use crated_api::services::diff::v1::diff_client::DiffClient;
use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_api::services::snapshots::v1::{
    CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};
use crated_api::types::Mount;
use serde_json::json;

use super::images::DEFAULT_SNAPSHOTTER;
use crate::connect::{Daemon, Transport, client};
use crate::error::{Error, Result};
use crate::output::{self, Padding, Table};
use crate::spec::split_pair;
use crate::time;

/// Keeps what nothing else refers to from being collected.
const ROOT_LABEL: &str = "containerd.io/gc.root";

/// Which snapshotter, and what to do with its snapshots.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The snapshotter.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = DEFAULT_SNAPSHOTTER)]
    snapshotter: String,
    #[command(subcommand)]
    command: Command,
}

/// What to do with snapshots.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Commit an active snapshot under a name.
    Commit {
        /// The new name.
        name: String,
        /// The active snapshot.
        key: String,
    },
    /// Write the layer between two snapshots to standard output.
    Diff {
        /// Keep the layer in the content store.
        #[arg(long)]
        keep: bool,
        /// The layer's media type.
        #[arg(long, default_value = "application/vnd.oci.image.layer.v1.tar+gzip")]
        media_type: String,
        /// The lower snapshot, or the upper one when it is the only one: then its parent is the
        /// lower.
        first: String,
        /// The upper snapshot.
        second: Option<String>,
    },
    /// Show all about a snapshot.
    Info {
        /// Its key or name.
        key: String,
    },
    /// Set labels of a snapshot; an empty value clears one.
    Label {
        /// Its key or name.
        key: String,
        /// Labels given as KEY=VALUE.
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// List snapshots.
    #[command(visible_alias = "ls")]
    List {
        /// Filters, such as `kind==committed`.
        filters: Vec<String>,
    },
    /// Print the commands that mount a snapshot.
    #[command(visible_aliases = ["m", "mount"])]
    Mounts {
        /// Where to mount it.
        target: String,
        /// Its key.
        key: String,
    },
    /// Prepare a writable snapshot from a committed one.
    Prepare(Draft),
    /// Create a read-only snapshot from a committed one.
    View(Draft),
    /// Remove snapshots.
    #[command(visible_aliases = ["rm", "del", "remove"])]
    Delete {
        /// Their keys or names.
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Show what grows out of what.
    Tree,
    /// Show what snapshots take up, without their parents.
    Usage {
        /// Show sizes in bytes.
        #[arg(short)]
        bytes: bool,
        /// Their keys or names; all of them otherwise.
        keys: Vec<String>,
    },
}

/// A snapshot to make.
#[derive(Debug, clap::Args)]
pub(crate) struct Draft {
    /// Print the commands that mount it there.
    #[arg(short, long)]
    target: Option<String>,
    /// Its key.
    key: String,
    /// The committed snapshot to start from; an empty one otherwise.
    #[arg(default_value = "")]
    parent: String,
}

/// Runs one of them.
pub(crate) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<()> {
    let Arguments { snapshotter, command } = arguments;
    let mut client = client!(daemon, SnapshotsClient);
    let root = || BTreeMap::from([(ROOT_LABEL.to_owned(), now())]);
    match command {
        Command::Commit { name, key } => {
            let request = CommitSnapshotRequest {
                snapshotter,
                name,
                key,
                labels: root(),
                ..CommitSnapshotRequest::default()
            };
            client.commit(request).await?;
        }
        Command::Diff { keep, media_type, first, second } => {
            let pair = match second {
                Some(upper) => (first, upper),
                None => (parent_of(&mut client, &snapshotter, &first).await?, first),
            };
            diff(daemon, &snapshotter, pair, media_type, keep).await?;
        }
        Command::Info { key } => info(&mut client, snapshotter, key).await?,
        Command::Label { key, labels } => label(&mut client, snapshotter, key, &labels).await?,
        Command::List { filters } => {
            let mut table = Table::new(Padding::Tight, ["KEY", "PARENT", "KIND", ""]);
            for info in all(&mut client, snapshotter, filters).await? {
                let kind = kind(&info).to_owned();
                table.row([info.name, info.parent, kind, String::new()]);
            }
            table.print();
        }
        Command::Mounts { target, key } => {
            let request = MountsRequest { snapshotter, key };
            print_mounts(&client.mounts(request).await?.into_inner().mounts, &target);
        }
        Command::Prepare(Draft { target, key, parent }) => {
            let request = PrepareSnapshotRequest { snapshotter, key, parent, labels: root() };
            let mounts = client.prepare(request).await?.into_inner().mounts;
            target.iter().for_each(|target| print_mounts(&mounts, target));
        }
        Command::View(Draft { target, key, parent }) => {
            let request = ViewSnapshotRequest { snapshotter, key, parent, labels: root() };
            let mounts = client.view(request).await?.into_inner().mounts;
            target.iter().for_each(|target| print_mounts(&mounts, target));
        }
        Command::Delete { keys } => {
            for key in keys {
                let request = RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key };
                client.remove(request).await?;
            }
        }
        Command::Tree => tree(&all(&mut client, snapshotter, Vec::new()).await?),
        Command::Usage { bytes, keys } => usage(&mut client, snapshotter, bytes, keys).await?,
    }
    Ok(())
}

/// The active snapshot of a new container, and how to mount it.
pub(crate) async fn prepare(
    daemon: &Daemon,
    snapshotter: &str,
    key: &str,
    parent: &str,
    labels: BTreeMap<String, String>,
) -> Result<Vec<Mount>> {
    let request = PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels,
    };
    Ok(client!(daemon, SnapshotsClient).prepare(request).await?.into_inner().mounts)
}

/// Takes a snapshot back that turned out not to be needed.
pub(crate) async fn remove(daemon: &Daemon, snapshotter: &str, key: &str) {
    let request =
        RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    if let Err(error) = client!(daemon, SnapshotsClient).remove(request).await {
        output::warn(format!("snapshot {key} was not removed: {}", error.message()));
    }
}

/// How to mount an existing snapshot.
pub(crate) async fn mounts(daemon: &Daemon, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
    let request = MountsRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    Ok(client!(daemon, SnapshotsClient).mounts(request).await?.into_inner().mounts)
}

async fn all(
    client: &mut SnapshotsClient<Transport>,
    snapshotter: String,
    filters: Vec<String>,
) -> Result<Vec<Info>> {
    let request = ListSnapshotsRequest { snapshotter, filters };
    let mut stream = client.list(request).await?.into_inner();
    let mut infos = Vec::new();
    while let Some(batch) = stream.message().await? {
        infos.extend(batch.info);
    }
    Ok(infos)
}

async fn info(
    client: &mut SnapshotsClient<Transport>,
    snapshotter: String,
    key: String,
) -> Result<()> {
    let request = StatSnapshotRequest { snapshotter, key: key.clone() };
    let info = client.stat(request).await?.into_inner().info.unwrap_or_default();
    let moment = |at: Option<crated_api::Timestamp>| at.map(time::from_wire).map(time::rfc3339);
    let shown = json!({
        "Kind": kind(&info),
        "Name": info.name,
        "Parent": info.parent,
        "Labels": info.labels,
        "Created": moment(info.created_at),
        "Updated": moment(info.updated_at),
    });
    output::line(serde_json::to_string_pretty(&shown).map_err(Error::malformed(key))?);
    Ok(())
}

async fn label(
    client: &mut SnapshotsClient<Transport>,
    snapshotter: String,
    key: String,
    labels: &[String],
) -> Result<()> {
    let labels: BTreeMap<_, _> =
        labels.iter().map(|pair| split_pair(pair)).collect::<Result<_>>()?;
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let request = UpdateSnapshotRequest {
        snapshotter,
        info: Some(Info { name: key, labels, ..Info::default() }),
        update_mask: Some(FieldMask { paths }),
    };
    let info = client.update(request).await?.into_inner().info.unwrap_or_default();
    output::line(output::labels(&info.labels));
    Ok(())
}

async fn usage(
    client: &mut SnapshotsClient<Transport>,
    snapshotter: String,
    bytes: bool,
    keys: Vec<String>,
) -> Result<()> {
    let keys = if keys.is_empty() {
        let infos = all(client, snapshotter.clone(), Vec::new()).await?;
        infos.into_iter().map(|info| info.name).collect()
    } else {
        keys
    };
    let mut table = Table::new(Padding::Tight, ["KEY", "SIZE", "INODES", ""]);
    for key in keys {
        let request = UsageRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        let usage = client.usage(request).await?.into_inner();
        let size = u64::try_from(usage.size).unwrap_or_default();
        let size = if bytes { size.to_string() } else { output::size_binary(size) };
        table.row([key, size, usage.inodes.to_string(), String::new()]);
    }
    table.print();
    Ok(())
}

async fn parent_of(
    client: &mut SnapshotsClient<Transport>,
    snapshotter: &str,
    key: &str,
) -> Result<String> {
    let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    Ok(client.stat(request).await?.into_inner().info.unwrap_or_default().parent)
}

/// Has the daemon make the layer that turns the first of `pair` into the second.
async fn diff(
    daemon: &Daemon,
    snapshotter: &str,
    pair: (String, String),
    media_type: String,
    keep: bool,
) -> Result<()> {
    let (lower, upper) = pair;
    let left = look_at(daemon, snapshotter, &lower, "lower").await?;
    let right = look_at(daemon, snapshotter, &upper, "upper").await?;
    let labels =
        if keep { BTreeMap::from([(ROOT_LABEL.to_owned(), now())]) } else { BTreeMap::new() };
    let request = DiffRequest {
        left: left.mounts.clone(),
        right: right.mounts.clone(),
        media_type,
        labels,
        ..DiffRequest::default()
    };
    let made = client!(daemon, DiffClient).diff(request).await.map_err(Error::from);
    for view in [left, right] {
        if let Some(key) = view.key {
            remove(daemon, snapshotter, &key).await;
        }
    }
    let digest = made?.into_inner().diff.unwrap_or_default().digest;
    super::content::print(daemon, &digest).await?;
    if !keep {
        let request = DeleteContentRequest { digest };
        client!(daemon, ContentClient).delete(request).await?;
    }
    Ok(())
}

/// How a snapshot is looked at: as it is when it is active, through a view when it is committed,
/// and as nothing when it has no name.
struct Look {
    mounts: Vec<Mount>,
    key: Option<String>,
}

async fn look_at(daemon: &Daemon, snapshotter: &str, name: &str, side: &str) -> Result<Look> {
    if name.is_empty() {
        return Ok(Look { mounts: Vec::new(), key: None });
    }
    let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: name.to_owned() };
    let info = client!(daemon, SnapshotsClient).stat(request).await?.into_inner().info;
    if info.unwrap_or_default().kind() != Kind::Committed {
        let mounts = mounts(daemon, snapshotter, name).await?;
        return Ok(Look { mounts, key: None });
    }
    let key = format!("ctr-diff-{side}-{}-{name}", std::process::id());
    let request = ViewSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.clone(),
        parent: name.to_owned(),
        labels: BTreeMap::from([(ROOT_LABEL.to_owned(), now())]),
    };
    let mounts = client!(daemon, SnapshotsClient).view(request).await?.into_inner().mounts;
    Ok(Look { mounts, key: Some(key) })
}

/// Prints each snapshot below its parent.
fn tree(infos: &[Info]) {
    let mut children: BTreeMap<&str, Vec<&Info>> = BTreeMap::new();
    for info in infos {
        children.entry(&info.parent).or_default().push(info);
    }
    let mut pending: Vec<(usize, &Info)> =
        children.get("").into_iter().flatten().rev().map(|info| (0, *info)).collect();
    while let Some((depth, info)) = pending.pop() {
        let branch = if depth == 0 { String::new() } else { "  ".repeat(depth) + "\\_ " };
        output::line(format!("{branch}{}", info.name));
        let below = children.get(info.name.as_str()).into_iter().flatten().rev();
        pending.extend(below.map(|child| (depth + 1, *child)));
    }
}

fn print_mounts(mounts: &[Mount], target: &str) {
    for mount in mounts {
        let options = if mount.options.is_empty() {
            String::new()
        } else {
            format!(" -o {}", mount.options.join(","))
        };
        output::line(format!("mount -t {} {} {target}{options}", mount.r#type, mount.source));
    }
}

fn kind(info: &Info) -> &'static str {
    match info.kind() {
        Kind::View => "View",
        Kind::Active => "Active",
        Kind::Committed => "Committed",
        Kind::Unknown => "Unknown",
    }
}

fn now() -> String {
    time::rfc3339(std::time::SystemTime::now())
}
