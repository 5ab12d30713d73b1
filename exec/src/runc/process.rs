use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{command::ExecArgs, task::RuncTask};
use crate::{
    Error, ExecProcess, Exit, Process, Result, Size, State, Status, Stdio,
    console::ConsoleSocket,
    io::{ChildStdio, DRAIN_DEADLINE, ProcessIo},
    reaper::{Claim, Handle, finished},
};

/// Where one process is in its life, and who waits for its end.
#[derive(Debug)]
pub(super) struct Life {
    status: Mutex<Status>,
    pid: AtomicU32,
    handle: OnceLock<Handle>,
    ended: watch::Sender<Ended>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    No,
    Yes(Exit),
    Deleted(Option<Exit>),
}

impl Life {
    pub(super) fn new() -> Self {
        Life {
            status: Mutex::new(Status::Created),
            pid: AtomicU32::new(0),
            handle: OnceLock::new(),
            ended: watch::Sender::new(Ended::No),
        }
    }

    /// Notes the process behind the claim.
    pub(super) fn born(&self, claim: &Claim) -> Result<()> {
        let handle = claim.handle()?;
        self.pid.store(claim.pid(), Ordering::Release);
        // A process is born once; a second handle would be the same.
        let _ = self.handle.set(handle);
        Ok(())
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Acquire)
    }

    pub(super) fn status(&self) -> Status {
        *self.lock()
    }

    /// Takes a step; one that does not fit is ignored, because the end of a
    /// process may overtake every other step.
    pub(super) fn advance(&self, next: Status) {
        let mut status = self.lock();
        if status.allows(next) {
            *status = next;
        }
    }

    pub(super) fn end(&self, exit: Exit) {
        self.advance(Status::Stopped);
        self.ended.send_if_modified(|ended| {
            let first = *ended == Ended::No;
            if first {
                *ended = Ended::Yes(exit);
            }
            first
        });
    }

    pub(super) fn delete(&self) {
        self.ended.send_modify(|ended| {
            if let Ended::Yes(exit) = *ended {
                *ended = Ended::Deleted(Some(exit));
            } else if *ended == Ended::No {
                *ended = Ended::Deleted(None);
            }
        });
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        match *self.ended.borrow() {
            Ended::Yes(exit) => Some(exit),
            Ended::Deleted(exit) => exit,
            Ended::No => None,
        }
    }

    pub(super) fn is_deleted(&self) -> bool {
        matches!(*self.ended.borrow(), Ended::Deleted(_))
    }

    /// Waits for the end; who waited before the deletion still gets the exit.
    pub(super) async fn wait(&self, id: &str) -> Result<Exit> {
        let mut ended = self.ended.subscribe();
        let ended = ended.wait_for(|ended| *ended != Ended::No).await;
        match ended.as_deref() {
            Ok(Ended::Yes(exit) | Ended::Deleted(Some(exit))) => Ok(*exit),
            _ => Err(deleted(id)),
        }
    }

    pub(super) fn signal(&self, signal: u32) -> Result<()> {
        if self.exit().is_some() {
            return Err(finished());
        }
        self.handle.get().ok_or_else(finished)?.signal(signal)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stdio of a process on its way to the runtime.
pub(super) struct Wiring {
    pub(super) io: ProcessIo,
    pub(super) child: ChildStdio,
    pub(super) console: Option<ConsoleSocket>,
}

impl Wiring {
    /// Opens the streams, or makes the socket for a terminal named `name`.
    pub(super) async fn open(task: &RuncTask, stdio: &Stdio, name: &str) -> Result<Self> {
        if !stdio.terminal {
            let (io, child) = ProcessIo::open(stdio, &task.io_config, &task.reaper).await?;
            return Ok(Wiring { io, child, console: None });
        }
        let console = Some(ConsoleSocket::bind(task.bundle.path(), name)?);
        Ok(Wiring { io: ProcessIo::default(), child: ChildStdio::null(), console })
    }
}

/// Receives the terminal and starts to copy.
pub(super) async fn connect_console(
    task: &RuncTask,
    io: &ProcessIo,
    socket: Option<ConsoleSocket>,
    stdio: &Stdio,
) -> Result<()> {
    let Some(socket) = socket else { return Ok(()) };
    let console = socket.receive().await?;
    io.attach_console(console, stdio, &task.io_config, &task.reaper).await
}

/// A process that joins a container.
pub(super) struct RuncProcess {
    id: String,
    task: Weak<RuncTask>,
    stdio: Stdio,
    spec: serde_json::Value,
    life: Life,
    io: OnceLock<ProcessIo>,
    /// The client has ended the input, possibly while the process was being started.
    stdin_closed: AtomicBool,
    steps: tokio::sync::Mutex<()>,
}

impl RuncProcess {
    pub(super) fn new(task: &Arc<RuncTask>, request: ExecProcess) -> Result<Self> {
        let invalid = |why: String| Error::InvalidArgument(format!("process spec: {why}"));
        let mut spec: serde_json::Value =
            serde_json::from_slice(&request.spec).map_err(|e| invalid(e.to_string()))?;
        let fields = spec.as_object_mut().ok_or_else(|| invalid("is no object".into()))?;
        // The request decides; a runtime with a terminal and no socket hangs.
        fields.insert("terminal".into(), request.stdio.terminal.into());
        Ok(RuncProcess {
            id: request.id,
            task: Arc::downgrade(task),
            stdio: request.stdio,
            spec,
            life: Life::new(),
            io: OnceLock::new(),
            stdin_closed: AtomicBool::new(false),
            steps: tokio::sync::Mutex::new(()),
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.life.pid()
    }

    pub(super) fn is_running(&self) -> bool {
        self.life.status() == Status::Running
    }

    fn task(&self) -> Result<Arc<RuncTask>> {
        self.task.upgrade().ok_or_else(|| deleted(&self.id))
    }

    async fn run(&self, task: &RuncTask) -> Result<Claim> {
        let folder = task.bundle.path().join("exec");
        fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        let process = folder.join(format!("{}.json", self.id));
        let pid_file = folder.join(format!("{}.pid", self.id));
        write_private(&process, self.spec.to_string().as_bytes())?;
        let result = self.run_with(task, &process, &pid_file).await;
        for file in [&process, &pid_file] {
            // The bundle's removal takes what stays.
            let _ = fs::remove_file(file);
        }
        result
    }

    async fn run_with(&self, task: &RuncTask, process: &Path, pid_file: &Path) -> Result<Claim> {
        let socket = format!("{}.sock", self.id);
        let wiring = Wiring::open(task, &self.stdio, &socket).await?;
        let _hold = task.reaper.hold();
        let args = ExecArgs {
            id: &task.id,
            process,
            pid_file,
            console_socket: wiring.console.as_ref().map(ConsoleSocket::path),
            bundle: task.bundle.path(),
        };
        let ran = task.runc.exec(args, wiring.child).await;
        let claim = match ran.and_then(|()| read_pid(pid_file)) {
            Ok(pid) => task.reaper.claim(pid)?,
            Err(error) => {
                task.reap_strays();
                wiring.io.drain(std::time::Duration::ZERO).await;
                return Err(error);
            }
        };
        self.life.born(&claim)?;
        if let Err(error) = connect_console(task, &wiring.io, wiring.console, &self.stdio).await {
            let _ = self.life.signal(KILL);
            return Err(error);
        }
        // A process starts once, so the place is free.
        let _ = self.io.set(wiring.io);
        if self.stdin_closed.load(Ordering::SeqCst) {
            self.close_stdin().await?;
        }
        Ok(claim)
    }
}

#[async_trait]
impl Process for RuncProcess {
    fn id(&self) -> &str {
        &self.id
    }

    async fn start(&self) -> Result<u32> {
        let _step = self.steps.lock().await;
        let task = self.task()?;
        if task.life.status() == Status::Stopped {
            return Err(stopped(&task.id));
        }
        if self.life.is_deleted() {
            return Err(deleted(&self.id));
        }
        if self.life.pid() != 0 || self.life.exit().is_some() {
            let text = format!("process {} was started before", self.id);
            return Err(Error::FailedPrecondition(text));
        }
        let mut claim = self.run(&task).await.inspect_err(|_| {
            self.life.end(Exit::now(CANNOT_START));
        })?;
        self.life.advance(Status::Running);
        let pid = claim.pid();
        if let Ok(this) = task.joined(&self.id) {
            tokio::spawn(async move {
                let exit = claim.wait().await.unwrap_or_else(|error| {
                    tracing::warn!(%error, "exit code lost");
                    Exit::now(LOST)
                });
                this.life.end(exit);
            });
        }
        Ok(pid)
    }

    async fn state(&self) -> Result<State> {
        if self.life.is_deleted() {
            return Err(deleted(&self.id));
        }
        Ok(State {
            pid: self.life.pid(),
            status: self.life.status(),
            stdio: self.stdio.clone(),
            exit: self.life.exit(),
        })
    }

    async fn wait(&self) -> Result<Exit> {
        self.life.wait(&self.id).await
    }

    async fn kill(&self, signal: u32, _all: bool) -> Result<()> {
        if self.life.status() == Status::Created {
            let text = format!("process {} is not started", self.id);
            return Err(Error::FailedPrecondition(text));
        }
        self.life.signal(signal)
    }

    async fn delete(&self) -> Result<Exit> {
        let _step = self.steps.lock().await;
        if self.life.is_deleted() {
            return Err(deleted(&self.id));
        }
        if matches!(self.life.status(), Status::Running | Status::Paused) {
            return Err(running());
        }
        if let Some(io) = self.io.get() {
            io.drain(DRAIN_DEADLINE).await;
        }
        self.life.delete();
        if let Ok(task) = self.task() {
            task.forget(&self.id);
        }
        Ok(self.life.exit().unwrap_or_else(|| Exit::now(0)))
    }

    async fn resize(&self, size: Size) -> Result<()> {
        resize(self.io.get(), size)
    }

    async fn close_stdin(&self) -> Result<()> {
        // Noted first: a start under way looks after it has made the streams known.
        self.stdin_closed.store(true, Ordering::SeqCst);
        if let Some(io) = self.io.get() {
            io.close_stdin();
        }
        Ok(())
    }
}

pub(super) fn resize(io: Option<&ProcessIo>, size: Size) -> Result<()> {
    match io.and_then(ProcessIo::console) {
        Some(console) => console.resize(size),
        // Clients resize what has just ended; there is nothing to do.
        None => Ok(()),
    }
}

pub(super) fn read_pid(path: &Path) -> Result<u32> {
    let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let pid = text.trim().parse::<u32>().ok().filter(|pid| *pid > 1);
    pid.ok_or_else(|| Error::Unknown(format!("runtime wrote {text:?} as pid")))
}

pub(super) fn write_private(path: &PathBuf, bytes: &[u8]) -> Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).map_err(|e| Error::io("write", path, e))
}

pub(super) fn deleted(id: &str) -> Error {
    Error::NotFound(format!("process {id}: not found"))
}

pub(super) fn stopped(id: &str) -> Error {
    Error::FailedPrecondition(format!("container {id} has stopped"))
}

pub(super) fn running() -> Error {
    Error::Unknown("cannot delete a running process".into())
}

pub(super) const KILL: u32 = 9;

/// What shells report for a program that cannot be run.
const CANNOT_START: u32 = 126;

/// Exit status when the true one cannot be known.
pub(super) const LOST: u32 = 255;
