use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, SystemTime},
};

use prost::{Message, Name};
use prost_types::Any;
use tokio::sync::watch;

use super::{
    Address, CreateShimTask, Leftover, ShimConfig, ShimEvents, ShimTask,
    folders::{Folders, make_dir},
    removal::Remains,
    start::{self, Binary},
};
use crate::{
    Error, Result,
    bundle::check_id,
    cgroup::Haste,
    proto::{
        self,
        events::{TaskDelete, TaskExit},
        task::{CreateTaskRequest, DeleteResponse},
        types::{Envelope, RuntimeInfo},
    },
    ttrpc::Client,
};

pub(super) type Key = (String, String);

/// What an id stands for.
enum Slot {
    /// A task that is being made.
    Making,
    Here(Arc<ShimTask>),
    /// A task that has ended for its clients and is being removed; closed when that is done.
    Leaving(watch::Receiver<()>),
}

/// Starts shims, and knows those that run.
pub struct ShimRuntime {
    pub(super) config: ShimConfig,
    events: ShimEvents,
    tasks: Mutex<BTreeMap<Key, Slot>>,
    pub(super) leftovers: Mutex<BTreeMap<Key, Leftover>>,
    resolved: Mutex<BTreeMap<String, PathBuf>>,
    haste: Haste,
}

impl ShimRuntime {
    /// A runtime without tasks; makes its folders.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn new(config: ShimConfig, events: ShimEvents) -> Result<Arc<Self>> {
        make_dir(&config.state_dir)?;
        make_dir(&config.root_dir)?;
        Ok(Arc::new(ShimRuntime {
            config,
            events,
            tasks: Mutex::default(),
            leftovers: Mutex::default(),
            resolved: Mutex::default(),
            haste: Haste::new(),
        }))
    }

    /// Says that a task will be created soon, for example because its root file system is being
    /// prepared. Saves its creation some waiting, see [`Haste`], and promises nothing.
    pub fn expect_task(&self) {
        self.haste.expect();
    }

    /// Makes a bundle, starts a shim and lets it create the container.
    ///
    /// On failure no task, bundle, mount or process is left. Goes on to its
    /// end when the caller gives up.
    ///
    /// # Errors
    ///
    /// - [`Error::AlreadyExists`]: a task of this id is in this namespace.
    /// - [`Error::NotFound`]: the runtime's binary is not installed.
    /// - [`Error::InvalidArgument`]: namespace, id or runtime name is malformed.
    /// - else what the shim answered.
    pub async fn create(self: &Arc<Self>, request: CreateShimTask) -> Result<Arc<ShimTask>> {
        check_id(&request.namespace).map_err(|e| e.context("namespace"))?;
        check_id(&request.id)?;
        let binary = self.resolve(&request.runtime)?;
        self.expect_task();
        let key = (request.namespace.clone(), request.id.clone());
        self.reserve(&key).await?;
        let this = Arc::clone(self);
        let made = tokio::spawn(async move {
            let made = this.make(request, binary).await;
            match &made {
                Ok(task) => this.register(Arc::clone(task)),
                // What could not be undone is being removed, and its id is not free yet.
                Err(_) => this.unreserve(&key),
            }
            made
        });
        made.await.unwrap_or_else(|e| Err(Error::Internal(format!("creation failed: {e}"))))
    }

    /// The task of this id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn task(&self, namespace: &str, id: &str) -> Result<Arc<ShimTask>> {
        let key = (namespace.to_owned(), id.to_owned());
        let leaving = match self.lock().get(&key) {
            Some(Slot::Here(task)) => return Ok(Arc::clone(task)),
            Some(Slot::Leaving(_)) => true,
            _ => false,
        };
        // Whoever asks for what cannot be removed is told why.
        let leftovers = self.locked_leftovers();
        let blocker = leftovers.get(&key).filter(|_| leaving).map(|left| &left.blocker);
        Err(Error::NotFound(match blocker {
            Some(blocker) => format!("task {id}: its removal is blocked: {blocker}: not found"),
            None => format!("task {id}: not found"),
        }))
    }

    /// All tasks of a namespace, or of all when `None`, ordered.
    pub fn tasks(&self, namespace: Option<&str>) -> Vec<Arc<ShimTask>> {
        let tasks = self.lock();
        let all = tasks.values().filter_map(|slot| match slot {
            Slot::Here(task) => Some(task),
            _ => None,
        });
        all.filter(|task| namespace.is_none_or(|ns| ns == task.namespace)).cloned().collect()
    }

    /// What a runtime says about itself.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without binary, [`Error::Unimplemented`] when it says nothing.
    pub async fn runtime_info(&self, name: &str, options: Option<&Any>) -> Result<RuntimeInfo> {
        let path = self.resolve(name)?;
        let binary = Binary { config: &self.config, path: &path, namespace: "", id: "" };
        binary.info(options).await
    }

    /// The shim binary a runtime's name stands for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`], [`Error::NotFound`].
    pub fn resolve(&self, name: &str) -> Result<PathBuf> {
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = resolved.get(name).filter(|path| path.exists()) {
            return Ok(path.clone());
        }
        let path = start::resolve(&self.config, name)?;
        resolved.insert(name.to_owned(), path.clone());
        Ok(path)
    }

    async fn make(
        self: &Arc<Self>,
        request: CreateShimTask,
        binary: PathBuf,
    ) -> Result<Arc<ShimTask>> {
        let folders = Folders::new(&self.config, &request.namespace, &request.id);
        folders.create(&request.spec, &binary)?;
        let started = self.start(&request, &folders, &binary).await;
        let task = match started {
            Ok(task) => task,
            Err(error) => {
                self.undo(&request, &folders, &binary).await;
                return Err(error);
            }
        };
        let created = task.create(&create_request(&request, &folders)).await;
        if let Err(error) = created {
            task.deleting.store(true, Ordering::Release);
            task.shut_down(self.config.timeouts.shutdown).await;
            self.undo(&request, &folders, &binary).await;
            return Err(error.context("failed to create shim task"));
        }
        Ok(task)
    }

    async fn start(
        self: &Arc<Self>,
        request: &CreateShimTask,
        folders: &Folders,
        binary: &Path,
    ) -> Result<Arc<ShimTask>> {
        let (namespace, id) = (request.namespace.as_str(), request.id.as_str());
        let shim = Binary { config: &self.config, path: binary, namespace, id };
        // Its log is read from the start, or a full FIFO would stop it.
        let log = folders.follow_log(namespace, id);
        let address = shim.start(&folders.bundle, request.options.as_ref()).await;
        drop(log);
        let address = address?;
        folders.write_address(&address)?;
        let client = connect(&address).await?;
        ShimTask::new(self, (namespace, id), binary.to_owned(), (client, address.version))
    }

    /// Removes what a creation that failed has left. What cannot be removed now is later.
    async fn undo(self: &Arc<Self>, request: &CreateShimTask, folders: &Folders, binary: &Path) {
        let (namespace, id) = (request.namespace.as_str(), request.id.as_str());
        let shim = Binary { config: &self.config, path: binary, namespace, id };
        let deleted = shim.delete(&folders.bundle).await;
        if deleted.is_ok() {
            let folders = folders.clone();
            let removed = tokio::task::spawn_blocking(move || folders.remove()).await;
            if matches!(removed, Ok(Ok(()))) {
                return;
            }
        }
        self.dismantle(Remains {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            folders: folders.clone(),
            binary: deleted.is_err().then(|| binary.to_owned()),
            shim: None,
        });
    }

    /// Makes a task known and watches its shim from now on.
    pub(super) fn register(self: &Arc<Self>, task: Arc<ShimTask>) {
        let key = (task.namespace.clone(), task.id.clone());
        self.lock().insert(key, Slot::Here(Arc::clone(&task)));
        tokio::spawn(async move {
            task.client.closed().await;
            let Some(runtime) = task.runtime.upgrade() else { return };
            if !task.deleting.swap(true, Ordering::AcqRel) {
                runtime.bury(&task).await;
            }
        });
    }

    /// Frees an id.
    pub(super) fn unregister(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// Keeps an id from being taken until the sender is dropped and it is unregistered.
    pub(super) fn leave(&self, key: &Key) -> (watch::Sender<()>, watch::Receiver<()>) {
        let (sender, leaving) = watch::channel(());
        self.lock().insert(key.clone(), Slot::Leaving(leaving.clone()));
        (sender, leaving)
    }

    /// Cleans up after a shim that died, and reports in its place.
    pub(super) async fn bury(self: &Arc<Self>, task: &Arc<ShimTask>) {
        tracing::warn!(namespace = task.namespace, task = task.id, "shim has died");
        let (mut end, clean) = task.clean_up(self).await;
        if end.pid == 0 {
            end.pid = task.pid();
        }
        self.report(&task.namespace, &task.id, &end);
        task.release_waiters(&end);
        let mut remains = task.remains(clean);
        task.stop_log();
        remains.shim = None;
        self.dismantle(remains);
    }

    /// Reports the end of a container in place of its shim.
    pub(super) fn report(&self, namespace: &str, id: &str, end: &DeleteResponse) {
        let DeleteResponse { pid, exit_status, exited_at } = *end;
        let container_id = id.to_owned();
        let exit = TaskExit {
            id: container_id.clone(),
            container_id: container_id.clone(),
            pid,
            exit_status,
            exited_at,
        };
        self.publish(namespace, "/tasks/exit", &exit);
        let delete = TaskDelete { container_id, pid, exit_status, exited_at, id: String::new() };
        self.publish(namespace, "/tasks/delete", &delete);
    }

    fn publish<M: Message + Name>(&self, namespace: &str, topic: &str, event: &M) {
        (self.events)(Envelope {
            timestamp: Some(proto::timestamp(Some(SystemTime::now()))),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(proto::pack(event)),
        });
    }

    /// Takes an id, after what has it now has been removed if it is on its way out.
    async fn reserve(&self, key: &Key) -> Result<()> {
        let until = tokio::time::Instant::now() + LEAVING_PATIENCE;
        loop {
            let mut leaving = {
                let mut tasks = self.lock();
                match tasks.get(key) {
                    None => {
                        tasks.insert(key.clone(), Slot::Making);
                        return Ok(());
                    }
                    Some(Slot::Leaving(leaving)) => leaving.clone(),
                    Some(_) => {
                        return Err(Error::AlreadyExists(format!(
                            "task {}: already exists",
                            key.1
                        )));
                    }
                }
            };
            // Nothing is ever sent: it ends when the sender is gone.
            if tokio::time::timeout_at(until, leaving.changed()).await.is_err() {
                let blocker = self.locked_leftovers().get(key).map(|l| format!(": {}", l.blocker));
                let text = format!("task {}: being removed{}", key.1, blocker.unwrap_or_default());
                return Err(Error::Unavailable(text));
            }
        }
    }

    /// Frees an id that was taken for a task and came to nothing.
    fn unreserve(&self, key: &Key) {
        let mut tasks = self.lock();
        if matches!(tasks.get(key), Some(Slot::Making)) {
            tasks.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Slot>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a creation waits for the end of a removal under the same id.
const LEAVING_PATIENCE: Duration = Duration::from_secs(10);

impl std::fmt::Debug for ShimRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShimRuntime").field("config", &self.config).finish_non_exhaustive()
    }
}

pub(super) async fn connect(address: &Address) -> Result<Client> {
    Client::connect(address.socket()?).await
}

pub(super) fn wire_mounts(mounts: &[crated_mount::Mount]) -> Vec<proto::types::Mount> {
    let wire = |mount: &crated_mount::Mount| proto::types::Mount {
        r#type: mount.kind.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    };
    mounts.iter().map(wire).collect()
}

fn create_request(request: &CreateShimTask, folders: &Folders) -> CreateTaskRequest {
    CreateTaskRequest {
        id: request.id.clone(),
        bundle: folders.bundle.display().to_string(),
        rootfs: wire_mounts(&request.rootfs),
        terminal: request.stdio.terminal,
        stdin: request.stdio.stdin.clone(),
        stdout: request.stdio.stdout.clone(),
        stderr: request.stdio.stderr.clone(),
        checkpoint: request.checkpoint.clone(),
        parent_checkpoint: String::new(),
        options: request.options.clone(),
    }
}
