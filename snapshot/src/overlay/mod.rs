//! Layers stacked by overlayfs.
//!
//! Inside the directory of each snapshot (see the module `directories`):
//!
//! ```text
//! snapshots/<id>/fs      0755, the files of this layer, whiteouts included
//! snapshots/<id>/work    0711, overlayfs' own, active snapshots only
//! ```
//!
//! Committed layers can be images instead: see the module `erofs`.

use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crated_mount::Mount;

use crate::directories::{Directories, Staged};
use crate::erofs::Layers;
use crate::error::{Error, Result};
use crate::metastore::{Snapshot, SyncMode};
use crate::overlay::mapping::Mapping;
use crate::overlay::probe::Features;
use crate::quota::{self, QUOTA_LABEL, Quota};
use crate::shelf::Shelf;
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
/// Three labels of a snapshot matter: [`UID_MAPPING_LABEL`] and
/// [`GID_MAPPING_LABEL`], lists of `container:host:size`, say which ids it
/// will be used with, and [`QUOTA_LABEL`] how much may be written to it.
#[derive(Debug)]
pub struct OverlaySnapshotter {
    options: OverlayOptions,
    features: Features,
    shelf: Shelf,
    /// Committed layers as images; without it they stay directories.
    images: Option<Layers>,
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
        Self::assemble(options, features, directories, None)
    }

    /// The same with committed layers as images.
    pub(crate) fn open_packed(options: OverlayOptions, keep_mounted: bool) -> Result<Self> {
        let directories = Self::directories(&options)?;
        let features = probe::probe(&directories)?;
        let images = Layers::open(&options.root, keep_mounted, &directories)?;
        Self::assemble(options, features, directories, Some(images))
    }

    /// The same directories without overlay mounts, for other unions.
    pub(crate) fn open_unprobed(options: OverlayOptions) -> Result<Self> {
        let directories = Self::directories(&options)?;
        Self::assemble(options, Features::none(), directories, None)
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
        images: Option<Layers>,
    ) -> Result<Self> {
        let shelf = Shelf::open(&options.root, options.sync, directories)?;
        Ok(Self { options, features, shelf, images })
    }

    /// Makes every change so far durable; only [`SyncMode::Deferred`] needs it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Metadata`].
    pub fn sync(&self) -> Result<()> {
        self.shelf.sync()
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
        let quota = Quota::of(labels)?;
        let snapshot = self.shelf.store.create(kind, key, parent, labels, |snapshot| {
            let mut staged = self.shelf.directories.stage()?;
            self.fill(&staged, kind, mapping.as_ref(), snapshot)?;
            if let (Kind::Active, Some(quota)) = (kind, quota) {
                let dir = |name| staged.path().join(name);
                quota.apply(snapshot.id, &[&dir("fs"), &dir("work")])?;
            }
            staged.place(snapshot.id)
        })?;
        self.mounts_of(&snapshot).inspect_err(|_| {
            // What the caller was refused must not hold its key.
            if let Err(error) = self.remove(key.as_str()) {
                tracing::warn!(%error, "a snapshot without mounts stays");
            }
        })
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
                let path = self.layer_path(parent)?;
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
            (Kind::View, &[parent]) => (self.layer_path(parent)?, "ro"),
            (kind, _) => {
                if kind == Kind::Active {
                    let work = self.shelf.directories.path(snapshot.id).join("work");
                    options.push(format!("workdir={}", work.display()));
                    options.push(format!("upperdir={}", own.display()));
                }
                let lowers = parents
                    .iter()
                    .map(|&id| Ok(self.layer_path(id)?.display().to_string()))
                    .collect::<Result<Vec<String>>>()?;
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
        self.shelf.directories.path(id).join("fs")
    }

    /// Where the files of a committed layer are.
    fn layer_path(&self, id: u64) -> Result<PathBuf> {
        match &self.images {
            Some(images) => images.show(id, &self.shelf.directories.path(id)),
            None => Ok(self.fs_path(id)),
        }
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
        let snapshot = self.shelf.store.snapshot(key)?;
        Ok(self.labelled(snapshot.id, snapshot.info))
    }

    fn update(&self, key: &str, labels: &LabelUpdate) -> Result<Info> {
        let info = self.shelf.store.update(key, &without_upperdir(labels))?;
        match self.options.upperdir_label {
            true => self.stat(key),
            false => Ok(info),
        }
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        self.shelf.store.usage(key, |snapshot| {
            let fs = self.fs_path(snapshot.id);
            match Quota::of(&snapshot.info.labels)? {
                // The filesystem has counted already.
                Some(_) => quota::usage(snapshot.id, &fs),
                None => usage::of(&fs),
            }
        })
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        self.mounts_of(&self.shelf.store.mountable(key)?)
    }

    fn prepare(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::Active, key, parent, labels)
    }

    fn view(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::View, key, parent, labels)
    }

    fn commit(&self, name: &Name, key: &Key, options: &CommitOptions) -> Result<()> {
        let home = |snapshot: &Snapshot| self.shelf.directories.path(snapshot.id);
        let mut active_had_quota = false;
        let committed = self.shelf.commit(name, key, options, |before| {
            active_had_quota = before.info.labels.contains_key(QUOTA_LABEL);
            match &self.images {
                Some(images) => images.pack(&home(before)),
                None => usage::of(&self.fs_path(before.id)),
            }
        })?;
        if active_had_quota {
            quota::release(committed.id, &home(&committed));
        }
        if let Some(images) = &self.images
            && let Err(error) = images.strip(&home(&committed))
        {
            tracing::warn!(%error, "files of a packed layer stay until the next cleanup");
        }
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<()> {
        let removed = self.shelf.remove(key, self.options.sync_remove)?;
        if removed.info.kind == Kind::Active && removed.info.labels.contains_key(QUOTA_LABEL) {
            quota::release(removed.id, self.root());
        }
        if let Some(images) = &self.images
            && let Err(error) = images.hide(removed.id)
        {
            tracing::warn!(%error, "image of a removed layer stays mounted until the next cleanup");
        }
        Ok(())
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        self.shelf.store.walk(&mut |id, info| visit(self.labelled(id, info)))
    }

    fn cleanup(&self) -> Result<()> {
        if let Some(images) = &self.images {
            let committed = self.shelf.store.with_ids(|ids| {
                images.hide_orphans(ids)?;
                let committed = ids.iter().filter(|(_, kind)| **kind == Kind::Committed);
                Ok(committed.map(|(id, _)| *id).collect::<Vec<_>>())
            })?;
            committed
                .into_iter()
                .try_for_each(|id| images.strip(&self.shelf.directories.path(id)))?;
        }
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
