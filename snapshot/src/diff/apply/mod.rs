//! A tar stream into a root it cannot escape.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use crated_mount::{Mount, TempMount};

use crate::diff::{Applied, Applier, ApplyOptions};
use crate::error::{Error, Result};

/// Unpacks tar layers with [`apply_tar`].
#[derive(Clone, Copy, Debug, Default)]
pub struct TarApplier;

/// The directory a layer is unpacked into, held open.
#[derive(Debug)]
pub struct Target {
    root: OwnedFd,
    /// Directories of the layers below, nearest first; only for
    /// [`Whiteouts::Overlay`].
    lowers: Vec<OwnedFd>,
    whiteouts: Whiteouts,
    /// Keeps a temporary mount attached while its directory is in use.
    attached: Option<TempMount>,
}

/// What becomes of a layer's whiteouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// They delete what was there before the layer.
    Delete,
    /// They are kept in overlayfs' own form, for an upper directory.
    Overlay {
        /// Whether the overlay is mounted with `userxattr`.
        user_xattr: bool,
    },
}

impl Target {
    /// A directory holding a whole filesystem.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn directory(path: &Path) -> Result<Self> {
        Self::open(path, &[], Whiteouts::Delete)
    }

    /// The upper directory of an overlay whose lower ones, nearest first, are
    /// `lowers`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn overlay(upper: &Path, lowers: &[&Path], user_xattr: bool) -> Result<Self> {
        Self::open(upper, lowers, Whiteouts::Overlay { user_xattr })
    }

    /// What `mounts` show: the upper directory itself of a single overlay,
    /// else the mounts attached at a private directory below `temp_root` until
    /// the target is dropped or [closed](Self::close).
    ///
    /// # Errors
    ///
    /// [`Error::Mount`], [`Error::Io`].
    pub fn mounts(mounts: &[Mount], temp_root: &Path) -> Result<Self> {
        let attached = TempMount::attach(mounts, temp_root).map_err(|source| Error::Mount {
            op: "apply",
            source,
        })?;
        let mut target = Self::directory(attached.path())?;
        target.attached = Some(attached);
        Ok(target)
    }

    /// Detaches a temporary mount and reports what a drop would only log.
    ///
    /// # Errors
    ///
    /// [`Error::Mount`].
    pub fn close(self) -> Result<()> {
        let Self {
            root,
            lowers,
            attached,
            ..
        } = self;
        drop((root, lowers));
        match attached {
            Some(mount) => mount.close().map_err(|source| Error::Mount {
                op: "apply",
                source,
            }),
            None => Ok(()),
        }
    }

    fn open(path: &Path, lowers: &[&Path], whiteouts: Whiteouts) -> Result<Self> {
        let open = |path: &Path| {
            let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
            Ok(OwnedFd::from(file))
        };
        let root = open(path)?;
        let lowers = lowers
            .iter()
            .map(|path| open(path))
            .collect::<Result<_>>()?;
        Ok(Self {
            root,
            lowers,
            whiteouts,
            attached: None,
        })
    }
}

impl Applier for TarApplier {
    fn apply(
        &self,
        layer: &mut dyn Read,
        mounts: &[Mount],
        options: &ApplyOptions,
    ) -> Result<Applied> {
        let target = Target::mounts(mounts, &std::env::temp_dir())?;
        apply_tar(layer, &target, options)
    }
}

/// Unpacks an uncompressed tar stream into `target` on the calling thread.
///
/// Reads to the end of the stream, hashing all of it.
///
/// # Errors
///
/// Those of [`Applier::apply`].
pub fn apply_tar(
    reader: &mut dyn Read,
    target: &Target,
    options: &ApplyOptions,
) -> Result<Applied> {
    let _ = (reader, target, options);
    Err(Error::Unsupported {
        reason: "tar layers".into(),
    })
}
