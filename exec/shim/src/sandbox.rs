//! The sandbox API: one environment that containers of the shim share.
//!
//! The environment is the shim itself: a sandbox has no process of its own, so starting it is a
//! promise to stay, and stopping it the end of that promise. Its pid is the shim's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use crated_exec::{
    Error, Result,
    cgroup::Cgroup,
    proto::{
        self, sandbox as api,
        types::{Metric, Platform},
    },
    ttrpc::{Context, Service},
};
use tokio::sync::watch;

use crate::{
    containers::Containers,
    service::{TaskService, pack, unpack},
};

/// Answers the sandbox service.
#[derive(Clone)]
pub(crate) struct SandboxService {
    sandboxes: Arc<Sandboxes>,
    containers: Arc<Containers>,
    tasks: Arc<TaskService>,
}

/// The sandboxes this shim keeps.
#[derive(Default)]
pub(crate) struct Sandboxes(Mutex<BTreeMap<String, Sandbox>>);

struct Sandbox {
    netns_path: String,
    created_at: SystemTime,
    started_at: Option<SystemTime>,
    /// When it was stopped.
    ended: watch::Sender<Option<SystemTime>>,
}

impl Sandboxes {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn with<T>(&self, id: &str, look: impl FnOnce(&mut Sandbox) -> Result<T>) -> Result<T> {
        let mut sandboxes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = || Error::NotFound(format!("sandbox {id}: not found"));
        look(sandboxes.get_mut(id).ok_or_else(missing)?)
    }
}

impl SandboxService {
    pub(crate) fn new(
        sandboxes: Arc<Sandboxes>,
        containers: Arc<Containers>,
        tasks: Arc<TaskService>,
    ) -> Self {
        SandboxService { sandboxes, containers, tasks }
    }

    fn create(&self, request: api::CreateSandboxRequest) -> Result<()> {
        let mut sandboxes = self.sandboxes.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = request.sandbox_id;
        if sandboxes.contains_key(&id) {
            return Err(Error::AlreadyExists(format!("sandbox {id}: already exists")));
        }
        let sandbox = Sandbox {
            netns_path: request.netns_path,
            created_at: SystemTime::now(),
            started_at: None,
            ended: watch::Sender::new(None),
        };
        sandboxes.insert(id, sandbox);
        Ok(())
    }

    fn start(&self, request: &api::StartSandboxRequest) -> Result<api::StartSandboxResponse> {
        let id = &request.sandbox_id;
        self.sandboxes.with(id, |sandbox| {
            if sandbox.started_at.is_some() {
                let text = format!("sandbox {id} was started before");
                return Err(Error::FailedPrecondition(text));
            }
            sandbox.started_at = Some(SystemTime::now());
            Ok(api::StartSandboxResponse {
                pid: std::process::id(),
                created_at: Some(proto::timestamp(Some(sandbox.created_at))),
            })
        })
    }

    fn stop(&self, request: &api::StopSandboxRequest) -> Result<()> {
        self.sandboxes.with(&request.sandbox_id, |sandbox| {
            sandbox.ended.send_if_modified(|ended| {
                let first = ended.is_none();
                *ended = ended.or(Some(SystemTime::now()));
                first
            });
            Ok(())
        })
    }

    async fn wait(&self, request: &api::WaitSandboxRequest) -> Result<api::WaitSandboxResponse> {
        let mut ended =
            self.sandboxes.with(&request.sandbox_id, |sandbox| Ok(sandbox.ended.subscribe()))?;
        let end = ended.wait_for(Option::is_some).await.map(|end| *end);
        // A sandbox that was shut down has ended now.
        let end = end.unwrap_or_default().unwrap_or_else(SystemTime::now);
        Ok(api::WaitSandboxResponse {
            exit_status: 0,
            exited_at: Some(proto::timestamp(Some(end))),
        })
    }

    fn status(&self, request: &api::SandboxStatusRequest) -> Result<api::SandboxStatusResponse> {
        let id = &request.sandbox_id;
        self.sandboxes.with(id, |sandbox| {
            let ended = *sandbox.ended.borrow();
            let ready = sandbox.started_at.is_some() && ended.is_none();
            let mut info = BTreeMap::new();
            if request.verbose && !sandbox.netns_path.is_empty() {
                info.insert("netns".to_owned(), sandbox.netns_path.clone());
            }
            Ok(api::SandboxStatusResponse {
                sandbox_id: id.clone(),
                pid: if ready { std::process::id() } else { 0 },
                state: if ready { READY } else { NOT_READY }.to_owned(),
                info,
                created_at: Some(proto::timestamp(Some(sandbox.created_at))),
                exited_at: Some(proto::timestamp(ended)),
                extra: None,
            })
        })
    }

    fn platform(&self, request: &api::PlatformRequest) -> Result<api::PlatformResponse> {
        self.sandboxes.with(&request.sandbox_id, |_| Ok(()))?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = Platform {
            os: std::env::consts::OS.to_owned(),
            architecture: architecture.to_owned(),
            ..Platform::default()
        };
        Ok(api::PlatformResponse { platform: Some(platform) })
    }

    fn metrics(&self, request: &api::SandboxMetricsRequest) -> Result<api::SandboxMetricsResponse> {
        self.sandboxes.with(&request.sandbox_id, |_| Ok(()))?;
        let metrics = Metric {
            timestamp: Some(proto::timestamp(Some(SystemTime::now()))),
            id: request.sandbox_id.clone(),
            data: Some(Cgroup::of(std::process::id())?.stats()?),
        };
        Ok(api::SandboxMetricsResponse { metrics: Some(metrics) })
    }

    fn shutdown(&self, request: &api::ShutdownSandboxRequest) -> Result<()> {
        if !self.containers.is_empty() {
            let text = format!("sandbox {} still has containers", request.sandbox_id);
            return Err(Error::FailedPrecondition(text));
        }
        let mut sandboxes = self.sandboxes.0.lock().unwrap_or_else(PoisonError::into_inner);
        sandboxes.remove(&request.sandbox_id);
        drop(sandboxes);
        self.tasks.end();
        Ok(())
    }
}

#[async_trait]
impl Service for SandboxService {
    async fn call(&self, _: Context, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        match method {
            "CreateSandbox" => pack(self.create(unpack(payload)?)),
            "StartSandbox" => pack(self.start(&unpack(payload)?)),
            "Platform" => pack(self.platform(&unpack(payload)?)),
            "StopSandbox" => pack(self.stop(&unpack(payload)?)),
            "WaitSandbox" => pack(self.wait(&unpack(payload)?).await),
            "SandboxStatus" => pack(self.status(&unpack(payload)?)),
            "PingSandbox" => pack({
                let request: api::PingRequest = unpack(payload)?;
                self.sandboxes.with(&request.sandbox_id, |_| Ok(()))
            }),
            "ShutdownSandbox" => pack(self.shutdown(&unpack(payload)?)),
            "SandboxMetrics" => pack(self.metrics(&unpack(payload)?)),
            _ => Err(Error::Unimplemented(format!("method {method}"))),
        }
    }
}

/// The words clients know for a sandbox that runs, and for one that does not.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";
