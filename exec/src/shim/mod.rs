//! Containers kept by shims: processes of their own that outlive the daemon.
//!
//! [`ShimRuntime`] is the daemon's side. It makes a bundle, starts the shim
//! binary of the runtime's name, speaks ttrpc with it, and finds everything
//! again after a restart. What it writes, so that a daemon of another version
//! can take over:
//!
//! ```text
//! <state_dir>/<namespace>/<id>/     0700
//!   config.json  rootfs/            see crate::Bundle
//!   work -> <root_dir>/<namespace>/<id>
//!   log                             FIFO, the shim's log
//!   shim-binary-path                absolute path of the shim
//!   bootstrap.json                  {"version":2,"address":"unix://…","protocol":"ttrpc"}
//!   address                         the address alone
//! ```
//!
//! A shim that dies or stays mute costs its own container only: the `delete`
//! action of its binary cleans up, [`ShimEvents`] hears of the end, and whoever
//! waits is released.

mod address;
mod config;

use std::{path::PathBuf, sync::Arc};

pub use address::{Address, SOCKET_DIR, SOCKET_DIR_MAX_BYTES, socket_path};
pub use config::{CreateShimTask, ShimConfig, Timeouts};

use crate::{
    Error, Result,
    proto::{
        runc::CheckpointOptions,
        task::{ConnectResponse, DeleteResponse, StateResponse, WaitResponse},
        types::{Envelope, RuntimeInfo},
    },
    runtime::{ExecProcess, ProcessPid, Size},
};

/// Receives events made on behalf of shims that died: `/tasks/exit`, then
/// `/tasks/delete`. Called from a task of the runtime; must not block.
pub type ShimEvents = Arc<dyn Fn(Envelope) + Send + Sync>;

/// Starts shims, and knows those that run.
pub struct ShimRuntime {
    config: ShimConfig,
    events: ShimEvents,
}

/// What [`ShimRuntime::recover`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Tasks that go on, as namespace and id.
    pub alive: Vec<(String, String)>,
    /// Tasks whose shim was gone; their bundles were removed.
    pub lost: Vec<(String, String)>,
    /// Tasks whose shim did not answer, with the reason. They stay registered
    /// and are tried again whenever they are asked for.
    pub mute: Vec<(String, String, String)>,
}

impl ShimRuntime {
    /// A runtime without tasks; makes its folders.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn new(config: ShimConfig, events: ShimEvents) -> Result<Arc<Self>> {
        Ok(Arc::new(ShimRuntime { config, events }))
    }

    /// Makes a bundle, starts a shim and lets it create the container.
    ///
    /// On failure no task, bundle, mount or process is left.
    ///
    /// # Errors
    ///
    /// - [`Error::AlreadyExists`]: a task of this id is in this namespace.
    /// - [`Error::NotFound`]: the runtime's binary is not installed.
    /// - [`Error::InvalidArgument`]: namespace, id or runtime name is malformed.
    /// - else what the shim answered.
    pub async fn create(self: &Arc<Self>, request: CreateShimTask) -> Result<Arc<ShimTask>> {
        let _ = (&self.config, &self.events);
        Err(Error::Unimplemented(request.id))
    }

    /// The task of this id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn task(&self, namespace: &str, id: &str) -> Result<Arc<ShimTask>> {
        Err(Error::NotFound(format!("task {id} in {namespace}: not found")))
    }

    /// All tasks of a namespace, or of all when `None`, ordered.
    pub fn tasks(&self, _namespace: Option<&str>) -> Vec<Arc<ShimTask>> {
        Vec::new()
    }

    /// Finds the tasks of an earlier daemon again, all side by side; call it
    /// once, before serving. `runtime_of` tells the runtime's name of a
    /// container when its bundle does not.
    pub async fn recover(
        self: &Arc<Self>,
        _runtime_of: &(dyn Fn(&str, &str) -> Option<String> + Send + Sync),
    ) -> Recovered {
        Recovered::default()
    }

    /// What a runtime says about itself.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without binary, [`Error::Unimplemented`] when it says nothing.
    pub async fn runtime_info(
        &self,
        name: &str,
        _options: Option<&prost_types::Any>,
    ) -> Result<RuntimeInfo> {
        Err(Error::Unimplemented(name.into()))
    }

    /// The shim binary a runtime's name stands for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`], [`Error::NotFound`].
    pub fn resolve(&self, name: &str) -> Result<PathBuf> {
        Err(Error::NotFound(name.into()))
    }
}

/// A container under its shim. All calls go to the shim; an empty `exec_id`
/// means the first process. Errors are what the shim answered;
/// [`Error::NotFound`] also when its connection has ended.
pub struct ShimTask {
    namespace: String,
    id: String,
}

#[allow(missing_docs, clippy::missing_errors_doc)]
impl ShimTask {
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
    pub fn id(&self) -> &str {
        &self.id
    }
    /// Pid of the first process as known from Create, 0 if unknown.
    pub fn pid(&self) -> u32 {
        0
    }
    pub fn bundle(&self) -> &crate::Bundle {
        unreachable!()
    }
    pub async fn start(&self, exec_id: &str) -> Result<u32> {
        Err(Error::Unimplemented(exec_id.into()))
    }
    pub async fn state(&self, exec_id: &str) -> Result<StateResponse> {
        Err(Error::Unimplemented(exec_id.into()))
    }
    /// Blocks without limit.
    pub async fn wait(&self, exec_id: &str) -> Result<WaitResponse> {
        Err(Error::Unimplemented(exec_id.into()))
    }
    pub async fn kill(&self, exec_id: &str, _signal: u32, _all: bool) -> Result<()> {
        Err(Error::Unimplemented(exec_id.into()))
    }
    pub async fn exec(&self, _request: ExecProcess) -> Result<()> {
        Err(Error::Unimplemented(String::new()))
    }
    pub async fn delete_process(&self, exec_id: &str) -> Result<DeleteResponse> {
        Err(Error::Unimplemented(exec_id.into()))
    }
    /// Deletes the container, ends the shim and removes the bundle.
    pub async fn delete(&self) -> Result<DeleteResponse> {
        Err(Error::Unimplemented(String::new()))
    }
    pub async fn pause(&self) -> Result<()> {
        Err(Error::Unimplemented(String::new()))
    }
    pub async fn resume(&self) -> Result<()> {
        Err(Error::Unimplemented(String::new()))
    }
    pub async fn pids(&self) -> Result<Vec<ProcessPid>> {
        Err(Error::Unimplemented(String::new()))
    }
    pub async fn stats(&self) -> Result<prost_types::Any> {
        Err(Error::Unimplemented(String::new()))
    }
    /// `resources` is passed on unchanged.
    pub async fn update(
        &self,
        _resources: prost_types::Any,
        _annotations: std::collections::BTreeMap<String, String>,
    ) -> Result<()> {
        Err(Error::Unimplemented(String::new()))
    }
    pub async fn checkpoint(&self, _path: &str, _options: &CheckpointOptions) -> Result<()> {
        Err(Error::Unimplemented(String::new()))
    }
    pub async fn resize(&self, _exec_id: &str, _size: Size) -> Result<()> {
        Err(Error::Unimplemented(String::new()))
    }
    pub async fn close_stdin(&self, _exec_id: &str) -> Result<()> {
        Err(Error::Unimplemented(String::new()))
    }
    pub async fn connect(&self) -> Result<ConnectResponse> {
        Err(Error::Unimplemented(String::new()))
    }
}
