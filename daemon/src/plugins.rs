//! What this daemon is made of, under the names by which clients look for it.
//!
//! containerd's parts are plugins, and clients list them to find out what they can do: BuildKit
//! reads the platforms of the runtime, docker and nerdctl which snapshotters work. crated's parts
//! are not loaded and unloaded, but they are listed the same way, with what is true of them.

use std::collections::BTreeMap;

use crate::restart;

/// One part of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plugin {
    /// Its type, `io.containerd.snapshotter.v1` for example.
    pub kind: &'static str,
    /// Its name among those of its type.
    pub id: String,
    /// Types of the parts it builds on.
    pub requires: Vec<&'static str>,
    /// Platforms it serves, as `os/architecture/variant`; none for parts that do not care.
    pub platforms: Vec<String>,
    /// Facts for clients.
    pub exports: BTreeMap<String, String>,
    /// Switches for clients.
    pub capabilities: Vec<String>,
    /// Why it is out of use.
    pub failure: Option<String>,
}

impl Plugin {
    /// A part that works.
    pub fn new(kind: &'static str, id: impl Into<String>) -> Self {
        Self { kind, id: id.into(), ..Self::default() }
    }

    /// A part that is out of use, and why.
    pub fn failed(kind: &'static str, id: impl Into<String>, reason: &str) -> Self {
        Self { failure: Some(reason.to_owned()), ..Self::new(kind, id) }
    }

    /// A part of containerd that crated does not have.
    pub fn skipped(kind: &'static str, id: impl Into<String>) -> Self {
        Self::failed(kind, id, "skip plugin: not part of crated")
    }

    /// What it builds on.
    #[must_use]
    pub fn requires(mut self, kinds: &[&'static str]) -> Self {
        self.requires = kinds.to_vec();
        self
    }

    /// It serves the platform of this host.
    #[must_use]
    pub fn on_host(mut self) -> Self {
        self.platforms = vec![host_platform()];
        self
    }

    /// A fact for clients.
    #[must_use]
    pub fn export(mut self, name: &str, value: impl Into<String>) -> Self {
        self.exports.insert(name.to_owned(), value.into());
        self
    }
}

/// The platform of this host, as images name it.
pub fn host_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    };
    match architecture {
        "arm64" => "linux/arm64/v8".to_owned(),
        "arm" => "linux/arm/v7".to_owned(),
        other => format!("linux/{other}"),
    }
}

/// The parts that are there in every configuration.
pub fn fixed() -> Vec<Plugin> {
    let mut plugins = vec![
        Plugin::new(CONTENT, "content"),
        Plugin::new(EVENT, "exchange"),
        Plugin::new(METADATA, "bolt").requires(&[CONTENT, EVENT, SNAPSHOTTER]),
        Plugin::new(GC, "scheduler").requires(&[METADATA]),
        Plugin::new(DIFFER, "walking").requires(&[METADATA]).on_host(),
        Plugin::new(LEASE, "manager").requires(&[METADATA, GC]),
        Plugin::new(SHIM, "manager").requires(&[EVENT, METADATA]),
        Plugin::new(RUNTIME, "task")
            .requires(&[SHIM, METADATA, EVENT])
            .on_host()
            .export("log-uri-schemes", "binary,file"),
        Plugin::new("io.containerd.image-verifier.v1", "bindir"),
        Plugin::new("io.containerd.warning.v1", "deprecations"),
        Plugin::new(MOUNT_MANAGER, "bolt"),
        Plugin::new("io.containerd.mount-handler.v1", "loop"),
        Plugin::new("io.containerd.mount-handler.v1", "erofs"),
        Plugin::new(SANDBOX_STORE, "local").requires(&[METADATA]),
        Plugin::new(SANDBOX_CONTROLLER, "shim").requires(&[SHIM, EVENT, SANDBOX_STORE]).on_host(),
        Plugin::new(STREAMING, "manager"),
        Plugin::new(TRANSFER, "local").requires(&[METADATA, DIFFER, STREAMING]).on_host(),
        Plugin::skipped(DIFFER, "erofs"),
    ];
    for id in ["devmapper", "blockfile"] {
        plugins.push(Plugin::skipped(SNAPSHOTTER, id));
    }
    for (kind, id) in RESTART {
        let capabilities = restart::POLICY_NAMES.map(str::to_owned).to_vec();
        plugins.push(Plugin { capabilities, ..Plugin::new(kind, *id).requires(&[SHIM, METADATA]) });
    }
    for (kind, id) in ABSENT {
        plugins.push(Plugin::skipped(kind, *id));
    }
    for id in SERVICES {
        plugins.push(Plugin::new(SERVICE, format!("{id}-service")).requires(&[METADATA]));
    }
    for id in GRPC_SERVICES {
        plugins.push(Plugin::new(GRPC, *id).requires(&[SERVICE]));
    }
    for id in ["grpc", "ttrpc"] {
        plugins.push(Plugin::new(SERVER, id).requires(&[GRPC]));
    }
    plugins
}

/// Whether crated has a part of this type and name itself.
pub fn is_own(kind: &str, id: &str) -> bool {
    let snapshotter = kind == SNAPSHOTTER && OWN_SNAPSHOTTERS.contains(&id);
    snapshotter
        || fixed().iter().any(|own| own.kind == kind && own.id == id && own.failure.is_none())
}

/// The snapshotters of this build; which of them work depends on the host.
pub const OWN_SNAPSHOTTERS: &[&str] = &["overlayfs", "native", "erofs", "btrfs", "aufs"];

/// Type of content stores.
pub const CONTENT: &str = "io.containerd.content.v1";
/// Type of metadata stores.
pub const METADATA: &str = "io.containerd.metadata.v1";
/// Type of event buses.
pub const EVENT: &str = "io.containerd.event.v1";
/// Type of garbage collectors.
pub const GC: &str = "io.containerd.gc.v1";
/// Type of snapshotters.
pub const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
/// Type of appliers and differs.
pub const DIFFER: &str = "io.containerd.differ.v1";
/// Type of runtimes.
pub const RUNTIME: &str = "io.containerd.runtime.v2";
/// Type of what starts shims.
pub const SHIM: &str = "io.containerd.shim.v1";
/// Type of lease stores.
pub const LEASE: &str = "io.containerd.lease.v1";
/// Type of streams.
pub const STREAMING: &str = "io.containerd.streaming.v1";
/// Type of image movers.
pub const TRANSFER: &str = "io.containerd.transfer.v1";
/// Type of mount managers.
pub const MOUNT_MANAGER: &str = "io.containerd.mount-manager.v1";
/// Type of sandbox records.
pub const SANDBOX_STORE: &str = "io.containerd.sandbox.store.v1";
/// Type of what runs sandboxes.
pub const SANDBOX_CONTROLLER: &str = "io.containerd.sandbox.controller.v1";
/// Type of services as the daemon's own parts use them.
pub const SERVICE: &str = "io.containerd.service.v1";
/// Type of services as clients use them.
pub const GRPC: &str = "io.containerd.grpc.v1";
/// Type of servers.
pub const SERVER: &str = "io.containerd.server.v1";

/// What starts containers again, under the type it has now and the one it had; disabling either
/// disables it.
pub const RESTART: &[(&str, &str)] =
    &[("io.containerd.monitor.container.v1", "restart"), ("io.containerd.internal.v1", "restart")];

/// Parts of containerd that clients ask for by name and crated does not have. They are listed as
/// skipped: a client that finds nothing takes the daemon for one of another age.
const ABSENT: &[(&str, &str)] = &[
    ("io.containerd.monitor.task.v1", "cgroups"),
    ("io.containerd.internal.v1", "opt"),
    ("io.containerd.nri.v1", "nri"),
    ("io.containerd.tracing.processor.v1", "otlp"),
    ("io.containerd.ttrpc.v1", "otelttrpc"),
    (SERVER, "grpc-tcp"),
    (SERVER, "debug"),
];

const SERVICES: &[&str] = &[
    "containers",
    "content",
    "diff",
    "images",
    "introspection",
    "namespaces",
    "snapshots",
    "tasks",
];

const GRPC_SERVICES: &[&str] = &[
    "containers",
    "content",
    "diff",
    "events",
    "healthcheck",
    "images",
    "introspection",
    "leases",
    "mounts",
    "namespaces",
    "network",
    "sandbox-controllers",
    "sandboxes",
    "snapshots",
    "streaming",
    "tasks",
    "transfer",
    "version",
];
