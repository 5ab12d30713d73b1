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
//!         io.containerd.sandbox.controller.v1.shim/   bundles of sandboxes
//!         netns/                                    pinned network namespaces
//!         network/                                  what this boot has of them
//!         mounts/                                   where layers are looked into
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crated_content::{LocalStore, Store};
use crated_exec::shim::{ShimConfig, ShimRuntime, ShimSandboxes, Timeouts};
use crated_snapshot::{
    Applier, AufsSnapshotter, BtrfsSnapshotter, Differ, ErofsOptions, ErofsSnapshotter,
    NativeSnapshotter, OverlayOptions, OverlaySnapshotter, Snapshotter, TarApplier, WalkingDiffer,
};
use tokio::sync::watch;
use tonic::Status;

use crate::blocking::Blocking;
use crate::config::{Config, SharingPolicy};
use crate::directory;
use crate::error::{Error, Result, chain};
use crate::events::Exchange;
use crate::lock::RootLock;
use crate::metadata::{self, Content, Db, NamespacedSnapshotter, Scope, Sharing, Snapshots, gc};
use crate::metrics::Metrics;
use crate::mounts::MountManager;
use crate::network::Network;
use crate::pipeline::Shared;
use crate::plugins::{
    self, CONTENT, DIFFER, MOUNT_MANAGER, OWN_SNAPSHOTTERS, Plugin, SANDBOX_CONTROLLER, SERVER,
    SNAPSHOTTER,
};
use crate::programs::{Processors, Verifiers};
use crate::proxy::{self, Deadlines, Link, ProxySnapshotter, ProxyStore};
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
    /// What pulls have in common.
    pub pipeline: Arc<Shared>,
    /// Unpacks layers.
    pub applier: Arc<dyn Applier>,
    /// Makes layers.
    pub differ: Arc<dyn Differ>,
    /// Decide which images may be pulled.
    pub verifiers: Verifiers,
    /// Turn layers of other media types into those that can be applied.
    pub processors: Processors,
    /// Differs that run as processes of their own, by name.
    pub differs: BTreeMap<String, Link>,
    /// Sandbox controllers that run as processes of their own, by name.
    pub sandboxers: BTreeMap<String, Link>,
    /// Who did what.
    pub events: Exchange,
    /// What operators measure.
    pub metrics: Arc<Metrics>,
    /// Network namespaces and links.
    pub network: Arc<Network>,
    /// What runs containers.
    pub shims: Arc<ShimRuntime>,
    /// Mounts that the kernel cannot do as they are described.
    pub mounts: MountManager,
    /// What runs sandboxes.
    pub sandboxes: Arc<ShimSandboxes>,
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
        directory::own(&config.root, 0o700)?;
        directory::own(&config.state, 0o711)?;
        let scratch = config.state.join("mounts");
        directory::own(&scratch, 0o700)?;
        let lock = RootLock::take(&config.root)?;
        refuse_lost_records(&config)?;
        let events = Exchange::new();
        let metadata =
            |error| Error::Metadata { path: config.root.clone(), source: Box::new(error) };
        let db = Db::open(&config.root, Arc::new(events.clone())).map_err(metadata)?;
        let metrics = Arc::new(Metrics::new(config.metrics.grpc_histogram));
        let mut plugins = plugins::fixed();
        plugins.push(match config.metrics.address.as_str() {
            "" => Plugin::failed(SERVER, "metrics", "skip plugin: metrics.address is not set"),
            _ => Plugin::new(SERVER, "metrics"),
        });
        let proxies = Proxies::new(&config, &mut plugins);
        let content = content(&config, &db, proxies.store(&config)?, &metrics)?;
        let mut snapshots = snapshots(&config, &db, &mut plugins)?;
        snapshots.extend(proxies.snapshots(&db));
        let shim_config = shim_config(&config)?;
        let sandboxes = sandboxes(&config, shim_config.clone())?;
        let shims = shims(shim_config, &events)?;
        let mounts = mounts(&config)?;
        let collector =
            collector(&config, &db, &content, &snapshots, &metrics).map_err(metadata)?;
        let uuid = introspection::uuid(&config.root)?;
        let network = Network::new(&config, &db, &events, &uuid);
        match network.recover() {
            Ok(()) => network.sweep_in_background(),
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(%reason, "networks of an earlier daemon were not looked for");
                let listed =
                    plugins.iter_mut().find(|it| it.kind == plugins::GRPC && it.id == "network");
                if let Some(listed) = listed {
                    listed.failure = Some(reason);
                }
            }
        }
        plugins.retain(|plugin| !config.is_disabled(plugin.kind, &plugin.id));
        required(&config, &plugins)?;
        Ok(Arc::new(Self {
            blocking: Blocking::new(),
            verifiers: Verifiers::new(config.plugins.image_verifier.clone()),
            processors: Processors::new(config.stream_processors.clone()),
            pipeline: Arc::new(Shared::new(Arc::clone(&metrics))),
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
            metrics,
            mounts,
            network,
            shims,
            sandboxes,
            plugins,
            uuid,
            differs: proxies.differs,
            sandboxers: proxies.sandboxers,
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

    /// Whether the snapshotter called `name` can put snapshots on a parent when they are committed.
    pub fn rebases(&self, name: &str) -> bool {
        let mut plugins = self.plugins.iter();
        plugins.any(|plugin| {
            plugin.kind == SNAPSHOTTER
                && plugin.id == name
                && plugin.capabilities.iter().any(|capability| capability == REBASE)
        })
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

    /// Gives back what the parts keep for the next call, which then takes a little longer. Blocks.
    pub fn give_back(&self) {
        let buffers = crated_content::local::release_buffers();
        tracing::debug!(buffers, "nobody calls, memory is given back");
    }

    /// All metrics as they stand now. Blocks.
    pub fn metrics_text(&self) -> String {
        let containers = self.db.containers().counts().unwrap_or_else(|error| {
            tracing::warn!(%error, "containers not counted");
            Vec::new()
        });
        let mut shims = BTreeMap::new();
        for task in self.shims.tasks(None) {
            *shims.entry(task.namespace().to_owned()).or_insert(0) += 1;
        }
        self.metrics.sample(&containers, &shims.into_iter().collect::<Vec<_>>());
        self.metrics.encode()
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

/// The store that blobs are kept in.
pub(crate) fn content_store(config: &Config) -> Result<Arc<dyn Store>> {
    let path = config.root.join("io.containerd.content.v1.content");
    let store = LocalStore::open(&path).map_err(|source| Error::Content { path, source })?;
    Ok(Arc::new(store))
}

/// The snapshotters that have been used on this root, as far as they work here.
pub(crate) fn used_snapshotters(config: &Config) -> Vec<(String, Arc<dyn Snapshotter>)> {
    let mut used = Vec::new();
    for &name in OWN_SNAPSHOTTERS {
        if config.is_disabled(SNAPSHOTTER, name) || !snapshotter_root(config, name).exists() {
            continue;
        }
        match snapshotter(config, name) {
            Ok((snapshotter, _, _)) => used.push((name.to_owned(), snapshotter)),
            Err(error) => {
                tracing::warn!(snapshotter = name, error = chain(&error), "not looked at");
            }
        }
    }
    used
}

/// Refuses a root that has lost its records: the first collection would take everything else.
fn refuse_lost_records(config: &Config) -> Result<()> {
    let holds =
        |path: PathBuf| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    let blobs = config.root.join("io.containerd.content.v1.content/blobs/sha256");
    let snapshots = |name: &&str| holds(snapshotter_root(config, name).join("snapshots"));
    if metadata::exists(&config.root) || !(holds(blobs) || OWN_SNAPSHOTTERS.iter().any(snapshots)) {
        return Ok(());
    }
    let reason = "there is none, but there are content or snapshots".to_owned();
    let source = metadata::Error::Damaged { path: config.root.clone(), reason };
    Err(Error::Metadata { path: config.root.clone(), source: Box::new(source) })
}

/// The store below the namespaces: the daemon's own, or a proxy in its place.
fn content(
    config: &Config,
    db: &Db,
    proxy: Option<ProxyStore>,
    metrics: &Metrics,
) -> Result<Content> {
    let store: Arc<dyn Store> = match proxy {
        Some(proxy) => Arc::new(proxy),
        None => content_store(config)?,
    };
    let sharing = match config.plugins.metadata.content_sharing_policy {
        SharingPolicy::Shared => Sharing::Shared,
        SharingPolicy::Isolated => Sharing::Isolated,
    };
    let ingested = metrics.ingest_bytes.clone();
    Ok(Content::new(db, store, sharing).counting(ingested))
}

/// The ways to parts that run as processes of their own, by name.
#[derive(Default)]
struct Proxies {
    snapshotters: BTreeMap<String, Link>,
    stores: BTreeMap<String, Link>,
    differs: BTreeMap<String, Link>,
    sandboxers: BTreeMap<String, Link>,
}

impl Proxies {
    /// Nothing is connected here: the daemon starts whether or not they are there.
    fn new(config: &Config, plugins: &mut Vec<Plugin>) -> Self {
        let defaults = Deadlines::default();
        let deadlines = Deadlines {
            quick: config.timeout("crated.timeout.proxy.quick", defaults.quick),
            bulk: config.timeout("crated.timeout.proxy.bulk", defaults.bulk),
        };
        let mut proxies = Self::default();
        for (name, proxy) in &config.proxy_plugins {
            let Some(listed) = proxy::listed(name, proxy) else { continue };
            if config.is_disabled(listed.kind, name) {
                continue;
            }
            let link = Link::new(name, &proxy::socket_path(&proxy.address), deadlines);
            let group = match listed.kind {
                SNAPSHOTTER => &mut proxies.snapshotters,
                CONTENT => &mut proxies.stores,
                DIFFER => &mut proxies.differs,
                _ => &mut proxies.sandboxers,
            };
            group.insert(name.clone(), link);
            // A part of containerd that crated does not have is no longer skipped then.
            plugins.retain(|own| (own.kind, own.id.as_str()) != (listed.kind, name));
            plugins.push(listed);
        }
        proxies
    }

    /// The store to use instead of the daemon's own, when that is disabled.
    fn store(&self, config: &Config) -> Result<Option<ProxyStore>> {
        if !config.is_disabled(CONTENT, "content") {
            return Ok(None);
        }
        let mut stores = self.stores.values();
        match (stores.next(), stores.next()) {
            (Some(link), None) => Ok(Some(ProxyStore::new(link.clone()))),
            _ => Err(Error::Plugin {
                id: format!("{CONTENT}.content"),
                reason: "disabled, which takes exactly one proxy of type content".to_owned(),
            }),
        }
    }

    fn snapshots(&self, db: &Db) -> Vec<(String, Snapshots)> {
        let snapshots = self.snapshotters.iter().map(|(name, link)| {
            let snapshotter = Arc::new(ProxySnapshotter::new(link.clone()));
            (name.clone(), Snapshots::new(db, name, snapshotter))
        });
        snapshots.collect()
    }
}

/// Opens the snapshotters that work on this host, and notes those that do not.
fn snapshots(
    config: &Config,
    db: &Db,
    plugins: &mut Vec<Plugin>,
) -> Result<BTreeMap<String, Snapshots>> {
    let mut snapshots = BTreeMap::new();
    for &name in OWN_SNAPSHOTTERS {
        if config.is_disabled(SNAPSHOTTER, name) {
            continue;
        }
        let listed = Plugin::new(SNAPSHOTTER, name).on_host();
        match snapshotter(config, name) {
            Ok((snapshotter, root, capabilities)) => {
                let listed = listed.export("root", root.display().to_string());
                plugins.push(Plugin { capabilities, ..listed });
                let opened = Snapshots::new(db, name, snapshotter);
                opened.drop_lost().and_then(|_| opened.drop_unfinished()).map_err(|source| {
                    Error::Metadata { path: config.root.clone(), source: Box::new(source) }
                })?;
                snapshots.insert(name.to_owned(), opened);
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

/// Where a snapshotter keeps its files.
fn snapshotter_root(config: &Config, name: &str) -> PathBuf {
    let set = match name {
        "overlayfs" => config.plugins.overlayfs.root_path.as_path(),
        "native" => config.plugins.native.root_path.as_path(),
        "erofs" => config.plugins.erofs.root_path.as_path(),
        _ => Path::new(""),
    };
    match set.as_os_str().is_empty() {
        true => config.root.join(format!("{SNAPSHOTTER}.{name}")),
        false => set.to_path_buf(),
    }
}

type Opened = (Arc<dyn Snapshotter>, PathBuf, Vec<String>);

fn snapshotter(config: &Config, name: &str) -> crated_snapshot::Result<Opened> {
    let root = snapshotter_root(config, name);
    match name {
        "native" => {
            return Ok((Arc::new(NativeSnapshotter::open(&root)?), root, Vec::new()));
        }
        "erofs" => {
            let settings = &config.plugins.erofs;
            let snapshotter = ErofsSnapshotter::open(ErofsOptions {
                root: root.clone(),
                mount_options: settings.ovl_mount_options.clone(),
                // Clients attach what they were given also while the daemon restarts.
                keep_mounted: true,
                ..ErofsOptions::default()
            })?;
            // Clients that rebase apply layers to a bare directory, and keep whiteouts there for
            // the snapshotter named overlayfs alone.
            let capabilities = remapping(snapshotter.remaps_ids());
            return Ok((Arc::new(snapshotter), root, capabilities));
        }
        "btrfs" => {
            return Ok((Arc::new(BtrfsSnapshotter::open(&root)?), root, Vec::new()));
        }
        "aufs" => {
            return Ok((Arc::new(AufsSnapshotter::open(&root)?), root, Vec::new()));
        }
        _ => {}
    }
    let settings = &config.plugins.overlayfs;
    let snapshotter = OverlaySnapshotter::open(OverlayOptions {
        root: root.clone(),
        upperdir_label: settings.upperdir_label,
        sync_remove: settings.sync_remove,
        mount_options: settings.mount_options.clone(),
        ..OverlayOptions::default()
    })?;
    let mut capabilities = Vec::new();
    if snapshotter.rebases() {
        capabilities.push(REBASE.to_owned());
    }
    capabilities.extend(remapping(snapshotter.remaps_ids()));
    Ok((Arc::new(snapshotter), root, capabilities))
}

/// What a snapshotter says which maps ids by mounts.
fn remapping(remaps_ids: bool) -> Vec<String> {
    let capabilities: &[&str] = if remaps_ids { &["remap-ids", "only-remap-ids"] } else { &[] };
    capabilities.iter().copied().map(String::from).collect()
}

fn shim_config(config: &Config) -> Result<ShimConfig> {
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
    Ok(ShimConfig {
        root_dir: config.root.join("io.containerd.runtime.v2.task"),
        grpc_address: config.grpc.address.display().to_string(),
        ttrpc_address: config.ttrpc_address().display().to_string(),
        publish_binary: executable,
        debug: matches!(config.debug.level.as_str(), "debug" | "trace"),
        timeouts,
        runtimes: BTreeMap::from([("io.containerd.runc.v2".to_owned(), shim)]),
        state_dir: config.state.join("io.containerd.runtime.v2.task"),
    })
}

fn shims(shim_config: ShimConfig, exchange: &Exchange) -> Result<Arc<ShimRuntime>> {
    let state_dir = shim_config.state_dir.display().to_string();
    let exchange = exchange.clone();
    let publish = move |envelope| {
        let forwarded = events::shim_envelope(envelope)
            .and_then(|envelope| exchange.forward(envelope).map_err(Status::from));
        if let Err(error) = forwarded {
            tracing::warn!(error = error.message(), "event of a dead shim");
        }
    };
    ShimRuntime::new(shim_config, Arc::new(publish)).map_err(|error| unopened(state_dir, error))
}

/// What runs sandboxes: shims like those of containers, on directories of their own.
fn sandboxes(config: &Config, shim_config: ShimConfig) -> Result<Arc<ShimSandboxes>> {
    let name = format!("{SANDBOX_CONTROLLER}.shim");
    let state_dir = config.state.join(&name);
    let object = state_dir.display().to_string();
    let shim_config = ShimConfig { state_dir, root_dir: config.root.join(&name), ..shim_config };
    ShimSandboxes::new(shim_config).map_err(|error| unopened(object, error))
}

fn mounts(config: &Config) -> Result<MountManager> {
    let directory = config.state.join(format!("{MOUNT_MANAGER}.bolt"));
    let roots = vec![config.root.clone(), config.state.clone()];
    MountManager::open(&directory, roots).map_err(|error| Error::Io {
        object: directory.display().to_string(),
        step: "open",
        source: std::io::Error::other(error),
    })
}

fn unopened(object: String, error: crated_exec::Error) -> Error {
    Error::Io { object, step: "open", source: std::io::Error::other(error) }
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
    metrics: &Arc<Metrics>,
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
    let metrics = Arc::clone(metrics);
    let collector = gc::Collector::new(db, Some(content.clone()), snapshots)
        .reporting(move |report| metrics.collected(report));
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

/// Says that a snapshotter can put a snapshot on its parent when it is committed.
const REBASE: &str = "rebase";

/// What containerd calls the limits of a shim.
const TIMEOUT: &str = "io.containerd.timeout.shim";
