//! What this kernel's overlayfs can do on this filesystem, found by trying.

use std::fs;
use std::path::Path;

use crated_mount::{Mount, TempMount};
use rustix::fs::FileType;

use crate::directories::Directories;
use crate::error::{Error, Result};
use crate::tree::Dir;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    /// The index must be switched off: it ties an upper directory to the
    /// layers it was first mounted with, and snapshots are mounted many times.
    pub(crate) index: bool,
    /// Only `user.overlay` attributes may be used, in a user namespace.
    pub(crate) user_xattr: bool,
    /// Lower directories may be id-mapped.
    pub(crate) id_mapped_mounts: bool,
}

/// Present when the kernel knows the option `index`.
const INDEX_PARAMETER: &str = "/sys/module/overlay/parameters/index";

impl Features {
    /// Those of a kernel not asked.
    pub(crate) fn none() -> Self {
        Self { index: false, user_xattr: false, id_mapped_mounts: false }
    }

    /// Options every overlay mount gets.
    pub(crate) fn mount_options(&self) -> impl Iterator<Item = &'static str> {
        let index = self.index.then_some("index=off");
        let user_xattr = self.user_xattr.then_some("userxattr");
        index.into_iter().chain(user_xattr)
    }
}

/// Tries everything in a directory that is removed again.
pub(crate) fn probe(directories: &Directories) -> Result<Features> {
    let staged = directories.stage()?;
    let root = staged.path();
    for name in ["lower", "other", "upper", "work", "mount"] {
        let path = root.join(name);
        fs::create_dir(&path).map_err(|e| Error::io("make directory", path, e))?;
    }
    ensure_entry_types(&root)?;

    let mut features = Features {
        index: Path::new(INDEX_PARAMETER).exists(),
        user_xattr: crate::diff::apply::in_user_namespace(),
        id_mapped_mounts: false,
    };
    if let Err(error) = try_mount(&root, &features, &[]) {
        return Err(Error::Unsupported { reason: format!("overlay does not mount: {error}") });
    }
    let map = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"];
    features.id_mapped_mounts = !features.user_xattr && try_mount(&root, &features, &map).is_ok();
    Ok(features)
}

fn try_mount(root: &Path, features: &Features, map: &[&str]) -> crated_mount::Result<()> {
    let dir = |name: &str| root.join(name).display().to_string();
    let mut options: Vec<String> = map.iter().copied().map(String::from).collect();
    options.extend([
        format!("workdir={}", dir("work")),
        format!("upperdir={}", dir("upper")),
        format!("lowerdir={}:{}", dir("lower"), dir("other")),
    ]);
    options.extend(features.mount_options().map(String::from));
    let mount = Mount {
        kind: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: String::new(),
        options,
    };
    TempMount::attach(&[mount], &root.join("mount"))?.close()
}

/// Overlayfs needs to know the type of an entry from the listing alone.
fn ensure_entry_types(root: &Path) -> Result<()> {
    let dir = Dir::open(root)?;
    for entry in rustix::fs::Dir::read_from(&dir).map_err(|e| dir.error("list", e))? {
        let entry = entry.map_err(|e| dir.error("list", e))?;
        if entry.file_type() == FileType::Unknown {
            let reason =
                format!("filesystem of {} does not list types of entries (d_type)", root.display());
            return Err(Error::Unsupported { reason });
        }
    }
    Ok(())
}
