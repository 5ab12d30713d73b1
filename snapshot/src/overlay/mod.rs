//! Layers stacked by overlayfs.
//!
//! Inside the directory of each snapshot (see the module `directories`):
//!
//! ```text
//! snapshots/<id>/fs      0755, the files of this layer, whiteouts included
//! snapshots/<id>/work    0711, overlayfs' own, active snapshots only
//! ```

use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crated_mount::Mount;

use crate::directories::{Directories, Staged};
use crate::error::{Error, Result};
use crate::metastore::{MetaStore, Snapshot, SyncMode};
use crate::overlay::mapping::Mapping;
use crate::overlay::probe::Features;
use crate::snapshotter::{
    CommitOptions, Info, Key, Kind, LabelUpdate, Labels, Name, Snapshotter, Usage,
};
use crate::usage;

mod mapping;
mod probe;

/// How an [`OverlaySnapshotter`] works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// Directory of its own, made with mode 0700 when missing.
    pub root: PathBuf,
    /// Shows the upper directory of each snapshot as the label
    /// [`UPPERDIR_LABEL`].
    pub upperdir_label: bool,
    /// Deletes directories in `remove` already, not in `cleanup`.
    pub sync_remove: bool,
    /// Options added to every overlay mount.
    pub mount_options: Vec<String>,
    /// When commits reach the disk.
    pub sync: SyncMode,
}

/// Keeps each layer as a directory and stacks them with overlayfs.
///
/// Two labels of a snapshot matter: [`UID_MAPPING_LABEL`] and
/// [`GID_MAPPING_LABEL`], lists of `container:host:size`, say which ids it
/// will be used with.
#[derive(Debug)]
pub struct OverlaySnapshotter {
    options: OverlayOptions,
    features: Features,
    store: MetaStore,
    directories: Directories,
}

/// The label that shows where a snapshot's own files are.
pub const UPPERDIR_LABEL: &str = "containerd.io/snapshot/overlay.upperdir";

/// The label with the user ids a snapshot will be used with.
pub const UID_MAPPING_LABEL: &str = "containerd.io/snapshot/uidmapping";

/// The label with the group ids a snapshot will be used with.
pub const GID_MAPPING_LABEL: &str = "containerd.io/snapshot/gidmapping";

/// Characters that mean something in mount options: clients take the list of
/// lower directories apart at colons, without any escapes.
const SEPARATORS: [char; 5] = [':', ',', '\\', '"', '\n'];

impl OverlaySnapshotter {
    /// Opens or makes the snapshotter below `options.root`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the kernel or the filesystem of the root
    /// cannot do overlays; [`Error::InvalidArgument`] when the root is not
    /// private; [`Error::Metadata`] when another process has it open;
    /// [`Error::Io`].
    pub fn open(options: OverlayOptions) -> Result<Self> {
        let directories = Self::directories(&options)?;
        let features = probe::probe(&directories)?;
        Self::assemble(options, features, directories)
    }

    /// The same directories without overlay mounts, for other unions.
    pub(crate) fn open_unprobed(options: OverlayOptions) -> Result<Self> {
        let directories = Self::directories(&options)?;
        Self::assemble(options, Features::none(), directories)
    }

    fn directories(options: &OverlayOptions) -> Result<Directories> {
        let root = options.root.to_str();
        if root.is_none_or(|root| root.contains(SEPARATORS)) {
            let reason = format!(
                "{} is not text, or contains one of {SEPARATORS:?}",
                options.root.display()
            );
            return Err(Error::invalid("root", reason));
        }
        Directories::open(&options.root, options.sync)
    }

    fn assemble(
        options: OverlayOptions,
        features: Features,
        directories: Directories,
    ) -> Result<Self> {
        let store = MetaStore::open(&options.root.join("metadata.db"), options.sync)?;
        Ok(Self { options, features, store, directories })
    }

    /// Makes every change so far durable; only [`SyncMode::Deferred`] needs it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Metadata`].
    pub fn sync(&self) -> Result<()> {
        self.directories.sync_filesystem()?;
        self.store.flush()
    }

    /// The directory everything is kept in.
    pub fn root(&self) -> &Path {
        &self.options.root
    }

    /// Whether id-mapped mounts spare the copy for user namespaces.
    pub fn remaps_ids(&self) -> bool {
        self.features.id_mapped_mounts
    }

    /// Whether a snapshot without a parent can be committed on top of one, as
    /// in [`CommitOptions::parent`]. Whiteouts need a privileged process.
    pub fn rebases(&self) -> bool {
        !self.features.user_xattr
    }

    fn create(
        &self,
        kind: Kind,
        key: &Key,
        parent: Option<&Name>,
        labels: &Labels,
    ) -> Result<Vec<Mount>> {
        let mapping = Mapping::of(labels)?;
        let snapshot = self.store.create(kind, key, parent, labels, |snapshot| {
            let mut staged = self.directories.stage()?;
            self.fill(&staged, kind, mapping.as_ref(), snapshot)?;
            staged.place(snapshot.id)
        })?;
        self.mounts_of(&snapshot)
    }

    /// Makes `fs` and `work`.
    fn fill(
        &self,
        staged: &Staged<'_>,
        kind: Kind,
        mapping: Option<&Mapping>,
        snapshot: &Snapshot,
    ) -> Result<()> {
        let fs = staged.path().join("fs");
        make_dir(&fs, 0o755)?;
        let owner = match (mapping, snapshot.parent_ids.first()) {
            // An id-mapped bind maps what it shows. An overlay maps its lowers only: its own
            // layer, and with it the root, has to belong to the mapped root on disk.
            (Some(mapping), parent) if parent.is_some() || !self.features.id_mapped_mounts => {
                Some(mapping.root()?)
            }
            (_, Some(&parent)) => {
                let path = self.fs_path(parent);
                let metadata = path.metadata().map_err(|e| Error::io("stat", &path, e))?;
                Some((metadata.uid(), metadata.gid()))
            }
            _ => None,
        };
        if let Some((uid, gid)) = owner {
            chown(&fs, Some(uid), Some(gid)).map_err(|e| Error::io("change owner", &fs, e))?;
        }
        match kind {
            Kind::Active => make_dir(&staged.path().join("work"), 0o711),
            Kind::View | Kind::Committed => Ok(()),
        }
    }

    fn mounts_of(&self, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        let (own, parents) = (self.fs_path(snapshot.id), &snapshot.parent_ids);
        let mapping = match self.features.id_mapped_mounts {
            true => Mapping::of(&snapshot.info.labels)?,
            false => None,
        };
        let mut options: Vec<String> = mapping.iter().flat_map(Mapping::mount_options).collect();
        let (source, access) = match (snapshot.info.kind, parents.as_slice()) {
            (Kind::Active, []) => (own, "rw"),
            (Kind::View, []) => (own, "ro"),
            (Kind::View, &[parent]) => (self.fs_path(parent), "ro"),
            (kind, _) => {
                if kind == Kind::Active {
                    let work = self.directories.path(snapshot.id).join("work");
                    options.push(format!("workdir={}", work.display()));
                    options.push(format!("upperdir={}", own.display()));
                }
                let lowers: Vec<String> =
                    parents.iter().map(|&id| self.fs_path(id).display().to_string()).collect();
                options.push(format!("lowerdir={}", lowers.join(":")));
                options.extend(self.features.mount_options().map(String::from));
                options.extend(self.options.mount_options.iter().cloned());
                let overlay = || "overlay".to_owned();
                return Ok(vec![Mount {
                    kind: overlay(),
                    source: overlay(),
                    target: String::new(),
                    options,
                }]);
            }
        };
        options.extend([access.to_owned(), "rbind".to_owned()]);
        Ok(vec![Mount {
            kind: "bind".to_owned(),
            source: source.display().to_string(),
            target: String::new(),
            options,
        }])
    }

    fn fs_path(&self, id: u64) -> PathBuf {
        self.directories.path(id).join("fs")
    }

    /// Adds what is not stored.
    fn labelled(&self, id: u64, mut info: Info) -> Info {
        if self.options.upperdir_label {
            let path = self.fs_path(id).display().to_string();
            info.labels.insert(UPPERDIR_LABEL.to_owned(), path);
        }
        info
    }
}

impl Snapshotter for OverlaySnapshotter {
    fn stat(&self, key: &str) -> Result<Info> {
        let snapshot = self.store.snapshot(key)?;
        Ok(self.labelled(snapshot.id, snapshot.info))
    }

    fn update(&self, key: &str, labels: &LabelUpdate) -> Result<Info> {
        let info = self.store.update(key, &without_upperdir(labels))?;
        match self.options.upperdir_label {
            true => self.stat(key),
            false => Ok(info),
        }
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        let snapshot = self.store.snapshot(key)?;
        match snapshot.info.kind {
            Kind::Active => usage::of(&self.fs_path(snapshot.id)),
            Kind::View | Kind::Committed => Ok(snapshot.usage),
        }
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        let snapshot = self.store.snapshot(key.as_str())?;
        match snapshot.info.kind {
            Kind::Committed => {
                Err(Error::precondition(key.as_str(), "is committed, not mountable"))
            }
            Kind::Active | Kind::View => self.mounts_of(&snapshot),
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
        let usage = usage::of(&self.fs_path(before.id))?;
        if self.options.sync == SyncMode::EachCommit {
            self.directories.sync_filesystem()?;
        }
        self.store.commit(name, key, options, usage, |snapshot| before.ensure_same(snapshot))?;
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<()> {
        let mut retired = None;
        let removed = self.store.remove(key, |snapshot| {
            if self.options.sync_remove {
                retired = self.directories.retire(snapshot.id)?.map(|name| (name, snapshot.id));
            }
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
        self.store.walk(&mut |id, info| visit(self.labelled(id, info)))
    }

    fn cleanup(&self) -> Result<()> {
        let orphans = self.store.with_ids(|ids| self.directories.orphans(ids))?;
        if self.options.sync == SyncMode::Deferred {
            // No record may come back whose directory is about to go.
            self.sync()?;
        }
        self.directories.delete_all(&orphans)
    }
}

fn without_upperdir(labels: &LabelUpdate) -> LabelUpdate {
    let mut labels = labels.clone();
    match &mut labels {
        LabelUpdate::Replace(labels) => drop(labels.remove(UPPERDIR_LABEL)),
        LabelUpdate::Merge(changes) => drop(changes.remove(UPPERDIR_LABEL)),
    }
    labels
}

/// Makes a directory of exactly this mode, whatever the umask.
fn make_dir(path: &Path, mode: u32) -> Result<()> {
    std::fs::DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(|e| Error::io("make directory", path, e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| Error::io("change mode", path, e))
}
