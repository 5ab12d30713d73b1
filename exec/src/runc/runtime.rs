use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{Runc, RuncConfig, task::RuncTask};
use crate::{Bundle, CreateTask, Error, Result, Runtime, Task, reaper::Reaper, rootfs};

/// Runs containers from this process with a runc-compatible binary.
///
/// Nothing survives this process but the containers themselves: who needs
/// them to go on under a new daemon uses a shim. Clones share their tasks.
#[derive(Clone)]
pub struct RuncRuntime {
    runc: Runc,
    reaper: Arc<Reaper>,
    tasks: Arc<Tasks>,
}

/// The tasks of one runtime; `None` while one is being made.
#[derive(Default)]
pub(super) struct Tasks {
    map: Mutex<BTreeMap<String, Option<Arc<RuncTask>>>>,
}

impl RuncRuntime {
    /// A runtime without tasks.
    pub fn new(config: RuncConfig, reaper: Arc<Reaper>) -> Self {
        let runc = Runc::new(config, Arc::clone(&reaper));
        RuncRuntime { runc, reaper, tasks: Arc::default() }
    }

    /// The commands it runs.
    pub fn runc(&self) -> &Runc {
        &self.runc
    }

    async fn make(self, request: CreateTask) -> Result<Arc<dyn Task>> {
        let id = request.id.clone();
        let root = &self.runc.config().root;
        fs::create_dir_all(root).map_err(|e| Error::io("create", root, e))?;
        let tasks = Arc::downgrade(&self.tasks);
        let made = RuncTask::create(self.runc.clone(), self.reaper, tasks, request).await;
        let mut map = self.tasks.lock();
        match made {
            Ok(task) => {
                map.insert(id, Some(Arc::clone(&task)));
                Ok(task)
            }
            Err(error) => {
                map.remove(&id);
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Runtime for RuncRuntime {
    async fn create(&self, request: CreateTask) -> Result<Arc<dyn Task>> {
        crate::bundle::check_id(&request.id)?;
        self.tasks.reserve(&request.id)?;
        // A task of its own, so that a caller who gives up leaves nothing half-made.
        let made = tokio::spawn(self.clone().make(request)).await;
        made.unwrap_or_else(|e| Err(Error::Internal(format!("creation failed: {e}"))))
    }

    async fn task(&self, id: &str) -> Result<Arc<dyn Task>> {
        Ok(self.tasks.find(id)?)
    }

    async fn tasks(&self) -> Vec<Arc<dyn Task>> {
        let map = self.tasks.lock();
        map.values().flatten().map(|task| Arc::clone(task) as Arc<dyn Task>).collect()
    }
}

impl Tasks {
    pub(super) fn find(&self, id: &str) -> Result<Arc<RuncTask>> {
        let missing = || Error::NotFound(format!("container {id}: not found"));
        self.lock().get(id).cloned().flatten().ok_or_else(missing)
    }

    pub(super) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    fn reserve(&self, id: &str) -> Result<()> {
        let mut map = self.lock();
        if map.contains_key(id) {
            return Err(Error::AlreadyExists(format!("container {id}: already exists")));
        }
        map.insert(id.to_owned(), None);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<RuncTask>>>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends and removes a container whose runtime process died: kills it, forgets
/// it, removes its cgroup, unmounts its root. Missing parts are success.
///
/// # Errors
///
/// What stays, in the words of the runtime or the kernel.
pub async fn delete_leftovers(runc: &Runc, id: &str, bundle: &Path) -> Result<()> {
    let deleted = runc.delete(id, true).await;
    let Ok(bundle) = Bundle::open(bundle) else { return deleted };
    // A creation that was broken off has a cgroup its runtime knows nothing of.
    let glance = bundle.read_spec().and_then(|spec| crate::spec::Glance::of(&spec));
    let swept = match glance.as_ref().ok().and_then(crate::spec::Glance::cgroups_path) {
        Some(path) => crate::cgroup::remove(path, id),
        None => Ok(()),
    };
    rootfs::detach(&bundle.rootfs())?;
    deleted.and(swept)
}
