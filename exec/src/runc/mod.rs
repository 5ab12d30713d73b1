//! Any runtime with the command line of runc, as a typed command.
//!
//! [`Runc`] runs one command and waits for it; [`RuncRuntime`] keeps tasks on
//! top of it, in this process, without a daemon.

mod command;
mod direct;
mod log;
mod process;
mod runtime;
mod task;

use std::{path::PathBuf, time::Duration};

pub use command::{CreateArgs, ExecArgs, Runc};
pub use runtime::{RuncRuntime, delete_leftovers};

use crate::proto;

/// Which runtime, and how it shall work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuncConfig {
    /// Name or path of the binary.
    pub binary: PathBuf,
    /// Where the runtime keeps its state; lost at reboot.
    pub root: PathBuf,
    /// Cgroups are made by systemd.
    pub systemd_cgroup: bool,
    /// Enter the root by chroot, for a root on a ramdisk.
    pub no_pivot_root: bool,
    /// Keep the session keyring.
    pub no_new_keyring: bool,
    /// Owner of the pipes processes see.
    pub io_uid: u32,
    /// Group of the pipes processes see.
    pub io_gid: u32,
    /// Work folder of CRIU; one in the bundle when empty.
    pub criu_work_path: PathBuf,
    /// Told to loggers.
    pub namespace: String,
    /// How long one command may take.
    pub deadline: Duration,
}

impl Default for RuncConfig {
    fn default() -> Self {
        RuncConfig {
            binary: "runc".into(),
            root: "/run/crated-exec/runc".into(),
            systemd_cgroup: false,
            no_pivot_root: false,
            no_new_keyring: false,
            io_uid: 0,
            io_gid: 0,
            criu_work_path: PathBuf::new(),
            namespace: String::new(),
            deadline: COMMAND_DEADLINE,
        }
    }
}

impl RuncConfig {
    /// The configuration clients ask for, in a namespace.
    pub fn from_options(options: &proto::runc::Options, namespace: &str) -> Self {
        let defaults = RuncConfig::default();
        let root = match options.root.as_str() {
            "" => PathBuf::from(ROOT),
            root => PathBuf::from(root),
        };
        RuncConfig {
            binary: match options.binary_name.as_str() {
                "" => defaults.binary,
                name => name.into(),
            },
            root: root.join(namespace),
            systemd_cgroup: options.systemd_cgroup,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            criu_work_path: options.criu_work_path.clone().into(),
            namespace: namespace.to_owned(),
            deadline: defaults.deadline,
        }
    }
}

/// Where daemons of this family have runc keep its state.
const ROOT: &str = "/run/containerd/runc";

/// Hooks and slow disks take their time, but no runtime works for minutes.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);
