//! Records and directories of one snapshotter, and what all of those that keep
//! directories do with them in the same way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::directories::Directories;
use crate::error::{Error, Result};
use crate::metastore::{MetaStore, Snapshot, SyncMode};
use crate::settler::Settler;
use crate::snapshotter::{CommitOptions, Key, Name, Usage};

/// The metadata and the directories below one root.
#[derive(Debug)]
pub(crate) struct Shelf {
    root: PathBuf,
    sync: SyncMode,
    // Ends before the others: it works on them.
    settler: Option<Settler>,
    pub(crate) store: Arc<MetaStore>,
    pub(crate) directories: Arc<Directories>,
}

impl Shelf {
    /// Opens or makes everything below `root`; the directories come first, for
    /// those who look into them before anything is recorded.
    pub(crate) fn open(root: &Path, sync: SyncMode, directories: Directories) -> Result<Self> {
        let store = Arc::new(MetaStore::open(&root.join("metadata.db"), sync)?);
        let directories = Arc::new(directories);
        let settler = match sync {
            SyncMode::Batched => {
                let (store, directories) = (store.clone(), directories.clone());
                Some(Settler::start(move || settle(&store, &directories))?)
            }
            SyncMode::EachCommit | SyncMode::Deferred | SyncMode::Never => None,
        };
        Ok(Self { root: root.to_owned(), sync, settler, store, directories })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Commits what `finish` has put into its final form and measured, before
    /// anybody has to wait for the transaction.
    pub(crate) fn commit(
        &self,
        name: &Name,
        key: &Key,
        options: &CommitOptions,
        finish: impl FnOnce(&Snapshot) -> Result<Usage>,
    ) -> Result<Snapshot> {
        let before = self.store.check_commit(name, key, options)?;
        let usage = finish(&before)?;
        if self.sync == SyncMode::EachCommit {
            self.directories.sync_filesystem()?;
        }
        let committed = self
            .store
            .commit(name, key, options, usage, |snapshot| before.ensure_same(snapshot))?;
        if let Some(settler) = &self.settler {
            settler.wake();
        }
        Ok(committed)
    }

    /// Forgets a snapshot, and deletes its directory if that is to be `now`.
    pub(crate) fn remove(&self, key: &str, now: bool) -> Result<Snapshot> {
        let mut retired = None;
        let removed = self.store.remove(key, |snapshot| {
            if now {
                retired = self.directories.retire(snapshot.id)?.map(|name| (name, snapshot.id));
            }
            Ok(())
        });
        match (removed, retired) {
            (Ok(snapshot), Some((name, _))) => {
                self.directories.delete(&name)?;
                Ok(snapshot)
            }
            (Err(error), Some((name, id))) => {
                self.directories.restore(&name, id);
                Err(error)
            }
            (removed, None) => removed,
        }
    }

    /// Deletes the directories that belong to nobody.
    pub(crate) fn cleanup(&self) -> Result<()> {
        let orphans = self.store.with_ids(|ids| self.directories.orphans(ids))?;
        if self.sync == SyncMode::Deferred {
            // No record may come back whose directory is about to go.
            self.sync()?;
        }
        self.directories.delete_all(&orphans)
    }

    /// Makes everything committed so far survive a power cut.
    pub(crate) fn settle(&self) -> Result<()> {
        match self.sync {
            SyncMode::Batched => settle(&self.store, &self.directories),
            SyncMode::Deferred => self.sync(),
            SyncMode::EachCommit => Ok(()),
            SyncMode::Never => self.directories.sync_filesystem(),
        }
    }

    /// Makes every change so far durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.directories.sync_filesystem()?;
        self.store.flush()
    }
}

fn settle(store: &MetaStore, directories: &Directories) -> Result<()> {
    store.settle(|| directories.sync_filesystem())
}

/// For implementors whose snapshots hold whole filesystems: there is nothing
/// to merge with.
pub(crate) fn refuse_rebase(
    what: &str,
    snapshot: &Snapshot,
    options: &CommitOptions,
) -> Result<()> {
    match options.parent.is_some() && snapshot.info.parent.is_none() {
        true => {
            let reason = format!("full {what} cannot be put on a parent afterwards");
            Err(Error::Unsupported { reason })
        }
        false => Ok(()),
    }
}
