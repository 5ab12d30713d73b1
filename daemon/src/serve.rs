//! Serving until a signal says otherwise, and what the daemon does meanwhile for those who run
//! it: readiness and a watchdog for the service manager, a dump on SIGUSR1, memory given back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crated::config::Config;
use crated::dump;
use crated::error::{Error, Result};
use crated::services::version::{REVISION, VERSION};
use crated::wiring::Daemon;
use sd_notify::NotifyState;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::{logging, sys};

/// Serves until SIGTERM or SIGINT, or until serving fails.
pub(crate) fn serve(config: Config) -> Result<()> {
    sys::frugal();
    logging::start(&config);
    tracing::info!(version = VERSION, revision = REVISION, "starting");
    for key in config.ignored() {
        tracing::warn!(key, "configuration is not for crated, ignored");
    }
    if config.oom_score != 0 {
        let path = Path::new("/proc/self/oom_score_adj");
        std::fs::write(path, config.oom_score.to_string())
            .map_err(|error| Error::io("write", path, error))?;
    }
    runtime()?.block_on(run(config))
}

/// The threads that calls are handled on, and those that wait for the disk.
pub(crate) fn runtime() -> Result<Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Builder::new_multi_thread()
        .enable_all()
        .worker_threads(processors.clamp(2, WORKERS_MAX))
        .max_blocking_threads(crated::blocking::THREADS_MAX)
        .thread_keep_alive(KEEP_ALIVE)
        .thread_name("crated")
        .build()
        .map_err(|source| Error::Io { object: "threads".to_owned(), step: "start", source })
}

async fn run(config: Config) -> Result<()> {
    // Caught before anything is started: a signal that comes early must not end the process.
    let (mut terminate, mut interrupt) =
        (caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?);
    let (mut dump, mut hangup) =
        (caught(SignalKind::user_defined1())?, caught(SignalKind::hangup())?);
    let mut running = crated::start(config).await?;
    let daemon = Arc::clone(running.daemon());
    notify(&[NotifyState::Ready]);
    let watchdog = tokio::spawn(watchdog(Arc::clone(&daemon)));
    let frugality = tokio::spawn(frugality(Arc::clone(&daemon)));
    let failure = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = dump.recv() => dump::write(&daemon).await,
            _ = hangup.recv() => tracing::info!("the configuration is read at start only"),
            failure = running.failed() => break Some(failure),
        }
    };
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping; containers go on running");
    watchdog.abort();
    frugality.abort();
    drop(daemon);
    running.stop().await?;
    failure.map_or(Ok(()), Err)
}

/// Tells the service manager that the daemon is alive, as long as it gets answers from its own
/// database; a manager that hears nothing restarts the daemon.
async fn watchdog(daemon: Arc<Daemon>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = interval((limit / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = Arc::clone(&daemon);
        match daemon.blocking.quick(move || asked.db.namespaces().list().map(drop)).await {
            Ok(Ok(())) => notify(&[NotifyState::Watchdog]),
            Ok(Err(error)) => tracing::error!(%error, "the database does not answer"),
            Err(error) => tracing::error!(%error, "the database does not answer"),
        }
    }
}

/// Gives memory back after each time the daemon was busy: soon, and once more when what goes on
/// behind the calls, such as threads that wait for more work, has ended too. Sleeps until then.
async fn frugality(daemon: Arc<Daemon>) {
    let calls = &daemon.metrics.calls;
    loop {
        let seen = calls.stirs();
        for quiet in [IDLE_AFTER, SETTLED_AFTER] {
            tokio::time::sleep(quiet).await;
            if calls.stirs() != seen {
                break;
            }
            let idle = Arc::clone(&daemon);
            let work = move || {
                idle.give_back();
                sys::give_back();
            };
            let _ = daemon.blocking.quick(work).await;
        }
        while calls.stirs() == seen {
            calls.stirred().await;
        }
    }
}

fn caught(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|source| Error::Io { object: "signal".to_owned(), step: "handle", source })
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "no service manager to notify");
    }
}

/// Calls wait for the disk or for shims, not for processors: more threads only cost memory.
const WORKERS_MAX: usize = 4;

/// How long a thread that waited for the disk is kept for the next wait.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Without a call for this long, the daemon counts as idle.
const IDLE_AFTER: Duration = Duration::from_millis(500);

/// Longer than [`KEEP_ALIVE`]: what threads held is free then.
const SETTLED_AFTER: Duration = Duration::from_secs(5);
