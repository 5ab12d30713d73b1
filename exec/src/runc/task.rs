use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use prost_types::Any;
use tokio::time::timeout;

use super::{
    command::{CreateArgs, Runc},
    direct::{self, Direct},
    process::{self, KILL, LOST, Life, RuncProcess, Wiring, deleted, running, stopped},
    runtime::Tasks,
};
use crate::{
    Bundle, CreateTask, Error, ExecProcess, Exit, Process, ProcessPid, Result, Size, State, Status,
    Stdio, Task,
    cgroup::Cgroup,
    console::ConsoleSocket,
    io::{ChildStdio, DRAIN_DEADLINE, IoConfig, ProcessIo},
    proto::runc::CheckpointOptions,
    reaper::{Claim, Reaper},
    rootfs,
};

/// A container and its first process.
pub(super) struct RuncTask {
    pub(super) id: String,
    pub(super) bundle: Bundle,
    pub(super) runc: Runc,
    pub(super) reaper: Arc<Reaper>,
    pub(super) io_config: IoConfig,
    pub(super) life: Life,
    stdio: Stdio,
    io: OnceLock<ProcessIo>,
    /// A container to restore waits for its start with this.
    restore: Mutex<Option<Restore>>,
    cgroup: OnceLock<Cgroup>,
    execs: Mutex<BTreeMap<String, Arc<RuncProcess>>>,
    steps: tokio::sync::Mutex<()>,
    tasks: Weak<Tasks>,
    private_pids: bool,
    /// Inode of its PID namespace, if it has one of its own.
    pid_namespace: OnceLock<u64>,
    /// What is done without the runtime.
    direct: Direct,
    /// Where its cgroup is, if the spec says so.
    cgroups_path: Option<String>,
    /// Hooks are to run when the container is deleted, not when it ends.
    hooks_at_deletion: bool,
    /// The runtime has forgotten the container.
    released: AtomicBool,
}

struct Restore {
    image: PathBuf,
    child: ChildStdio,
    console: Option<ConsoleSocket>,
}

impl RuncTask {
    pub(super) async fn create(
        runc: Runc,
        reaper: Arc<Reaper>,
        tasks: Weak<Tasks>,
        request: CreateTask,
    ) -> Result<Arc<Self>> {
        let config = runc.config();
        let io_config = IoConfig {
            container_id: request.id.clone(),
            namespace: config.namespace.clone(),
            uid: config.io_uid,
            gid: config.io_gid,
        };
        let glance = crate::spec::Glance::of(&request.bundle.read_spec()?)?;
        let direct = Direct::new(config, &request.id, &glance);
        let task = Arc::new(RuncTask {
            id: request.id,
            bundle: request.bundle,
            runc,
            reaper,
            io_config,
            life: Life::new(),
            stdio: request.stdio,
            io: OnceLock::new(),
            restore: Mutex::new(None),
            cgroup: OnceLock::new(),
            execs: Mutex::default(),
            steps: tokio::sync::Mutex::new(()),
            tasks,
            private_pids: glance.has_private_pids(),
            pid_namespace: OnceLock::new(),
            direct,
            cgroups_path: glance.cgroups_path().map(str::to_owned),
            hooks_at_deletion: glance.has_poststop_hooks(),
            released: AtomicBool::new(false),
        });
        let (mounts, root) = (request.rootfs, task.bundle.rootfs());
        let seen =
            glance.root_path().map_or_else(|| root.clone(), |path| task.bundle.path().join(path));
        blocking(move || {
            rootfs::attach(&mounts, &root)?;
            // Nothing of the container exists yet, so this is all there is to undo.
            rootfs::check(&seen).map_err(|error| match rootfs::detach(&root) {
                Ok(()) => error,
                Err(left) => Error::Unknown(format!("{error}; and cleaning up: {left}")),
            })
        })
        .await?;
        if let Err(error) = task.prepare(request.checkpoint).await {
            task.undo().await;
            return Err(error);
        }
        Ok(task)
    }

    async fn prepare(self: &Arc<Self>, checkpoint: Option<PathBuf>) -> Result<()> {
        let wiring = Wiring::open(self, &self.stdio, "console.sock").await?;
        let Wiring { io, child, console } = wiring;
        // Creation happens once, so the place is free.
        let _ = self.io.set(io);
        if let Some(image) = checkpoint {
            *lock(&self.restore) = Some(Restore { image, child, console });
            return Ok(());
        }
        self.launch(None, child, console).await
    }

    /// Creates or restores, and watches the first process from then on.
    async fn launch(
        self: &Arc<Self>,
        checkpoint: Option<PathBuf>,
        child: ChildStdio,
        console: Option<ConsoleSocket>,
    ) -> Result<()> {
        let pid_file = self.bundle.path().join("init.pid");
        let _hold = self.reaper.hold();
        let args = CreateArgs {
            id: &self.id,
            bundle: self.bundle.path(),
            pid_file: &pid_file,
            console_socket: console.as_ref().map(ConsoleSocket::path),
            checkpoint: checkpoint.as_deref(),
        };
        self.runc.create(args, child).await?;
        let claim = self.reaper.claim(process::read_pid(&pid_file)?)?;
        self.life.born(&claim)?;
        let namespace = fs::metadata(format!("/proc/{}/ns/pid", claim.pid()));
        if self.private_pids
            && let Ok(namespace) = namespace
        {
            let _ = self.pid_namespace.set(namespace.ino());
        }
        if let Ok(cgroup) = Cgroup::of(claim.pid()) {
            let _ = self.cgroup.set(cgroup);
        }
        let watched = tokio::spawn(Arc::clone(self).watch(claim));
        if let Some(io) = self.io.get() {
            process::connect_console(self, io, console, &self.stdio).await.inspect_err(|_| {
                let _ = self.life.signal(KILL);
            })?;
        }
        drop(watched);
        Ok(())
    }

    async fn watch(self: Arc<Self>, mut claim: Claim) {
        let exit = claim.wait().await.unwrap_or_else(|error| {
            tracing::warn!(task = self.id, %error, "exit code lost");
            Exit::now(LOST)
        });
        // With PIDs of its own the kernel has ended the others already.
        if !self.private_pids
            && let Some(cgroup) = self.cgroup.get()
        {
            cgroup.kill();
        }
        self.life.end(exit);
    }

    /// Removes what a creation that failed has left.
    async fn undo(&self) {
        // From here on a release under way is over, and none begins.
        let _step = self.steps.lock().await;
        self.life.delete();
        if let Err(error) = self.runc.delete(&self.id, true).await {
            tracing::warn!(task = self.id, %error, "half-made container stays");
        }
        if let Err(error) = self.sweep_cgroup().await {
            tracing::warn!(task = self.id, %error, "half-made cgroup stays");
        }
        if let Some(io) = self.io.get() {
            io.drain(Duration::ZERO).await;
        }
        let root = self.bundle.rootfs();
        if let Err(error) = blocking(move || rootfs::detach(&root)).await {
            tracing::warn!(task = self.id, %error, "rootfs stays mounted");
        }
    }

    pub(super) fn joined(&self, exec_id: &str) -> Result<Arc<RuncProcess>> {
        lock(&self.execs).get(exec_id).cloned().ok_or_else(|| deleted(exec_id))
    }

    /// Reaps what a failed attempt to join has left in the container: until then the container's
    /// first process cannot end.
    pub(super) fn reap_strays(&self) {
        let Some(namespace) = self.pid_namespace.get().copied() else { return };
        let reaper = Arc::clone(&self.reaper);
        tokio::spawn(async move {
            for _ in 0..STRAYS_ROUNDS_MAX {
                if reaper.reap_namespace(namespace) == 0 {
                    return;
                }
                tokio::time::sleep(STRAYS_PAUSE).await;
            }
        });
    }

    pub(super) fn forget(&self, exec_id: &str) {
        lock(&self.execs).remove(exec_id);
    }

    fn ensure_exists(&self) -> Result<()> {
        if self.life.is_deleted() { Err(deleted(&self.id)) } else { Ok(()) }
    }

    fn cgroup(&self) -> Result<&Cgroup> {
        self.ensure_exists()?;
        self.cgroup
            .get()
            .ok_or_else(|| Error::NotFound(format!("cgroup of {}: not found", self.id)))
    }

    /// Kills a container that never ran its program, and waits for that.
    async fn end_created(&self) -> Result<()> {
        if self.life.pid() == 0 {
            self.life.end(Exit::now(128 + KILL));
            return Ok(());
        }
        match self.life.signal(KILL) {
            Err(Error::NotFound(_)) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        let ended = timeout(KILL_PATIENCE, self.life.wait(&self.id)).await;
        ended
            .map_err(|_| Error::DeadlineExceeded(format!("container {} does not end", self.id)))?
            .map(drop)
    }

    /// Has the runtime forget the container; the caller holds `steps`.
    async fn dissolve(&self) -> Result<()> {
        if self.released.load(Ordering::Acquire) {
            return Ok(());
        }
        let (direct, id) = (self.direct.clone(), self.id.clone());
        let done = blocking(move || direct.delete(&id)).await.unwrap_or_else(|error| {
            tracing::debug!(task = self.id, %error, "deletion is left to the runtime");
            false
        });
        if !done {
            let deleted = self.runc.delete(&self.id, true).await;
            deleted.map_err(|e| e.context(&self.blockers()))?;
            self.sweep_cgroup().await?;
        }
        self.released.store(true, Ordering::Release);
        Ok(())
    }

    /// Lets the created container run its program.
    async fn run_program(&self) -> Result<()> {
        let ended = async { drop(self.life.wait(&self.id).await) };
        let pid = self.life.pid();
        let before = direct::program_of(pid);
        let deadline = self.runc.config().deadline;
        let started = timeout(deadline, self.direct.start(ended)).await;
        let late = |_| {
            let text = format!("OCI runtime start failed: not started in {deadline:?}");
            Error::DeadlineExceeded(text)
        };
        if !started.map_err(late)?? {
            return self.runc.start(&self.id).await;
        }
        blocking(move || {
            direct::await_program(pid, before);
            Ok(())
        })
        .await
    }

    /// Whether nothing is left that could be signalled.
    fn is_gone(&self) -> bool {
        let nobody = |cgroup: &Cgroup| cgroup.pids().map_or(true, |pids| pids.is_empty());
        self.life.exit().is_some() && (self.private_pids || self.cgroup.get().is_none_or(nobody))
    }

    /// What the runtime leaves of a cgroup when it is killed, or never knew of.
    async fn sweep_cgroup(&self) -> Result<()> {
        let Some(path) = self.cgroups_path.clone() else { return Ok(()) };
        let id = self.id.clone();
        blocking(move || crate::cgroup::remove(&path, &id)).await
    }

    /// The container's processes that have not ended, with what they wait for.
    fn blockers(&self) -> String {
        let pids = self.cgroup.get().and_then(|cgroup| cgroup.pids().ok()).unwrap_or_default();
        let mut text = format!("container {}", self.id);
        for pid in pids.into_iter().take(BLOCKERS_MAX) {
            text.push_str(", ");
            text.push_str(&crate::shim::blocker::process(pid));
        }
        text
    }

    async fn clear(&self) -> Result<()> {
        self.dissolve().await?;
        let joined: Vec<_> = std::mem::take(&mut *lock(&self.execs)).into_values().collect();
        for process in joined {
            // Their container is gone, so they have ended or are about to.
            let _ = process.delete().await;
        }
        if let Some(io) = self.io.get() {
            io.drain(DRAIN_DEADLINE).await;
        }
        let root = self.bundle.rootfs();
        blocking(move || rootfs::detach(&root)).await
    }
}

#[async_trait]
impl Process for RuncTask {
    fn id(&self) -> &str {
        &self.id
    }

    async fn start(&self) -> Result<u32> {
        let _step = self.steps.lock().await;
        self.ensure_exists()?;
        match self.life.status() {
            Status::Created => {}
            Status::Stopped => return Err(stopped(&self.id)),
            _ => {
                let text = format!("container {} was started before", self.id);
                return Err(Error::FailedPrecondition(text));
            }
        }
        let restore = lock(&self.restore).take();
        if let Some(Restore { image, child, console }) = restore {
            let tasks = self.tasks.upgrade().ok_or_else(|| deleted(&self.id))?;
            tasks.find(&self.id)?.launch(Some(image), child, console).await?;
        } else {
            self.run_program().await?;
        }
        self.life.advance(Status::Running);
        Ok(self.life.pid())
    }

    async fn state(&self) -> Result<State> {
        self.ensure_exists()?;
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

    async fn kill(&self, signal: u32, all: bool) -> Result<()> {
        self.ensure_exists()?;
        let frozen = matches!(self.life.status(), Status::Paused | Status::Pausing);
        if self.life.exit().is_none() && !all && !frozen {
            return self.life.signal(signal);
        }
        // Without PIDs of their own the others may live on, and are found by the runtime.
        if self.life.exit().is_some() && (!all || self.private_pids) {
            return Err(crate::reaper::finished());
        }
        if let Err(error) = self.runc.kill(&self.id, signal, all).await {
            // It may have ended since, and its cgroup with it: then the runtime failed for that.
            return Err(if self.is_gone() { crate::reaper::finished() } else { error });
        }
        if frozen
            && signal == KILL
            && let Some(cgroup) = self.cgroup.get()
        {
            // Not every runtime thaws what it kills, and the frozen do not even die.
            let _ = cgroup.freeze(false);
        }
        Ok(())
    }

    async fn delete(&self) -> Result<Exit> {
        let _step = self.steps.lock().await;
        self.ensure_exists()?;
        match self.life.status() {
            Status::Stopped => {}
            Status::Created => self.end_created().await?,
            _ => return Err(running()),
        }
        self.clear().await?;
        let exit = self.life.exit().unwrap_or_else(|| Exit::now(LOST));
        self.life.delete();
        if let Some(tasks) = self.tasks.upgrade() {
            tasks.remove(&self.id);
        }
        Ok(exit)
    }

    async fn resize(&self, size: Size) -> Result<()> {
        self.ensure_exists()?;
        process::resize(self.io.get(), size)
    }

    async fn close_stdin(&self) -> Result<()> {
        self.ensure_exists()?;
        if let Some(io) = self.io.get() {
            io.close_stdin();
        }
        Ok(())
    }
}

#[async_trait]
impl Task for RuncTask {
    async fn exec(&self, request: ExecProcess) -> Result<Arc<dyn Process>> {
        self.ensure_exists()?;
        crate::bundle::check_id(&request.id)?;
        if self.life.status() == Status::Stopped {
            return Err(stopped(&self.id));
        }
        let tasks = self.tasks.upgrade().ok_or_else(|| deleted(&self.id))?;
        let this = tasks.find(&self.id)?;
        let process = Arc::new(RuncProcess::new(&this, request)?);
        let mut execs = lock(&self.execs);
        if execs.contains_key(process.id()) {
            let text = format!("process {}: already exists", process.id());
            return Err(Error::AlreadyExists(text));
        }
        execs.insert(process.id().to_owned(), Arc::clone(&process));
        Ok(process)
    }

    async fn process(&self, exec_id: &str) -> Result<Arc<dyn Process>> {
        self.ensure_exists()?;
        Ok(self.joined(exec_id)?)
    }

    async fn pause(&self) -> Result<()> {
        let _step = self.steps.lock().await;
        self.ensure_exists()?;
        self.life.advance(Status::Pausing);
        match self.runc.pause(&self.id).await {
            Ok(()) => {
                self.life.advance(Status::Paused);
                Ok(())
            }
            Err(error) => {
                if self.life.status() == Status::Pausing {
                    self.life.advance(Status::Running);
                }
                Err(error)
            }
        }
    }

    async fn resume(&self) -> Result<()> {
        let _step = self.steps.lock().await;
        self.ensure_exists()?;
        self.runc.resume(&self.id).await?;
        self.life.advance(Status::Running);
        Ok(())
    }

    async fn release(&self) -> Result<()> {
        let _step = self.steps.lock().await;
        if self.life.status() != Status::Stopped || self.life.is_deleted() || self.hooks_at_deletion
        {
            return Ok(());
        }
        self.dissolve().await
    }

    async fn pids(&self) -> Result<Vec<ProcessPid>> {
        self.ensure_exists()?;
        if self.life.exit().is_some() {
            return Ok(Vec::new());
        }
        let pids = match self.cgroup.get().map(Cgroup::pids) {
            Some(Ok(pids)) => pids,
            _ => self.runc.ps(&self.id).await?,
        };
        let execs = lock(&self.execs);
        let exec_of = |pid| {
            let process = execs.values().find(|p| p.is_running() && p.pid() == pid)?;
            Some(process.id().to_owned())
        };
        Ok(pids.into_iter().map(|pid| ProcessPid { pid, exec_id: exec_of(pid) }).collect())
    }

    async fn update(&self, resources: &[u8]) -> Result<()> {
        let _step = self.steps.lock().await;
        self.ensure_exists()?;
        if !serde_json::from_slice::<serde_json::Value>(resources).is_ok_and(|v| v.is_object()) {
            return Err(Error::InvalidArgument("resources are no JSON object".into()));
        }
        let path = self.bundle.path().join("resources.json");
        process::write_private(&path, resources)?;
        let updated = self.runc.update(&self.id, &path).await;
        // The bundle's removal takes it if this does not.
        let _ = fs::remove_file(&path);
        updated
    }

    async fn stats(&self) -> Result<Any> {
        self.cgroup()?.stats()
    }

    async fn checkpoint(&self, image: PathBuf, options: CheckpointOptions) -> Result<()> {
        let _step = self.steps.lock().await;
        self.ensure_exists()?;
        self.runc.checkpoint(&self.id, &image, self.bundle.path(), &options).await
    }
}

async fn blocking<T, F>(work: F) -> Result<T>
where
    F: FnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::Internal(format!("blocking work failed: {e}"))))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long the kernel may take to kill.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Processes named in an error.
const BLOCKERS_MAX: usize = 8;

/// How often, and for how long in all, strays are looked for: they were killed or have lost their
/// parent, so they end soon.
const STRAYS_PAUSE: Duration = Duration::from_millis(50);
const STRAYS_ROUNDS_MAX: u32 = 1200;
