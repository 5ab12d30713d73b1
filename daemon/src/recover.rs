//! What a start of the daemon finds of an earlier one: containers that ran on without it.
//!
//! The API is served at once. Calls about tasks wait until every shim has answered or has been
//! given up, all of them side by side; the rest of the daemon does not.

use std::sync::Arc;

use tokio::sync::watch;

use crate::metadata::{Namespace, Scope};
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
    let found = daemon.shims.recover(&runtime_of).await;
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
