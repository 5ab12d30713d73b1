//! The layers under an overlay's upper directory, read the way overlayfs does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::diff::apply::alone::Notes;
use crate::error::{Error, Result};
use crate::tree::{Stat, entries, magic_path};

/// The lower directories, nearest first, or none outside of overlays.
pub(crate) struct Layers<'a> {
    lowers: &'a [OwnedFd],
    opaque_xattr: Option<&'static str>,
    /// Where to note what depends on layers that are not known yet.
    notes: Option<&'a Notes>,
}

/// What the layers below show under one name.
pub(crate) enum Shadow {
    Nothing,
    /// The layers below are not known yet.
    Unknown,
    Dir(OwnedFd, Stat),
    Link(Vec<u8>),
    Other,
}

const PATH_DIR: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl<'a> Layers<'a> {
    /// Outside of overlays.
    pub(crate) fn none() -> Self {
        Self { lowers: &[], opaque_xattr: None, notes: None }
    }

    pub(crate) fn new(lowers: &'a [OwnedFd], user_xattr: bool) -> Self {
        let name = if user_xattr { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
        Self { lowers, opaque_xattr: Some(name), notes: None }
    }

    /// Layers that are not known yet.
    pub(crate) fn unknown(notes: &'a Notes) -> Self {
        Self { notes: Some(notes), ..Self::new(&[], false) }
    }

    pub(crate) fn notes(&self) -> Option<&'a Notes> {
        self.notes
    }

    /// Whether the target is an upper directory at all.
    pub(crate) fn is_some(&self) -> bool {
        self.opaque_xattr.is_some()
    }

    /// The root directory of each layer.
    pub(crate) fn roots(&self) -> Result<Vec<OwnedFd>> {
        self.lowers
            .iter()
            .map(|fd| fd.try_clone().map_err(|e| Error::io("duplicate", "lower directory", e)))
            .collect()
    }

    /// Names in the roots of all layers.
    pub(crate) fn root_names(&self) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for lower in self.lowers {
            let listed = entries(lower).map_err(|e| Error::io("list", "lower directory", e))?;
            names.extend(listed.into_iter().map(std::ffi::CString::into_bytes));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The directories `name` which merge, in those of one path.
    pub(crate) fn descend(&self, dirs: &[OwnedFd], name: &[u8]) -> Result<Vec<OwnedFd>> {
        let mut merged = Vec::new();
        for dir in dirs {
            let Some(stat) = stat(dir, name)? else { continue };
            if !stat.is_dir() {
                break;
            }
            let child = open(dir, name)?;
            let opaque = self.is_opaque(child.as_fd());
            merged.push(child);
            if opaque {
                break;
            }
        }
        Ok(merged)
    }

    /// What shows under `name` in the directories of one path.
    pub(crate) fn look(&self, dirs: &[OwnedFd], name: &[u8]) -> Result<Shadow> {
        for dir in dirs {
            let Some(stat) = stat(dir, name)? else { continue };
            return Ok(match stat.file_type() {
                FileType::Directory => Shadow::Dir(open(dir, name)?, stat),
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(dir, name, Vec::new())
                        .map_err(|e| error("read link", name, e))?;
                    Shadow::Link(target.into_bytes())
                }
                _ if stat.is_whiteout() => Shadow::Nothing,
                _ => Shadow::Other,
            });
        }
        Ok(Shadow::Nothing)
    }

    pub(crate) fn is_opaque(&self, dir: BorrowedFd<'_>) -> bool {
        let Some(name) = self.opaque_xattr else { return false };
        let mut value = [0; 1];
        matches!(
            rustix::fs::getxattr(magic_path(dir), name, &mut value[..]),
            Ok(1) if value == *b"y"
        )
    }

    /// Hides what the layers below hold in `dir`.
    pub(crate) fn make_opaque(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        match self.opaque_xattr {
            Some(name) => rustix::fs::setxattr(magic_path(dir), name, b"y", XattrFlags::empty())
                .map_err(|e| error("make opaque", path, e)),
            None => Ok(()),
        }
    }
}

fn stat(dir: &OwnedFd, name: &[u8]) -> Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Stat::from(stat))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(error("stat", name, errno)),
    }
}

fn open(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, PATH_DIR, Mode::empty()).map_err(|e| error("open", name, e))
}

fn error(op: &'static str, name: &[u8], errno: Errno) -> Error {
    Error::io(op, super::resolve::lossy(name), errno)
}
