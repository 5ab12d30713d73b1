use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{task::JoinSet, time::timeout};

use super::{
    ShimRuntime, ShimTask, client::unknown_end, folders::Folders, removal::Remains,
    runtime::connect, start::Binary,
};
use crate::{Error, Result, bundle::check_id};

/// What [`ShimRuntime::recover`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Tasks that go on, as namespace and id; ended ones keep their exit.
    pub alive: Vec<(String, String)>,
    /// Tasks whose shim was gone; their bundles were removed.
    pub lost: Vec<(String, String)>,
    /// Tasks whose shim did not answer, with the reason. Nothing of them was
    /// touched; those that took the connection are registered and answer when
    /// their shim does again, the others are found by the next recovery.
    pub mute: Vec<(String, String, String)>,
}

enum Found {
    Alive,
    Lost,
    Mute(String),
}

impl ShimRuntime {
    /// Finds the tasks of an earlier daemon again, all side by side; call it
    /// once, before serving. `runtime_of` tells the runtime's name of a
    /// container, by namespace and id, when its bundle does not.
    ///
    /// Takes little longer than `timeouts.load`, whatever the shims do: one
    /// that is mute keeps its container and holds up no other.
    pub async fn recover(
        self: &Arc<Self>,
        runtime_of: &(dyn Fn(&str, &str) -> Option<String> + Send + Sync),
    ) -> Recovered {
        let mut jobs = JoinSet::new();
        for (namespace, id) in bundles(&self.config.state_dir) {
            let folders = Folders::new(&self.config, &namespace, &id);
            let binary = folders.read_binary().or_else(|error| {
                let name = runtime_of(&namespace, &id).ok_or(error)?;
                self.resolve(&name)
            });
            let this = Arc::clone(self);
            jobs.spawn(async move {
                let found = this.find_again(&namespace, &id, &folders, binary).await;
                (namespace, id, found)
            });
        }
        let mut recovered = Recovered::default();
        while let Some(job) = jobs.join_next().await {
            let Ok((namespace, id, found)) = job else { continue };
            match found {
                Found::Alive => recovered.alive.push((namespace, id)),
                Found::Lost => recovered.lost.push((namespace, id)),
                Found::Mute(why) => recovered.mute.push((namespace, id, why)),
            }
        }
        recovered.alive.sort();
        recovered.lost.sort();
        recovered.mute.sort();
        self.remove_orphans();
        recovered
    }

    async fn find_again(
        self: &Arc<Self>,
        namespace: &str,
        id: &str,
        folders: &Folders,
        binary: Result<PathBuf>,
    ) -> Found {
        let task = match self.reconnect(namespace, id, folders, &binary).await {
            Ok(task) => task,
            Err(error) if !is_proof(&error) => return Found::Mute(error.report()),
            Err(error) => {
                tracing::warn!(namespace, task = id, error = error.report(), "shim is gone");
                self.clear(namespace, id, folders, binary.ok()).await;
                return Found::Lost;
            }
        };
        let mut state = task.state("").await;
        if let Err(Error::NotFound(text)) = &state {
            tracing::warn!(namespace, task = id, text, "shim does not know its container");
            task.deleting.store(true, Ordering::Release);
            task.shut_down(self.config.timeouts.shutdown).await;
            // One that stays has others to keep, or has just received what an earlier daemon sent.
            if timeout(ENDING, task.client.closed()).await.is_err() {
                state = task.state("").await;
                task.deleting.store(matches!(state, Err(Error::NotFound(_))), Ordering::Release);
            }
        }
        match state {
            Ok(state) => {
                task.pid.store(state.pid, Ordering::Release);
                self.register(task);
                Found::Alive
            }
            Err(Error::NotFound(_)) => {
                self.clear(namespace, id, folders, binary.ok()).await;
                Found::Lost
            }
            // Whatever else it says, its container may run.
            Err(error) => {
                tracing::warn!(namespace, task = id, error = error.report(), "shim is mute");
                self.register(task);
                Found::Mute(error.report())
            }
        }
    }

    async fn reconnect(
        self: &Arc<Self>,
        namespace: &str,
        id: &str,
        folders: &Folders,
        binary: &Result<PathBuf>,
    ) -> Result<Arc<ShimTask>> {
        let address = folders.read_address()?;
        let connected = timeout(self.config.timeouts.load, connect(&address)).await;
        let late = |_| Error::DeadlineExceeded("shim does not accept".into());
        let client = connected.map_err(late)??;
        let binary = binary.as_ref().ok().cloned().unwrap_or_default();
        ShimTask::new(self, (namespace, id), binary, (client, address.version))
    }

    /// Removes what a shim that is gone has left, and reports the end of its container.
    async fn clear(
        self: &Arc<Self>,
        namespace: &str,
        id: &str,
        folders: &Folders,
        binary: Option<PathBuf>,
    ) {
        let mut remains = Remains {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            folders: folders.clone(),
            binary,
            shim: None,
        };
        if let Some(path) = &remains.binary {
            let shim = Binary { config: &self.config, path, namespace, id };
            let deleted = shim.delete(&folders.bundle).await;
            let end = match deleted {
                Ok(end) => {
                    remains.binary = None;
                    end
                }
                Err(error) => {
                    tracing::warn!(namespace, task = id, error = error.report(), "cleanup failed");
                    unknown_end(0)
                }
            };
            if end.pid != 0 {
                self.report(namespace, id, &end);
            }
        }
        let mut removed = self.dismantle(remains);
        // What takes longer goes on in the background and holds up nobody.
        let _ = timeout(self.config.timeouts.load, removed.changed()).await;
    }

    /// Removes work folders no bundle belongs to, and bundles whose removal was broken off.
    fn remove_orphans(&self) {
        for (namespace, id) in hidden_bundles(&self.config.state_dir) {
            let folders = Folders::new(&self.config, &namespace, &id);
            // One that is there under its own name takes its other half along in the end.
            if !folders.bundle.exists()
                && let Err(error) = folders.remove()
            {
                tracing::warn!(namespace, task = id, error = error.report(), "bundle stays");
            }
        }
        for (namespace, id) in children(&self.config.root_dir) {
            let folders = Folders::new(&self.config, &namespace, &id);
            if !folders.bundle.exists()
                && let Err(error) = crate::remove::remove_tree(&folders.work)
            {
                tracing::warn!(namespace, task = id, error = error.report(), "work folder stays");
            }
        }
    }
}

/// Whether a failure to connect proves that nobody listens. All others may
/// pass, and a container that runs must not be removed for them.
pub(super) fn is_proof(error: &Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    match error {
        Error::Io { source, .. } => matches!(source.kind(), ConnectionRefused | NotFound),
        Error::InvalidArgument(_) | Error::NotFound(_) => true,
        _ => false,
    }
}

/// Namespaces and ids of bundles that hold something; empty ones are removed.
pub(super) fn bundles(state_dir: &Path) -> Vec<(String, String)> {
    let mut found = children(state_dir);
    // Only an empty folder can be removed this way.
    found.retain(|(namespace, id)| fs::remove_dir(state_dir.join(namespace).join(id)).is_err());
    found
}

fn children(root: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for namespace in folders_in(root) {
        for id in folders_in(&root.join(&namespace)) {
            found.push((namespace.clone(), id));
        }
    }
    found
}

/// Namespaces and ids of bundles that have the hidden name of those being removed.
fn hidden_bundles(state_dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for namespace in folders_in(state_dir) {
        let entries = fs::read_dir(state_dir.join(&namespace)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        for name in names {
            let id = name.strip_prefix('.').filter(|id| check_id(id).is_ok());
            found.extend(id.map(|id| (namespace.clone(), id.to_owned())));
        }
    }
    found
}

/// How long a shim that was told to end may take before it is asked why it stays.
const ENDING: Duration = Duration::from_secs(2);

/// Folders named like containers; half-removed ones begin with a dot.
fn folders_in(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| check_id(name).is_ok()).collect()
}
