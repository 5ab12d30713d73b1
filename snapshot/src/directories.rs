//! The directories of snapshots, named by their ids.
//!
//! ```text
//! <root>/                0700, checked when opened
//!   metadata.db          the graph
//!   snapshots/
//!     <id>/              belongs to the snapshot of this id in metadata.db,
//!                        or to nobody if there is none
//!     new-<unique>/      being filled by this process, else a leftover
//!     rm-<unique>/       being deleted
//! ```
//!
//! A directory gets its id by rename, just before the record that names it is
//! written; it loses it after the record is gone. So a crash at any moment
//! leaves directories without records, never records without directories, and
//! [`Directories::orphans`] finds the former. Nothing is deleted under an id:
//! it is renamed first, which is quick whatever it holds, and a deletion that
//! is interrupted goes on with the next cleanup.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::metastore::SyncMode;
use crate::snapshotter::Kind;
use crate::tree::{self, Dir};

/// `<root>/snapshots`, held open.
#[derive(Debug)]
pub(crate) struct Directories {
    dir: Dir,
    sync: SyncMode,
    /// Names of `new-` and `rm-` directories in use, and a counter for more.
    in_use: Mutex<(HashSet<CString>, u64)>,
    flushes: Flushes,
}

/// Counts flushes of the filesystem, so that those who wait for one share the
/// next.
#[derive(Debug, Default)]
struct Flushes {
    /// Tickets given out.
    asked: AtomicU64,
    /// All tickets below this one are served.
    served: Mutex<u64>,
}

/// A directory being filled, deleted on drop unless it was given its id.
pub(crate) struct Staged<'a> {
    directories: &'a Directories,
    name: CString,
    placed: bool,
}

impl Directories {
    /// Opens or makes `<root>/snapshots`.
    pub(crate) fn open(root: &Path, sync: SyncMode) -> Result<Self> {
        ensure_private(root)?;
        let path = root.join("snapshots");
        ensure_private(&path)?;
        let dir = Dir::open(&path)?;
        Ok(Self { dir, sync, in_use: Mutex::default(), flushes: Flushes::default() })
    }

    /// The path of a snapshot's directory.
    pub(crate) fn path(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    /// Makes an empty directory without an id.
    pub(crate) fn stage(&self) -> Result<Staged<'_>> {
        let name = self.reserve("new");
        let staged = Staged { directories: self, name, placed: false };
        rustix::fs::mkdirat(&self.dir, &staged.name, Mode::RWXU)
            .map_err(|e| Error::io("make directory", staged.path(), e))?;
        Ok(staged)
    }

    /// Takes a snapshot's directory out of use; the path it has now.
    pub(crate) fn retire(&self, id: u64) -> Result<Option<CString>> {
        let old = c_name(id);
        let new = self.reserve("rm");
        match rustix::fs::renameat_with(&self.dir, &old, &self.dir, &new, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Some(new)),
            Err(Errno::NOENT) => {
                self.release(&new);
                Ok(None)
            }
            Err(errno) => {
                self.release(&new);
                Err(Error::io("rename", self.path(id), errno))
            }
        }
    }

    /// Gives a retired directory its id back, after the record stayed.
    pub(crate) fn restore(&self, retired: &CStr, id: u64) {
        let flags = RenameFlags::NOREPLACE;
        let result = rustix::fs::renameat_with(&self.dir, retired, &self.dir, c_name(id), flags);
        self.release(retired);
        if let Err(error) = result {
            tracing::error!(id, %error, "directory of a snapshot could not be put back");
        }
    }

    /// Deletes a directory by name, and all in it.
    pub(crate) fn delete(&self, name: &CStr) -> Result<()> {
        let result = tree::remove(self.dir.as_fd(), name)
            .map_err(|e| Error::io("remove", self.dir.entry_path(name), e));
        self.release(name);
        result
    }

    /// Takes all directories out of use that belong to no snapshot of `ids`
    /// and to no work under way; the names they have now. Only while no
    /// snapshot is made or removed: the ids must be current.
    pub(crate) fn orphans(&self, ids: &BTreeMap<u64, Kind>) -> Result<Vec<CString>> {
        let mut orphans = Vec::new();
        for name in self.dir.names()? {
            let id: Option<u64> = name.to_str().ok().and_then(|name| name.parse().ok());
            // "02" is not the directory of snapshot 2.
            match id.filter(|id| c_name(*id) == name) {
                Some(id) if ids.contains_key(&id) => {}
                Some(id) => orphans.extend(self.retire(id)?),
                _ if self.lock().0.insert(name.clone()) => orphans.push(name),
                _ => {}
            }
        }
        Ok(orphans)
    }

    /// Deletes all of `names`; reports the first failure after trying all.
    pub(crate) fn delete_all(&self, names: &[CString]) -> Result<()> {
        let mut first = Ok(());
        for name in names {
            if let Err(error) = self.delete(name) {
                tracing::warn!(%error, "directory of a removed snapshot stays");
                first = first.and(Err(error));
            }
        }
        first
    }

    /// Writes everything on this filesystem to the disk.
    pub(crate) fn sync_filesystem(&self) -> Result<()> {
        let ticket = self.flushes.asked.fetch_add(1, Ordering::SeqCst);
        let mut served = self.flushes.served.lock().unwrap_or_else(PoisonError::into_inner);
        // The flush just waited for began after this call did.
        if *served > ticket {
            return Ok(());
        }
        let asked = self.flushes.asked.load(Ordering::SeqCst);
        rustix::fs::syncfs(&self.dir).map_err(|e| self.dir.error("sync", e))?;
        *served = asked;
        Ok(())
    }

    fn reserve(&self, prefix: &str) -> CString {
        let mut in_use = self.lock();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        in_use.1 += 1;
        let (unique, pid) = (in_use.1, std::process::id());
        let text = format!("{prefix}-{:x}-{pid:x}-{unique:x}", now.as_nanos());
        let name = CString::new(text).unwrap_or_default();
        in_use.0.insert(name.clone());
        name
    }

    fn release(&self, name: &CStr) {
        self.lock().0.remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, (HashSet<CString>, u64)> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Staged<'_> {
    pub(crate) fn path(&self) -> PathBuf {
        self.directories.dir.entry_path(&self.name)
    }

    /// Gives the directory its id, durably if records are durable.
    pub(crate) fn place(&mut self, id: u64) -> Result<()> {
        let dir = &self.directories.dir;
        let new = c_name(id);
        let rename =
            || rustix::fs::renameat_with(dir, &self.name, dir, &new, RenameFlags::NOREPLACE);
        let renamed = match rename() {
            // Left by a crash that took its record back: nobody's.
            Err(Errno::EXIST) => {
                let old = self.directories.retire(id)?;
                let renamed = rename();
                if let Some(old) = old {
                    self.directories.release(&old);
                }
                renamed
            }
            renamed => renamed,
        };
        renamed.map_err(|e| Error::io("rename", self.path(), e))?;
        self.placed = true;
        self.directories.release(&self.name);
        if self.directories.sync != SyncMode::Deferred {
            rustix::fs::fsync(dir).map_err(|e| dir.error("sync", e))?;
        }
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.placed
            && let Err(error) = self.directories.delete(&self.name)
        {
            tracing::warn!(%error, "unfinished snapshot stays until the next cleanup");
        }
    }
}

/// Makes a directory with mode 0700, or checks that one which exists belongs
/// to this user and that nobody else may write to it.
pub(crate) fn ensure_private(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent()
        && !parent.as_os_str().is_empty()
        && !parent.exists()
    {
        std::fs::create_dir_all(parent).map_err(|e| Error::io("make directory", parent, e))?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io("make directory", path, error)),
    }
    let metadata = path.symlink_metadata().map_err(|e| Error::io("stat", path, e))?;
    let uid = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
        let reason = format!(
            "{} must be a directory of user {uid} that nobody else can write to",
            path.display()
        );
        return Err(Error::invalid("root", reason));
    }
    Ok(())
}

fn c_name(id: u64) -> CString {
    CString::new(id.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_nobody_is_renamed_before_it_is_deleted() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        let open = || Directories::open(&root, SyncMode::Never).unwrap();
        let directories = open();
        for name in ["1", "2", "02", "rm-left", "new-left", "other"] {
            std::fs::create_dir_all(root.join("snapshots").join(name).join("deep/er")).unwrap();
        }
        let ids = BTreeMap::from([(1, Kind::Active)]);
        let orphans = directories.orphans(&ids).unwrap();
        assert_eq!(orphans.len(), 5);
        assert!(root.join("snapshots/1").exists() && !root.join("snapshots/2").exists());
        // The id is free at once, whatever a slow deletion still has to do.
        directories.stage().unwrap().place(2).unwrap();
        assert_eq!(
            directories.orphans(&BTreeMap::from([(1, Kind::Active), (2, Kind::Active)])).unwrap(),
            Vec::<CString>::new(),
            "those are being deleted already"
        );

        // Killed here: the next process finds and finishes all of it.
        drop(directories);
        let directories = open();
        let again = directories.orphans(&BTreeMap::from([(1, Kind::Active), (2, Kind::Active)]));
        let again = again.unwrap();
        assert_eq!(again.len(), 5);
        directories.delete_all(&again).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(root.join("snapshots"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["1", "2"]);
    }

    #[test]
    fn flushes_that_were_asked_for_before_one_began_share_it() {
        let temp = tempfile::tempdir().unwrap();
        let directories = Directories::open(&temp.path().join("root"), SyncMode::Never).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| directories.sync_filesystem().unwrap());
            }
        });
        assert_eq!(*directories.flushes.served.lock().unwrap(), 8);
    }
}
