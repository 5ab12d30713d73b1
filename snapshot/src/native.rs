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
use crate::metastore::{Snapshot, SyncMode};
use crate::shelf::{Shelf, refuse_rebase};
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
    shelf: Shelf,
}

impl NativeSnapshotter {
    /// Opens or makes the snapshotter below `root`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the root is not private;
    /// [`Error::Metadata`] when another process has it open; [`Error::Io`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let (root, sync) = (root.into(), SyncMode::default());
        let directories = Directories::open(&root, sync)?;
        Ok(Self { shelf: Shelf::open(&root, sync, directories)? })
    }

    /// The directory everything is kept in.
    pub fn root(&self) -> &Path {
        self.shelf.root()
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
                let staged = self.shelf.directories.stage()?;
                let path = staged.path();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                    .map_err(|e| Error::io("change mode", &path, e))?;
                if let Some(id) = parent_id {
                    copy::tree(&Dir::open(&self.shelf.directories.path(id))?, &Dir::open(&path)?)?;
                }
                Some(staged)
            }
        };
        let snapshot = self.shelf.store.create(kind, key, parent, labels, |snapshot| {
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
        match self.shelf.store.info(key.as_str()) {
            Err(Error::NotFound(_)) => {}
            Ok(_) => return Err(Error::AlreadyExists(key.to_string())),
            Err(error) => return Err(error),
        }
        let snapshot = self.shelf.store.snapshot(parent.as_str())?;
        match snapshot.info.kind {
            Kind::Committed => Ok(snapshot.id),
            Kind::Active | Kind::View => {
                let reason = format!("{:?} is not committed", parent.as_str());
                Err(Error::invalid("parent", reason))
            }
        }
    }

    fn measure(&self, snapshot: &Snapshot) -> Result<Usage> {
        usage::of(&self.shelf.directories.path(snapshot.id))
    }

    fn mounts_of(&self, snapshot: &Snapshot) -> Vec<Mount> {
        let (id, access) = match (snapshot.info.kind, snapshot.parent_ids.first()) {
            (Kind::View, Some(&parent)) => (parent, "ro"),
            (Kind::View, None) => (snapshot.id, "ro"),
            _ => (snapshot.id, "rw"),
        };
        vec![Mount {
            kind: "bind".to_owned(),
            source: self.shelf.directories.path(id).display().to_string(),
            target: String::new(),
            options: vec!["rbind".to_owned(), access.to_owned()],
        }]
    }
}

impl Snapshotter for NativeSnapshotter {
    fn stat(&self, key: &str) -> Result<Info> {
        self.shelf.store.info(key)
    }

    fn update(&self, key: &str, labels: &LabelUpdate) -> Result<Info> {
        self.shelf.store.update(key, labels)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        self.shelf.store.usage(key, |snapshot| self.measure(snapshot))
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        Ok(self.mounts_of(&self.shelf.store.mountable(key)?))
    }

    fn prepare(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::Active, key, parent, labels)
    }

    fn view(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::View, key, parent, labels)
    }

    fn commit(&self, name: &Name, key: &Key, options: &CommitOptions) -> Result<()> {
        self.shelf.commit(name, key, options, |snapshot| {
            refuse_rebase("copies", snapshot, options)?;
            self.measure(snapshot)
        })?;
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.shelf.remove(key, true).map(drop)
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        self.shelf.store.walk(&mut |_, info| visit(info))
    }

    fn cleanup(&self) -> Result<()> {
        self.shelf.cleanup()
    }

    fn settle(&self) -> Result<()> {
        self.shelf.settle()
    }

    fn lost(&self) -> Result<Vec<String>> {
        self.shelf.store.lost()
    }

    fn forget_lost(&self, keys: &[String]) -> Result<()> {
        self.shelf.store.forget_lost(keys)
    }
}
