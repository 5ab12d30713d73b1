//! Containers that should run are started again when they do not, by their labels.
//!
//! containerd's restart monitor, which nerdctl's `--restart` builds on: every
//! [`interval`](crate::config::Restart::interval) all containers with the label
//! `containerd.io/restart.status` are looked at, in every namespace. No state is kept but the
//! labels, so a daemon that starts carries on where the last one was. A start is counted, durably,
//! before it happens: a crash in between may count one that never was, never the other way round.
//! Each container is seen to beside the others: one whose shim is mute delays none.

mod policy;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crated_exec::proto::process::Status as TaskStatus;
use crated_exec::runtime::Stdio;
use crated_exec::shim::{CreateShimTask, ShimTask};
use crated_exec::{Class, Error as ExecError};
use crated_snapshot::{Key, Snapshotter};
use tokio::time::{MissedTickBehavior, interval};
use tonic::Status;

pub use self::policy::{
    Action, LABEL_COUNT, LABEL_EXPLICITLY_STOPPED, LABEL_LOG_PATH, LABEL_LOG_URI, LABEL_POLICY,
    LABEL_STATUS, POLICY_NAMES, Policy, STATUS_RUNNING, Seen, decide, log_uri,
};
use crate::filters::Filters;
use crate::metadata::{Container, ContainerUpdate, LabelUpdate, Scope};
use crate::recover::Recovery;
use crate::services::status;
use crate::wiring::Daemon;

/// SIGKILL: the task has ended, or nobody wants it.
const KILL: u32 = 9;

/// Looks at containers until the daemon stops.
struct Monitor {
    daemon: Arc<Daemon>,
    every: Duration,
    /// Containers that are being seen to, and those that waited for a client one look ago.
    known: Mutex<BTreeMap<Place, Known>>,
}

/// Namespace and id.
type Place = (String, String);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    /// Work on it is under way.
    Busy,
    /// Its task was there and not started. Its client may be about to.
    Created,
}

/// Begins, once the tasks of an earlier daemon have been found, and goes on until `daemon` stops.
/// Nothing is begun when the part is disabled.
pub fn start(daemon: &Arc<Daemon>, recovery: Recovery) {
    if crate::plugins::RESTART.iter().any(|(kind, id)| daemon.config.is_disabled(kind, id)) {
        return;
    }
    let every = daemon.config.plugins.restart.interval.0.max(INTERVAL_MIN);
    let known = Mutex::default();
    let monitor = Arc::new(Monitor { daemon: Arc::clone(daemon), every, known });
    let mut stopping = daemon.stopping();
    tokio::spawn(async move {
        tokio::select! {
            () = monitor.run(recovery) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    });
}

impl Monitor {
    async fn run(self: Arc<Self>, recovery: Recovery) {
        recovery.wait().await;
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.containers().await {
                Ok(containers) => self.look_at(containers),
                Err(error) => {
                    tracing::error!(
                        error = error.message(),
                        "containers to start again not listed"
                    );
                }
            }
        }
    }

    /// The containers of all namespaces that should be something.
    async fn containers(&self) -> Result<Vec<(Scope, Container)>, Status> {
        let daemon = Arc::clone(&self.daemon);
        let listed = move || {
            let labelled = Filters::parse(&[format!("labels.{LABEL_STATUS:?}")])?;
            let mut found = Vec::new();
            for namespace in daemon.db.namespaces().list()? {
                let scope = Scope::new(namespace.name);
                let containers = daemon.db.containers().list(&scope, &labelled)?;
                found.extend(containers.into_iter().map(|container| (scope.clone(), container)));
            }
            Ok(found)
        };
        self.daemon.blocking.quick(listed).await?
    }

    /// Sees to each of `containers` that nobody sees to yet.
    fn look_at(self: &Arc<Self>, containers: Vec<(Scope, Container)>) {
        let mut known = self.known();
        let mut before = std::mem::take(&mut *known);
        for (scope, container) in containers {
            let place = (scope.namespace.as_str().to_owned(), container.id.clone());
            let was = before.remove(&place);
            known.insert(place.clone(), Known::Busy);
            if was == Some(Known::Busy) {
                continue;
            }
            let monitor = Arc::clone(self);
            tokio::spawn(async move {
                let next = monitor.see_to(&scope, container, was.is_some()).await;
                let mut known = monitor.known();
                match next {
                    Some(next) => known.insert(place, next),
                    None => known.remove(&place),
                };
            });
        }
        // What is still being done about containers that are gone goes on.
        known.extend(before.into_iter().filter(|(_, known)| *known == Known::Busy));
    }

    /// What is to be remembered of the container until the next look.
    async fn see_to(&self, scope: &Scope, container: Container, waited: bool) -> Option<Known> {
        let (namespace, id) = (scope.namespace.as_str(), container.id.as_str());
        let seen = self.seen(scope, id).await;
        let action = match decide(&container.labels, seen) {
            Ok(action) => action,
            Err(reason) => {
                tracing::warn!(namespace, container = id, reason, "container not started again");
                return None;
            }
        };
        if let Action::Start { .. } = action {
            if seen == Seen::Created && !waited {
                return Some(Known::Created);
            }
            if seen == Seen::Nothing && self.is_fresh(&container) {
                return None;
            }
        }
        let (namespace, id) = (namespace.to_owned(), id.to_owned());
        let done = match action {
            Action::Leave => return None,
            Action::Stop => self.clear(scope, &id).await,
            Action::Start { count } => self.start_again(scope, container, count).await,
        };
        match done {
            Ok(()) => {
                tracing::info!(namespace, container = id, ?action, "container is as its labels say")
            }
            Err(error) => {
                let error = error.message();
                tracing::warn!(
                    namespace,
                    container = id,
                    ?action,
                    error,
                    "container is not as its labels say, trying again"
                );
            }
        }
        None
    }

    /// Whether the client that made the record may be about to make the task.
    fn is_fresh(&self, container: &Container) -> bool {
        let age = SystemTime::now().duration_since(container.created_at);
        age.is_ok_and(|age| age < self.every)
    }

    fn task(&self, scope: &Scope, id: &str) -> Option<Arc<ShimTask>> {
        self.daemon.shims.task(scope.namespace.as_str(), id).ok()
    }

    async fn seen(&self, scope: &Scope, id: &str) -> Seen {
        let Some(task) = self.task(scope, id) else { return Seen::Nothing };
        match task.state("").await {
            Ok(state) => match state.status() {
                TaskStatus::Created => Seen::Created,
                TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing => Seen::Running,
                TaskStatus::Stopped => Seen::Stopped(state.exit_status),
                TaskStatus::Unknown => Seen::Unknown,
            },
            Err(error) if error.class() == Class::NotFound => Seen::Nothing,
            Err(_) => Seen::Unknown,
        }
    }

    /// Ends and deletes the task; success also when there is none.
    async fn clear(&self, scope: &Scope, id: &str) -> Result<(), Status> {
        let Some(task) = self.task(scope, id) else { return Ok(()) };
        gone(task.kill("", KILL, true).await)?;
        gone(task.wait("").await)?;
        gone(task.delete().await)
    }

    /// A new task for the container. The start is counted before it happens, so that a limit holds
    /// whatever comes in between. A client may change its mind at any time: it is asked before the
    /// task that ended is taken away, and after the new one has started.
    async fn start_again(
        &self,
        scope: &Scope,
        container: Container,
        count: u64,
    ) -> Result<(), Status> {
        if !self.is_wanted(scope, &container.id).await? {
            return Ok(());
        }
        self.clear(scope, &container.id).await?;
        let (daemon, within) = (Arc::clone(&self.daemon), scope.clone());
        let prepare = move || prepare(&daemon, within, container, count);
        let create = self.daemon.blocking.quick(prepare).await??;
        let refused = |error: ExecError| status::from_exec(&error);
        let task = self.daemon.shims.create(create).await.map_err(refused)?;
        if let Err(error) = task.start("").await {
            // The next look begins anew rather than with a task that nobody will start.
            let _ = self.clear(scope, task.id()).await;
            return Err(refused(error));
        }
        if !self.is_wanted(scope, task.id()).await? {
            self.take_back(scope, task.id()).await;
        }
        Ok(())
    }

    /// Clears until it is done: without a record no later look would find the task.
    async fn take_back(&self, scope: &Scope, id: &str) {
        while let Err(error) = self.clear(scope, id).await {
            let (namespace, error) = (scope.namespace.as_str(), error.message());
            tracing::warn!(namespace, container = id, error, "unwanted task stays, trying again");
            tokio::time::sleep(self.every).await;
        }
    }

    /// Whether the record is still there and says that the container should run.
    async fn is_wanted(&self, scope: &Scope, id: &str) -> Result<bool, Status> {
        let (daemon, scope, id) = (Arc::clone(&self.daemon), scope.clone(), id.to_owned());
        let found = move || daemon.db.containers().container(&scope, &id);
        match self.daemon.blocking.quick(found).await? {
            Ok(container) => {
                Ok(container.labels.get(LABEL_STATUS).is_some_and(|is| is == STATUS_RUNNING))
            }
            Err(crate::metadata::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Place, Known>> {
        // A map is whole between its methods, so a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the start, and says what to start. Blocks.
fn prepare(
    daemon: &Daemon,
    scope: Scope,
    container: Container,
    count: u64,
) -> Result<CreateShimTask, Status> {
    daemon.network.check_joined(&container.spec)?;
    let rootfs = match (&container.snapshotter, &container.snapshot_key) {
        (Some(snapshotter), Some(key)) => {
            let key = Key::new(key.clone()).map_err(status::from_snapshot)?;
            let snapshots = daemon.snapshotter(scope.clone(), snapshotter)?;
            snapshots.mounts(&key).map_err(status::from_snapshot)?
        }
        _ => Vec::new(),
    };
    let counted = LabelUpdate::Merge([(LABEL_COUNT.to_owned(), Some(count.to_string()))].into());
    let update = ContainerUpdate { labels: Some(counted), ..ContainerUpdate::default() };
    daemon.db.containers().update(&scope, &container.id, update)?;
    let output = log_uri(&container.labels);
    Ok(CreateShimTask {
        namespace: scope.namespace.as_str().to_owned(),
        id: container.id,
        runtime: container.runtime.name,
        options: container.runtime.options,
        spec: container.spec.value,
        rootfs,
        stdio: Stdio { stdout: output.clone(), stderr: output, ..Stdio::default() },
        checkpoint: String::new(),
    })
}

/// Success also for what has ended, or is gone, already.
fn gone<T>(done: Result<T, ExecError>) -> Result<(), Status> {
    match done {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.class(), Class::NotFound | Class::FailedPrecondition) => {
            Ok(())
        }
        Err(error) => Err(status::from_exec(&error)),
    }
}

/// The shortest interval, whatever is asked for.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
