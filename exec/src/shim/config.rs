use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crated_mount::Mount;
use prost_types::Any;

use crate::runtime::Stdio;

/// What a [`super::ShimRuntime`] needs to know.
#[derive(Clone, Debug)]
pub struct ShimConfig {
    /// Bundles go to `<state_dir>/<namespace>/<id>`; lost at reboot. A daemon
    /// that others shall take over from uses its state folder and
    /// `io.containerd.runtime.v2.task`.
    pub state_dir: PathBuf,
    /// Work folders go to `<root_dir>/<namespace>/<id>`.
    pub root_dir: PathBuf,
    /// Path of the daemon's gRPC socket; also names the sockets of shims.
    pub grpc_address: String,
    /// Path of the daemon's ttrpc socket, where shims send their events.
    pub ttrpc_address: String,
    /// Executable with a `publish` subcommand, for shims without ttrpc.
    pub publish_binary: PathBuf,
    /// Ask shims for debug logs.
    pub debug: bool,
    /// How long shims may take.
    pub timeouts: Timeouts,
    /// Binaries of runtime names that are not looked up, such as
    /// `io.containerd.runc.v2` served by another shim.
    pub runtimes: BTreeMap<String, PathBuf>,
}

/// How long shims may take before they are given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To print the address after a start.
    pub start: Duration,
    /// To answer at the start of the daemon.
    pub load: Duration,
    /// For the `delete` binary.
    pub cleanup: Duration,
    /// To end after Shutdown.
    pub shutdown: Duration,
    /// To answer State.
    pub state: Duration,
    /// To answer Stats.
    pub stats: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            start: Duration::from_secs(30),
            load: Duration::from_secs(5),
            cleanup: Duration::from_secs(5),
            shutdown: Duration::from_secs(3),
            state: Duration::from_secs(2),
            stats: Duration::from_secs(2),
        }
    }
}

/// What [`super::ShimRuntime::create`] makes a task of.
#[derive(Clone, Debug, Default)]
pub struct CreateShimTask {
    /// Namespace of the container.
    pub namespace: String,
    /// Id of the container, unique in its namespace.
    pub id: String,
    /// Name of the runtime, or absolute path of a shim.
    pub runtime: String,
    /// Options of the runtime, passed on unchanged.
    pub options: Option<Any>,
    /// Bytes of `config.json`; none is written when empty.
    pub spec: Vec<u8>,
    /// Mounted by the shim.
    pub rootfs: Vec<Mount>,
    /// Where the first process reads and writes.
    pub stdio: Stdio,
    /// Folder of a checkpoint to restore, or empty.
    pub checkpoint: String,
}
