//! The configuration file: TOML with containerd's keys where they mean the same.
//!
//! Files of containerd's versions 2, 3 and 4 are read. A key that nobody knows is an error with
//! its line; a table of a containerd part that crated does not have is skipped and reported in
//! [`Config::ignored`]. What is crated's own stands in the table `[crated]`.

mod duration;
mod layers;
mod plugins;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use self::duration::Span;
pub use self::plugins::{
    Diff, Gc, ImageVerifier, Metadata, Native, Overlayfs, Plugins, Restart, Runtime, SharingPolicy,
    Transfer, UnpackConfig,
};

/// Where the file is looked for when none is named.
pub const PATH_DEFAULT: &str = "/etc/crated/config.toml";

/// Largest message in either direction, in bytes: what containerd's clients are built for.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The newest version of the file format.
const VERSION: u8 = 4;

/// The oldest version of the file format that can be read.
const VERSION_MIN: u8 = 2;

/// The configuration of one daemon.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Version of the file format, 2 to 4.
    pub version: u8,
    /// Directory of what survives a reboot.
    pub root: PathBuf,
    /// Directory of what does not.
    pub state: PathBuf,
    /// Directory for temporary files, the system's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temp: Option<PathBuf>,
    /// More files, as patterns relative to this one; what they say replaces what this one says.
    pub imports: Vec<String>,
    /// The kernel's readiness to kill the daemon when memory runs out, -1000 to 1000.
    pub oom_score: i32,
    /// Parts to leave out, by id or by `type.id`.
    pub disabled_plugins: Vec<String>,
    /// Parts without which the daemon does not start, by id or by `type.id`.
    pub required_plugins: Vec<String>,
    /// Limits of single steps by their containerd name.
    pub timeouts: BTreeMap<String, Span>,
    /// The gRPC server.
    pub grpc: Grpc,
    /// The ttrpc server, where shims deliver events.
    pub ttrpc: Ttrpc,
    /// Logging, and the debug server.
    pub debug: Debug,
    /// The metrics server.
    pub metrics: Metrics,
    /// The daemon's own cgroup.
    pub cgroup: Cgroup,
    /// Settings of parts.
    pub plugins: Plugins,
    /// Parts that run as processes of their own.
    pub proxy_plugins: BTreeMap<String, ProxyPlugin>,
    /// What only crated has.
    pub crated: Crated,
    /// Programs that turn layers of one media type into another, by name.
    pub stream_processors: BTreeMap<String, StreamProcessor>,
    /// Directory of Go plugins, in files of version 2. Accepted and skipped.
    #[serde(skip_serializing)]
    plugin_dir: Option<String>,
}

/// The gRPC server.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// Path of the unix socket.
    pub address: PathBuf,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
    /// Largest request in bytes.
    pub max_recv_message_size: usize,
    /// Largest response in bytes.
    pub max_send_message_size: usize,
    /// Address of a TCP server. crated has none: anything but empty is refused.
    #[serde(skip_serializing)]
    tcp_address: String,
    #[serde(skip_serializing)]
    tcp_tls_ca: String,
    #[serde(skip_serializing)]
    tcp_tls_cert: String,
    #[serde(skip_serializing)]
    tcp_tls_key: String,
    #[serde(skip_serializing)]
    tcp_tls_common_name: String,
}

/// The ttrpc server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ttrpc {
    /// Path of the unix socket; the gRPC address with `.ttrpc` behind it when empty.
    pub address: PathBuf,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
}

/// Logging, and the debug server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Debug {
    /// Least important level to log: trace, debug, info, warn or error; info when empty.
    pub level: String,
    /// `text` or `json`; text when empty.
    pub format: String,
    /// Socket of the debug server. crated has none: the key is accepted and reported.
    #[serde(skip_serializing)]
    address: String,
    #[serde(skip_serializing)]
    uid: u32,
    #[serde(skip_serializing)]
    gid: u32,
    #[serde(skip_serializing)]
    log_trace_id: bool,
}

/// The debug server, as files of version 4 name it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DebugServer {
    /// Socket of the debug server. crated has none: the key is accepted and reported.
    pub address: String,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
}

/// The metrics server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where metrics are scraped: `host:port`, or the path of a unix socket; nowhere when empty.
    pub address: String,
    /// Keep the duration of calls by method, and not only by service.
    pub grpc_histogram: bool,
}

/// The daemon's own cgroup.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroup {
    /// Path of the cgroup. crated stays where it was started: the key is accepted and reported.
    pub path: String,
}

/// A part that runs as a process of its own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyPlugin {
    /// `snapshot`, `content`, `diff` or `sandbox`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path of its socket.
    pub address: PathBuf,
    /// Platform it serves; empty for the host's.
    pub platform: String,
    /// Facts that clients ask for.
    pub exports: BTreeMap<String, String>,
    /// Capabilities that clients ask for.
    pub capabilities: Vec<String>,
}

/// A program that turns layers of one media type into another.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamProcessor {
    /// Media types it takes.
    pub accepts: Vec<String>,
    /// The media type it gives.
    pub returns: String,
    /// The program: a path, or a name in the search path.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables added to its environment, as `NAME=value`.
    pub env: Vec<String>,
}

/// What only crated has.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Crated {
    /// What runs containers of `io.containerd.runc.v2`: `crated` for the shim that comes with the
    /// daemon, or the path of another `containerd-shim-runc-v2`.
    pub runc_v2_shim: String,
    /// From the request to stop until open calls are cut off.
    pub drain_timeout: Span,
    /// Age from which a file that was to pin a network namespace, and does not, is removed.
    pub netns_orphan_grace: Span,
    /// Directory, usually `/run/netns`, where other tools find the pinned network namespaces; none
    /// when empty.
    #[serde(skip_serializing_if = "path_is_empty")]
    pub netns_expose_in: PathBuf,
}

impl Config {
    /// Reads `path` and the files it imports.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when a file cannot be read, [`Error::Config`] when it says something that is
    /// not accepted.
    pub fn load(path: &Path) -> Result<Self> {
        layers::load(path)?.finish(path)
    }

    /// Reads one text as if it stood in `path`. Imports are not followed.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] when it says something that is not accepted.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        layers::parse(text, path)?.finish(path)
    }

    /// The path of the ttrpc socket.
    pub fn ttrpc_address(&self) -> PathBuf {
        if !self.ttrpc.address.as_os_str().is_empty() {
            return self.ttrpc.address.clone();
        }
        let mut address = self.grpc.address.clone().into_os_string();
        address.push(".ttrpc");
        address.into()
    }

    /// The limit called `name`, `default` when the file does not set it.
    pub fn timeout(&self, name: &str, default: Duration) -> Duration {
        self.timeouts.get(name).map_or(default, |span| span.0)
    }

    /// Whether the part `kind.id` is left out.
    pub fn is_disabled(&self, kind: &str, id: &str) -> bool {
        self.disabled_plugins.iter().any(|name| names(name, kind, id))
    }

    /// Whether the daemon must not start without the part `kind.id`.
    pub fn is_required(&self, kind: &str, id: &str) -> bool {
        self.required_plugins.iter().any(|name| names(name, kind, id))
    }

    /// What the file asks for and crated does not do, as lines for the log.
    pub fn ignored(&self) -> Vec<String> {
        let mut ignored: Vec<String> =
            self.plugins.skipped.iter().map(|id| format!("plugins.{id:?}")).collect();
        let mut note = |set: bool, key: &str| {
            if set {
                ignored.push(key.to_owned());
            }
        };
        note(!self.debug.address.is_empty(), "debug.address");
        note(!self.cgroup.path.is_empty(), "cgroup.path");
        note(self.plugin_dir.is_some(), "plugin_dir");
        note(self.plugins.metadata.no_sync, "plugins.\"io.containerd.metadata.v1.bolt\".no_sync");
        ignored
    }

    /// The file that would give this configuration.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration holds strings, numbers and tables only")
    }

    /// Checks what types alone do not, and folds older and newer names into one.
    fn finish(mut self, path: &Path) -> Result<Self> {
        let refuse =
            |reason: String| Err(Error::Config { path: path.to_path_buf(), line: None, reason });
        if !(VERSION_MIN..=VERSION).contains(&self.version) {
            return refuse(format!(
                "version {} is not supported, use {VERSION_MIN} to {VERSION}",
                self.version
            ));
        }
        if let Some(grpc) = self.plugins.grpc.take() {
            self.grpc = grpc;
        }
        if let Some(ttrpc) = self.plugins.ttrpc.take() {
            self.ttrpc = ttrpc;
        }
        if let Some(debug) = self.plugins.debug.take() {
            self.debug.address = debug.address;
        }
        if let Some(metrics) = self.plugins.metrics.take() {
            self.metrics = metrics;
        }
        if !self.grpc.tcp_address.is_empty() {
            return refuse("grpc.tcp_address: crated serves no TCP socket".to_owned());
        }
        self.check(path)?;
        Ok(self)
    }

    /// Refuses values that cannot work. Also called after the command line had its say.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming the key.
    pub fn check(&self, path: &Path) -> Result<()> {
        let refuse =
            |reason: String| Err(Error::Config { path: path.to_path_buf(), line: None, reason });
        for (key, value) in
            [("root", &self.root), ("state", &self.state), ("grpc.address", &self.grpc.address)]
        {
            if !value.is_absolute() {
                return refuse(format!("{key}: {:?} is not an absolute path", value.display()));
            }
        }
        if self.root == self.state {
            return refuse("root and state must differ".to_owned());
        }
        if !(-1000..=1000).contains(&self.oom_score) {
            return refuse(format!("oom_score: {} is not within -1000 to 1000", self.oom_score));
        }
        if !["", "trace", "debug", "info", "warn", "error", "fatal", "panic"]
            .contains(&self.debug.level.as_str())
        {
            return refuse(format!("debug.level: no level is called {:?}", self.debug.level));
        }
        if !["", "text", "json"].contains(&self.debug.format.as_str()) {
            return refuse(format!("debug.format: {:?} is not text or json", self.debug.format));
        }
        if !(0.0..=0.5).contains(&self.plugins.gc.pause_threshold) {
            return refuse("gc pause_threshold is not within 0 to 0.5".to_owned());
        }
        for (name, proxy) in &self.proxy_plugins {
            let key = format!("proxy_plugins.{name}");
            let Some(kind) = crate::proxy::kind(&proxy.kind) else {
                return refuse(format!("{key}.type: {:?} is no kind of proxy", proxy.kind));
            };
            if !crate::proxy::socket_path(&proxy.address).is_absolute() {
                let address = proxy.address.display();
                return refuse(format!("{key}.address: {address:?} is not an absolute path"));
            }
            if crate::plugins::is_own(kind, name) {
                return refuse(format!("{key}: crated has a {kind}.{name} of its own"));
            }
        }
        for (name, program) in &self.stream_processors {
            if program.path.as_os_str().is_empty() || program.returns.is_empty() {
                return refuse(format!("stream_processors.{name}: path and returns must be set"));
            }
        }
        let metrics = self.metrics.address.as_str();
        let path = metrics.strip_prefix("unix://").unwrap_or(metrics);
        if !metrics.is_empty() && !path.starts_with('/') && !metrics.contains(':') {
            return refuse(format!(
                "metrics.address: {metrics:?} is neither host:port nor the absolute path of a socket"
            ));
        }
        let shim = &self.crated.runc_v2_shim;
        if shim != "crated" && !Path::new(shim).is_absolute() {
            return refuse(format!("crated.runc_v2_shim: {shim:?} is not an absolute path"));
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: VERSION,
            root: "/var/lib/crated".into(),
            state: "/run/crated".into(),
            temp: None,
            imports: Vec::new(),
            oom_score: 0,
            disabled_plugins: Vec::new(),
            required_plugins: Vec::new(),
            timeouts: BTreeMap::new(),
            grpc: Grpc::default(),
            ttrpc: Ttrpc::default(),
            debug: Debug::default(),
            metrics: Metrics::default(),
            cgroup: Cgroup::default(),
            plugins: Plugins::default(),
            proxy_plugins: BTreeMap::new(),
            crated: Crated::default(),
            stream_processors: BTreeMap::new(),
            plugin_dir: None,
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            address: "/run/crated/crated.sock".into(),
            uid: 0,
            gid: 0,
            max_recv_message_size: MESSAGE_BYTES_MAX,
            max_send_message_size: MESSAGE_BYTES_MAX,
            tcp_address: String::new(),
            tcp_tls_ca: String::new(),
            tcp_tls_cert: String::new(),
            tcp_tls_key: String::new(),
            tcp_tls_common_name: String::new(),
        }
    }
}

impl Default for Crated {
    fn default() -> Self {
        Self {
            runc_v2_shim: "crated".to_owned(),
            drain_timeout: Span(Duration::from_secs(10)),
            netns_orphan_grace: Span(Duration::from_secs(60)),
            netns_expose_in: PathBuf::new(),
        }
    }
}

fn path_is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

fn names(name: &str, kind: &str, id: &str) -> bool {
    name == id || name.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.')) == Some(id)
}
