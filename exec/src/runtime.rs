//! The traits: a [`Runtime`] makes [`Task`]s from bundles, a task is a
//! [`Process`] that others can join.
//!
//! ```text
//!            create            start             exit            delete
//!   Runtime ───────► CREATED ────────► RUNNING ────────► STOPPED ───────► gone
//!                       │              │     ▲              ▲
//!                       │         pause▼     │resume        │
//!                       │               PAUSED              │
//!                       └──────────── kill, delete ─────────┘
//! ```

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use async_trait::async_trait;
use crated_mount::Mount;
use prost_types::Any;

use crate::{Bundle, Result, proto};

/// Makes tasks and finds them again.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Prepares a container: mounts its root, makes its namespaces, and stops
    /// just before its program runs.
    ///
    /// On failure nothing of the task remains; the bundle is the caller's.
    ///
    /// # Errors
    ///
    /// - [`crate::Error::AlreadyExists`]: this id is taken.
    /// - [`crate::Error::InvalidArgument`]: an id or an address of stdio is malformed.
    /// - [`crate::Error::Unknown`]: the runtime refused, in its own words.
    async fn create(&self, request: CreateTask) -> Result<Arc<dyn Task>>;

    /// The task of this id.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NotFound`].
    async fn task(&self, id: &str) -> Result<Arc<dyn Task>>;

    /// All tasks not yet deleted, in the order of their ids.
    async fn tasks(&self) -> Vec<Arc<dyn Task>>;
}

/// One process of a container, from its preparation to its deletion.
///
/// All methods may be called from many places at once.
#[async_trait]
pub trait Process: Send + Sync {
    /// The container's id for its first process, else the id given to [`Task::exec`].
    fn id(&self) -> &str;

    /// Runs the program and returns its pid in the caller's PID namespace.
    ///
    /// # Errors
    ///
    /// - [`crate::Error::FailedPrecondition`]: started before, or the container stopped.
    /// - [`crate::Error::Unknown`]: the program cannot be run.
    async fn start(&self) -> Result<u32>;

    /// What is known about the process now.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NotFound`] once deleted.
    async fn state(&self) -> Result<State>;

    /// Waits, without limit, until the process has ended. Callable before the
    /// start and, with the same answer, any time after the end.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NotFound`] once deleted.
    async fn wait(&self) -> Result<Exit>;

    /// Sends a signal; `all` reaches every process of the container.
    ///
    /// # Errors
    ///
    /// - [`crate::Error::NotFound`]: it has ended already; most callers are content with that.
    /// - [`crate::Error::FailedPrecondition`]: a joined process that was not started.
    async fn kill(&self, signal: u32, all: bool) -> Result<()>;

    /// Forgets a process that ended or never started, and releases what it
    /// held. A created container is killed first. Output still on its way is
    /// waited for at most [`crate::io::DRAIN_DEADLINE`].
    ///
    /// # Errors
    ///
    /// [`crate::Error::Unknown`] while it runs.
    async fn delete(&self) -> Result<Exit>;

    /// Sets the size of the terminal; a zero in it is ignored.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NotFound`] once deleted.
    async fn resize(&self, size: Size) -> Result<()>;

    /// Lets the process read the end of its input.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NotFound`] once deleted.
    async fn close_stdin(&self) -> Result<()>;
}

/// A container: its first process, and what concerns all of them.
#[async_trait]
pub trait Task: Process {
    /// Registers another process; [`Process::start`] runs it.
    ///
    /// # Errors
    ///
    /// - [`crate::Error::AlreadyExists`]: this id is taken in this container.
    /// - [`crate::Error::FailedPrecondition`]: the container has stopped.
    /// - [`crate::Error::InvalidArgument`]: the id or the spec is malformed.
    async fn exec(&self, request: ExecProcess) -> Result<Arc<dyn Process>>;

    /// The joined process of this id.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NotFound`].
    async fn process(&self, exec_id: &str) -> Result<Arc<dyn Process>>;

    /// Freezes every process.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Unknown`] in the runtime's words when not running.
    async fn pause(&self) -> Result<()>;

    /// Thaws every process.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Unknown`] in the runtime's words when not paused.
    async fn resume(&self) -> Result<()>;

    /// Lets go, once the container has ended, of what the runtime and the kernel hold of it, so
    /// that the deletion has less to wait for. Its exit, output and root file system stay. Does
    /// nothing for a container that has not ended, or where the runtime has no such step.
    ///
    /// # Errors
    ///
    /// In the runtime's words; the deletion tries again.
    async fn release(&self) -> Result<()> {
        Ok(())
    }

    /// Pids of the container, as seen from the caller's PID namespace.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NotFound`] once deleted.
    async fn pids(&self) -> Result<Vec<ProcessPid>>;

    /// Changes limits; `resources` is the JSON of LinuxResources.
    ///
    /// # Errors
    ///
    /// [`crate::Error::InvalidArgument`] for other bytes, else in the runtime's words.
    async fn update(&self, resources: &[u8]) -> Result<()>;

    /// Resource use, as the message of this host's cgroup version.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NotFound`] when the container has no cgroup any more.
    async fn stats(&self) -> Result<Any>;

    /// Writes the processes' memory to the folder `image`.
    ///
    /// # Errors
    ///
    /// In the runtime's words; the container goes on unless asked to exit.
    async fn checkpoint(
        &self,
        image: PathBuf,
        options: proto::runc::CheckpointOptions,
    ) -> Result<()>;
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 and the signal's number.
    pub status: u32,
    /// When the end was noticed.
    pub exited_at: SystemTime,
}

impl Exit {
    /// An end that is noticed now.
    pub fn now(status: u32) -> Self {
        Exit { status, exited_at: SystemTime::now() }
    }
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// Prepared, its program does not run yet.
    Created,
    /// Its program runs.
    Running,
    /// It ended; its exit is kept until it is deleted.
    Stopped,
    /// Frozen.
    Paused,
    /// Being frozen.
    Pausing,
    /// A shim answered something else.
    Unknown,
}

impl Status {
    /// Whether `next` may follow this state.
    pub fn allows(self, next: Status) -> bool {
        use Status::{Created, Paused, Pausing, Running, Stopped};
        matches!(
            (self, next),
            (Created, Running | Stopped)
                | (Running, Stopped | Pausing | Paused)
                | (Pausing, Paused | Running | Stopped)
                | (Paused, Running | Stopped)
        )
    }
}

impl From<Status> for proto::process::Status {
    fn from(status: Status) -> Self {
        match status {
            Status::Created => Self::Created,
            Status::Running => Self::Running,
            Status::Stopped => Self::Stopped,
            Status::Paused => Self::Paused,
            Status::Pausing => Self::Pausing,
            Status::Unknown => Self::Unknown,
        }
    }
}

impl From<proto::process::Status> for Status {
    fn from(status: proto::process::Status) -> Self {
        match status {
            proto::process::Status::Created => Self::Created,
            proto::process::Status::Running => Self::Running,
            proto::process::Status::Stopped => Self::Stopped,
            proto::process::Status::Paused => Self::Paused,
            proto::process::Status::Pausing => Self::Pausing,
            proto::process::Status::Unknown => Self::Unknown,
        }
    }
}

/// A process as [`Process::state`] sees it.
#[derive(Clone, Debug)]
pub struct State {
    /// Pid, 0 before a joined process is started.
    pub pid: u32,
    /// Where it is in its life.
    pub status: Status,
    /// Where its stdio goes.
    pub stdio: Stdio,
    /// How it ended, once it did.
    pub exit: Option<Exit>,
}

/// One pid of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessPid {
    /// Pid in the caller's PID namespace.
    pub pid: u32,
    /// Which joined process it is the first process of.
    pub exec_id: Option<String>,
}

/// Where the stdio of a process goes: a path of a FIFO, an URI
/// (`fifo:`, `file:`, `binary:`, see [`crate::io`]), or empty for nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Read from here.
    pub stdin: String,
    /// Written here.
    pub stdout: String,
    /// Written here; unused with a terminal.
    pub stderr: String,
    /// All three are one terminal.
    pub terminal: bool,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// What [`Runtime::create`] makes a task of.
#[derive(Clone, Debug)]
pub struct CreateTask {
    /// Id of the container, unique in the runtime.
    pub id: String,
    /// Folder with `config.json` and `rootfs`.
    pub bundle: Bundle,
    /// Mounted, in this order, at the bundle's rootfs; unmounted by delete.
    pub rootfs: Vec<Mount>,
    /// Where its stdio goes.
    pub stdio: Stdio,
    /// Folder of a checkpoint to restore from.
    pub checkpoint: Option<PathBuf>,
}

/// What [`Task::exec`] makes a process of.
#[derive(Clone, Debug)]
pub struct ExecProcess {
    /// Id of the process, unique in its container.
    pub id: String,
    /// The JSON of a runtime spec's process.
    pub spec: Vec<u8>,
    /// Where its stdio goes.
    pub stdio: Stdio,
}

#[cfg(test)]
mod tests {
    use super::Status::{Created, Paused, Pausing, Running, Stopped};

    #[test]
    fn nothing_follows_the_end() {
        for next in [Created, Running, Stopped, Paused, Pausing] {
            assert!(!Stopped.allows(next), "{next:?}");
        }
    }

    #[test]
    fn a_created_task_runs_or_ends_but_does_not_pause() {
        assert!(Created.allows(Running) && Created.allows(Stopped));
        assert!(!Created.allows(Paused) && !Created.allows(Pausing));
    }
}
