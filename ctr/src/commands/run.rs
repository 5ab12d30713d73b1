//! `ctr run`: a container from an image, started and watched.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crated_api::Any;
use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, container,
};
use crated_api::types::Mount;
use oci_spec::image::ImageConfiguration;
use prost::Message;

use super::images::DEFAULT_SNAPSHOTTER;
use super::tasks::{Created, Streams};
use super::{images, snapshots, tasks};
use crate::connect::{Daemon, client};
use crate::error::{Error, Result};
use crate::rootfs::Rootfs;
use crate::spec::{self, Wishes, split_pair};
use crate::{Exit, chain, documents, output};

/// The type of a runtime specification in JSON.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// The type of the options of runc and what resembles it.
const OPTIONS_TYPE: &str = "containerd.runc.v1.Options";
/// How many bytes of environment file are read.
const ENV_FILE_BYTES_MAX: u64 = 1 << 20;

/// What to run, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Remove the container when it has ended.
    #[arg(long)]
    rm: bool,
    /// Give the process a terminal.
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    streams: Streams,
    /// The snapshotter of the container's file system.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = DEFAULT_SNAPSHOTTER)]
    snapshotter: String,
    /// The runtime that runs it.
    #[arg(long, default_value = "io.containerd.runc.v2")]
    runtime: String,
    /// A runc-compatible program, instead of runc.
    #[arg(long)]
    runc_binary: Option<String>,
    /// Where that program keeps its state.
    #[arg(long)]
    runc_root: Option<String>,
    /// The image's platform, such as linux/arm64.
    #[arg(long)]
    platform: Option<String>,
    /// Variables, as KEY=VALUE, or KEY for this program's value.
    #[arg(long)]
    env: Vec<String>,
    /// Variables from a file, one a line.
    #[arg(long)]
    env_file: Vec<PathBuf>,
    /// The working directory.
    #[arg(long)]
    cwd: Option<String>,
    /// Labels, given as KEY=VALUE.
    #[arg(long)]
    label: Vec<String>,
    /// Annotations, given as KEY=VALUE.
    #[arg(long)]
    annotation: Vec<String>,
    /// Mounts, such as type=bind,src=/tmp,dst=/host,options=rbind:ro.
    #[arg(long)]
    mount: Vec<String>,
    /// Namespaces to join, such as network:/run/netns/x.
    #[arg(long)]
    with_ns: Vec<String>,
    /// Join the network namespace of this id; see `ctr net`.
    #[arg(long, alias = "net-ns", conflicts_with = "net_host")]
    netns: Option<String>,
    /// Users of a new user namespace, as CONTAINER:HOST:SIZE.
    #[arg(long)]
    uidmap: Vec<String>,
    /// Groups of a new user namespace, as CONTAINER:HOST:SIZE.
    #[arg(long)]
    gidmap: Vec<String>,
    /// Capabilities to add.
    #[arg(long)]
    cap_add: Vec<String>,
    /// Capabilities to drop.
    #[arg(long)]
    cap_drop: Vec<String>,
    /// Bytes of memory; 0 for no limit.
    #[arg(long, default_value_t = 0)]
    memory_limit: i64,
    /// Processors; 0 for no limit.
    #[arg(long, default_value_t = 0.0)]
    cpus: f64,
    /// Relative weight of processor time.
    #[arg(long)]
    cpu_shares: Option<u64>,
    /// The cgroup; empty for none.
    #[arg(long)]
    cgroup: Option<String>,
    /// Use the host's network.
    #[arg(long)]
    net_host: bool,
    /// Lift all restrictions.
    #[arg(long)]
    privileged: bool,
    /// Make the root file system read-only.
    #[arg(long)]
    read_only: bool,
    /// Let processes gain privileges.
    #[arg(long)]
    allow_new_privs: bool,
    /// The argument names a directory, not an image.
    #[arg(long)]
    rootfs: bool,
    /// The image, or a directory with --rootfs.
    image: String,
    /// The container's id.
    id: String,
    /// The command; the image's own otherwise.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// The options of runc that this program sets; field numbers are containerd's.
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
    #[prost(string, tag = "7")]
    root: String,
}

/// Runs one container; its exit code becomes this program's.
pub(crate) async fn run(daemon: &Daemon, mut arguments: Arguments) -> Result<Exit> {
    if arguments.rm && arguments.streams.detach {
        return Err(Error::Refused("flags --detach and --rm cannot be specified together".into()));
    }
    if let Some(id) = &arguments.netns {
        let path = super::net::path(daemon, id).await?;
        arguments.with_ns.push(format!("network:{path}"));
    }
    if !arguments.uidmap.is_empty() && !arguments.rootfs {
        return run_remapped(daemon, arguments).await;
    }
    run_with(daemon, arguments, None).await
}

/// Prepares a copy of the image whose files belong to the mapped users.
async fn run_remapped(daemon: &Daemon, arguments: Arguments) -> Result<Exit> {
    let uids = spec::id_maps(&arguments.uidmap)?;
    let gids = spec::id_maps(&arguments.gidmap)?;
    let label = |wishes: &[String]| wishes.join(",");
    let (Some(_), Some(_)) = (uids.first(), gids.first()) else {
        return Err(Error::Refused("--uidmap and --gidmap go together".into()));
    };
    let labels = BTreeMap::from([
        ("containerd.io/snapshot/uidmapping".to_owned(), label(&arguments.uidmap)),
        ("containerd.io/snapshot/gidmapping".to_owned(), label(&arguments.gidmap)),
    ]);
    run_with(daemon, arguments, Some(labels)).await
}

async fn run_with(
    daemon: &Daemon,
    arguments: Arguments,
    snapshot_labels: Option<BTreeMap<String, String>>,
) -> Result<Exit> {
    let made = create(daemon, &arguments, snapshot_labels.unwrap_or_default()).await?;
    let outcome = start(daemon, &arguments, &made).await;
    if arguments.streams.detach && outcome.is_ok() {
        return outcome;
    }
    let remove = arguments.rm || outcome.is_err();
    let task = tasks::forget(daemon, &arguments.id).await.err();
    if remove
        && task.is_none()
        && let Err(error) = remove_all(daemon, &arguments, &made).await
    {
        output::warn(format!("container {} was not removed: {error}", arguments.id));
    }
    match (outcome, task) {
        (Ok(_), Some(error)) => Err(error),
        (outcome, _) => outcome,
    }
}

/// A container that has a record but no task.
struct Made {
    rootfs: Vec<Mount>,
    options: Option<Any>,
    /// Empty without a snapshot.
    snapshot_key: String,
}

/// Removes snapshot and record, side by side: neither needs the other, and the daemon collects
/// a snapshot nobody refers to.
async fn remove_all(daemon: &Daemon, arguments: &Arguments, made: &Made) -> Result<()> {
    let request = DeleteContainerRequest { id: arguments.id.clone() };
    let mut containers = client!(daemon, ContainersClient);
    let record = async { containers.delete(request).await.map_err(Error::from) };
    let snapshot = async {
        if !made.snapshot_key.is_empty() {
            snapshots::remove(daemon, &arguments.snapshotter, &made.snapshot_key).await;
        }
    };
    let (record, ()) = tokio::join!(record, snapshot);
    record.map(drop)
}

async fn start(daemon: &Daemon, arguments: &Arguments, made: &Made) -> Result<Exit> {
    let created = Created::new(
        daemon,
        &arguments.id,
        made.rootfs.clone(),
        arguments.tty,
        made.options.clone(),
        &arguments.streams,
    )
    .await?;
    created.start(daemon, &arguments.streams).await
}

async fn create(
    daemon: &Daemon,
    arguments: &Arguments,
    snapshot_labels: BTreeMap<String, String>,
) -> Result<Made> {
    let id = &arguments.id;
    if arguments.rootfs {
        let bind = Mount {
            r#type: "bind".to_owned(),
            source: arguments.image.clone(),
            options: vec!["rbind".to_owned(), "rw".to_owned()],
            ..Mount::default()
        };
        let container = record(daemon, arguments, None, std::slice::from_ref(&bind), "")?;
        return made(vec![bind], String::new(), store(daemon, container).await?);
    }
    let config = configuration(daemon, arguments).await?;
    let parent = chain::top(config.rootfs().diff_ids());
    let (snapshotter, labels) = (&arguments.snapshotter, snapshot_labels);
    let prepared = async {
        let mounts = snapshots::prepare(daemon, snapshotter, id, &parent, labels).await;
        mounts.map_err(|error| already(error, id))
    };
    let (rootfs, container) = if has_named_user(&config) {
        let rootfs = prepared.await?;
        let container = match record(daemon, arguments, Some(&config), &rootfs, id) {
            Ok(container) => store(daemon, container).await,
            Err(error) => Err(error),
        };
        (Ok(rootfs), container)
    } else {
        // The record says nothing that depends on the snapshot's files.
        let container = record(daemon, arguments, Some(&config), &[], id)?;
        tokio::join!(prepared, store(daemon, container))
    };
    match (rootfs, container) {
        (Ok(rootfs), Ok(container)) => made(rootfs, id.clone(), container),
        (Ok(_), Err(error)) => {
            snapshots::remove(daemon, snapshotter, id).await;
            Err(error)
        }
        (Err(error), container) => {
            // A record that could not be made is another container's.
            if container.is_ok() {
                let request = DeleteContainerRequest { id: id.clone() };
                if let Err(error) = client!(daemon, ContainersClient).delete(request).await {
                    output::warn(format!("container {id} was not removed: {}", error.message()));
                }
            }
            Err(error)
        }
    }
}

fn made(rootfs: Vec<Mount>, snapshot_key: String, container: Container) -> Result<Made> {
    let options = container.runtime.and_then(|runtime| runtime.options);
    Ok(Made { rootfs, options, snapshot_key })
}

/// Whether the image names its user, whom only the files of the image tell the number of.
fn has_named_user(config: &ImageConfiguration) -> bool {
    let user = config.config().as_ref().and_then(|config| config.user().as_ref());
    user.is_some_and(|user| !user.is_empty())
}

async fn store(daemon: &Daemon, container: Container) -> Result<Container> {
    let request = CreateContainerRequest { container: Some(container.clone()) };
    client!(daemon, ContainersClient).create(request).await?;
    Ok(container)
}

/// The snapshot carries the container's id, so a second one of that name shows up here first.
fn already(error: Error, id: &str) -> Error {
    match error {
        Error::Call(status) if status.code() == tonic::Code::AlreadyExists => {
            Error::Refused(format!("container {id:?}: snapshot {id:?}: already exists"))
        }
        other => other,
    }
}

async fn configuration(daemon: &Daemon, arguments: &Arguments) -> Result<ImageConfiguration> {
    let image = images::get(daemon, &arguments.image).await?;
    let platform = arguments.platform.clone().unwrap_or_else(documents::host_platform);
    let parts = documents::parts(daemon, &image.target.unwrap_or_default(), &platform).await?;
    documents::document(daemon, parts.manifest.config().digest().as_ref()).await
}

fn record(
    daemon: &Daemon,
    arguments: &Arguments,
    config: Option<&ImageConfiguration>,
    rootfs: &[Mount],
    snapshot_key: &str,
) -> Result<Container> {
    let branches = rootfs.first().map_or_else(Rootfs::default, |mount| {
        Rootfs::of_mount(&mount.r#type, &mount.source, &mount.options)
    });
    let (namespace, id) = (daemon.namespace(), &arguments.id);
    let spec = spec::build(namespace, id, config, &branches, &wishes(arguments)?)?;
    let value = serde_json::to_vec(&spec).map_err(Error::malformed("specification"))?;
    let mut labels: BTreeMap<_, _> =
        arguments.label.iter().map(|pair| split_pair(pair)).collect::<Result<_>>()?;
    labels.insert("io.containerd.image.config.stop-signal".to_owned(), stop_signal(config));
    Ok(Container {
        id: id.clone(),
        labels,
        image: if arguments.rootfs { String::new() } else { arguments.image.clone() },
        runtime: Some(container::Runtime {
            name: arguments.runtime.clone(),
            options: runtime_options(arguments),
        }),
        spec: Some(Any { type_url: SPEC_TYPE.to_owned(), value }),
        snapshotter: if snapshot_key.is_empty() {
            String::new()
        } else {
            arguments.snapshotter.clone()
        },
        snapshot_key: snapshot_key.to_owned(),
        ..Container::default()
    })
}

fn stop_signal(config: Option<&ImageConfiguration>) -> String {
    config
        .and_then(|config| config.config().as_ref())
        .and_then(|config| config.stop_signal().clone())
        .unwrap_or_else(|| "SIGTERM".to_owned())
}

fn runtime_options(arguments: &Arguments) -> Option<Any> {
    if arguments.runc_binary.is_none() && arguments.runc_root.is_none() {
        return None;
    }
    let options = RuncOptions {
        binary_name: arguments.runc_binary.clone().unwrap_or_default(),
        root: arguments.runc_root.clone().unwrap_or_default(),
    };
    Some(Any { type_url: OPTIONS_TYPE.to_owned(), value: options.encode_to_vec() })
}

fn wishes(arguments: &Arguments) -> Result<Wishes> {
    let mut env = Vec::new();
    for path in &arguments.env_file {
        env.extend(env_file(path)?);
    }
    env.extend(arguments.env.iter().cloned());
    Ok(Wishes {
        args: arguments.command.clone(),
        env,
        cwd: arguments.cwd.clone(),
        mounts: arguments.mount.clone(),
        join: arguments.with_ns.clone(),
        uid_maps: arguments.uidmap.clone(),
        gid_maps: arguments.gidmap.clone(),
        annotations: arguments.annotation.clone(),
        cap_add: arguments.cap_add.clone(),
        cap_drop: arguments.cap_drop.clone(),
        memory_limit_bytes: arguments.memory_limit,
        cpus: arguments.cpus,
        cpu_shares: arguments.cpu_shares,
        cgroup: arguments.cgroup.clone(),
        terminal: arguments.tty,
        host_network: arguments.net_host,
        privileged: arguments.privileged,
        read_only: arguments.read_only,
        allow_new_privileges: arguments.allow_new_privs,
    })
}

fn env_file(path: &std::path::Path) -> Result<Vec<String>> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(ENV_FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(Error::io("read", path.display()))?;
    let used = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    Ok(text.lines().filter(used).map(str::to_owned).collect())
}
