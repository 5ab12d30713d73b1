//! `ctr tasks exec`

use std::path::PathBuf;

use crated_api::Any;
use crated_api::services::tasks::v1::tasks_client::TasksClient;
use crated_api::services::tasks::v1::{ExecProcessRequest, StartRequest};

use super::supervise;
use crate::Exit;
use crate::commands::{containers, snapshots};
use crate::connect::{Daemon, client};
use crate::error::{Error, Result};
use crate::io::{Fifos, Paths, RawTerminal};
use crate::rootfs::Rootfs;
use crate::spec;

/// The type of a process description in JSON.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// What to run, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The new process's working directory.
    #[arg(long)]
    cwd: Option<String>,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Leave after the start.
    #[arg(short, long)]
    detach: bool,
    /// A name for the process within its container.
    #[arg(long)]
    exec_id: String,
    /// Where named pipes are made.
    #[arg(long, default_value = "/run/crated/fifo")]
    fifo_dir: PathBuf,
    /// Send output to a logger, such as file:///var/log/x.
    #[arg(long)]
    log_uri: Option<String>,
    /// User to run as, by name or number.
    #[arg(long)]
    user: Option<String>,
    /// The container.
    id: String,
    /// The command.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs it.
pub(crate) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<Exit> {
    let Arguments { id, exec_id, tty, .. } = &arguments;
    let spec = process_spec(daemon, &arguments).await?;
    let fifos = match &arguments.log_uri {
        Some(_) => None,
        None => Some(Fifos::create(&arguments.fifo_dir, exec_id, *tty)?),
    };
    let paths = match (&fifos, &arguments.log_uri) {
        (Some(fifos), _) => fifos.paths().clone(),
        (None, Some(uri)) => Paths::log(uri),
        (None, None) => Paths::default(),
    };
    let attached = match &fifos {
        Some(fifos) if !arguments.detach => Some(fifos.attach()),
        _ => None,
    };
    let request = ExecProcessRequest {
        container_id: id.clone(),
        exec_id: exec_id.clone(),
        stdin: paths.stdin,
        stdout: paths.stdout,
        stderr: paths.stderr,
        terminal: *tty,
        spec: Some(spec),
    };
    client!(daemon, TasksClient).exec(request).await?;

    let request = StartRequest { container_id: id.clone(), exec_id: exec_id.clone() };
    let start = async {
        client!(daemon, TasksClient).start(request).await?;
        Ok(())
    };
    if arguments.detach {
        start.await?;
        if let Some(fifos) = fifos {
            fifos.keep();
        }
        return Ok(Exit::SUCCESS);
    }
    let raw = tty.then(RawTerminal::enter).transpose()?;
    let exit = supervise(daemon, id, exec_id, *tty, attached, start).await;
    drop((raw, fifos));
    // Whether it ran or not, the record of the process goes.
    let deleted = super::delete(daemon, id, exec_id).await;
    let exit = exit?;
    deleted?;
    Ok(exit)
}

async fn process_spec(daemon: &Daemon, arguments: &Arguments) -> Result<Any> {
    let container = containers::get(daemon, &arguments.id).await?;
    let document = container.spec.unwrap_or_default().value;
    let whole: oci_spec::runtime::Spec = serde_json::from_slice(&document)
        .map_err(Error::malformed(format!("specification of {}", arguments.id)))?;
    let rootfs = match &arguments.user {
        Some(_) if !container.snapshot_key.is_empty() => {
            let (snapshotter, key) = (&container.snapshotter, &container.snapshot_key);
            let mounts = snapshots::mounts(daemon, snapshotter, key).await?;
            mounts.first().map_or_else(Rootfs::default, |mount| {
                Rootfs::of_mount(&mount.r#type, &mount.source, &mount.options)
            })
        }
        _ => Rootfs::default(),
    };
    let process = spec::additional_process(
        &whole,
        &rootfs,
        &arguments.command,
        arguments.tty,
        arguments.cwd.as_deref(),
        arguments.user.as_deref(),
    )?;
    let value = serde_json::to_vec(&process).map_err(Error::malformed("process description"))?;
    Ok(Any { type_url: PROCESS_TYPE.to_owned(), value })
}
