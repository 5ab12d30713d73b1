//! The task API: unpack, call, pack.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use crated_exec::{
    Error, ExecProcess, Result, Size, Stdio,
    proto::{
        self,
        events::{TaskCheckpointed, TaskPaused, TaskResumed},
        process::ProcessInfo,
        runc::{CheckpointOptions, ProcessDetails},
        task as api,
    },
    ttrpc::{Context, Service},
};
use prost::Message;
use tokio::sync::Notify;

use crate::{containers::Containers, sandbox::Sandboxes};

/// Answers both versions of the task service.
#[derive(Clone)]
pub(crate) struct TaskService {
    containers: Arc<Containers>,
    sandboxes: Arc<Sandboxes>,
    stop: Arc<Notify>,
    /// The file of the socket.
    socket: Option<PathBuf>,
}

impl TaskService {
    pub(crate) fn new(
        containers: Arc<Containers>,
        sandboxes: Arc<Sandboxes>,
        socket: Option<PathBuf>,
    ) -> Self {
        TaskService { containers, sandboxes, stop: Arc::default(), socket }
    }

    /// Told when the shim shall end.
    pub(crate) fn stop(&self) -> Arc<Notify> {
        Arc::clone(&self.stop)
    }

    async fn dispatch(&self, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        match method {
            "State" => pack(self.state(unpack(payload)?).await),
            "Create" => pack(self.create(unpack(payload)?).await),
            "Start" => pack(self.start(unpack(payload)?).await),
            "Delete" => pack(self.delete(unpack(payload)?).await),
            "Pids" => pack(self.pids(unpack(payload)?).await),
            "Pause" => pack(self.pause(unpack(payload)?).await),
            "Resume" => pack(self.resume(unpack(payload)?).await),
            "Checkpoint" => pack(self.checkpoint(unpack(payload)?).await),
            "Kill" => pack(self.kill(unpack(payload)?).await),
            "Exec" => pack(self.exec(unpack(payload)?).await),
            "ResizePty" => pack(self.resize(unpack(payload)?).await),
            "CloseIO" => pack(self.close_io(unpack(payload)?).await),
            "Update" => pack(self.update(unpack(payload)?).await),
            "Stats" => pack(self.stats(unpack(payload)?).await),
            "Connect" => pack(self.connect(unpack(payload)?).await),
            "Shutdown" => {
                self.end();
                pack(Ok(()))
            }
            _ => Err(Error::Unimplemented(format!("method {method}"))),
        }
    }

    async fn state(&self, request: api::StateRequest) -> Result<api::StateResponse> {
        let container = self.containers.find(&request.id)?;
        let process = container.process(&request.exec_id).await?;
        let state = process.state().await?;
        Ok(api::StateResponse {
            id: process.id().to_owned(),
            bundle: container.bundle.clone(),
            pid: state.pid,
            status: proto::process::Status::from(state.status).into(),
            stdin: state.stdio.stdin,
            stdout: state.stdio.stdout,
            stderr: state.stdio.stderr,
            terminal: state.stdio.terminal,
            exit_status: state.exit.map(|exit| exit.status).unwrap_or_default(),
            exited_at: Some(proto::timestamp(state.exit.map(|exit| exit.exited_at))),
            exec_id: request.exec_id,
        })
    }

    async fn create(&self, request: api::CreateTaskRequest) -> Result<api::CreateTaskResponse> {
        Ok(api::CreateTaskResponse { pid: self.containers.create(request).await? })
    }

    async fn start(&self, request: api::StartRequest) -> Result<api::StartResponse> {
        let container = self.containers.find(&request.id)?;
        Ok(api::StartResponse { pid: container.start(&request.exec_id).await? })
    }

    async fn delete(&self, request: api::DeleteRequest) -> Result<api::DeleteResponse> {
        let (pid, exit) = if request.exec_id.is_empty() {
            self.containers.delete(&request.id).await?
        } else {
            let container = self.containers.find(&request.id)?;
            let process = container.process(&request.exec_id).await?;
            (process.state().await?.pid, process.delete().await?)
        };
        let exited_at = Some(proto::timestamp(Some(exit.exited_at)));
        Ok(api::DeleteResponse { pid, exit_status: exit.status, exited_at })
    }

    async fn pids(&self, request: api::PidsRequest) -> Result<api::PidsResponse> {
        let pids = self.containers.find(&request.id)?.task.pids().await?;
        let processes = pids.into_iter().map(|process| ProcessInfo {
            pid: process.pid,
            info: process.exec_id.map(|exec_id| proto::pack(&ProcessDetails { exec_id })),
        });
        Ok(api::PidsResponse { processes: processes.collect() })
    }

    async fn pause(&self, request: api::PauseRequest) -> Result<()> {
        self.containers.find(&request.id)?.task.pause().await?;
        let event = TaskPaused { container_id: request.id };
        self.containers.publish("/tasks/paused", &event);
        Ok(())
    }

    async fn resume(&self, request: api::ResumeRequest) -> Result<()> {
        self.containers.find(&request.id)?.task.resume().await?;
        let event = TaskResumed { container_id: request.id };
        self.containers.publish("/tasks/resumed", &event);
        Ok(())
    }

    async fn checkpoint(&self, request: api::CheckpointTaskRequest) -> Result<()> {
        let options = request.options.filter(|any| !any.type_url.is_empty());
        let options: Option<CheckpointOptions> = options.as_ref().map(proto::unpack).transpose()?;
        let task = &self.containers.find(&request.id)?.task;
        let path = request.path.clone();
        task.checkpoint(path.into(), options.unwrap_or_default()).await?;
        let event = TaskCheckpointed { container_id: request.id, checkpoint: request.path };
        self.containers.publish("/tasks/checkpointed", &event);
        Ok(())
    }

    async fn kill(&self, request: api::KillRequest) -> Result<()> {
        let container = self.containers.find(&request.id)?;
        let process = container.process(&request.exec_id).await?;
        process.kill(request.signal, request.all).await
    }

    async fn exec(&self, request: api::ExecProcessRequest) -> Result<()> {
        let container = self.containers.find(&request.id)?;
        let spec = request.spec.map(|any| any.value);
        let spec = spec.ok_or_else(|| Error::InvalidArgument("exec without a spec".into()))?;
        let stdio = Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        container.exec(ExecProcess { id: request.exec_id, spec, stdio }).await
    }

    async fn resize(&self, request: api::ResizePtyRequest) -> Result<()> {
        let invalid = |_| Error::InvalidArgument("a terminal has at most 65535 columns".into());
        let size = Size {
            width: u16::try_from(request.width).map_err(invalid)?,
            height: u16::try_from(request.height).map_err(invalid)?,
        };
        let container = self.containers.find(&request.id)?;
        container.process(&request.exec_id).await?.resize(size).await
    }

    async fn close_io(&self, request: api::CloseIoRequest) -> Result<()> {
        let container = self.containers.find(&request.id)?;
        let process = container.process(&request.exec_id).await?;
        if request.stdin { process.close_stdin().await } else { Ok(()) }
    }

    async fn update(&self, request: api::UpdateTaskRequest) -> Result<()> {
        let container = self.containers.find(&request.id)?;
        let resources = request.resources.map(|any| any.value);
        let none = || Error::InvalidArgument("update without resources".into());
        container.task.update(&resources.ok_or_else(none)?).await
    }

    async fn wait(&self, request: api::WaitRequest) -> Result<api::WaitResponse> {
        let container = self.containers.find(&request.id)?;
        let exit = container.process(&request.exec_id).await?.wait().await?;
        let exited_at = Some(proto::timestamp(Some(exit.exited_at)));
        Ok(api::WaitResponse { exit_status: exit.status, exited_at })
    }

    async fn stats(&self, request: api::StatsRequest) -> Result<api::StatsResponse> {
        let stats = self.containers.find(&request.id)?.task.stats().await?;
        Ok(api::StatsResponse { stats: Some(stats) })
    }

    async fn connect(&self, request: api::ConnectRequest) -> Result<api::ConnectResponse> {
        let state = match self.containers.find(&request.id) {
            Ok(container) => container.task.state().await.ok(),
            Err(_) => None,
        };
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: state.map(|state| state.pid).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Ends the shim once it has nothing to keep. When this returns no start finds it any more,
    /// so that the next container of the same id gets a shim of its own.
    pub(crate) fn end(&self) -> bool {
        let ends = self.sandboxes.is_empty() && self.containers.close();
        if ends {
            if let Some(socket) = &self.socket {
                // Gone already, which is what is wanted.
                let _ = std::fs::remove_file(socket);
            }
            self.stop.notify_one();
        }
        ends
    }
}

#[async_trait]
impl Service for TaskService {
    async fn call(&self, _: Context, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        if method == "Wait" {
            // The only one that may be given up halfway.
            return pack(self.wait(unpack(payload)?).await);
        }
        let (this, method, payload) = (self.clone(), method.to_owned(), payload.to_vec());
        let done = tokio::spawn(async move { this.dispatch(&method, &payload).await }).await;
        done.unwrap_or_else(|e| Err(Error::Internal(format!("call failed: {e}"))))
    }
}

pub(crate) fn unpack<M: Message + Default>(payload: &[u8]) -> Result<M> {
    M::decode(payload).map_err(|e| Error::InvalidArgument(format!("decode request: {e}")))
}

pub(crate) fn pack<M: Message>(answer: Result<M>) -> Result<Vec<u8>> {
    answer.map(|message| message.encode_to_vec())
}
