//! Entries that take away what lies below.

use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use crate::diff::apply::path::CleanPath;
use crate::diff::apply::resolve::{Handle, fs_error, stat_at};
use crate::diff::apply::unpack::{Unpacker, c_name};
use crate::diff::apply::written::Written;
use crate::error::{Error, Result};
use crate::tree::{self, DEPTH_MAX, Stat};

/// What a name means beyond itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// An entry like any other.
    No,
    /// Left by aufs, means nothing.
    Ignored,
    /// The name after the prefix disappears.
    Whiteout,
    /// Everything in the directory disappears.
    Opaque,
}

/// Begins the name of a whiteout.
pub(crate) const PREFIX: &[u8] = b".wh.";

/// Begins names of aufs' own.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// The name that empties its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Sorts a name by its whiteout prefix, at the end or on the way there.
pub(crate) fn classify(path: &CleanPath) -> Result<Special> {
    let refuse = |reason: &str| Err(Error::archive(path.as_bytes(), reason));
    for component in path.parent().split(|&byte| byte == b'/') {
        if component.starts_with(AUFS_PREFIX) {
            return Ok(Special::Ignored);
        }
        if component.starts_with(PREFIX) {
            return refuse("entry inside a whiteout");
        }
    }
    match path.name() {
        OPAQUE => Ok(Special::Opaque),
        name if name.starts_with(AUFS_PREFIX) => Ok(Special::Ignored),
        name => match name.strip_prefix(PREFIX) {
            None => Ok(Special::No),
            Some(b"" | b"." | b"..") => refuse("whiteout of no name"),
            Some(_) => Ok(Special::Whiteout),
        },
    }
}

impl Unpacker<'_> {
    /// Hides what the layers below hold at `name`. What this layer wrote
    /// stays, whether it came before or comes after.
    pub(super) fn hide(&mut self, parent: &Handle, name: &[u8], path: &[u8]) -> Result<()> {
        let overlay = self.resolver.layers().is_some();
        let Some(stat) = stat_at(parent, name, path)? else {
            return match overlay {
                true => make_whiteout(parent, name, path),
                false => Ok(()),
            };
        };
        if overlay && stat.is_whiteout() {
            return Ok(());
        }
        let ours = match &self.written {
            None => true,
            Some(written) => written.contains(parent.identity()?, name),
        };
        if !ours {
            self.clear(parent, name, path)?;
            return match overlay {
                true => make_whiteout(parent, name, path),
                false => Ok(()),
            };
        }
        match stat.is_dir() {
            true => {
                let dir = tree::Dir::open_below(parent.as_fd(), &c_name(name, path)?)?;
                self.hide_in(dir, path)
            }
            false => Ok(()),
        }
    }

    /// Hides all that the layers below hold in `dir`.
    pub(super) fn hide_all(&mut self, dir: &Handle, path: &[u8]) -> Result<()> {
        let open = tree::Dir::open_below(dir.as_fd(), c".")?;
        self.hide_in(open, path)?;
        if path.is_empty() {
            if let Some(notes) = self.resolver.layers().notes() {
                notes.empty_root();
            }
            // Overlayfs merges roots, opaque or not.
            for name in self.resolver.layers().root_names()? {
                self.hide(dir, &name, &name)?;
            }
        }
        Ok(())
    }

    fn hide_in(&mut self, dir: tree::Dir, path: &[u8]) -> Result<()> {
        self.resolver.layers().make_opaque(dir.as_fd(), path)?;
        if let Some(written) = &self.written {
            prune(&dir, written, 0)?;
            self.resolver.forget();
        }
        Ok(())
    }
}

/// Removes what is in `dir` and was not written by this layer.
fn prune(dir: &tree::Dir, written: &Written, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(Error::LimitExceeded { limit: "directory depth", max: DEPTH_MAX as u64 });
    }
    let Stat { dev, ino, .. } = dir.stat()?;
    for name in dir.names()? {
        if !written.contains((dev, ino), name.to_bytes()) {
            tree::remove(dir.as_fd(), &name)
                .map_err(|e| Error::io("remove", dir.entry_path(&name), e))?;
        } else if dir.stat_entry(&name)?.is_some_and(|stat| stat.is_dir())
            && let Some(child) = dir.open_dir(&name)?
        {
            prune(&child, written, depth + 1)?;
        }
    }
    Ok(())
}

fn make_whiteout(parent: &Handle, name: &[u8], path: &[u8]) -> Result<()> {
    let kind = FileType::CharacterDevice;
    match rustix::fs::mknodat(parent, name, kind, Mode::empty(), 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(fs_error("make whiteout", path, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_by_prefix() {
        let special = |name: &str| classify(&CleanPath::new(name.as_bytes()).unwrap()).ok();
        assert_eq!(special("a/b"), Some(Special::No));
        assert_eq!(special("a/.wh.b"), Some(Special::Whiteout));
        assert_eq!(special("a/.wh..wh..opq"), Some(Special::Opaque));
        assert_eq!(special(".wh..wh..opq"), Some(Special::Opaque));
        assert_eq!(special(".wh..wh.plnk/12"), Some(Special::Ignored));
        assert_eq!(special(".wh..wh.aufs"), Some(Special::Ignored));
        assert_eq!(special("a/.wh."), None);
        assert_eq!(special("a/.wh.."), None);
        assert_eq!(special("a/.wh..."), None);
        assert_eq!(special(".wh.a/b"), None);
        assert_eq!(special("a/.whale"), Some(Special::No));
    }
}
