//! A snapshotter without filesystems: keeps the graph in memory, so that tests of the graph are
//! quick and need no root. It can be told to know layers already, as remote snapshotters do.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::SystemTime;

use crated_snapshot::{
    CommitOptions, Error, Info, Key, Kind, LabelUpdate, Labels, Mount, Name, Result, Snapshotter,
    Usage,
};

#[derive(Default)]
pub struct Layers {
    snapshots: Mutex<BTreeMap<String, Info>>,
    /// Preparing with this label finds the layer present.
    pub remote: Mutex<Vec<String>>,
    /// Names in the order of their removal.
    pub removed: Mutex<Vec<String>>,
    pub cleanups: Mutex<usize>,
    lost: Mutex<Vec<String>>,
}

pub const REF: &str = "containerd.io/snapshot.ref";

impl Layers {
    /// Has the layer `name` present from the start, under a name of its own.
    pub fn know(&self, chain_id: &str, parent: Option<&str>) -> String {
        let name = format!("remote/{chain_id}");
        let labels =
            [(REF, chain_id), ("containerd.io/snapshot/remote", "yes"), ("origin", "far away")];
        let info = Info {
            name: name.clone(),
            parent: parent.map(|parent| Name::new(parent).unwrap()),
            kind: Kind::Committed,
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        };
        self.snapshots.lock().unwrap().insert(name.clone(), info);
        self.remote.lock().unwrap().push(chain_id.to_owned());
        name
    }

    /// Loses a snapshot, as a crash or an administrator may.
    pub fn lose(&self, name: &str) {
        self.snapshots.lock().unwrap().remove(name).expect("was there");
    }

    /// Loses a snapshot in a power cut, and says so.
    pub fn lose_power(&self, name: &str) {
        self.lose(name);
        self.lost.lock().unwrap().push(name.to_owned());
    }

    pub fn names(&self) -> Vec<String> {
        self.snapshots.lock().unwrap().keys().cloned().collect()
    }

    fn create(
        &self,
        kind: Kind,
        key: &Key,
        parent: Option<&Name>,
        labels: &Labels,
    ) -> Result<Vec<Mount>> {
        if let Some(target) = labels.get(REF)
            && self.remote.lock().unwrap().contains(target)
        {
            return Err(Error::AlreadyExists(target.clone()));
        }
        let mut snapshots = self.snapshots.lock().unwrap();
        if snapshots.contains_key(key.as_str()) {
            return Err(Error::AlreadyExists(key.to_string()));
        }
        if let Some(parent) = parent {
            match snapshots.get(parent.as_str()) {
                None => return Err(Error::NotFound(parent.to_string())),
                Some(info) if info.kind != Kind::Committed => {
                    let reason = "is not committed".to_owned();
                    return Err(Error::InvalidArgument { what: "parent", reason });
                }
                Some(_) => {}
            }
        }
        let now = SystemTime::now();
        let info = Info {
            name: key.to_string(),
            parent: parent.cloned(),
            kind,
            labels: labels.clone(),
            created_at: now,
            updated_at: now,
        };
        snapshots.insert(key.to_string(), info);
        Ok(vec![])
    }
}

impl Snapshotter for Layers {
    fn stat(&self, key: &str) -> Result<Info> {
        self.snapshots
            .lock()
            .unwrap()
            .get(key)
            .cloned()
            .ok_or_else(|| Error::NotFound(key.to_owned()))
    }

    fn update(&self, key: &str, labels: &LabelUpdate) -> Result<Info> {
        let mut snapshots = self.snapshots.lock().unwrap();
        let info = snapshots.get_mut(key).ok_or_else(|| Error::NotFound(key.to_owned()))?;
        info.labels = labels.apply(&info.labels);
        Ok(info.clone())
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        self.stat(key).map(|_| Usage::default())
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        self.stat(key.as_str()).map(|_| vec![])
    }

    fn prepare(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::Active, key, parent, labels)
    }

    fn view(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::View, key, parent, labels)
    }

    fn commit(&self, name: &Name, key: &Key, options: &CommitOptions) -> Result<()> {
        let mut snapshots = self.snapshots.lock().unwrap();
        if snapshots.contains_key(name.as_str()) {
            return Err(Error::AlreadyExists(name.to_string()));
        }
        let info =
            snapshots.get(key.as_str()).ok_or_else(|| Error::NotFound(key.to_string()))?.clone();
        if info.kind != Kind::Active {
            let reason = "is not active".to_owned();
            return Err(Error::FailedPrecondition { key: key.to_string(), reason });
        }
        if let (Some(own), Some(demanded)) = (&info.parent, &options.parent)
            && own != demanded
        {
            let reason = "is another".to_owned();
            return Err(Error::InvalidArgument { what: "parent", reason });
        }
        snapshots.remove(key.as_str());
        let info = Info {
            name: name.to_string(),
            parent: info.parent.or_else(|| options.parent.clone()),
            kind: Kind::Committed,
            labels: options.labels.clone(),
            ..info
        };
        snapshots.insert(name.to_string(), info);
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<()> {
        let mut snapshots = self.snapshots.lock().unwrap();
        if snapshots
            .values()
            .any(|info| info.parent.as_ref().is_some_and(|parent| parent.as_str() == key))
        {
            let reason = "has children".to_owned();
            return Err(Error::FailedPrecondition { key: key.to_owned(), reason });
        }
        snapshots.remove(key).ok_or_else(|| Error::NotFound(key.to_owned()))?;
        self.removed.lock().unwrap().push(key.to_owned());
        Ok(())
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        let infos: Vec<_> = self.snapshots.lock().unwrap().values().cloned().collect();
        for info in infos {
            if visit(info).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn cleanup(&self) -> Result<()> {
        *self.cleanups.lock().unwrap() += 1;
        Ok(())
    }

    fn lost(&self) -> Result<Vec<String>> {
        Ok(self.lost.lock().unwrap().clone())
    }

    fn forget_lost(&self, keys: &[String]) -> Result<()> {
        self.lost.lock().unwrap().retain(|key| !keys.contains(key));
        Ok(())
    }
}
