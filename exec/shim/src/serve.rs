use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use crated_exec::{
    Error, Result,
    proto::{SANDBOX, TASK_V2, TASK_V3},
    reaper::Reaper,
    sys,
    ttrpc::Server,
};
use tokio::{net::UnixListener, sync::watch};

use crate::{
    args::Args,
    containers::Containers,
    events::Publisher,
    sandbox::{SandboxService, Sandboxes},
    service::TaskService,
};

/// Is the shim, in the child that `start` made, until it is told to end.
pub(crate) fn run(args: &Args, listener: OwnedFd) -> Result<()> {
    let listener = sys::cut_off(listener).map_err(failed)?;
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true).map_err(failed)?;
    crate::log::install(args.debug);
    let socket = listener.local_addr().ok().and_then(|a| a.as_pathname().map(|p| p.to_owned()));
    let result = crate::runtime()?.block_on(serve(args, listener, socket));
    if let Err(error) = &result {
        // Standard error leads nowhere: the log is all there is. The socket's file stays, and is
        // replaced by the next start; it may be another shim's by now.
        tracing::error!(error = error.report(), "shim has failed");
    }
    result
}

fn failed(source: std::io::Error) -> Error {
    Error::Io { op: "take over", path: "listener".into(), source }
}

async fn serve(
    args: &Args,
    listener: std::os::unix::net::UnixListener,
    socket: Option<PathBuf>,
) -> Result<()> {
    let listener = UnixListener::from_std(listener).map_err(|source| Error::Io {
        op: "watch",
        path: "listener".into(),
        source,
    })?;
    let reaper = Reaper::new()?;
    if let Err(error) = reaper.protect_from_oom() {
        tracing::debug!(%error, "not protected when memory runs out");
    }
    tokio::spawn(Arc::clone(&reaper).sweep_orphans());
    let publisher = Publisher::new(args, Arc::clone(&reaper));
    tokio::spawn(Arc::clone(&publisher).run());
    let containers = Containers::new(args.namespace.clone(), reaper, Arc::clone(&publisher));
    let sandboxes = Arc::<Sandboxes>::default();
    let tasks = TaskService::new(Arc::clone(&containers), Arc::clone(&sandboxes), socket);
    let service = Arc::new(tasks);
    let (stop, ending) = (service.stop(), Arc::clone(&service));
    let sandbox = SandboxService::new(sandboxes, containers, Arc::clone(&service));
    let server = Server::new()
        .service(TASK_V2, Arc::clone(&service) as _)
        .service(TASK_V3, service as _)
        .service(SANDBOX, Arc::new(sandbox));
    let idle = server.connections();
    let stopped = async {
        tokio::select! {
            () = stop.notified() => {}
            () = abandoned(&ending, idle) => tracing::info!("nobody has use for this shim"),
        }
        publisher.flush(FLUSH_DEADLINE).await;
        // The answer to Shutdown is still on its way.
        tokio::time::sleep(LAST_WORDS).await;
    };
    server.serve(listener, stopped).await
}

/// Resolves when there has been neither container, sandbox nor client for long: the daemon that started
/// this shim died before it could say more.
async fn abandoned(service: &TaskService, mut clients: watch::Receiver<usize>) {
    loop {
        if clients.wait_for(|count| *count == 0).await.is_err() {
            return std::future::pending().await;
        }
        let came = tokio::time::timeout(ABANDONED_AFTER, clients.wait_for(|count| *count > 0));
        if came.await.is_err() && service.end() {
            return;
        }
    }
}

/// A daemon connects at once, and stays connected while it has use for a shim.
const ABANDONED_AFTER: Duration = Duration::from_secs(10);

/// How long the end of the shim waits for a daemon to take its events.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

const LAST_WORDS: Duration = Duration::from_millis(10);
