//! Sandboxes kept by shims.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use crated_mount::Mount;
use prost::Message;
use prost_types::{Any, Timestamp};
use tokio::time::timeout;

use super::{
    Address, ShimConfig,
    folders::{Folders, Following, make_dir},
    recover::{bundles, is_proof},
    runtime::{connect, wire_mounts},
    start::{self, Binary},
};
use crate::{
    Error, Result,
    bundle::check_id,
    proto::{
        self, SANDBOX,
        sandbox::{self as api, SandboxStatusResponse, StartSandboxResponse},
        types::{Metric, Platform},
    },
    ttrpc::{Call, Client},
};

/// What [`ShimSandboxes::create`] makes a sandbox of.
#[derive(Clone, Debug, Default)]
pub struct CreateSandbox {
    /// Namespace of the sandbox.
    pub namespace: String,
    /// Its id, unique in its namespace.
    pub id: String,
    /// Name of the runtime, or absolute path of a shim.
    pub runtime: String,
    /// Options of the runtime, passed on unchanged.
    pub options: Option<Any>,
    /// Bytes of `config.json`; none is written when empty.
    pub spec: Vec<u8>,
    /// Mounted by the shim.
    pub rootfs: Vec<Mount>,
    /// Network namespace it shall use, or empty.
    pub netns_path: String,
    /// Passed on to the shim.
    pub annotations: BTreeMap<String, String>,
}

/// The end of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SandboxExit {
    /// 0 after a stop; 255 when nobody can tell.
    pub status: u32,
    /// When it ended.
    pub exited_at: Timestamp,
}

/// Starts shims that keep sandboxes, and knows those that run.
///
/// Works like [`ShimRuntime`](super::ShimRuntime), on folders of its own: the shim of a sandbox has
/// no container of the sandbox's name, which for a task would mean that it is gone.
pub struct ShimSandboxes {
    config: ShimConfig,
    /// `None` while a sandbox is being made.
    sandboxes: Mutex<Known>,
}

/// Sandboxes by namespace and id.
type Known = BTreeMap<(String, String), Option<Arc<ShimSandbox>>>;

/// A sandbox under its shim.
///
/// Errors are what the shim answered, [`Error::NotFound`] also when its connection has ended.
pub struct ShimSandbox {
    namespace: String,
    id: String,
    folders: Folders,
    binary: PathBuf,
    client: Client,
    address: Address,
    deleting: AtomicBool,
    owner: Weak<ShimSandboxes>,
    _log: Following,
}

impl ShimSandboxes {
    /// A controller without sandboxes; makes the folders of `config`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn new(config: ShimConfig) -> Result<Arc<Self>> {
        make_dir(&config.state_dir)?;
        make_dir(&config.root_dir)?;
        Ok(Arc::new(ShimSandboxes { config, sandboxes: Mutex::default() }))
    }

    /// Makes a bundle, starts a shim and lets it create the sandbox.
    ///
    /// On failure nothing is left. Goes on to its end when the caller gives up.
    ///
    /// # Errors
    ///
    /// - [`Error::AlreadyExists`]: a sandbox of this id is in this namespace.
    /// - [`Error::NotFound`]: the runtime's binary is not installed.
    /// - [`Error::InvalidArgument`]: namespace, id or runtime name is malformed.
    /// - [`Error::Unimplemented`]: the shim keeps no sandboxes.
    pub async fn create(self: &Arc<Self>, request: CreateSandbox) -> Result<Arc<ShimSandbox>> {
        check_id(&request.namespace).map_err(|e| e.context("namespace"))?;
        check_id(&request.id)?;
        let binary = start::resolve(&self.config, &request.runtime)?;
        let key = (request.namespace.clone(), request.id.clone());
        if self.lock().contains_key(&key) {
            return Err(Error::AlreadyExists(format!("sandbox {}: already exists", key.1)));
        }
        self.lock().insert(key.clone(), None);
        let this = Arc::clone(self);
        let made = tokio::spawn(async move {
            let made = this.make(request, binary).await;
            match &made {
                Ok(sandbox) => drop(this.lock().insert(key, Some(Arc::clone(sandbox)))),
                Err(_) => drop(this.lock().remove(&key)),
            }
            made
        });
        made.await.unwrap_or_else(|e| Err(Error::Internal(format!("creation failed: {e}"))))
    }

    /// The sandbox of this id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn sandbox(&self, namespace: &str, id: &str) -> Result<Arc<ShimSandbox>> {
        let key = (namespace.to_owned(), id.to_owned());
        let missing = || Error::NotFound(format!("sandbox {id}: not found"));
        self.lock().get(&key).cloned().flatten().ok_or_else(missing)
    }

    /// Finds the sandboxes of an earlier daemon again, side by side, and returns those that go on;
    /// call it once, before serving. What belonged to shims that are gone is removed; a shim that
    /// is mute is left alone.
    pub async fn recover(self: &Arc<Self>) -> Vec<Arc<ShimSandbox>> {
        let mut jobs = tokio::task::JoinSet::new();
        for (namespace, id) in bundles(&self.config.state_dir) {
            let this = Arc::clone(self);
            jobs.spawn(async move { this.find_again(&namespace, &id).await });
        }
        let mut found = Vec::new();
        while let Some(job) = jobs.join_next().await {
            found.extend(job.ok().flatten());
        }
        found
    }

    async fn find_again(self: &Arc<Self>, namespace: &str, id: &str) -> Option<Arc<ShimSandbox>> {
        let folders = Folders::new(&self.config, namespace, id);
        let binary = folders.read_binary().unwrap_or_default();
        match self.reconnect(namespace, id, &folders, &binary).await {
            Ok(sandbox) => {
                let key = (namespace.to_owned(), id.to_owned());
                self.lock().insert(key, Some(Arc::clone(&sandbox)));
                Some(sandbox)
            }
            Err(error) if is_proof(&error) => {
                tracing::warn!(namespace, sandbox = id, error = error.report(), "shim is gone");
                self.clear(namespace, id, &folders, &binary).await;
                None
            }
            Err(error) => {
                tracing::warn!(namespace, sandbox = id, error = error.report(), "shim is mute");
                None
            }
        }
    }

    async fn reconnect(
        self: &Arc<Self>,
        namespace: &str,
        id: &str,
        folders: &Folders,
        binary: &Path,
    ) -> Result<Arc<ShimSandbox>> {
        let address = folders.read_address()?;
        let connected = timeout(self.config.timeouts.load, connect(&address)).await;
        let late = |_| Error::DeadlineExceeded("shim does not accept".into());
        let client = connected.map_err(late)??;
        Ok(self.attach((namespace, id), folders.clone(), binary.to_owned(), (client, address)))
    }

    async fn make(
        self: &Arc<Self>,
        request: CreateSandbox,
        binary: PathBuf,
    ) -> Result<Arc<ShimSandbox>> {
        let (namespace, id) = (request.namespace.clone(), request.id.clone());
        let folders = Folders::new(&self.config, &namespace, &id);
        folders.create(&request.spec, &binary)?;
        let made = self.start(&request, &folders, &binary).await;
        if made.is_err() {
            self.clear(&namespace, &id, &folders, &binary).await;
        }
        made
    }

    async fn start(
        self: &Arc<Self>,
        request: &CreateSandbox,
        folders: &Folders,
        binary: &Path,
    ) -> Result<Arc<ShimSandbox>> {
        let (namespace, id) = (request.namespace.as_str(), request.id.as_str());
        let shim = Binary { config: &self.config, path: binary, namespace, id };
        // Its log is read from the start, or a full FIFO would stop it.
        let log = folders.follow_log(namespace, id);
        let address = shim.start(&folders.bundle, request.options.as_ref()).await;
        drop(log);
        let address = address?;
        folders.write_address(&address)?;
        let client = connect(&address).await?;
        let owned = folders.clone();
        let sandbox = self.attach((namespace, id), owned, binary.to_owned(), (client, address));
        let create = api::CreateSandboxRequest {
            sandbox_id: id.to_owned(),
            bundle_path: folders.bundle.display().to_string(),
            rootfs: wire_mounts(&request.rootfs),
            options: request.options.clone(),
            netns_path: request.netns_path.clone(),
            annotations: request.annotations.clone(),
        };
        let created: Result<()> = sandbox.call("CreateSandbox", &create, None).await;
        if let Err(error) = created {
            sandbox.deleting.store(true, Ordering::Release);
            let shutdown = api::ShutdownSandboxRequest { sandbox_id: id.to_owned() };
            let limit = Some(self.config.timeouts.shutdown);
            // One that keeps no sandboxes knows how tasks are ended.
            if sandbox.call::<_, ()>("ShutdownSandbox", &shutdown, limit).await.is_err() {
                sandbox.end_as_task(limit).await;
            }
            return Err(error.context("failed to create sandbox"));
        }
        Ok(sandbox)
    }

    fn attach(
        self: &Arc<Self>,
        (namespace, id): (&str, &str),
        folders: Folders,
        binary: PathBuf,
        (client, address): (Client, Address),
    ) -> Arc<ShimSandbox> {
        Arc::new(ShimSandbox {
            _log: folders.follow_log(namespace, id),
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            folders,
            binary,
            client,
            address,
            deleting: AtomicBool::new(false),
            owner: Arc::downgrade(self),
        })
    }

    /// Removes what a shim that is gone has left.
    async fn clear(&self, namespace: &str, id: &str, folders: &Folders, binary: &Path) {
        if !binary.as_os_str().is_empty() {
            let shim = Binary { config: &self.config, path: binary, namespace, id };
            if let Err(error) = shim.delete(&folders.bundle).await {
                let error = error.report();
                tracing::warn!(namespace, sandbox = id, error, "cleanup failed");
            }
        }
        let folders = folders.clone();
        let removed = tokio::task::spawn_blocking(move || folders.remove()).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(namespace, sandbox = id, error = error.report(), "bundle stays");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShimSandbox {
    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where its shim listens, and which version of the task API it speaks.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Lets it run.
    ///
    /// # Errors
    ///
    /// [`Error::FailedPrecondition`] when it was started before.
    pub async fn start(&self) -> Result<StartSandboxResponse> {
        let request = api::StartSandboxRequest { sandbox_id: self.id.clone() };
        self.call("StartSandbox", &request, None).await
    }

    /// The platform its containers run on.
    ///
    /// # Errors
    ///
    /// What the shim answers.
    pub async fn platform(&self) -> Result<Platform> {
        let request = api::PlatformRequest { sandbox_id: self.id.clone() };
        let limit = self.owner()?.config.timeouts.state;
        let answer: api::PlatformResponse = self.call("Platform", &request, Some(limit)).await?;
        Ok(answer.platform.unwrap_or_default())
    }

    /// Ends it; its shim stays, and tells how it ended.
    ///
    /// # Errors
    ///
    /// What the shim answers.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        let timeout_secs = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
        let request = api::StopSandboxRequest { sandbox_id: self.id.clone(), timeout_secs };
        self.call("StopSandbox", &request, None).await
    }

    /// Waits without limit for its end. The death of its shim is its end too.
    ///
    /// # Errors
    ///
    /// What the shim answers, for example that it was never started.
    pub async fn wait(&self) -> Result<SandboxExit> {
        let request = api::WaitSandboxRequest { sandbox_id: self.id.clone() };
        let answer: Result<api::WaitSandboxResponse> =
            self.call("WaitSandbox", &request, None).await;
        let now = || proto::timestamp(Some(SystemTime::now()));
        match answer {
            Ok(end) => Ok(SandboxExit {
                status: end.exit_status,
                exited_at: end.exited_at.unwrap_or_else(now),
            }),
            Err(_) if self.client.is_closed() => {
                Ok(SandboxExit { status: UNKNOWN_EXIT, exited_at: now() })
            }
            Err(error) => Err(error),
        }
    }

    /// What its shim knows of it.
    ///
    /// # Errors
    ///
    /// [`Error::DeadlineExceeded`] when the shim is mute.
    pub async fn status(&self, verbose: bool) -> Result<SandboxStatusResponse> {
        let request = api::SandboxStatusRequest { sandbox_id: self.id.clone(), verbose };
        let limit = self.owner()?.config.timeouts.state;
        self.call("SandboxStatus", &request, Some(limit)).await
    }

    /// What it uses.
    ///
    /// # Errors
    ///
    /// What the shim answers.
    pub async fn metrics(&self) -> Result<Metric> {
        let request = api::SandboxMetricsRequest { sandbox_id: self.id.clone() };
        let limit = self.owner()?.config.timeouts.stats;
        let answer: api::SandboxMetricsResponse =
            self.call("SandboxMetrics", &request, Some(limit)).await?;
        answer.metrics.ok_or_else(|| Error::NotFound(format!("metrics of {}: not found", self.id)))
    }

    /// Ends it and its shim, and removes what belongs to them.
    ///
    /// # Errors
    ///
    /// [`Error::FailedPrecondition`] while containers are in it; then all stays as it is.
    pub async fn shut_down(self: &Arc<Self>) -> Result<()> {
        let this = Arc::clone(self);
        // On its own, so that a caller who gives up leaves nothing half-removed.
        let done = tokio::spawn(async move { this.end().await }).await;
        done.unwrap_or_else(|e| Err(Error::Internal(format!("shutdown failed: {e}"))))
    }

    async fn end(&self) -> Result<()> {
        let owner = self.owner()?;
        if self.deleting.swap(true, Ordering::AcqRel) {
            return Err(Error::NotFound(format!("sandbox {}: not found", self.id)));
        }
        let request = api::ShutdownSandboxRequest { sandbox_id: self.id.clone() };
        let limit = Some(owner.config.timeouts.shutdown);
        let done: Result<()> = self.call("ShutdownSandbox", &request, limit).await;
        // An end of the connection is what was asked for.
        if let Err(error) = done
            && !matches!(error, Error::NotFound(_))
        {
            self.deleting.store(false, Ordering::Release);
            return Err(error);
        }
        owner.clear(&self.namespace, &self.id, &self.folders, &self.binary).await;
        owner.lock().remove(&(self.namespace.clone(), self.id.clone()));
        Ok(())
    }

    async fn end_as_task(&self, limit: Option<Duration>) {
        let mut call = Call::in_namespace(&self.namespace);
        call.timeout = limit;
        let request = proto::task::ShutdownRequest { id: self.id.clone(), now: true };
        for service in [proto::TASK_V3, proto::TASK_V2] {
            let ended = self.client.call::<_, ()>(service, "Shutdown", &request, call.clone());
            if ended.await.is_ok() {
                return;
            }
        }
    }

    async fn call<Q, A>(&self, method: &str, request: &Q, limit: Option<Duration>) -> Result<A>
    where
        Q: Message,
        A: Message + Default,
    {
        let mut call = Call::in_namespace(&self.namespace);
        call.timeout = limit;
        let answer = self.client.call(SANDBOX, method, request, call).await;
        answer.map_err(|error| match error {
            Error::Unavailable(text) => {
                Error::NotFound(format!("sandbox {}: {text}: not found", self.id))
            }
            error => error,
        })
    }

    fn owner(&self) -> Result<Arc<ShimSandboxes>> {
        self.owner.upgrade().ok_or_else(|| Error::Unavailable("controller has ended".into()))
    }
}

impl std::fmt::Debug for ShimSandboxes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShimSandboxes").field("config", &self.config).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ShimSandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("ShimSandbox");
        text.field("namespace", &self.namespace).field("id", &self.id).finish_non_exhaustive()
    }
}

/// Exit status when nobody can tell the true one.
const UNKNOWN_EXIT: u32 = 255;
