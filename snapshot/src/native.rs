//! Layers as plain copies, on any filesystem.
//!
//! `snapshots/<id>` (see the module `directories`) holds the whole filesystem
//! of a snapshot, its parents' files included. A view of a parent has no
//! directory of its own.

use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crated_mount::Mount;

use crate::copy;
use crate::directories::Directories;
use crate::error::{Error, Result};
use crate::metastore::{MetaStore, Snapshot, SyncMode};
use crate::snapshotter::{
    CommitOptions, Info, Key, Kind, LabelUpdate, Labels, Name, Snapshotter, Usage,
};
use crate::tree::Dir;
use crate::usage;

/// Keeps every snapshot as a full copy of its parent, cloned where the
/// filesystem can.
///
/// Slow and large, but it needs nothing of the kernel. A snapshot made without
/// a parent cannot be put on one at commit: there is nothing to merge with.
#[derive(Debug)]
pub struct NativeSnapshotter {
    root: PathBuf,
    store: MetaStore,
    directories: Directories,
}

impl NativeSnapshotter {
    /// Opens or makes the snapshotter below `root`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the root is not private;
    /// [`Error::Metadata`] when another process has it open; [`Error::Io`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let directories = Directories::open(&root, SyncMode::EachCommit)?;
        let store = MetaStore::open(&root.join("metadata.db"), SyncMode::EachCommit)?;
        Ok(Self { root, store, directories })
    }

    /// The directory everything is kept in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn create(
        &self,
        kind: Kind,
        key: &Key,
        parent: Option<&Name>,
        labels: &Labels,
    ) -> Result<Vec<Mount>> {
        let parent_id = match parent {
            Some(parent) => Some(self.parent_id(key, parent)?),
            None => None,
        };
        // Copied before the transaction, which would make everybody wait.
        let mut staged = match (kind, parent_id) {
            (Kind::View, Some(_)) => None,
            (_, parent_id) => {
                let staged = self.directories.stage()?;
                let path = staged.path();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                    .map_err(|e| Error::io("change mode", &path, e))?;
                if let Some(id) = parent_id {
                    copy::tree(&Dir::open(&self.directories.path(id))?, &Dir::open(&path)?)?;
                }
                Some(staged)
            }
        };
        let snapshot = self.store.create(kind, key, parent, labels, |snapshot| {
            if snapshot.parent_ids.first() != parent_id.as_ref() {
                // Removed, and its name taken by another one.
                let parent = parent.map(Name::to_string).unwrap_or_default();
                return Err(Error::NotFound(parent));
            }
            staged.as_mut().map_or(Ok(()), |staged| staged.place(snapshot.id))
        })?;
        Ok(self.mounts_of(&snapshot))
    }

    /// The id of a parent, after the checks that spare a copy in vain.
    fn parent_id(&self, key: &Key, parent: &Name) -> Result<u64> {
        match self.store.info(key.as_str()) {
            Err(Error::NotFound(_)) => {}
            Ok(_) => return Err(Error::AlreadyExists(key.to_string())),
            Err(error) => return Err(error),
        }
        let snapshot = self.store.snapshot(parent.as_str())?;
        match snapshot.info.kind {
            Kind::Committed => Ok(snapshot.id),
            Kind::Active | Kind::View => {
                let reason = format!("{:?} is not committed", parent.as_str());
                Err(Error::invalid("parent", reason))
            }
        }
    }

    fn mounts_of(&self, snapshot: &Snapshot) -> Vec<Mount> {
        let (id, access) = match (snapshot.info.kind, snapshot.parent_ids.first()) {
            (Kind::View, Some(&parent)) => (parent, "ro"),
            (Kind::View, None) => (snapshot.id, "ro"),
            _ => (snapshot.id, "rw"),
        };
        vec![Mount {
            kind: "bind".to_owned(),
            source: self.directories.path(id).display().to_string(),
            target: String::new(),
            options: vec!["rbind".to_owned(), access.to_owned()],
        }]
    }
}

impl Snapshotter for NativeSnapshotter {
    fn stat(&self, key: &str) -> Result<Info> {
        self.store.info(key)
    }

    fn update(&self, key: &str, labels: &LabelUpdate) -> Result<Info> {
        self.store.update(key, labels)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        let snapshot = self.store.snapshot(key)?;
        match snapshot.info.kind {
            Kind::Active => usage::of(&self.directories.path(snapshot.id)),
            Kind::View | Kind::Committed => Ok(snapshot.usage),
        }
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        let snapshot = self.store.snapshot(key.as_str())?;
        match snapshot.info.kind {
            Kind::Committed => {
                Err(Error::precondition(key.as_str(), "is committed, not mountable"))
            }
            Kind::Active | Kind::View => Ok(self.mounts_of(&snapshot)),
        }
    }

    fn prepare(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::Active, key, parent, labels)
    }

    fn view(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::View, key, parent, labels)
    }

    fn commit(&self, name: &Name, key: &Key, options: &CommitOptions) -> Result<()> {
        let before = self.store.check_commit(name, key, options)?;
        if options.parent.is_some() && before.info.parent.is_none() {
            let reason = "full copies cannot be put on a parent afterwards".into();
            return Err(Error::Unsupported { reason });
        }
        let usage = usage::of(&self.directories.path(before.id))?;
        self.directories.sync_filesystem()?;
        self.store.commit(name, key, options, usage, |snapshot| before.ensure_same(snapshot))?;
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<()> {
        let mut retired = None;
        let removed = self.store.remove(key, |snapshot| {
            retired = self.directories.retire(snapshot.id)?.map(|name| (name, snapshot.id));
            Ok(())
        });
        match (removed, retired) {
            (Ok(_), Some((name, _))) => self.directories.delete(&name),
            (Err(error), Some((name, id))) => {
                self.directories.restore(&name, id);
                Err(error)
            }
            (removed, None) => removed.map(drop),
        }
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        self.store.walk(&mut |_, info| visit(info))
    }

    fn cleanup(&self) -> Result<()> {
        let orphans = self.store.with_ids(|ids| self.directories.orphans(ids))?;
        self.directories.delete_all(&orphans)
    }
}
