//! `ctr tasks`

mod exec;
mod metrics;
mod start;

use crated_api::services::tasks::v1::tasks_client::TasksClient;
use crated_api::services::tasks::v1::{
    DeleteProcessRequest, DeleteResponse, DeleteTaskRequest, GetRequest, KillRequest,
    ListPidsRequest, ListTasksRequest, PauseTaskRequest, ResumeTaskRequest, WaitRequest,
};
use crated_api::tasks::{Process, Status};

use crate::Exit;
use crate::connect::{Daemon, client};
use crate::error::{Error, Result};
use crate::output::{self, Padding, Table};
use crate::signal;

pub(crate) use start::{Created, Streams, supervise};

/// What to do with tasks.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run a further process in a container.
    Exec(exec::Arguments),
    /// List tasks.
    #[command(visible_alias = "ls")]
    List {
        /// Print only their ids.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Signal a container's process.
    Kill {
        /// The signal, by name or number.
        #[arg(short, long, default_value = "SIGTERM")]
        signal: String,
        /// A further process instead of the first.
        #[arg(long, default_value = "")]
        exec_id: String,
        /// Signal all processes of the container.
        #[arg(short, long)]
        all: bool,
        /// The container.
        id: String,
    },
    /// Show one measurement of a container's resources.
    #[command(visible_alias = "metric")]
    Metrics {
        /// The container.
        id: String,
    },
    /// Pause a container.
    Pause {
        /// The container.
        id: String,
    },
    /// List a container's processes.
    Ps {
        /// The container.
        id: String,
    },
    /// Resume a paused container.
    Resume {
        /// The container.
        id: String,
    },
    /// Delete tasks, which must have stopped.
    #[command(visible_aliases = ["rm", "del", "remove"])]
    Delete {
        /// Kill them first.
        #[arg(short, long)]
        force: bool,
        /// A further process instead of the first.
        #[arg(long, default_value = "")]
        exec_id: String,
        /// The containers.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Start a container that has a record but no task.
    Start(start::Arguments),
}

/// Runs one of them.
pub(crate) async fn run(daemon: &Daemon, command: Command) -> Result<Exit> {
    let mut client = client!(daemon, TasksClient);
    match command {
        Command::Exec(arguments) => return exec::run(daemon, arguments).await,
        Command::List { quiet } => {
            list(client.list(ListTasksRequest::default()).await?.into_inner().tasks, quiet);
        }
        Command::Kill { signal, exec_id, all, id } => {
            let signal = signal::number(&signal)?;
            client.kill(KillRequest { container_id: id, exec_id, signal, all }).await?;
        }
        Command::Metrics { id } => metrics::run(daemon, id).await?,
        Command::Pause { id } => drop(client.pause(PauseTaskRequest { container_id: id }).await?),
        Command::Ps { id } => processes(daemon, id).await?,
        Command::Resume { id } => {
            client.resume(ResumeTaskRequest { container_id: id }).await?;
        }
        Command::Delete { force, exec_id, ids } => {
            for id in ids {
                if force {
                    kill_and_wait(daemon, &id, &exec_id).await?;
                }
                let exit = delete(daemon, &id, &exec_id).await?;
                if exit.exit_status != 0 {
                    output::warn(format!(
                        "task {id} exit with non-zero exit code {}",
                        exit.exit_status
                    ));
                }
            }
        }
        Command::Start(arguments) => return start::run(daemon, arguments).await,
    }
    Ok(Exit::SUCCESS)
}

/// Deletes a stopped task, or one of its further processes.
pub(crate) async fn delete(daemon: &Daemon, id: &str, exec_id: &str) -> Result<DeleteResponse> {
    let mut client = client!(daemon, TasksClient);
    let answer = if exec_id.is_empty() {
        let status = process(daemon, id, "").await?.status();
        if !matches!(status, Status::Stopped | Status::Created | Status::Unknown) {
            let reason = format!("task must be stopped before deletion: {}", word(status));
            return Err(Error::Refused(format!("{reason}: failed precondition")));
        }
        client.delete(DeleteTaskRequest { container_id: id.to_owned() }).await?
    } else {
        let request =
            DeleteProcessRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
        client.delete_process(request).await?
    };
    Ok(answer.into_inner())
}

/// Deletes a task that has ended; one that is not there is deleted.
pub(crate) async fn forget(daemon: &Daemon, id: &str) -> Result<()> {
    let request = DeleteTaskRequest { container_id: id.to_owned() };
    match client!(daemon, TasksClient).delete(request).await.map_err(Error::from) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// The state of a task, or of one of its further processes.
pub(crate) async fn process(daemon: &Daemon, id: &str, exec_id: &str) -> Result<Process> {
    let request = GetRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
    let answer = client!(daemon, TasksClient).get(request).await?.into_inner();
    answer.process.ok_or_else(|| Error::Refused(format!("task {id:?}: empty answer")))
}

async fn kill_and_wait(daemon: &Daemon, id: &str, exec_id: &str) -> Result<()> {
    let mut client = client!(daemon, TasksClient);
    let request = KillRequest {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        signal: signal::KILL,
        all: exec_id.is_empty(),
    };
    match client.kill(request).await.map_err(Error::from) {
        Ok(_) => {
            let request = WaitRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
            client.wait(request).await?;
            Ok(())
        }
        Err(error) if error.is_not_found() => Ok(()), // it has exited already
        Err(error) => Err(error),
    }
}

fn list(tasks: Vec<Process>, quiet: bool) {
    if quiet {
        tasks.iter().for_each(|task| output::line(&task.id));
        return;
    }
    let mut table = Table::new(Padding::Wide, ["TASK", "PID", "STATUS", ""]);
    for task in tasks {
        let status = word(task.status()).to_owned();
        table.row([task.id, task.pid.to_string(), status]);
    }
    table.print();
}

async fn processes(daemon: &Daemon, id: String) -> Result<()> {
    let request = ListPidsRequest { container_id: id };
    let answer = client!(daemon, TasksClient).list_pids(request).await?.into_inner();
    let mut table = Table::new(Padding::Wide, ["PID", "INFO", ""]);
    for process in answer.processes {
        let info = process.info.map_or("-".to_owned(), |info| info.type_url);
        table.row([process.pid.to_string(), info]);
    }
    table.print();
    Ok(())
}

/// A status as it is listed.
pub(crate) fn word(status: Status) -> &'static str {
    match status {
        Status::Created => "CREATED",
        Status::Running => "RUNNING",
        Status::Stopped => "STOPPED",
        Status::Paused => "PAUSED",
        Status::Pausing => "PAUSING",
        Status::Unknown => "UNKNOWN",
    }
}
