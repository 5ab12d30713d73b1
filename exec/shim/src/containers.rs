//! The containers of this shim, and what is reported of them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crated_exec::{
    Bundle, CreateTask, Error, ExecProcess, Exit, Process, Result, Runtime, Stdio, Task,
    cgroup::Cgroup,
    proto::{
        self,
        events::{
            TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIo, TaskOom,
            TaskStart,
        },
        task::CreateTaskRequest,
    },
    reaper::Reaper,
    runc::{RuncConfig, RuncRuntime},
};
use prost::{Message, Name};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use crate::{delete::write_options, events::Publisher, exit, options};

/// All containers, by id.
pub(crate) struct Containers {
    namespace: String,
    reaper: Arc<Reaper>,
    publisher: Arc<Publisher>,
    map: Mutex<BTreeMap<String, Option<Arc<Container>>>>,
    closed: AtomicBool,
}

/// One container.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: String,
    pub(crate) task: Arc<dyn Task>,
    /// Tasks live as long as their runtime.
    _runtime: RuncRuntime,
    publisher: Arc<Publisher>,
    /// Held while a process starts and until that is reported, so that its
    /// end is reported later.
    starting: tokio::sync::Mutex<()>,
    /// Joined processes whose end is not reported yet.
    joined: watch::Sender<usize>,
    /// Whether the end of the first process is reported.
    reported: watch::Sender<bool>,
    /// Reports lack of memory until it is told that the container has ended.
    memory: Mutex<Option<(Arc<Notify>, JoinHandle<()>)>>,
}

impl Containers {
    pub(crate) fn new(
        namespace: String,
        reaper: Arc<Reaper>,
        publisher: Arc<Publisher>,
    ) -> Arc<Self> {
        Arc::new(Containers {
            namespace,
            reaper,
            publisher,
            map: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    pub(crate) fn find(&self, id: &str) -> Result<Arc<Container>> {
        match self.lock().get(id) {
            Some(Some(container)) => Ok(Arc::clone(container)),
            // Not the same as unknown: who takes it for that cleans up under its feet.
            Some(None) => {
                Err(Error::FailedPrecondition(format!("container {id} is being created")))
            }
            None => Err(Error::NotFound(format!("container {id}: not found"))),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Takes no more containers from now on, unless there are some.
    pub(crate) fn close(&self) -> bool {
        let map = self.lock();
        let closing = map.is_empty();
        // Under the lock, so that no creation slips in between.
        self.closed.fetch_or(closing, Ordering::SeqCst);
        closing
    }

    pub(crate) async fn create(&self, request: CreateTaskRequest) -> Result<u32> {
        let id = request.id.clone();
        self.reserve(&id)?;
        match self.make(request).await {
            Ok((container, pid)) => {
                self.lock().insert(id, Some(container));
                Ok(pid)
            }
            Err(error) => {
                self.lock().remove(&id);
                Err(error)
            }
        }
    }

    fn reserve(&self, id: &str) -> Result<()> {
        let mut map = self.lock();
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::Unavailable("this shim is ending".into()));
        }
        if map.contains_key(id) {
            return Err(Error::AlreadyExists(format!("container {id}: already exists")));
        }
        map.insert(id.to_owned(), None);
        Ok(())
    }

    async fn make(&self, request: CreateTaskRequest) -> Result<(Arc<Container>, u32)> {
        let options = options::read(request.options.as_ref())?;
        let bundle = Bundle::open(&request.bundle)?;
        write_options(bundle.path(), &options)?;
        let config = RuncConfig::from_options(&options, &self.namespace);
        let runtime = RuncRuntime::new(config, Arc::clone(&self.reaper));
        let checkpoint = match (options.criu_image_path.as_str(), request.checkpoint.as_str()) {
            ("", "") => None,
            ("", path) | (path, _) => Some(PathBuf::from(path)),
        };
        let create = CreateTask {
            id: request.id.clone(),
            bundle,
            rootfs: request.rootfs.iter().map(mount).collect(),
            stdio: stdio(&request),
            checkpoint,
        };
        let task = runtime.create(create).await?;
        let pid = task.state().await?.pid;
        let container = Arc::new(Container {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            task,
            _runtime: runtime,
            publisher: Arc::clone(&self.publisher),
            starting: tokio::sync::Mutex::new(()),
            joined: watch::Sender::new(0),
            reported: watch::Sender::new(false),
            memory: Mutex::default(),
        });
        self.publisher.publish("/tasks/create", &created(request, pid));
        tokio::spawn(Arc::clone(&container).report_end());
        container.watch_memory(pid);
        Ok((container, pid))
    }

    /// Deletes a container and reports that.
    pub(crate) async fn delete(&self, id: &str) -> Result<(u32, Exit)> {
        let container = self.find(id)?;
        let pid = container.task.state().await?.pid;
        let exit = container.task.delete().await?;
        let mut reported = container.reported.subscribe();
        // The end is reported before the deletion; it has just happened.
        let _ = tokio::time::timeout(REPORT_DEADLINE, reported.wait_for(|done| *done)).await;
        let event = TaskDelete {
            container_id: id.to_owned(),
            pid,
            exit_status: exit.status,
            exited_at: Some(proto::timestamp(Some(exit.exited_at))),
            id: String::new(),
        };
        self.publisher.publish("/tasks/delete", &event);
        self.lock().remove(id);
        Ok((pid, exit))
    }

    pub(crate) fn publish<M: Message + Name>(&self, topic: &str, event: &M) {
        self.publisher.publish(topic, event);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<Container>>>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Container {
    /// The first process, or a joined one.
    pub(crate) async fn process(&self, exec_id: &str) -> Result<Target> {
        match exec_id {
            "" => Ok(Target::First(Arc::clone(&self.task))),
            exec_id => Ok(Target::Joined(self.task.process(exec_id).await?)),
        }
    }

    pub(crate) async fn exec(&self, request: ExecProcess) -> Result<()> {
        let exec_id = request.id.clone();
        self.task.exec(request).await?;
        let event = TaskExecAdded { container_id: self.id.clone(), exec_id };
        self.publisher.publish("/tasks/exec-added", &event);
        Ok(())
    }

    pub(crate) async fn start(self: &Arc<Self>, exec_id: &str) -> Result<u32> {
        let starting = self.starting.lock().await;
        let container_id = self.id.clone();
        if exec_id.is_empty() {
            let unknown = self.task.state().await?.pid == 0;
            let pid = self.task.start().await?;
            self.publisher.publish("/tasks/start", &TaskStart { container_id, pid });
            if unknown {
                self.watch_memory(pid);
            }
            return Ok(pid);
        }
        let process = self.task.process(exec_id).await?;
        self.joined.send_modify(|count| *count += 1);
        let started = process.start().await;
        let pid = match started {
            Ok(pid) => pid,
            Err(error) => {
                self.joined.send_modify(|count| *count -= 1);
                return Err(error);
            }
        };
        let event = TaskExecStarted { container_id, exec_id: exec_id.to_owned(), pid };
        self.publisher.publish("/tasks/exec-started", &event);
        drop(starting);
        tokio::spawn(Arc::clone(self).report_joined(process, pid));
        Ok(pid)
    }

    async fn report_joined(self: Arc<Self>, process: Arc<dyn Process>, pid: u32) {
        if let Ok(exit) = process.wait().await {
            self.report_exit(process.id(), pid, exit);
        }
        self.joined.send_modify(|count| *count -= 1);
    }

    /// Reports the end of the first process, after those of all others.
    async fn report_end(self: Arc<Self>) {
        if let Ok(exit) = self.task.wait().await {
            let pid = self.task.state().await.map(|state| state.pid).unwrap_or_default();
            exit::write(Path::new(&self.bundle), pid, exit);
            // A start under way is reported first.
            drop(self.starting.lock().await);
            let mut joined = self.joined.subscribe();
            let others = joined.wait_for(|count| *count == 0);
            if tokio::time::timeout(REPORT_DEADLINE, others).await.is_err() {
                tracing::warn!(container = self.id, "processes outlive their container");
            }
            self.settle_memory().await;
            self.report_exit(&self.id, pid, exit);
        }
        self.reported.send_replace(true);
        if let Err(error) = self.task.release().await {
            tracing::warn!(container = self.id, %error, "release failed, deletion tries again");
        }
    }

    /// Reports what the kernel told late: after this the cgroup may go.
    async fn settle_memory(&self) {
        let watching = self.memory.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((ended, watching)) = watching {
            ended.notify_one();
            // A panic in it has been told by then.
            let _ = watching.await;
        }
    }

    fn report_exit(&self, id: &str, pid: u32, exit: Exit) {
        let event = TaskExit {
            container_id: self.id.clone(),
            id: id.to_owned(),
            pid,
            exit_status: exit.status,
            exited_at: Some(proto::timestamp(Some(exit.exited_at))),
        };
        self.publisher.publish("/tasks/exit", &event);
    }

    /// Reports every time the kernel kills for lack of memory.
    fn watch_memory(&self, pid: u32) {
        if pid == 0 {
            return;
        }
        match Cgroup::of(pid).and_then(|cgroup| cgroup.watch_oom()) {
            Err(error) => tracing::debug!(container = self.id, %error, "no watch on memory"),
            Ok(mut watch) => {
                let (container_id, publisher) = (self.id.clone(), Arc::clone(&self.publisher));
                let ended = Arc::new(Notify::new());
                let told = Arc::clone(&ended);
                let watching = tokio::spawn(async move {
                    let event = TaskOom { container_id };
                    loop {
                        let killed = tokio::select! {
                            killed = watch.next() => killed.is_some(),
                            () = told.notified() => {
                                if watch.missed() {
                                    publisher.publish("/tasks/oom", &event);
                                }
                                return;
                            }
                        };
                        if !killed {
                            return;
                        }
                        publisher.publish("/tasks/oom", &event);
                    }
                });
                let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
                *memory = Some((ended, watching));
            }
        }
    }
}

/// A process and, for the first one, its task.
pub(crate) enum Target {
    First(Arc<dyn Task>),
    Joined(Arc<dyn Process>),
}

impl std::ops::Deref for Target {
    type Target = dyn Process;

    fn deref(&self) -> &Self::Target {
        match self {
            Target::First(task) => &**task,
            Target::Joined(process) => &**process,
        }
    }
}

fn mount(mount: &proto::types::Mount) -> crated_mount::Mount {
    crated_mount::Mount {
        kind: mount.r#type.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    }
}

fn stdio(request: &CreateTaskRequest) -> Stdio {
    Stdio {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    }
}

fn created(request: CreateTaskRequest, pid: u32) -> TaskCreate {
    let io = TaskIo {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
    };
    TaskCreate {
        container_id: request.id,
        bundle: request.bundle,
        rootfs: request.rootfs,
        io: Some(io),
        checkpoint: request.checkpoint,
        pid,
    }
}

/// How long ends that have happened may take to be noticed.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);
