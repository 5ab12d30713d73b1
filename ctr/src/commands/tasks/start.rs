//! Starting a task and staying with it until it ends.

use std::convert::Infallible;
use std::path::PathBuf;

use crated_api::Any;
use crated_api::services::tasks::v1::tasks_client::TasksClient;
use crated_api::services::tasks::v1::{
    CloseIoRequest, CreateTaskRequest, KillRequest, ResizePtyRequest, StartRequest, WaitRequest,
};
use crated_api::types::Mount;
use tokio::signal::unix::{SignalKind, signal};

use crate::Exit;
use crate::commands::{containers, snapshots};
use crate::connect::{Daemon, client};
use crate::error::{Error, Result};
use crate::io::{self, Attached, Fifos, Paths, RawTerminal};
use crate::output;

/// How the first process's streams are connected.
#[derive(Debug, clap::Args)]
pub(crate) struct Streams {
    /// Discard all input and output.
    #[arg(long)]
    pub(crate) null_io: bool,
    /// Send output to a logger, such as file:///var/log/x.
    #[arg(long)]
    pub(crate) log_uri: Option<String>,
    /// Where named pipes are made.
    #[arg(long, default_value = "/run/crated/fifo")]
    pub(crate) fifo_dir: PathBuf,
    /// Leave after the start.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Write the first process's id to a file.
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
}

/// What to start.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    streams: Streams,
    /// The container.
    id: String,
}

/// Starts a container that has a record but no task.
pub(crate) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<Exit> {
    let container = containers::get(daemon, &arguments.id).await?;
    let spec: oci_spec::runtime::Spec =
        serde_json::from_slice(&container.spec.unwrap_or_default().value)
            .map_err(Error::malformed(format!("specification of {}", arguments.id)))?;
    let terminal = spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or_default();
    let rootfs = if container.snapshot_key.is_empty() {
        Vec::new()
    } else {
        snapshots::mounts(daemon, &container.snapshotter, &container.snapshot_key).await?
    };
    let created = Created::new(
        daemon,
        &arguments.id,
        rootfs,
        terminal,
        container.runtime.and_then(|runtime| runtime.options),
        &arguments.streams,
    )
    .await?;
    let exit = created.start(daemon, &arguments.streams).await?;
    if !arguments.streams.detach {
        super::delete(daemon, &arguments.id, "").await?;
    }
    Ok(exit)
}

/// A task that is set up and waits to be started.
#[derive(Debug)]
pub(crate) struct Created {
    id: String,
    pid: u32,
    terminal: bool,
    fifos: Option<Fifos>,
    attached: Option<Attached>,
}

impl Created {
    /// Makes the pipes and asks the daemon for a task.
    pub(crate) async fn new(
        daemon: &Daemon,
        id: &str,
        rootfs: Vec<Mount>,
        terminal: bool,
        options: Option<Any>,
        streams: &Streams,
    ) -> Result<Self> {
        let fifos = if streams.null_io || streams.log_uri.is_some() {
            None
        } else {
            Some(Fifos::create(&streams.fifo_dir, id, terminal)?)
        };
        let paths = match (&fifos, &streams.log_uri) {
            (Some(fifos), _) => fifos.paths().clone(),
            (None, Some(uri)) => Paths::log(uri),
            (None, None) => Paths::default(),
        };
        // Attached before the task exists: the shim may open the pipes at any moment now.
        let attached = match &fifos {
            Some(fifos) if !streams.detach => Some(fifos.attach()),
            _ => None,
        };
        let request = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdin: paths.stdin,
            stdout: paths.stdout,
            stderr: paths.stderr,
            terminal,
            options,
            ..CreateTaskRequest::default()
        };
        let answer = client!(daemon, TasksClient).create(request).await?.into_inner();
        if let Some(path) = &streams.pid_file {
            std::fs::write(path, answer.pid.to_string())
                .map_err(Error::io("write", path.display()))?;
        }
        Ok(Self { id: id.to_owned(), pid: answer.pid, terminal, fifos, attached })
    }

    /// Starts it and, unless detached, stays until it has ended.
    pub(crate) async fn start(self, daemon: &Daemon, streams: &Streams) -> Result<Exit> {
        let Self { id, pid, terminal, fifos, attached } = self;
        let request = StartRequest { container_id: id.clone(), exec_id: String::new() };
        if streams.detach {
            client!(daemon, TasksClient).start(request).await?;
            if let Some(fifos) = fifos {
                fifos.keep();
            }
            return Ok(Exit::SUCCESS);
        }
        let raw = terminal.then(RawTerminal::enter).transpose()?;
        let exit = supervise(daemon, &id, "", terminal, attached, async {
            client!(daemon, TasksClient).start(request).await?;
            Ok(())
        })
        .await;
        drop((raw, fifos));
        let exit = exit?;
        if exit.0 != 0 && pid == 0 {
            output::warn(format!("task {id} reported no process id"));
        }
        Ok(exit)
    }
}

/// Waits for a process, passing on this program's signals, window size and end of input.
///
/// `start` runs after the daemon was asked to report the exit, so that none is missed.
pub(crate) async fn supervise(
    daemon: &Daemon,
    id: &str,
    exec_id: &str,
    terminal: bool,
    attached: Option<Attached>,
    start: impl Future<Output = Result<()>>,
) -> Result<Exit> {
    let mut waiter = client!(daemon, TasksClient);
    let request = WaitRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
    let mut wait = std::pin::pin!(waiter.wait(request));
    let mut start = std::pin::pin!(start);
    // The wait is sent first; polling both lets an early exit arrive while the start answers.
    let mut early = None;
    loop {
        tokio::select! {
            biased;
            exit = &mut wait, if early.is_none() => early = Some(exit),
            started = &mut start => { started?; break }
        }
    }
    let (stdin_ended, outputs) = match attached {
        Some(Attached { outputs, stdin_ended }) => (Some(stdin_ended), outputs),
        None => (None, Vec::new()),
    };
    // Beside the rest: the process may end before the daemon has answered.
    let end_input = async {
        if let Some(ended) = stdin_ended
            && ended.await.is_ok()
        {
            close_stdin(daemon, id, exec_id).await;
        }
        std::future::pending::<Infallible>().await
    };
    let mut end_input = std::pin::pin!(end_input);
    let mut signals = Signals::new()?;
    if terminal {
        resize(daemon, id, exec_id).await;
    }
    let answer = match early {
        Some(answer) => answer?,
        None => loop {
            tokio::select! {
                exit = &mut wait => break exit?,
                number = signals.next() => {
                    if number == WINCH {
                        resize(daemon, id, exec_id).await;
                    } else {
                        forward(daemon, id, exec_id, number).await;
                    }
                }
                never = &mut end_input => match never {},
            }
        },
    };
    io::drained(outputs).await;
    #[allow(clippy::cast_possible_truncation, reason = "exit codes are a byte")]
    Ok(Exit(answer.into_inner().exit_status as u8))
}

/// The signal of a changed window size.
const WINCH: u32 = 28;

/// Signals that are meant for the process, not for this program.
struct Signals {
    hangup: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    user_1: tokio::signal::unix::Signal,
    user_2: tokio::signal::unix::Signal,
    window: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(Error::io("listen for", "signals"));
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            terminate: listen(SignalKind::terminate())?,
            user_1: listen(SignalKind::user_defined1())?,
            user_2: listen(SignalKind::user_defined2())?,
            window: listen(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> u32 {
        tokio::select! {
            _ = self.hangup.recv() => 1,
            _ = self.interrupt.recv() => 2,
            _ = self.quit.recv() => 3,
            _ = self.terminate.recv() => 15,
            _ = self.user_1.recv() => 10,
            _ = self.user_2.recv() => 12,
            _ = self.window.recv() => WINCH,
        }
    }
}

async fn forward(daemon: &Daemon, id: &str, exec_id: &str, signal: u32) {
    let request = KillRequest {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        signal,
        all: false,
    };
    if let Err(error) = client!(daemon, TasksClient).kill(request).await {
        output::warn(format!("signal {signal} was not delivered: {}", error.message()));
    }
}

async fn resize(daemon: &Daemon, id: &str, exec_id: &str) {
    let Some((width, height)) = io::terminal_size() else {
        return;
    };
    let request = ResizePtyRequest {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        width,
        height,
    };
    // The process may have ended meanwhile; its exit says so.
    let _ = client!(daemon, TasksClient).resize_pty(request).await;
}

async fn close_stdin(daemon: &Daemon, id: &str, exec_id: &str) {
    let request =
        CloseIoRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned(), stdin: true };
    // The process may have ended meanwhile; its exit says so.
    let _ = client!(daemon, TasksClient).close_io(request).await;
}
