//! Snapshots as btrfs makes them.
//!
//! ```text
//! <root>/                 0700, on btrfs
//!   metadata.db           the graph
//!   active/<id>           a writable subvolume
//!   view/<id>             a read-only subvolume
//!   snapshots/<id>        a read-only subvolume, committed
//! ```
//!
//! A subvolume whose id has no record of the matching kind belongs to nobody;
//! `cleanup` deletes it. Committing makes the read-only subvolume first, then
//! the record, then deletes the writable one.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::Permissions;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crated_mount::Mount;
use rustix::io::Errno;

use crate::directories::ensure_private;
use crate::error::{Error, Result};
use crate::metastore::{MetaStore, Snapshot, SyncMode};
use crate::shelf::refuse_rebase;
use crate::snapshotter::{
    CommitOptions, Info, Key, Kind, LabelUpdate, Labels, Name, Snapshotter, Usage,
};
use crate::tree::Dir;
use crate::{sys, usage};

/// Keeps every snapshot as a subvolume that shares blocks with its parent.
///
/// A snapshot made without a parent cannot be put on one at commit.
#[derive(Debug)]
pub struct BtrfsSnapshotter {
    root: PathBuf,
    /// What the filesystem is mounted from.
    device: String,
    store: MetaStore,
    active: Dir,
    view: Dir,
    committed: Dir,
}

/// `f_type` of btrfs.
const BTRFS_MAGIC: i64 = 0x9123_683e;

impl BtrfsSnapshotter {
    /// Opens or makes the snapshotter below `root`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the root is not on btrfs;
    /// [`Error::InvalidArgument`] when it is not private; [`Error::Metadata`]
    /// when another process has it open; [`Error::Io`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        ensure_private(&root)?;
        let root = root.canonicalize().map_err(|e| Error::io("resolve", &root, e))?;
        let device = device_of(&root)?;
        let dir = |name: &str| {
            let path = root.join(name);
            ensure_private(&path)?;
            Dir::open(&path)
        };
        let (active, view, committed) = (dir("active")?, dir("view")?, dir("snapshots")?);
        let store = MetaStore::open(&root.join("metadata.db"), SyncMode::EachCommit)?;
        Ok(Self { root, device, store, active, view, committed })
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
        let snapshot = self.store.create(kind, key, parent, labels, |snapshot| {
            let (dir, name) = (self.dir(kind), c_name(snapshot.id));
            // Left by a crash that took its record back: nobody's.
            destroy(dir, &name)?;
            match snapshot.parent_ids.first() {
                Some(&parent) => self.clone_of(parent, dir, &name, kind == Kind::View),
                None => {
                    sys::create_subvolume(dir, &name)
                        .map_err(|e| dir.error("make subvolume in", e))?;
                    let path = dir.entry_path(&name);
                    std::fs::set_permissions(&path, Permissions::from_mode(0o755))
                        .map_err(|e| Error::io("change mode", &path, e))
                }
            }
        })?;
        self.mounts_of(&snapshot)
    }

    fn clone_of(&self, parent: u64, dir: &Dir, name: &CString, read_only: bool) -> Result<()> {
        let source = open(&self.committed, &c_name(parent))?;
        sys::snapshot_subvolume(&source, dir, name, read_only)
            .map_err(|e| Error::io("snapshot", source.path(), e))
    }

    fn dir(&self, kind: Kind) -> &Dir {
        match kind {
            Kind::Active => &self.active,
            Kind::View => &self.view,
            Kind::Committed => &self.committed,
        }
    }

    fn mounts_of(&self, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        let kind = snapshot.info.kind;
        let subvolume = open(self.dir(kind), &c_name(snapshot.id))?;
        let id = sys::subvolume_id(&subvolume).map_err(|e| subvolume.error("identify", e))?;
        let mut options = vec![format!("subvolid={id}")];
        if kind != Kind::Active {
            options.push("ro".to_owned());
        }
        Ok(vec![Mount {
            kind: "btrfs".to_owned(),
            source: self.device.clone(),
            target: String::new(),
            options,
        }])
    }

    /// What an active snapshot has that its parent has not.
    fn measure(&self, snapshot: &Snapshot) -> Result<Usage> {
        let own = self.active.entry_path(&c_name(snapshot.id));
        match snapshot.parent_ids.first() {
            Some(&parent) => usage::beyond(&self.committed.entry_path(&c_name(parent)), &own),
            None => usage::of(&own),
        }
    }

    /// Makes the committed subvolume, on the disk before the record is.
    fn freeze(&self, snapshot: &Snapshot) -> Result<()> {
        let name = c_name(snapshot.id);
        destroy(&self.committed, &name)?;
        let source = open(&self.active, &name)?;
        sys::snapshot_subvolume(&source, &self.committed, &name, true)
            .map_err(|e| Error::io("snapshot", source.path(), e))?;
        rustix::fs::syncfs(&source).map_err(|e| source.error("sync", e))
    }

    /// Subvolumes without a record of their kind.
    fn orphans(&self, ids: &BTreeMap<u64, Kind>) -> Result<Vec<(Kind, CString)>> {
        let mut orphans = Vec::new();
        for kind in [Kind::Active, Kind::View, Kind::Committed] {
            for name in self.dir(kind).names()? {
                let id = name.to_str().ok().and_then(|name| name.parse().ok());
                if id.and_then(|id: u64| ids.get(&id)) != Some(&kind) {
                    orphans.push((kind, name));
                }
            }
        }
        Ok(orphans)
    }
}

impl Snapshotter for BtrfsSnapshotter {
    fn stat(&self, key: &str) -> Result<Info> {
        self.store.info(key)
    }

    fn update(&self, key: &str, labels: &LabelUpdate) -> Result<Info> {
        self.store.update(key, labels)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        self.store.usage(key, |snapshot| self.measure(snapshot))
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        self.mounts_of(&self.store.mountable(key)?)
    }

    fn prepare(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::Active, key, parent, labels)
    }

    fn view(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::View, key, parent, labels)
    }

    fn commit(&self, name: &Name, key: &Key, options: &CommitOptions) -> Result<()> {
        let before = self.store.check_commit(name, key, options)?;
        refuse_rebase("subvolumes", &before, options)?;
        let usage = self.measure(&before)?;
        let committed = self.store.commit(name, key, options, usage, |snapshot| {
            before.ensure_same(snapshot)?;
            self.freeze(snapshot)
        })?;
        if let Err(error) = destroy(&self.active, &c_name(committed.id)) {
            tracing::warn!(%error, "writable copy stays until the next cleanup");
        }
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<()> {
        let removed = self.store.remove(key, |_| Ok(()))?;
        destroy(self.dir(removed.info.kind), &c_name(removed.id))
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        self.store.walk(&mut |_, info| visit(info))
    }

    fn cleanup(&self) -> Result<()> {
        // Deleting a subvolume is quick, so it may happen while nobody else
        // makes one.
        self.store.with_ids(|ids| {
            let mut first = Ok(());
            for (kind, name) in self.orphans(ids)? {
                if let Err(error) = destroy(self.dir(kind), &name) {
                    tracing::warn!(%error, "subvolume of a removed snapshot stays");
                    first = first.and(Err(error));
                }
            }
            first
        })
    }
}

fn open(dir: &Dir, name: &CString) -> Result<Dir> {
    let missing = || Error::io("open", dir.entry_path(name), Errno::NOENT);
    dir.open_dir(name)?.ok_or_else(missing)
}

/// Deletes a subvolume; a missing one is fine.
fn destroy(dir: &Dir, name: &CString) -> Result<()> {
    match sys::destroy_subvolume(dir, name) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io("delete subvolume", dir.entry_path(name), errno)),
    }
}

/// What the filesystem of `root` is mounted from, if it is btrfs.
fn device_of(root: &Path) -> Result<String> {
    let statfs = rustix::fs::statfs(root).map_err(|e| Error::io("stat filesystem", root, e))?;
    let unsupported =
        |reason: &str| Error::Unsupported { reason: format!("{} {reason}", root.display()) };
    #[allow(clippy::useless_conversion, reason = "the field's type differs between architectures")]
    if i64::from(statfs.f_type) != BTRFS_MAGIC {
        return Err(unsupported("is not on btrfs"));
    }
    let path = "/proc/self/mountinfo";
    let text = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let mounts = crated_mount::mountinfo::parse(&text)
        .map_err(|source| Error::Mount { op: "find device", source })?;
    mounts
        .into_iter()
        .filter(|mount| mount.kind == "btrfs" && root.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.as_os_str().len())
        .and_then(|mount| mount.source.into_string().ok())
        .ok_or_else(|| unsupported("is on btrfs, but no mount of it is visible"))
}

fn c_name(id: u64) -> CString {
    CString::new(id.to_string()).unwrap_or_default()
}
