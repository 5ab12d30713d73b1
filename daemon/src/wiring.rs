//! The only file that names concrete implementors: everything else knows traits.
//!
//! ```text
//! <root>/crated.lock                                who uses the root
//!        io.containerd.content.v1.content/          blobs and ingests
//!        io.containerd.metadata.v1.bolt/            records
//!        io.containerd.snapshotter.v1.<name>/       snapshots
//!        io.containerd.runtime.v2.task/             work directories of containers
//!        io.containerd.grpc.v1.introspection/uuid   identity of the root
//! <state>/io.containerd.runtime.v2.task/            bundles of running containers
//!         mounts/                                   where layers are looked into
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crated_content::LocalStore;
use crated_exec::shim::{ShimConfig, ShimRuntime, Timeouts};
use crated_snapshot::{
    Applier, AufsSnapshotter, BtrfsSnapshotter, Differ, NativeSnapshotter, OverlayOptions,
    OverlaySnapshotter, Snapshotter, TarApplier, WalkingDiffer,
};
use tokio::sync::watch;
use tonic::Status;

use crate::blocking::Blocking;
use crate::config::{Config, SharingPolicy};
use crate::error::{Error, Result, chain};
use crate::events::Exchange;
use crate::lock::RootLock;
use crate::metadata::{self, Content, Db, NamespacedSnapshotter, Scope, Sharing, Snapshots, gc};
use crate::plugins::{self, Plugin, SNAPSHOTTER};
use crate::services::{events, introspection, status};

/// What the services work on. Shared by all of them.
pub struct Daemon {
    /// What the daemon was started with.
    pub config: Config,
    /// The bridge to everything that blocks.
    pub blocking: Blocking,
    /// Records: namespaces, images, containers, leases.
    pub db: Db,
    /// Bytes by digest, per namespace.
    pub content: Content,
    /// File systems, per snapshotter and namespace.
    pub snapshots: BTreeMap<String, Snapshots>,
    /// Unpacks layers.
    pub applier: Arc<dyn Applier>,
    /// Makes layers.
    pub differ: Arc<dyn Differ>,
    /// Who did what.
    pub events: Exchange,
    /// What runs containers.
    pub shims: Arc<ShimRuntime>,
    /// The parts of the daemon, as clients list them.
    pub plugins: Vec<Plugin>,
    /// Identity of the root directory.
    pub uuid: String,
    collector: gc::Scheduler,
    stopping: watch::Sender<bool>,
    // Released last: nothing may touch the root without it.
    _lock: RootLock,
}

impl Daemon {
    /// Opens everything below the directories of `config`.
    ///
    /// # Errors
    ///
    /// Those of the parts that the daemon cannot be without. A snapshotter that does not work here
    /// is listed as failed, unless the configuration requires it.
    pub fn open(config: Config) -> Result<Arc<Self>> {
        directory(&config.root, 0o700)?;
        directory(&config.state, 0o711)?;
        let scratch = config.state.join("mounts");
        directory(&scratch, 0o700)?;
        let lock = RootLock::take(&config.root)?;
        let events = Exchange::new();
        let metadata =
            |error| Error::Metadata { path: config.root.clone(), source: Box::new(error) };
        let db = Db::open(&config.root, Arc::new(events.clone())).map_err(metadata)?;
        let content = content(&config, &db)?;
        let mut plugins = plugins::fixed();
        let snapshots = snapshots(&config, &db, &mut plugins)?;
        let shims = shims(&config, &events)?;
        let collector = collector(&config, &db, &content, &snapshots).map_err(metadata)?;
        let uuid = introspection::uuid(&config.root)?;
        plugins.retain(|plugin| !config.is_disabled(plugin.kind, &plugin.id));
        required(&config, &plugins)?;
        Ok(Arc::new(Self {
            blocking: Blocking::new(),
            applier: Arc::new(TarApplier::new(&scratch)),
            differ: Arc::new(WalkingDiffer::new(&scratch)),
            collector,
            stopping: watch::Sender::new(false),
            _lock: lock,
            config,
            db,
            content,
            snapshots,
            events,
            shims,
            plugins,
            uuid,
        }))
    }

    /// The snapshotter called `name`, as `scope` sees it.
    ///
    /// # Errors
    ///
    /// InvalidArgument when there is none of the name, or it is empty.
    pub fn snapshotter(&self, scope: Scope, name: &str) -> Result<NamespacedSnapshotter, Status> {
        match self.snapshots.get(name) {
            Some(snapshots) => Ok(snapshots.scoped(scope)),
            None if name.is_empty() => Err(status::invalid("snapshotter: must be named")),
            None => Err(status::invalid(format!("snapshotter {name:?}: not loaded"))),
        }
    }

    /// Removes what nothing refers to, and returns when a collection that began after this call
    /// has ended.
    ///
    /// # Errors
    ///
    /// The collection's.
    pub async fn collect(self: &Arc<Self>) -> Result<Arc<gc::Report>, Status> {
        let daemon = Arc::clone(self);
        Ok(self.blocking.quick(move || daemon.collector.collect_and_wait()).await??)
    }

    /// Turns true when the daemon begins to stop.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Ends streams that would last as long as the daemon.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }
}

fn content(config: &Config, db: &Db) -> Result<Content> {
    let path = config.root.join("io.containerd.content.v1.content");
    let store = LocalStore::open(&path).map_err(|source| Error::Content { path, source })?;
    let sharing = match config.plugins.metadata.content_sharing_policy {
        SharingPolicy::Shared => Sharing::Shared,
        SharingPolicy::Isolated => Sharing::Isolated,
    };
    Ok(Content::new(db, Arc::new(store), sharing))
}

/// Opens the snapshotters that work on this host, and notes those that do not.
fn snapshots(
    config: &Config,
    db: &Db,
    plugins: &mut Vec<Plugin>,
) -> Result<BTreeMap<String, Snapshots>> {
    let mut snapshots = BTreeMap::new();
    for name in ["overlayfs", "native", "btrfs", "aufs"] {
        if config.is_disabled(SNAPSHOTTER, name) {
            continue;
        }
        let listed = Plugin::new(SNAPSHOTTER, name).on_host();
        match snapshotter(config, name) {
            Ok((snapshotter, root, capabilities)) => {
                let listed = listed.export("root", root.display().to_string());
                plugins.push(Plugin { capabilities, ..listed });
                snapshots.insert(name.to_owned(), Snapshots::new(db, name, snapshotter));
            }
            Err(error) => {
                let reason = format!("skip plugin: {}", chain(&error));
                tracing::warn!(snapshotter = name, %reason, "snapshotter out of use");
                plugins.push(Plugin { failure: Some(reason), ..listed });
            }
        }
    }
    Ok(snapshots)
}

type Opened = (Arc<dyn Snapshotter>, PathBuf, Vec<String>);

fn snapshotter(config: &Config, name: &str) -> crated_snapshot::Result<Opened> {
    let below_root = |path: &Path| match path.as_os_str().is_empty() {
        true => config.root.join(format!("{SNAPSHOTTER}.{name}")),
        false => path.to_path_buf(),
    };
    match name {
        "native" => {
            let root = below_root(&config.plugins.native.root_path);
            return Ok((Arc::new(NativeSnapshotter::open(&root)?), root, Vec::new()));
        }
        "btrfs" => {
            let root = below_root(Path::new(""));
            return Ok((Arc::new(BtrfsSnapshotter::open(&root)?), root, Vec::new()));
        }
        "aufs" => {
            let root = below_root(Path::new(""));
            return Ok((Arc::new(AufsSnapshotter::open(&root)?), root, Vec::new()));
        }
        _ => {}
    }
    let settings = &config.plugins.overlayfs;
    let root = below_root(&settings.root_path);
    let snapshotter = OverlaySnapshotter::open(OverlayOptions {
        root: root.clone(),
        upperdir_label: settings.upperdir_label,
        sync_remove: settings.sync_remove,
        mount_options: settings.mount_options.clone(),
        ..OverlayOptions::default()
    })?;
    let mut capabilities = vec!["rebase".to_owned()];
    if snapshotter.remaps_ids() {
        capabilities.extend(["remap-ids".to_owned(), "only-remap-ids".to_owned()]);
    }
    Ok((Arc::new(snapshotter), root, capabilities))
}

fn shims(config: &Config, exchange: &Exchange) -> Result<Arc<ShimRuntime>> {
    let executable = std::env::current_exe()
        .map_err(|error| Error::io("find", Path::new("/proc/self/exe"), error))?;
    let defaults = Timeouts::default();
    let limit = |name: &str, default| config.timeout(&format!("{TIMEOUT}.{name}"), default);
    let timeouts = Timeouts {
        load: limit("load", defaults.load),
        cleanup: limit("cleanup", defaults.cleanup),
        shutdown: limit("shutdown", defaults.shutdown),
        state: config.timeout("io.containerd.timeout.task.state", defaults.state),
        stats: config.timeout("io.containerd.timeout.metrics.shimstats", defaults.stats),
        ..defaults
    };
    let shim = match config.crated.runc_v2_shim.as_str() {
        "crated" => own_shim(&executable),
        path => path.into(),
    };
    let state_dir = config.state.join("io.containerd.runtime.v2.task");
    let shim_config = ShimConfig {
        root_dir: config.root.join("io.containerd.runtime.v2.task"),
        grpc_address: config.grpc.address.display().to_string(),
        ttrpc_address: config.ttrpc_address().display().to_string(),
        publish_binary: executable,
        debug: matches!(config.debug.level.as_str(), "debug" | "trace"),
        timeouts,
        runtimes: BTreeMap::from([("io.containerd.runc.v2".to_owned(), shim)]),
        state_dir: state_dir.clone(),
    };
    let exchange = exchange.clone();
    let publish = move |envelope| {
        let forwarded = events::shim_envelope(envelope)
            .and_then(|envelope| exchange.forward(envelope).map_err(Status::from));
        if let Err(error) = forwarded {
            tracing::warn!(error = error.message(), "event of a dead shim");
        }
    };
    ShimRuntime::new(shim_config, Arc::new(publish)).map_err(|error| Error::Io {
        object: state_dir.display().to_string(),
        step: "open",
        source: std::io::Error::other(error),
    })
}

/// The shim that comes with the daemon: beside it, or else in the search path.
fn own_shim(executable: &Path) -> PathBuf {
    const NAME: &str = "containerd-shim-crated-v2";
    let beside = executable.with_file_name(NAME);
    if beside.exists() {
        return beside;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(NAME))
        .find(|candidate| candidate.exists())
        .unwrap_or(beside)
}

fn collector(
    config: &Config,
    db: &Db,
    content: &Content,
    snapshots: &BTreeMap<String, Snapshots>,
) -> metadata::Result<gc::Scheduler> {
    let settings = &config.plugins.gc;
    let schedule = gc::Config {
        pause_threshold: settings.pause_threshold,
        deletion_threshold: settings.deletion_threshold.into(),
        mutation_threshold: settings.mutation_threshold.into(),
        schedule_delay: settings.schedule_delay.0,
        startup_delay: settings.startup_delay.0,
    };
    let snapshots = snapshots.values().cloned().collect();
    let collector = gc::Collector::new(db, Some(content.clone()), snapshots);
    gc::Scheduler::start(collector, schedule)
}

/// Holds the configuration to what it requires.
fn required(config: &Config, plugins: &[Plugin]) -> Result<()> {
    for name in &config.required_plugins {
        let mut matching = plugins.iter().filter(|plugin| {
            *name == plugin.id || *name == format!("{}.{}", plugin.kind, plugin.id)
        });
        let reason = match matching.next() {
            None => Some("not part of crated, or disabled".to_owned()),
            Some(plugin) => plugin.failure.clone(),
        };
        if let Some(reason) = reason {
            return Err(Error::Plugin { id: name.clone(), reason });
        }
    }
    Ok(())
}

/// Makes a directory, and gives it its mode also when it was there.
fn directory(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| Error::io("create", path, error))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|error| Error::io("set mode of", path, error))
}

/// What containerd calls the limits of a shim.
const TIMEOUT: &str = "io.containerd.timeout.shim";
