//! Removal of folders that never leaves the mount it starts in.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, openat2, unlinkat},
    io::Errno,
};

use crate::{Error, Result};

/// Removes a folder and what is in it; a missing one is success.
///
/// Works beneath descriptors and follows neither links nor mounts: with
/// something still mounted below it fails and what is mounted stays whole.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let fail = |e: io::Error| Error::io("remove", path, e);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::InvalidArgument(format!("{} is no folder's name", path.display())));
    };
    let parent = match File::open(parent) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        parent => parent.map_err(fail)?,
    };
    let name = std::ffi::CString::new(name.as_encoded_bytes()).map_err(|e| fail(e.into()))?;
    remove_at(parent.as_fd(), &name, 0).map_err(|e| fail(e.into()))
}

fn remove_at(parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> rustix::io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) if depth < DEPTH_MAX => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let folder = openat2(parent, name, flags, Mode::empty(), resolve)?;
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            remove_at(folder.as_fd(), entry.file_name(), depth + 1)?;
        }
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Bundles and work folders are shallow.
const DEPTH_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, gone) = (dir.path().join("kept"), dir.path().join("gone"));
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        fs::create_dir_all(gone.join("a/b")).unwrap();
        std::os::unix::fs::symlink(&kept, gone.join("a/link")).unwrap();
        remove_tree(&gone).unwrap();
        remove_tree(&gone).unwrap();
        assert!(!gone.exists());
        assert!(kept.join("file").exists());
    }
}
