use std::{sync::Arc, time::Duration};

use crated_exec::{
    Error, Result,
    proto::{TASK_V2, TASK_V3},
    reaper::Reaper,
    sys,
    ttrpc::Server,
};
use tokio::net::UnixListener;

use crate::{args::Args, containers::Containers, events::Publisher, service::TaskService};

/// Is the shim until it is told to end.
pub(crate) fn run(args: &Args) -> Result<()> {
    let failed = |source| Error::Io { op: "take over", path: "listener".into(), source };
    let listener = sys::inherited_fd(LISTENER_FD).map_err(failed)?;
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true).map_err(failed)?;
    crate::log::install(args.debug);
    let socket = listener.local_addr().ok().and_then(|a| a.as_pathname().map(|p| p.to_owned()));
    let result = crate::runtime()?.block_on(serve(args, listener));
    if let Some(socket) = socket {
        // A start that finds it would wait for nobody; it replaces the file.
        let _ = std::fs::remove_file(socket);
    }
    result
}

async fn serve(args: &Args, listener: std::os::unix::net::UnixListener) -> Result<()> {
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
    let service = Arc::new(TaskService::new(containers));
    let stop = service.stop();
    let server =
        Server::new().service(TASK_V2, Arc::clone(&service) as _).service(TASK_V3, service as _);
    let stopped = async {
        stop.notified().await;
        publisher.flush(FLUSH_DEADLINE).await;
        // The answer to Shutdown is still on its way.
        tokio::time::sleep(LAST_WORDS).await;
    };
    server.serve(listener, stopped).await
}

const LISTENER_FD: i32 = 3;

/// How long the end of the shim waits for a daemon to take its events.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

const LAST_WORDS: Duration = Duration::from_millis(10);
