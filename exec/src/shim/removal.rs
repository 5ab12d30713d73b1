//! What is left to do once a task has ended for its clients.
//!
//! ```text
//!   shim told to end ─► container killed, unmounted ─► bundle and work folder removed
//!                       (`delete` of the shim binary)
//! ```
//!
//! Every step takes what is gone already for done, so the sequence may be broken off anywhere and
//! begun again, by this daemon or the next one: what is on disk says what is left. A step that
//! fails is tried again for as long as it takes, with longer pauses, and meanwhile listed as a
//! [`Leftover`], in memory and in `leftover.json` of the bundle:
//!
//! ```text
//!   {"version":1,"step":"remove folders","blocker":"…","attempts":3}
//! ```

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use super::{ShimRuntime, ShimTask, blocker, folders::Folders, runtime::Key, start::Binary};
use crate::{Error, Result};

/// A container that has ended for its clients and is not removed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leftover {
    /// Its namespace.
    pub namespace: String,
    /// Its id, which no new container gets before it is removed.
    pub id: String,
    /// The step that fails.
    pub step: Step,
    /// Why, as far as can be seen: the error, then processes with what they wait for, and who
    /// holds its mounts.
    pub blocker: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Since when.
    pub since: SystemTime,
}

/// A step of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Kill what is left of the container, forget it, unmount its root.
    Container,
    /// Remove bundle and work folder.
    Folders,
}

impl Step {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Container => "remove container",
            Step::Folders => "remove folders",
        }
    }
}

/// What is to be removed of one task.
pub(super) struct Remains {
    pub(super) namespace: String,
    pub(super) id: String,
    pub(super) folders: Folders,
    /// The shim binary, if the container may still be there.
    pub(super) binary: Option<PathBuf>,
    /// The shim, if it is to be told to end.
    pub(super) shim: Option<Arc<ShimTask>>,
}

impl ShimRuntime {
    /// Containers that have ended and cannot be removed yet, ordered. Each is tried again.
    pub fn leftovers(&self) -> Vec<Leftover> {
        self.locked_leftovers().values().cloned().collect()
    }

    pub(super) fn locked_leftovers(&self) -> MutexGuard<'_, BTreeMap<Key, Leftover>> {
        self.leftovers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes, in the background and until it is done. The id is free again afterwards, which
    /// is when the receiver is closed.
    pub(super) fn dismantle(self: &Arc<Self>, remains: Remains) -> watch::Receiver<()> {
        let key = (remains.namespace.clone(), remains.id.clone());
        let (removed, done) = self.leave(&key);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            this.remove(remains).await;
            this.unregister(&key);
            // Whoever waits for the id finds it free now.
            drop(removed);
        });
        done
    }

    async fn remove(&self, mut remains: Remains) {
        if let Some(shim) = remains.shim.take() {
            let limit = self.config.timeouts.shutdown;
            shim.shut_down(limit).await;
            // While it ends, its socket would answer for the next container of this id. One that
            // stays has others to keep.
            let _ = tokio::time::timeout(limit, shim.client.closed()).await;
            shim.stop_log();
        }
        let key = (remains.namespace.clone(), remains.id.clone());
        let (mut attempts, mut pause, since) = (0, RETRY_FIRST, SystemTime::now());
        while let Err((step, error)) = self.try_remove(&mut remains, attempts).await {
            attempts += 1;
            let bundle = remains.folders.bundle.clone();
            let seen = tokio::task::spawn_blocking(move || blocker::describe(&bundle)).await;
            let blocker = format!("{}{}", error.report(), seen.unwrap_or_default());
            let (namespace, task) = (&key.0, &key.1);
            if attempts.is_power_of_two() {
                let step = step.as_str();
                tracing::warn!(namespace, task, step, attempts, blocker, "removal is blocked");
            }
            let (namespace, id) = key.clone();
            let leftover = Leftover { namespace, id, step, blocker, attempts, since };
            remains.folders.note_leftover(&leftover);
            self.locked_leftovers().insert(key.clone(), leftover);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LAST);
        }
        let listed = self.locked_leftovers().remove(&key).is_some();
        if listed {
            tracing::info!(namespace = key.0, task = key.1, "removal is done after all");
        }
    }

    async fn try_remove(
        &self,
        remains: &mut Remains,
        attempts: u32,
    ) -> std::result::Result<(), (Step, Error)> {
        if let Some(path) = &remains.binary {
            let (namespace, id) = (remains.namespace.as_str(), remains.id.as_str());
            let shim = Binary { config: &self.config, path, namespace, id };
            let deleted = shim.delete(&remains.folders.bundle).await;
            // A binary that always fails must not keep the remains of what is dead for ever.
            if let Err(error) = deleted
                && (attempts < DELETES_MAX || blocker::is_alive(&remains.folders.bundle))
            {
                return Err((Step::Container, error));
            }
            remains.binary = None;
        }
        let folders = remains.folders.clone();
        let removed = tokio::task::spawn_blocking(move || folders.remove()).await;
        let removed: Result<()> =
            removed.unwrap_or_else(|e| Err(Error::Internal(format!("removal failed: {e}"))));
        removed.map_err(|error| (Step::Folders, error))
    }
}

/// How often the shim binary may fail before only the container's processes count.
const DELETES_MAX: u32 = 4;

const RETRY_FIRST: Duration = Duration::from_millis(100);

/// What blocks a removal is noticed to have gone within this time.
const RETRY_LAST: Duration = Duration::from_secs(30);
