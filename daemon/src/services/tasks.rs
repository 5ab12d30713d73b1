//! `containerd.services.tasks.v1.Tasks`: what runs. Every call goes on to the shim of its
//! container; nothing of the process's input and output passes through here.

use std::borrow::Cow;
use std::sync::Arc;

use crated_api::services::tasks::v1::tasks_server::Tasks;
use crated_api::services::tasks::v1::{
    CheckpointTaskRequest, CheckpointTaskResponse, CloseIoRequest, CreateTaskRequest,
    CreateTaskResponse, DeleteProcessRequest, DeleteResponse, DeleteTaskRequest,
    ExecProcessRequest, GetRequest, GetResponse, KillRequest, ListPidsRequest, ListPidsResponse,
    ListTasksRequest, ListTasksResponse, MetricsRequest, MetricsResponse, PauseTaskRequest,
    ResizePtyRequest, ResumeTaskRequest, StartRequest, StartResponse, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use crated_api::tasks::Process;
use crated_api::types::Metric;
use crated_exec::proto::task::StateResponse;
use crated_exec::runtime::{ExecProcess, Size, Stdio};
use crated_exec::shim::{CreateShimTask, ShimTask};
use futures_util::future::join_all;
use tonic::{Request, Response, Status};

use super::{convert, quick, scope, status};
use crate::filters::{Adaptor, Filters};
use crate::metadata::{Container, Scope, validate};
use crate::recover::Recovery;
use crate::wiring::Daemon;

/// The media type of a checkpoint's memory image.
const CHECKPOINT_MEDIA_TYPE: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";

/// Running containers.
#[derive(Clone)]
pub struct TasksService {
    daemon: Arc<Daemon>,
    recovery: Recovery,
}

impl TasksService {
    /// Serves the tasks of `daemon`, once those of an earlier daemon have been found.
    pub fn new(daemon: Arc<Daemon>, recovery: Recovery) -> Self {
        Self { daemon, recovery }
    }

    /// The record of a container, without which no task is made or deleted.
    async fn container(&self, scope: Scope, id: String) -> Result<Container, Status> {
        quick(&self.daemon, move |daemon| daemon.db.containers().container(&scope, &id)).await
    }

    async fn task(&self, scope: &Scope, id: &str) -> Result<Arc<ShimTask>, Status> {
        self.recovery.wait().await;
        self.daemon.shims.task(scope.namespace.as_str(), id).map_err(refused)
    }
}

#[tonic::async_trait]
impl Tasks for TasksService {
    async fn create(
        &self,
        request: Request<CreateTaskRequest>,
    ) -> Result<Response<CreateTaskResponse>, Status> {
        let scope = scope(&request)?;
        let request = request.into_inner();
        let id = request.container_id.clone();
        let container = self.container(scope.clone(), id.clone()).await?;
        let network = Arc::clone(&self.daemon.network);
        let spec = container.spec.clone();
        self.daemon.blocking.quick(move || network.check_joined(&spec)).await??;
        let task = create(&scope, container, request)?;
        self.recovery.wait().await;
        let created = self.daemon.shims.create(task).await.map_err(refused)?;
        Ok(Response::new(CreateTaskResponse { container_id: id, pid: created.pid() }))
    }

    async fn start(
        &self,
        request: Request<StartRequest>,
    ) -> Result<Response<StartResponse>, Status> {
        let scope = scope(&request)?;
        let StartRequest { container_id, exec_id } = request.into_inner();
        let task = self.task(&scope, &container_id).await?;
        let pid = task.start(&exec_id).await.map_err(refused)?;
        Ok(Response::new(StartResponse { pid }))
    }

    async fn delete(
        &self,
        request: Request<DeleteTaskRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let scope = scope(&request)?;
        let id = request.into_inner().container_id;
        self.container(scope.clone(), id.clone()).await?;
        let task = self.task(&scope, &id).await?;
        let ended = task.delete().await.map_err(refused)?;
        Ok(Response::new(deleted(id, ended)))
    }

    async fn delete_process(
        &self,
        request: Request<DeleteProcessRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let scope = scope(&request)?;
        let DeleteProcessRequest { container_id, exec_id } = request.into_inner();
        validate::identifier("exec id", &exec_id)?;
        let task = self.task(&scope, &container_id).await?;
        let ended = task.delete_process(&exec_id).await.map_err(refused)?;
        Ok(Response::new(deleted(exec_id, ended)))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let scope = scope(&request)?;
        let GetRequest { container_id, exec_id } = request.into_inner();
        let task = self.task(&scope, &container_id).await?;
        let process = observe(&task, &exec_id).await?;
        Ok(Response::new(GetResponse { process: Some(process) }))
    }

    async fn list(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let scope = scope(&request)?;
        self.recovery.wait().await;
        let tasks = self.daemon.shims.tasks(Some(scope.namespace.as_str()));
        // Side by side: one mute shim must not hold up the rest. What cannot be asked is left out.
        let states = join_all(tasks.iter().map(|task| observe(task, ""))).await;
        let tasks = states.into_iter().filter_map(Result::ok).collect();
        Ok(Response::new(ListTasksResponse { tasks }))
    }

    async fn kill(&self, request: Request<KillRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let KillRequest { container_id, exec_id, signal, all } = request.into_inner();
        let task = self.task(&scope, &container_id).await?;
        task.kill(&exec_id, signal, all).await.map_err(refused)?;
        Ok(Response::new(()))
    }

    async fn exec(&self, request: Request<ExecProcessRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let request = request.into_inner();
        validate::identifier("exec id", &request.exec_id)?;
        let task = self.task(&scope, &request.container_id).await?;
        // It will be moved into the container's cgroup.
        self.daemon.shims.expect_task();
        let process = ExecProcess {
            id: request.exec_id,
            spec: request.spec.unwrap_or_default().value,
            stdio: Stdio {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
        };
        task.exec(process).await.map_err(refused)?;
        Ok(Response::new(()))
    }

    async fn resize_pty(&self, request: Request<ResizePtyRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let ResizePtyRequest { container_id, exec_id, width, height } = request.into_inner();
        let task = self.task(&scope, &container_id).await?;
        let fits = |what, value| {
            u16::try_from(value).map_err(|_| status::invalid(format!("{what} {value}: too large")))
        };
        let size = Size { width: fits("width", width)?, height: fits("height", height)? };
        task.resize(&exec_id, size).await.map_err(refused)?;
        Ok(Response::new(()))
    }

    async fn close_io(&self, request: Request<CloseIoRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let CloseIoRequest { container_id, exec_id, stdin } = request.into_inner();
        let task = self.task(&scope, &container_id).await?;
        if stdin {
            task.close_stdin(&exec_id).await.map_err(refused)?;
        }
        Ok(Response::new(()))
    }

    async fn pause(&self, request: Request<PauseTaskRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let task = self.task(&scope, &request.into_inner().container_id).await?;
        task.pause().await.map_err(refused)?;
        Ok(Response::new(()))
    }

    async fn resume(&self, request: Request<ResumeTaskRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let task = self.task(&scope, &request.into_inner().container_id).await?;
        task.resume().await.map_err(refused)?;
        Ok(Response::new(()))
    }

    async fn list_pids(
        &self,
        request: Request<ListPidsRequest>,
    ) -> Result<Response<ListPidsResponse>, Status> {
        let scope = scope(&request)?;
        let task = self.task(&scope, &request.into_inner().container_id).await?;
        let pids = task.pids().await.map_err(refused)?;
        let processes = pids.into_iter().map(convert::process_pid).collect();
        Ok(Response::new(ListPidsResponse { processes }))
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointTaskRequest>,
    ) -> Result<Response<CheckpointTaskResponse>, Status> {
        let scope = scope(&request)?;
        let CheckpointTaskRequest { container_id, options, .. } = request.into_inner();
        let task = self.task(&scope, &container_id).await?;
        let options = convert::checkpoint_options(options)?;
        if options.image_path.is_empty() {
            return Err(status::unimplemented(format!(
                "checkpoint of {container_id} into the content store; name an image path"
            )));
        }
        let path = options.image_path.clone();
        task.checkpoint(&path, &options).await.map_err(refused)?;
        Ok(Response::new(CheckpointTaskResponse { descriptors: Vec::new() }))
    }

    async fn update(&self, request: Request<UpdateTaskRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let UpdateTaskRequest { container_id, resources, annotations } = request.into_inner();
        let task = self.task(&scope, &container_id).await?;
        let resources = resources.unwrap_or_default();
        task.update(resources, annotations).await.map_err(refused)?;
        Ok(Response::new(()))
    }

    async fn metrics(
        &self,
        request: Request<MetricsRequest>,
    ) -> Result<Response<MetricsResponse>, Status> {
        let scope = scope(&request)?;
        let filters = Filters::parse(&request.into_inner().filters)?;
        self.recovery.wait().await;
        let tasks = self.daemon.shims.tasks(Some(scope.namespace.as_str()));
        let wanted = tasks.iter().filter(|task| filters.matches(&TaskFields(task)));
        let metrics = join_all(wanted.map(|task| measure(task))).await;
        let metrics = metrics.into_iter().flatten().collect();
        Ok(Response::new(MetricsResponse { metrics }))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let scope = scope(&request)?;
        let WaitRequest { container_id, exec_id } = request.into_inner();
        let task = self.task(&scope, &container_id).await?;
        let ended = task.wait(&exec_id).await.map_err(refused)?;
        Ok(Response::new(WaitResponse {
            exit_status: ended.exit_status,
            exited_at: ended.exited_at,
        }))
    }
}

fn refused(error: crated_exec::Error) -> Status {
    status::from_exec(&error)
}

/// What a request and the container's record make of a task.
fn create(
    scope: &Scope,
    container: Container,
    request: CreateTaskRequest,
) -> Result<CreateShimTask, Status> {
    let options = request.options.or(container.runtime.options);
    Ok(CreateShimTask {
        namespace: scope.namespace.as_str().to_owned(),
        id: container.id,
        runtime: if request.runtime_path.is_empty() {
            container.runtime.name
        } else {
            request.runtime_path
        },
        checkpoint: match request.checkpoint {
            None => String::new(),
            Some(checkpoint) => checkpoint_path(&checkpoint)?,
        },
        options,
        spec: container.spec.value,
        rootfs: convert::mounts_from(request.rootfs),
        stdio: Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
    })
}

/// Where a checkpoint to restore lies; clients name a directory of the host.
fn checkpoint_path(checkpoint: &crated_api::types::Descriptor) -> Result<String, Status> {
    if let Some(path) = checkpoint.annotations.get("RestoreFromPath") {
        return Ok(path.clone());
    }
    if checkpoint.media_type != CHECKPOINT_MEDIA_TYPE {
        let found = &checkpoint.media_type;
        return Err(status::invalid(format!("checkpoint of unknown media type {found:?}")));
    }
    Err(status::unimplemented("restoring a checkpoint from the content store"))
}

/// The state of a process as the API shows it; an error that is not final as an unknown state.
async fn observe(task: &ShimTask, exec_id: &str) -> Result<Process, Status> {
    use crated_exec::Class;
    let id = if exec_id.is_empty() { task.id() } else { exec_id };
    match task.state(exec_id).await {
        Ok(state) => Ok(process(id, state)),
        Err(error) => match error.class() {
            Class::NotFound | Class::Unavailable | Class::DeadlineExceeded => Err(refused(error)),
            _ => Ok(Process { id: id.to_owned(), ..Process::default() }),
        },
    }
}

fn process(id: &str, state: StateResponse) -> Process {
    Process {
        container_id: String::new(),
        id: id.to_owned(),
        pid: state.pid,
        status: state.status,
        stdin: state.stdin,
        stdout: state.stdout,
        stderr: state.stderr,
        terminal: state.terminal,
        exit_status: state.exit_status,
        exited_at: state.exited_at.or(Some(convert::NEVER)),
    }
}

fn deleted(id: String, ended: crated_exec::proto::task::DeleteResponse) -> DeleteResponse {
    DeleteResponse {
        id,
        pid: ended.pid,
        exit_status: ended.exit_status,
        exited_at: ended.exited_at,
    }
}

/// One measurement; tasks that cannot be measured are left out.
async fn measure(task: &ShimTask) -> Option<Metric> {
    match task.stats().await {
        Ok(data) => Some(Metric {
            timestamp: Some(convert::timestamp(std::time::SystemTime::now())),
            id: task.id().to_owned(),
            data: Some(data),
        }),
        Err(error) => {
            tracing::debug!(task = task.id(), %error, "not measured");
            None
        }
    }
}

/// What filters of metrics see of a task.
struct TaskFields<'t>(&'t ShimTask);

impl Adaptor for TaskFields<'_> {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        match path {
            [name] if name == "id" => Some(self.0.id().into()),
            [name] if name == "namespace" => Some(self.0.namespace().into()),
            _ => None,
        }
    }
}
