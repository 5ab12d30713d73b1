//! Layers stacked by aufs, a union filesystem outside of the mainline kernel.
//!
//! The directories are those of the overlay snapshotter (`snapshots/<id>/fs`);
//! only the mounts differ.

use std::path::{Path, PathBuf};

use crated_mount::Mount;

use crate::error::{Error, Result};
use crate::overlay::{OverlayOptions, OverlaySnapshotter};

/// Keeps each layer as a directory and stacks them with aufs.
///
/// Whiteouts inside layers are aufs' own files (`.wh.<name>`), so a layer is
/// applied through its mounts and never into its directory.
#[derive(Debug)]
pub struct AufsSnapshotter {
    inner: OverlaySnapshotter,
}

/// Lists what the kernel can mount.
const FILESYSTEMS: &str = "/proc/filesystems";

impl AufsSnapshotter {
    /// Opens or makes the snapshotter below `root`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the kernel has no aufs, as those of most
    /// distributions; else those of [`OverlaySnapshotter::open`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let known =
            std::fs::read_to_string(FILESYSTEMS).map_err(|e| Error::io("read", FILESYSTEMS, e))?;
        if !known.lines().any(|line| line.split_whitespace().last() == Some("aufs")) {
            return Err(Error::Unsupported { reason: "this kernel has no aufs".into() });
        }
        let options = OverlayOptions { root: root.into(), ..OverlayOptions::default() };
        Ok(Self { inner: OverlaySnapshotter::open_unprobed(options)? })
    }

    /// The directory everything is kept in.
    pub fn root(&self) -> &Path {
        self.inner.root()
    }
}

/// The same stack for aufs: branches from the top, only the first writable.
/// `dirperm1` gives the topmost directory's mode the last word, as elsewhere.
fn stacked(mounts: Vec<Mount>) -> Vec<Mount> {
    mounts.into_iter().map(stack).collect()
}

fn stack(mount: Mount) -> Mount {
    if mount.kind != "overlay" {
        return mount;
    }
    let option = |prefix: &str| mount.options.iter().find_map(|o| o.strip_prefix(prefix));
    let upper = option("upperdir=").map(|dir| format!("{dir}=rw"));
    let lowers = option("lowerdir=").into_iter().flat_map(|dirs| dirs.split(':'));
    let branches: Vec<String> =
        upper.into_iter().chain(lowers.map(|dir| format!("{dir}=ro+wh"))).collect();
    let mut options = vec![format!("br:{}", branches.join(":")), "dirperm1".to_owned()];
    if !branches.iter().any(|branch| branch.ends_with("=rw")) {
        options.push("ro".to_owned());
    }
    Mount { kind: "aufs".to_owned(), source: "none".to_owned(), target: String::new(), options }
}

crate::snapshotter::forward_to_inner!(AufsSnapshotter, stacked);

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> Mount {
        Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: options.iter().copied().map(String::from).collect(),
        }
    }

    #[test]
    fn branches_are_listed_from_the_top() {
        let active = overlay(&["workdir=/3/work", "upperdir=/3/fs", "lowerdir=/2/fs:/1/fs"]);
        assert_eq!(stack(active).options, ["br:/3/fs=rw:/2/fs=ro+wh:/1/fs=ro+wh", "dirperm1"]);
        let view = overlay(&["lowerdir=/2/fs:/1/fs", "index=off"]);
        assert_eq!(stack(view).options, ["br:/2/fs=ro+wh:/1/fs=ro+wh", "dirperm1", "ro"]);
    }

    #[test]
    fn a_kernel_without_aufs_is_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        match AufsSnapshotter::open(temp.path().join("root")) {
            Err(Error::Unsupported { reason }) => assert!(reason.contains("aufs")),
            opened => drop(opened.unwrap()),
        }
    }
}
