//! Images of committed layers, mounted where overlays find them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crated_mount::{DetachFlags, Mount, TempMount};
use rustix::io::Errno;

use super::format::MAGIC;
use super::write::write_erofs;
use crate::directories::{Directories, ensure_private};
use crate::error::{Error, Result};
use crate::snapshotter::{Kind, Usage};
use crate::tree::remove_tree;

/// The image inside the directory of a committed snapshot.
const IMAGE: &str = "layer.erofs";
/// The same while it is written.
const UNFINISHED: &str = "layer.erofs.new";

/// `<root>/layers`, where `<id>` shows the image of the snapshot `id`.
#[derive(Debug)]
pub(crate) struct Layers {
    dir: PathBuf,
    keep_mounted: bool,
    /// Held while one is attached or detached.
    changing: Mutex<()>,
}

impl Layers {
    /// Opens or makes `<root>/layers`, after trying an image.
    pub(crate) fn open(root: &Path, keep_mounted: bool, directories: &Directories) -> Result<Self> {
        probe(directories)?;
        let dir = root.join("layers");
        ensure_private(&dir)?;
        Ok(Self { dir, keep_mounted, changing: Mutex::default() })
    }

    /// Where the image of `id` shows, attached if it was not. `home` is the
    /// directory of the snapshot.
    pub(crate) fn show(&self, id: u64, home: &Path) -> Result<PathBuf> {
        let at = self.dir.join(id.to_string());
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked each time: a bare directory here would pass for an empty layer.
        if is_erofs(&at)? {
            return Ok(at);
        }
        ensure_private(&at)?;
        let mount = image_mount(&home.join(IMAGE));
        mount.attach(&at).map_err(|source| Error::Mount { op: "show a layer", source })?;
        Ok(at)
    }

    /// Takes the image of `id` off, wherever it is still used.
    pub(crate) fn hide(&self, id: u64) -> Result<()> {
        let at = self.dir.join(id.to_string());
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        while is_erofs(&at)? {
            crated_mount::detach(&at, DetachFlags::LAZY)
                .map_err(|source| Error::Mount { op: "hide a layer", source })?;
        }
        match fs::remove_dir(&at) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("remove", at, error)),
        }
    }

    /// Takes off what belongs to no snapshot of `ids`.
    pub(crate) fn hide_orphans(&self, ids: &BTreeMap<u64, Kind>) -> Result<()> {
        let shown = self.shown()?;
        shown.into_iter().filter(|id| !ids.contains_key(id)).try_for_each(|id| self.hide(id))
    }

    /// Makes the image of the files in `home`; what it occupies.
    pub(crate) fn pack(&self, home: &Path) -> Result<Usage> {
        let path = home.join(UNFINISHED);
        let error = |op, e| Error::io(op, &path, e);
        remove_tree(&path)?;
        let image = fs::File::create_new(&path).map_err(|e| error("make", e))?;
        let usage = write_erofs(&home.join("fs"), &image)?;
        fs::rename(&path, home.join(IMAGE)).map_err(|e| error("rename", e))?;
        Ok(usage)
    }

    /// Deletes the files in `home`, which the image holds now.
    pub(crate) fn strip(&self, home: &Path) -> Result<()> {
        ["fs", "work", UNFINISHED].iter().try_for_each(|name| remove_tree(&home.join(name)))
    }

    fn shown(&self) -> Result<Vec<u64>> {
        let error = |e| Error::io("list", &self.dir, e);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(error)? {
            let name = entry.map_err(error)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(ids)
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        if self.keep_mounted {
            return;
        }
        let hidden = self.shown().and_then(|ids| ids.into_iter().try_for_each(|id| self.hide(id)));
        if let Err(error) = hidden {
            tracing::warn!(%error, "image of a layer stays mounted");
        }
    }
}

fn image_mount(image: &Path) -> Mount {
    Mount {
        kind: "erofs".to_owned(),
        source: image.display().to_string(),
        target: String::new(),
        options: vec!["ro".to_owned()],
    }
}

/// Whether an EROFS is mounted at `path`; nothing there is a no.
fn is_erofs(path: &Path) -> Result<bool> {
    match rustix::fs::statfs(path) {
        #[allow(
            clippy::unnecessary_cast,
            reason = "the field's type differs between architectures"
        )]
        Ok(statfs) => Ok(statfs.f_type as u32 == MAGIC),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(Error::io("stat filesystem", path, errno)),
    }
}

/// Packs and mounts an empty directory.
fn probe(directories: &Directories) -> Result<()> {
    let staged = directories.stage()?;
    let (tree, image) = (staged.path().join("tree"), staged.path().join("image"));
    fs::create_dir(&tree).map_err(|e| Error::io("make directory", &tree, e))?;
    let file = fs::File::create_new(&image).map_err(|e| Error::io("make", &image, e))?;
    write_erofs(&tree, &file)?;
    let unsupported =
        |error| Error::Unsupported { reason: format!("erofs does not mount: {error}") };
    TempMount::attach(&[image_mount(&image)], &staged.path().join("mounts"))
        .and_then(TempMount::close)
        .map_err(unsupported)
}
