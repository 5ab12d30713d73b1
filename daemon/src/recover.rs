//! What a start of the daemon finds of an earlier one: containers that ran on without it.
//!
//! The API is served at once. Calls about tasks wait until every shim has answered or has been
//! given up, all of them side by side; the rest of the daemon does not.

use std::sync::Arc;

use crated_exec::shim::ShimSandbox;
use futures_util::future::join_all;
use tokio::sync::watch;

use crate::metadata::{Namespace, Scope};
use crate::services::sandbox;
use crate::wiring::Daemon;

/// The search for the tasks of an earlier daemon, under way or done. Clones wait for the same.
#[derive(Clone)]
pub struct Recovery {
    done: watch::Receiver<bool>,
}

impl Recovery {
    /// Begins the search.
    pub fn start(daemon: &Arc<Daemon>) -> Self {
        let (sender, done) = watch::channel(false);
        let daemon = Arc::clone(daemon);
        tokio::spawn(async move {
            recover(&daemon).await;
            sender.send_replace(true);
        });
        Self { done }
    }

    /// Returns when the search is over.
    pub async fn wait(&self) {
        // An error means that the search ended early, which its panic has told.
        let _ = self.done.clone().wait_for(|done| *done).await;
    }
}

async fn recover(daemon: &Arc<Daemon>) {
    let runtime_of = |namespace: &str, id: &str| {
        let namespace: Namespace = namespace.parse().ok()?;
        let container = daemon.db.containers().container(&Scope::new(namespace), id).ok()?;
        Some(container.runtime.name)
    };
    let (found, sandboxes) =
        tokio::join!(daemon.shims.recover(&runtime_of), daemon.sandboxes.recover());
    // Side by side: one mute shim must not hold up the rest.
    join_all(sandboxes.into_iter().map(|sandbox| watch_again(daemon, sandbox))).await;
    for (namespace, task) in &found.lost {
        tracing::warn!(namespace, task, "its shim had ended; what was left of it is removed");
    }
    for (namespace, task, reason) in &found.mute {
        tracing::warn!(namespace, task, reason, "its shim does not answer; it is kept");
    }
    if !found.alive.is_empty() {
        tracing::info!(count = found.alive.len(), "tasks go on");
    }
}

/// Waits for the end of a sandbox like the daemon before. An end that came in between is told now,
/// and once more by each daemon after, until the sandbox is shut down: better twice than never.
async fn watch_again(daemon: &Arc<Daemon>, found: Arc<ShimSandbox>) {
    let Ok(status) = found.status(false).await else { return };
    let ended = crated_exec::proto::system_time(status.exited_at.as_ref()).is_some();
    // For one that was not started yet its start will.
    if status.pid != 0 || ended {
        sandbox::watch(daemon, found);
    }
}
