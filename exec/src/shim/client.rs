use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use prost::Message;
use prost_types::Any;
use tokio::{sync::watch, time::timeout};

use super::{
    ShimRuntime,
    folders::{Folders, Following},
    removal::Remains,
    start::Binary,
};
use crate::{
    Bundle, Error, ExecProcess, ProcessPid, Result, Size,
    proto::{
        self, PROCESS_URL, TASK_V2, TASK_V3,
        runc::{CheckpointOptions, ProcessDetails},
        task::{
            self as api, ConnectResponse, CreateTaskRequest, DeleteResponse, StateResponse,
            WaitResponse,
        },
    },
    ttrpc::{Call, Client},
};

/// A container under its shim.
///
/// All calls go to the shim; an empty `exec_id` means the first process.
/// Errors are what the shim answered, [`Error::NotFound`] also when its
/// connection has ended. Calls may be made side by side.
pub struct ShimTask {
    pub(super) namespace: String,
    pub(super) id: String,
    pub(super) bundle: Bundle,
    pub(super) folders: Folders,
    pub(super) binary: std::path::PathBuf,
    pub(super) client: Client,
    /// The shim speaks the other version of the service.
    version_3: AtomicBool,
    pub(super) pid: AtomicU32,
    /// An end that was asked for is no death.
    pub(super) deleting: AtomicBool,
    /// The end the shim could not report.
    pub(super) gone: watch::Sender<Option<WaitResponse>>,
    pub(super) runtime: Weak<ShimRuntime>,
    log: Mutex<Option<Following>>,
}

impl ShimTask {
    pub(super) fn new(
        runtime: &Arc<ShimRuntime>,
        (namespace, id): (&str, &str),
        binary: std::path::PathBuf,
        (client, version): (Client, i32),
    ) -> Result<Arc<Self>> {
        let folders = Folders::new(&runtime.config, namespace, id);
        let log = folders.follow_log(namespace, id);
        Ok(Arc::new(ShimTask {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            bundle: Bundle::open(&folders.bundle)?,
            folders,
            binary,
            client,
            version_3: AtomicBool::new(version >= 3),
            pid: AtomicU32::new(0),
            deleting: AtomicBool::new(false),
            gone: watch::Sender::new(None),
            runtime: Arc::downgrade(runtime),
            log: Mutex::new(Some(log)),
        }))
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Pid of the first process, 0 if unknown.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Acquire)
    }

    /// Its bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Runs the program and returns its pid.
    ///
    /// # Errors
    ///
    /// [`Error::FailedPrecondition`] if it was started before.
    pub async fn start(&self, exec_id: &str) -> Result<u32> {
        let request = api::StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        let response: api::StartResponse = self.call("Start", &request, None).await?;
        if exec_id.is_empty() {
            self.pid.store(response.pid, Ordering::Release);
        }
        Ok(response.pid)
    }

    /// What is known of a process.
    ///
    /// # Errors
    ///
    /// [`Error::DeadlineExceeded`] when the shim is mute.
    pub async fn state(&self, exec_id: &str) -> Result<StateResponse> {
        let request = api::StateRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        self.call("State", &request, Some(self.runtime()?.config.timeouts.state)).await
    }

    /// Waits without limit for the end of a process. When the shim dies the
    /// end of the container counts.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for an unknown process.
    pub async fn wait(&self, exec_id: &str) -> Result<WaitResponse> {
        let request = api::WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        let error = match self.call("Wait", &request, None).await {
            Err(error) if self.client.is_closed() => error,
            answered => return answered,
        };
        let mut gone = self.gone.subscribe();
        let ended = timeout(CLEANUP_DEADLINE, gone.wait_for(Option::is_some)).await;
        match ended {
            Ok(Ok(end)) => end.ok_or(error),
            _ => Err(error),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] once the process has ended.
    pub async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let (id, exec_id) = (self.id.clone(), exec_id.to_owned());
        self.call("Kill", &api::KillRequest { id, exec_id, signal, all }, None).await
    }

    /// Registers another process.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`], [`Error::FailedPrecondition`], [`Error::InvalidArgument`].
    pub async fn exec(&self, request: ExecProcess) -> Result<()> {
        crate::bundle::check_id(&request.id)?;
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: request.id,
            terminal: request.stdio.terminal,
            stdin: request.stdio.stdin,
            stdout: request.stdio.stdout,
            stderr: request.stdio.stderr,
            spec: Some(Any { type_url: PROCESS_URL.into(), value: request.spec }),
        };
        self.call("Exec", &request, None).await
    }

    /// Forgets a process that joined and ended.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] without an id.
    pub async fn delete_process(&self, exec_id: &str) -> Result<DeleteResponse> {
        if exec_id.is_empty() {
            return Err(Error::InvalidArgument("exec id is empty".into()));
        }
        let request = api::DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        self.call("Delete", &request, None).await
    }

    /// Deletes the container, ends the shim and removes the bundle.
    ///
    /// # Errors
    ///
    /// What the shim answers, for example that the container runs; then all
    /// stays as it is.
    pub async fn delete(self: &Arc<Self>) -> Result<DeleteResponse> {
        let this = Arc::clone(self);
        // On its own, so that a caller who gives up leaves nothing half-removed.
        let done = tokio::spawn(async move { this.delete_all().await }).await;
        done.unwrap_or_else(|e| Err(Error::Internal(format!("deletion failed: {e}"))))
    }

    async fn delete_all(self: &Arc<Self>) -> Result<DeleteResponse> {
        let runtime = self.runtime()?;
        if self.deleting.swap(true, Ordering::AcqRel) {
            return Err(Error::NotFound(format!("task {}: not found", self.id)));
        }
        let request = api::DeleteRequest { id: self.id.clone(), exec_id: String::new() };
        let (response, clean) = match self.call("Delete", &request, None).await {
            Ok(response) => (response, true),
            Err(Error::NotFound(_)) => self.clean_up(&runtime).await,
            Err(error) => {
                self.deleting.store(false, Ordering::Release);
                return Err(error);
            }
        };
        self.release_waiters(&response);
        // The container is gone; its shim and its folders are nobody's concern but ours.
        runtime.dismantle(self.remains(clean));
        Ok(response)
    }

    /// What is left of it; `clean` when the container itself is gone.
    pub(super) fn remains(self: &Arc<Self>, clean: bool) -> Remains {
        Remains {
            namespace: self.namespace.clone(),
            id: self.id.clone(),
            folders: self.folders.clone(),
            binary: (!clean).then(|| self.binary.clone()),
            shim: Some(Arc::clone(self)),
        }
    }

    /// Freezes all processes.
    ///
    /// # Errors
    ///
    /// In the runtime's words.
    pub async fn pause(&self) -> Result<()> {
        self.call("Pause", &api::PauseRequest { id: self.id.clone() }, None).await
    }

    /// Thaws all processes.
    ///
    /// # Errors
    ///
    /// In the runtime's words.
    pub async fn resume(&self) -> Result<()> {
        self.call("Resume", &api::ResumeRequest { id: self.id.clone() }, None).await
    }

    /// All pids of the container.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn pids(&self) -> Result<Vec<ProcessPid>> {
        let request = api::PidsRequest { id: self.id.clone() };
        let response: api::PidsResponse = self.call("Pids", &request, None).await?;
        let processes = response.processes.into_iter().map(|process| {
            let details = process.info.as_ref().and_then(|any| proto::unpack(any).ok());
            let exec_id = details.map(|details: ProcessDetails| details.exec_id);
            ProcessPid { pid: process.pid, exec_id }
        });
        Ok(processes.collect())
    }

    /// Resource use, as the shim's message.
    ///
    /// # Errors
    ///
    /// [`Error::DeadlineExceeded`] when the shim is mute.
    pub async fn stats(&self) -> Result<Any> {
        let limit = self.runtime()?.config.timeouts.stats;
        let request = api::StatsRequest { id: self.id.clone() };
        let response: api::StatsResponse = self.call("Stats", &request, Some(limit)).await?;
        response.stats.ok_or_else(|| Error::NotFound(format!("stats of {}: not found", self.id)))
    }

    /// Changes limits; `resources` is passed on unchanged.
    ///
    /// # Errors
    ///
    /// In the runtime's words.
    pub async fn update(
        &self,
        resources: Any,
        annotations: BTreeMap<String, String>,
    ) -> Result<()> {
        let (id, resources) = (self.id.clone(), Some(resources));
        self.call("Update", &api::UpdateTaskRequest { id, resources, annotations }, None).await
    }

    /// Writes the processes' memory to a folder.
    ///
    /// # Errors
    ///
    /// In the runtime's words.
    pub async fn checkpoint(&self, path: &str, options: &CheckpointOptions) -> Result<()> {
        let (id, path) = (self.id.clone(), path.to_owned());
        let options = Some(proto::pack(options));
        self.call("Checkpoint", &api::CheckpointTaskRequest { id, path, options }, None).await
    }

    /// Sets the size of a terminal.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn resize(&self, exec_id: &str, size: Size) -> Result<()> {
        let (id, exec_id) = (self.id.clone(), exec_id.to_owned());
        let (width, height) = (size.width.into(), size.height.into());
        self.call("ResizePty", &api::ResizePtyRequest { id, exec_id, width, height }, None).await
    }

    /// Lets a process read the end of its input.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn close_stdin(&self, exec_id: &str) -> Result<()> {
        let (id, exec_id) = (self.id.clone(), exec_id.to_owned());
        self.call("CloseIO", &api::CloseIoRequest { id, exec_id, stdin: true }, None).await
    }

    /// Pids of the shim and of the first process.
    ///
    /// # Errors
    ///
    /// [`Error::DeadlineExceeded`] when the shim is mute.
    pub async fn connect(&self) -> Result<ConnectResponse> {
        let limit = self.runtime()?.config.timeouts.load;
        let request = api::ConnectRequest { id: self.id.clone() };
        self.call("Connect", &request, Some(limit)).await
    }

    pub(super) async fn create(&self, request: &CreateTaskRequest) -> Result<()> {
        let response: api::CreateTaskResponse = self.call("Create", request, None).await?;
        self.pid.store(response.pid, Ordering::Release);
        Ok(())
    }

    pub(super) async fn shut_down(&self, limit: Duration) {
        let request = api::ShutdownRequest { id: self.id.clone(), now: false };
        let done: Result<()> = self.call("Shutdown", &request, Some(limit)).await;
        if matches!(done, Err(Error::DeadlineExceeded(_))) {
            tracing::warn!(namespace = self.namespace, task = self.id, "mute shim is killed");
            self.kill_shim();
        }
    }

    /// Runs the `delete` binary; its failure is an end of its own kind. Tells whether it
    /// succeeded.
    pub(super) async fn clean_up(&self, runtime: &ShimRuntime) -> (DeleteResponse, bool) {
        let binary = Binary {
            config: &runtime.config,
            path: &self.binary,
            namespace: &self.namespace,
            id: &self.id,
        };
        match binary.delete(&self.folders.bundle).await {
            Ok(response) => (response, true),
            Err(error) => {
                let (namespace, task) = (&self.namespace, &self.id);
                tracing::warn!(namespace, task, %error, "cleanup failed");
                (unknown_end(self.pid()), false)
            }
        }
    }

    /// Tells whoever waits how it ended.
    pub(super) fn release_waiters(&self, end: &DeleteResponse) {
        let (exit_status, exited_at) = (end.exit_status, end.exited_at);
        self.gone.send_replace(Some(WaitResponse { exit_status, exited_at }));
    }

    pub(super) fn stop_log(&self) {
        drop(self.log.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    async fn call<Q, A>(&self, method: &str, request: &Q, limit: Option<Duration>) -> Result<A>
    where
        Q: Message,
        A: Message + Default,
    {
        let mut call = Call::in_namespace(&self.namespace);
        call.timeout = limit;
        let first = self.version_3.load(Ordering::Acquire);
        let answer = self.client.call(service(first), method, request, call.clone()).await;
        let answer = match answer {
            // Some shims know the service by one name only.
            Err(Error::Unimplemented(text)) if text.contains("service") => {
                let answer = self.client.call(service(!first), method, request, call).await;
                if !matches!(answer, Err(Error::Unimplemented(_))) {
                    self.version_3.store(!first, Ordering::Release);
                }
                answer
            }
            answer => answer,
        };
        answer.map_err(|error| match error {
            Error::Unavailable(text) => {
                Error::NotFound(format!("task {}: {text}: not found", self.id))
            }
            error => error,
        })
    }

    /// Kills the process that keeps this container and, by its own word, no other.
    fn kill_shim(&self) {
        let pid = fs::read_to_string(self.folders.bundle.join("shim.pid")).ok();
        let pid = pid.and_then(|pid| pid.trim().parse::<i32>().ok());
        let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { return };
        let flags = rustix::process::PidfdFlags::empty();
        let Ok(fd) = rustix::process::pidfd_open(pid, flags) else { return };
        // The pid may be another's by now; the command line tells.
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        let names = |word: &str| words.contains(&word.as_bytes());
        if names("-id") && names(&self.id) && names(&self.namespace) {
            let kill = rustix::process::Signal::KILL;
            // It may have ended meanwhile.
            let _ = rustix::process::pidfd_send_signal(fd, kill);
        }
    }

    fn runtime(&self) -> Result<Arc<ShimRuntime>> {
        self.runtime.upgrade().ok_or_else(|| Error::Unavailable("runtime has ended".into()))
    }
}

impl std::fmt::Debug for ShimTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("ShimTask");
        text.field("namespace", &self.namespace).field("id", &self.id).finish_non_exhaustive()
    }
}

fn service(version_3: bool) -> &'static str {
    if version_3 { TASK_V3 } else { TASK_V2 }
}

/// The end of a container nobody can tell of.
pub(super) fn unknown_end(pid: u32) -> DeleteResponse {
    DeleteResponse {
        pid,
        exit_status: UNKNOWN_EXIT,
        exited_at: Some(proto::timestamp(Some(SystemTime::now()))),
    }
}

/// Exit status when nobody can tell the true one.
const UNKNOWN_EXIT: u32 = 255;

/// How long a cleanup may take before its waiters are told of the shim instead.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(30);
