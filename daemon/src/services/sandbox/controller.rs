//! `containerd.services.sandbox.v1.Controller`: sandboxes that run, under shims or behind a socket.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crated_api::events::{SandboxCreate, SandboxExit, SandboxStart};
use crated_api::services::sandbox::v1::controller_client::ControllerClient;
use crated_api::services::sandbox::v1::controller_server::Controller;
use crated_api::services::sandbox::v1::{
    ControllerCreateRequest, ControllerCreateResponse, ControllerMetricsRequest,
    ControllerMetricsResponse, ControllerPlatformRequest, ControllerPlatformResponse,
    ControllerShutdownRequest, ControllerShutdownResponse, ControllerStartRequest,
    ControllerStartResponse, ControllerStatusRequest, ControllerStatusResponse,
    ControllerStopRequest, ControllerStopResponse, ControllerUpdateRequest,
    ControllerUpdateResponse, ControllerWaitRequest, ControllerWaitResponse,
};
use crated_api::types::{Metric, Platform};
use crated_api::{Timestamp, any};
use crated_exec::Class;
use crated_exec::shim::{CreateSandbox, ShimSandbox};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::super::{convert, quick, scope, status};
use crate::metadata::{Namespace, Sandbox, Scope};
use crate::proxy::{Link, scoped};
use crate::recover::Recovery;
use crate::wiring::Daemon;

/// Sandboxes that run.
#[derive(Clone)]
pub struct ControllerService {
    daemon: Arc<Daemon>,
    recovery: Recovery,
}

/// Who is in charge of a sandbox.
enum Sandboxer {
    /// The daemon, with a shim.
    Shim,
    /// A process of its own.
    Proxy(Link),
}

impl ControllerService {
    /// Serves the sandboxes of `daemon`, once those of an earlier daemon have been found.
    pub fn new(daemon: Arc<Daemon>, recovery: Recovery) -> Self {
        Self { daemon, recovery }
    }

    fn sandboxer(&self, name: &str) -> Result<Sandboxer, Status> {
        match name {
            "" => Err(status::invalid("sandboxer: must be named")),
            SHIM => Ok(Sandboxer::Shim),
            name => match self.daemon.sandboxers.get(name) {
                Some(link) => Ok(Sandboxer::Proxy(link.clone())),
                None => Err(status::not_found(format!("sandboxer {name:?}"))),
            },
        }
    }

    async fn sandbox(&self, scope: &Scope, id: &str) -> Result<Arc<ShimSandbox>, Status> {
        self.recovery.wait().await;
        self.daemon.sandboxes.sandbox(scope.namespace.as_str(), id).map_err(refused)
    }

    /// What is to be created: described in the request, or recorded in the store.
    async fn described(
        &self,
        scope: &Scope,
        request: &ControllerCreateRequest,
    ) -> Result<Sandbox, Status> {
        if let Some(record) = request.sandbox.clone() {
            return Ok(convert::sandbox_record(record));
        }
        let (scope, id) = (scope.clone(), request.sandbox_id.clone());
        quick(&self.daemon, move |daemon| daemon.db.sandboxes().sandbox(&scope, &id)).await
    }
}

/// Passes a call on to a proxy: the client's method, the link, the scope and the message.
macro_rules! pass {
    ($method:ident, $link:expr, $scope:expr, $message:expr, $limit:expr) => {{
        let mut client = ControllerClient::<Channel>::new($link.channel());
        let call = client.$method(scoped(&$scope, $message));
        let limit: Option<Duration> = $limit;
        return match limit {
            Some(limit) => $link.call(limit, call).await.map_err(Into::into),
            None => call.await,
        };
    }};
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create(
        &self,
        request: Request<ControllerCreateRequest>,
    ) -> Result<Response<ControllerCreateResponse>, Status> {
        let (scope, request) = (scope(&request)?, request.into_inner());
        if let Sandboxer::Proxy(link) = self.sandboxer(&request.sandboxer)? {
            let limit = Some(link.deadlines().bulk);
            pass!(create, link, scope, request, limit);
        }
        let sandbox = self.described(&scope, &request).await?;
        let id = request.sandbox_id;
        self.recovery.wait().await;
        let create = CreateSandbox {
            namespace: scope.namespace.as_str().to_owned(),
            id: id.clone(),
            runtime: sandbox.runtime.name,
            options: request.options.or(sandbox.runtime.options),
            spec: sandbox.spec.unwrap_or_default().value,
            rootfs: convert::mounts_from(request.rootfs),
            netns_path: request.netns_path,
            annotations: request.annotations,
        };
        self.daemon.sandboxes.create(create).await.map_err(refused)?;
        let event = SandboxCreate { sandbox_id: id.clone() };
        self.daemon.events.publish(&scope.namespace, "/sandboxes/create", any::pack(&event))?;
        Ok(Response::new(ControllerCreateResponse { sandbox_id: id }))
    }

    async fn start(
        &self,
        request: Request<ControllerStartRequest>,
    ) -> Result<Response<ControllerStartResponse>, Status> {
        let (scope, request) = (scope(&request)?, request.into_inner());
        if let Sandboxer::Proxy(link) = self.sandboxer(&request.sandboxer)? {
            let limit = Some(link.deadlines().bulk);
            pass!(start, link, scope, request, limit);
        }
        let id = request.sandbox_id;
        let sandbox = self.sandbox(&scope, &id).await?;
        let started = sandbox.start().await.map_err(refused)?;
        let event = SandboxStart { sandbox_id: id.clone() };
        self.daemon.events.publish(&scope.namespace, "/sandboxes/start", any::pack(&event))?;
        let address = sandbox.address().clone();
        watch(&self.daemon, sandbox);
        Ok(Response::new(ControllerStartResponse {
            sandbox_id: id,
            pid: started.pid,
            created_at: started.created_at,
            labels: Default::default(),
            address: address.address,
            version: u32::try_from(address.version).unwrap_or_default(),
        }))
    }

    async fn platform(
        &self,
        request: Request<ControllerPlatformRequest>,
    ) -> Result<Response<ControllerPlatformResponse>, Status> {
        let (scope, request) = (scope(&request)?, request.into_inner());
        if let Sandboxer::Proxy(link) = self.sandboxer(&request.sandboxer)? {
            let limit = Some(link.deadlines().quick);
            pass!(platform, link, scope, request, limit);
        }
        let sandbox = self.sandbox(&scope, &request.sandbox_id).await?;
        let platform = sandbox.platform().await.map_err(refused)?;
        Ok(Response::new(ControllerPlatformResponse {
            platform: Some(Platform {
                os: platform.os,
                architecture: platform.architecture,
                variant: platform.variant,
                os_version: platform.os_version,
            }),
        }))
    }

    /// A sandbox that is not there needs no stopping.
    async fn stop(
        &self,
        request: Request<ControllerStopRequest>,
    ) -> Result<Response<ControllerStopResponse>, Status> {
        let (scope, request) = (scope(&request)?, request.into_inner());
        if let Sandboxer::Proxy(link) = self.sandboxer(&request.sandboxer)? {
            let limit = Some(link.deadlines().bulk);
            pass!(stop, link, scope, request, limit);
        }
        self.recovery.wait().await;
        let grace = Duration::from_secs(request.timeout_secs.into());
        let found = self.daemon.sandboxes.sandbox(scope.namespace.as_str(), &request.sandbox_id);
        let stopped = match found {
            Ok(sandbox) => sandbox.stop(grace).await,
            Err(error) => Err(error),
        };
        match stopped {
            Err(error) if error.class() != Class::NotFound => Err(refused(error)),
            _ => Ok(Response::new(ControllerStopResponse {})),
        }
    }

    async fn wait(
        &self,
        request: Request<ControllerWaitRequest>,
    ) -> Result<Response<ControllerWaitResponse>, Status> {
        let (scope, request) = (scope(&request)?, request.into_inner());
        if let Sandboxer::Proxy(link) = self.sandboxer(&request.sandboxer)? {
            // It may take days.
            pass!(wait, link, scope, request, None);
        }
        let sandbox = self.sandbox(&scope, &request.sandbox_id).await?;
        let end = sandbox.wait().await.map_err(refused)?;
        Ok(Response::new(ControllerWaitResponse {
            exit_status: end.status,
            exited_at: Some(end.exited_at),
        }))
    }

    /// A recorded sandbox whose shim is gone has exited.
    async fn status(
        &self,
        request: Request<ControllerStatusRequest>,
    ) -> Result<Response<ControllerStatusResponse>, Status> {
        let (scope, request) = (scope(&request)?, request.into_inner());
        if let Sandboxer::Proxy(link) = self.sandboxer(&request.sandboxer)? {
            let limit = Some(link.deadlines().quick);
            pass!(status, link, scope, request, limit);
        }
        let id = request.sandbox_id;
        let sandbox = match self.sandbox(&scope, &id).await {
            Ok(sandbox) => sandbox,
            Err(error) if error.code() == tonic::Code::NotFound => {
                return self.vanished(scope, id).await;
            }
            Err(error) => return Err(error),
        };
        let known = match sandbox.status(request.verbose).await {
            Ok(known) => known,
            Err(error) if error.class() == Class::NotFound => {
                return self.vanished(scope, id).await;
            }
            Err(error) => return Err(refused(error)),
        };
        let address = sandbox.address();
        Ok(Response::new(ControllerStatusResponse {
            sandbox_id: id,
            pid: known.pid,
            state: known.state,
            info: known.info,
            created_at: known.created_at,
            exited_at: known.exited_at.or(Some(convert::NEVER)),
            extra: known.extra,
            address: address.address.clone(),
            version: u32::try_from(address.version).unwrap_or_default(),
        }))
    }

    async fn shutdown(
        &self,
        request: Request<ControllerShutdownRequest>,
    ) -> Result<Response<ControllerShutdownResponse>, Status> {
        let (scope, request) = (scope(&request)?, request.into_inner());
        if let Sandboxer::Proxy(link) = self.sandboxer(&request.sandboxer)? {
            let limit = Some(link.deadlines().bulk);
            pass!(shutdown, link, scope, request, limit);
        }
        let sandbox = self.sandbox(&scope, &request.sandbox_id).await?;
        sandbox.shut_down().await.map_err(refused)?;
        Ok(Response::new(ControllerShutdownResponse {}))
    }

    async fn metrics(
        &self,
        request: Request<ControllerMetricsRequest>,
    ) -> Result<Response<ControllerMetricsResponse>, Status> {
        let (scope, request) = (scope(&request)?, request.into_inner());
        if let Sandboxer::Proxy(link) = self.sandboxer(&request.sandboxer)? {
            let limit = Some(link.deadlines().quick);
            pass!(metrics, link, scope, request, limit);
        }
        let sandbox = self.sandbox(&scope, &request.sandbox_id).await?;
        let metric = sandbox.metrics().await.map_err(refused)?;
        let metrics = Metric { timestamp: metric.timestamp, id: metric.id, data: metric.data };
        Ok(Response::new(ControllerMetricsResponse { metrics: Some(metrics) }))
    }

    /// Shims have no way to change a sandbox.
    async fn update(
        &self,
        request: Request<ControllerUpdateRequest>,
    ) -> Result<Response<ControllerUpdateResponse>, Status> {
        let (scope, request) = (scope(&request)?, request.into_inner());
        if let Sandboxer::Proxy(link) = self.sandboxer(&request.sandboxer)? {
            let limit = Some(link.deadlines().quick);
            pass!(update, link, scope, request, limit);
        }
        Err(status::unimplemented("update of a sandbox under a shim"))
    }
}

impl ControllerService {
    async fn vanished(
        &self,
        scope: Scope,
        id: String,
    ) -> Result<Response<ControllerStatusResponse>, Status> {
        let wanted = id.clone();
        let record =
            quick(&self.daemon, move |daemon| daemon.db.sandboxes().sandbox(&scope, &wanted))
                .await?;
        Ok(Response::new(ControllerStatusResponse {
            sandbox_id: id,
            state: EXITED.to_owned(),
            created_at: Some(convert::timestamp(record.created_at)),
            exited_at: Some(Timestamp::from(SystemTime::now())),
            ..ControllerStatusResponse::default()
        }))
    }
}

/// Tells the world when the sandbox ends. Called once per sandbox and daemon: when it starts, and
/// when a new daemon finds it again.
pub(crate) fn watch(daemon: &Arc<Daemon>, sandbox: Arc<ShimSandbox>) {
    // Not the daemon itself: a sandbox may outlast it by days.
    let (events, mut stopping) = (daemon.events.clone(), daemon.stopping());
    tokio::spawn(async move {
        let Ok(namespace) = sandbox.namespace().parse::<Namespace>() else { return };
        let waited = tokio::select! {
            waited = sandbox.wait() => waited,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let sandbox_id = sandbox.id().to_owned();
        let end = match waited {
            Ok(end) => end,
            Err(error) => {
                let error = error.report();
                tracing::warn!(sandbox = sandbox_id, error, "its end is not watched");
                return;
            }
        };
        let (exit_status, exited_at) = (end.status, Some(end.exited_at));
        let event = SandboxExit { sandbox_id, exit_status, exited_at };
        if let Err(error) = events.publish(&namespace, "/sandboxes/exit", any::pack(&event)) {
            tracing::warn!(%error, "exit of a sandbox");
        }
    });
}

fn refused(error: crated_exec::Error) -> Status {
    status::from_exec(&error)
}

/// The daemon's own sandboxer.
const SHIM: &str = "shim";

/// The word for a sandbox whose shim is gone.
const EXITED: &str = "exited";
