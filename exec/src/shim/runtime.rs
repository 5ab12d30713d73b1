use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::SystemTime,
};

use prost::{Message, Name};
use prost_types::Any;

use super::{
    Address, CreateShimTask, ShimConfig, ShimEvents, ShimTask,
    folders::{Folders, make_dir},
    start::{self, Binary},
};
use crate::{
    Error, Result,
    bundle::check_id,
    proto::{
        self,
        events::{TaskDelete, TaskExit},
        task::{CreateTaskRequest, DeleteResponse},
        types::{Envelope, RuntimeInfo},
    },
    ttrpc::Client,
};

type Key = (String, String);

/// Starts shims, and knows those that run.
pub struct ShimRuntime {
    pub(super) config: ShimConfig,
    events: ShimEvents,
    /// `None` while a task is being made.
    tasks: Mutex<BTreeMap<Key, Option<Arc<ShimTask>>>>,
    resolved: Mutex<BTreeMap<String, PathBuf>>,
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
        let (tasks, resolved) = (Mutex::default(), Mutex::default());
        Ok(Arc::new(ShimRuntime { config, events, tasks, resolved }))
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
        let key = (request.namespace.clone(), request.id.clone());
        self.reserve(&key)?;
        let this = Arc::clone(self);
        let made = tokio::spawn(async move {
            let made = this.make(request, binary).await;
            match &made {
                Ok(task) => this.register(Arc::clone(task)),
                Err(_) => this.unregister(&key.0, &key.1),
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
        let missing = || Error::NotFound(format!("task {id}: not found"));
        self.lock().get(&key).cloned().flatten().ok_or_else(missing)
    }

    /// All tasks of a namespace, or of all when `None`, ordered.
    pub fn tasks(&self, namespace: Option<&str>) -> Vec<Arc<ShimTask>> {
        let tasks = self.lock();
        let all = tasks.values().flatten();
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
        if let Some(log) = log {
            log.abort();
        }
        let address = address?;
        folders.write_address(&address)?;
        let client = connect(&address).await?;
        ShimTask::new(self, (namespace, id), binary.to_owned(), (client, address.version))
    }

    async fn undo(&self, request: &CreateShimTask, folders: &Folders, binary: &Path) {
        let (namespace, id) = (request.namespace.as_str(), request.id.as_str());
        let shim = Binary { config: &self.config, path: binary, namespace, id };
        if let Err(error) = shim.delete(&folders.bundle).await {
            tracing::warn!(namespace, task = id, error = error.report(), "cleanup failed");
        }
        let folders = folders.clone();
        let removed = tokio::task::spawn_blocking(move || folders.remove()).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(namespace, task = id, error = error.report(), "bundle stays");
        }
    }

    /// Makes a task known and watches its shim from now on.
    pub(super) fn register(&self, task: Arc<ShimTask>) {
        let key = (task.namespace.clone(), task.id.clone());
        self.lock().insert(key, Some(Arc::clone(&task)));
        tokio::spawn(async move {
            task.client.closed().await;
            let Some(runtime) = task.runtime.upgrade() else { return };
            if !task.deleting.swap(true, Ordering::AcqRel) {
                runtime.bury(&task).await;
            }
        });
    }

    pub(super) fn unregister(&self, namespace: &str, id: &str) {
        self.lock().remove(&(namespace.to_owned(), id.to_owned()));
    }

    /// Cleans up after a shim that died, and reports in its place.
    pub(super) async fn bury(&self, task: &ShimTask) {
        tracing::warn!(namespace = task.namespace, task = task.id, "shim has died");
        let mut end = task.clean_up(self).await;
        if end.pid == 0 {
            end.pid = task.pid();
        }
        self.report(task, &end);
        task.forget(self, &end).await;
    }

    fn report(&self, task: &ShimTask, end: &DeleteResponse) {
        let DeleteResponse { pid, exit_status, exited_at } = *end;
        let container_id = task.id.clone();
        let exit = TaskExit {
            id: container_id.clone(),
            container_id: container_id.clone(),
            pid,
            exit_status,
            exited_at,
        };
        self.publish(&task.namespace, "/tasks/exit", &exit);
        let delete = TaskDelete { container_id, pid, exit_status, exited_at, id: String::new() };
        self.publish(&task.namespace, "/tasks/delete", &delete);
    }

    fn publish<M: Message + Name>(&self, namespace: &str, topic: &str, event: &M) {
        (self.events)(Envelope {
            timestamp: Some(proto::timestamp(Some(SystemTime::now()))),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(proto::pack(event)),
        });
    }

    fn reserve(&self, key: &Key) -> Result<()> {
        let mut tasks = self.lock();
        if tasks.contains_key(key) {
            return Err(Error::AlreadyExists(format!("task {}: already exists", key.1)));
        }
        tasks.insert(key.clone(), None);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Option<Arc<ShimTask>>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for ShimRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShimRuntime").field("config", &self.config).finish_non_exhaustive()
    }
}

pub(super) async fn connect(address: &Address) -> Result<Client> {
    Client::connect(address.socket()?).await
}

fn create_request(request: &CreateShimTask, folders: &Folders) -> CreateTaskRequest {
    let rootfs = request.rootfs.iter().map(|mount| proto::types::Mount {
        r#type: mount.kind.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    });
    CreateTaskRequest {
        id: request.id.clone(),
        bundle: folders.bundle.display().to_string(),
        rootfs: rootfs.collect(),
        terminal: request.stdio.terminal,
        stdin: request.stdio.stdin.clone(),
        stdout: request.stdio.stdout.clone(),
        stderr: request.stdio.stderr.clone(),
        checkpoint: request.checkpoint.clone(),
        parent_checkpoint: String::new(),
        options: request.options.clone(),
    }
}
