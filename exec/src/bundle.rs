//! The folder a container runs from.
//!
//! ```text
//! <bundle>/             0700; 0710 and of the mapped root's group with a user namespace
//!   config.json         the runtime spec, byte for byte as it was given
//!   rootfs/             0711, the root file system is mounted here
//! ```
//! A shim and its daemon add files of their own; see [`crate::shim`].

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{Error, Result, remove::remove_tree};

/// A bundle on disk, known by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    path: PathBuf,
}

impl Bundle {
    /// Makes the folder, `rootfs` in it, and writes `spec` to `config.json`
    /// unless it is empty. The parent must exist. On failure nothing is left.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] if the folder exists, [`Error::Io`] else.
    pub fn create(path: impl Into<PathBuf>, spec: &[u8]) -> Result<Self> {
        let bundle = Bundle { path: path.into() };
        match fs::DirBuilder::new().mode(0o700).create(&bundle.path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let text = format!("bundle {}: file exists", bundle.path.display());
                return Err(Error::AlreadyExists(text));
            }
            other => other.map_err(|e| Error::io("create bundle", &bundle.path, e))?,
        }
        bundle.fill(spec).inspect_err(|_| {
            // What could not be made need not be removable either.
            let _ = remove_tree(&bundle.path);
        })?;
        Ok(bundle)
    }

    fn fill(&self, spec: &[u8]) -> Result<()> {
        let rootfs = self.rootfs();
        fs::DirBuilder::new()
            .mode(0o711)
            .create(&rootfs)
            .map_err(|e| Error::io("create", &rootfs, e))?;
        if !spec.is_empty() {
            let config = self.config();
            fs::write(&config, spec).map_err(|e| Error::io("write", &config, e))?;
        }
        if let Some(gid) = mapped_root_group(spec) {
            // The container's root is nobody here, and has to reach its file system.
            std::os::unix::fs::chown(&self.path, None, Some(gid))
                .map_err(|e| Error::io("chown", &self.path, e))?;
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o710))
                .map_err(|e| Error::io("chmod", &self.path, e))?;
        }
        Ok(())
    }

    /// A bundle that exists already.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the path is not a folder.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if path.is_dir() {
            return Ok(Bundle { path });
        }
        Err(Error::NotFound(format!("bundle {} not found", path.display())))
    }

    /// A bundle that may or may not exist, to be removed.
    pub(crate) fn named(path: impl Into<PathBuf>) -> Self {
        Bundle { path: path.into() }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the root file system is mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// The runtime spec.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The bytes of `config.json`, at most [`SPEC_SIZE_MAX_BYTES`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a larger one, [`Error::Io`] else.
    pub fn read_spec(&self) -> Result<Vec<u8>> {
        let config = self.config();
        let size = fs::metadata(&config).map_err(|e| Error::io("stat", &config, e))?.len();
        if size > SPEC_SIZE_MAX_BYTES {
            let text = format!("spec of {size} bytes exceeds {SPEC_SIZE_MAX_BYTES}");
            return Err(Error::InvalidArgument(text));
        }
        fs::read(&config).map_err(|e| Error::io("read", &config, e))
    }

    /// Detaches whatever is mounted at the rootfs and removes the folder.
    ///
    /// The folder is renamed to a hidden name first, so a half-removed bundle
    /// is never taken for a container. A missing bundle is success.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Unknown`] for a mount that stays.
    pub fn remove(&self) -> Result<()> {
        let rootfs = self.rootfs();
        if rootfs.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            crate::rootfs::detach(&rootfs)?;
        }
        let hidden = match (self.path.parent(), self.path.file_name()) {
            (Some(parent), Some(name)) => {
                let mut hidden = std::ffi::OsString::from(".");
                hidden.push(name);
                parent.join(hidden)
            }
            _ => return Err(Error::InvalidArgument("a bundle needs a name".into())),
        };
        remove_tree(&hidden)?;
        match fs::rename(&self.path, &hidden) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| Error::io("hide", &self.path, e))?,
        }
        remove_tree(&hidden)
    }
}

/// Limit of `config.json`: ten times the largest seen with hundreds of mounts.
pub const SPEC_SIZE_MAX_BYTES: u64 = 64 << 20;

/// Whether a text may name a container or a process: letters and digits,
/// joined by single `.`, `-` or `_`, at most [`ID_MAX_BYTES`].
///
/// # Errors
///
/// [`Error::InvalidArgument`].
pub fn check_id(id: &str) -> Result<()> {
    let joins = |b: u8| b"._-".contains(&b);
    let bytes = id.as_bytes();
    let plain = bytes.iter().all(|b| b.is_ascii_alphanumeric() || joins(*b));
    let edges = [bytes.first(), bytes.last()];
    let edges = edges.iter().all(|edge| edge.is_some_and(|b| b.is_ascii_alphanumeric()));
    let doubled = bytes.windows(2).any(|pair| pair.iter().all(|b| joins(*b)));
    if plain && edges && !doubled && bytes.len() <= ID_MAX_BYTES {
        return Ok(());
    }
    let shown: String = id.chars().take(ID_MAX_BYTES).collect();
    Err(Error::InvalidArgument(format!("identifier {shown:?} is not valid")))
}

/// Longest id; it must fit a file name with room for an ending.
pub const ID_MAX_BYTES: usize = 76;

/// The group here that group 0 of the container is mapped to, if it is another one. A spec that
/// does not parse is the runtime's to refuse.
fn mapped_root_group(spec: &[u8]) -> Option<u32> {
    #[derive(serde::Deserialize)]
    struct Outline {
        linux: Option<Linux>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Linux {
        #[serde(default)]
        gid_mappings: Vec<Mapping>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Mapping {
        #[serde(rename = "containerID")]
        container_id: u32,
        #[serde(rename = "hostID")]
        host_id: u32,
        size: u32,
    }
    let outline: Outline = serde_json::from_slice(spec).ok()?;
    let root = |mapping: &Mapping| mapping.container_id == 0 && mapping.size > 0;
    let mapping = outline.linux?.gid_mappings.into_iter().find(root)?;
    (mapping.host_id != 0).then_some(mapping.host_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_their_folder_are_refused() {
        for id in ["", ".", "..", "a/b", "-a", "a-", "a..b", "a._b", "a b", "ä", "a\0"] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        assert!(check_id(&"a".repeat(ID_MAX_BYTES + 1)).is_err());
        for id in ["a", "0", "a-b.c_d", "A1", &"a".repeat(ID_MAX_BYTES)] {
            assert!(check_id(id).is_ok(), "{id:?}");
        }
    }

    #[test]
    fn a_bundle_keeps_the_spec_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let spec = b"{ \"ociVersion\":\"1.0.2\" , \"x\":1e2}\n";
        let bundle = Bundle::create(dir.path().join("b"), spec).unwrap();
        assert_eq!(bundle.read_spec().unwrap(), spec);
        let again = Bundle::create(dir.path().join("b"), spec).unwrap_err();
        assert!(matches!(again, Error::AlreadyExists(_)), "{again}");
        bundle.remove().unwrap();
        bundle.remove().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
