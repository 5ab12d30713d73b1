//! Directories that the daemon trusts: what it may find there, and what it refuses.
//!
//! Whoever may write to a directory of ours may put anything in the place of what we keep there.
//! So a directory that is there already must be a real one, belong to the daemon's user, and must
//! not have been open to others; what is checked is the directory that was opened, whatever is
//! put under its name meanwhile.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fchmod, open};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Makes the directory `path` unless it is there, and gives it `mode`.
///
/// # Errors
///
/// [`Error::Directory`] for a symbolic link, for something that belongs to another user, and for
/// a directory with something in it that others could write to.
pub(crate) fn own(path: &Path, mode: u32) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, error))?;
    match fs::DirBuilder::new().mode(mode).create(path) {
        // Whatever is there is looked at below.
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(Error::io("create", path, error));
        }
        _ => {}
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let directory = match open(path, flags, Mode::empty()) {
        Ok(directory) => fs::File::from(directory),
        Err(Errno::LOOP | Errno::NOTDIR) => {
            return refuse(path, "is no directory but a link or a file; name the directory itself");
        }
        Err(errno) => return Err(Error::io("open", path, errno.into())),
    };
    let found = directory.metadata().map_err(|error| Error::io("inspect", path, error))?;
    if found.uid() != rustix::process::geteuid().as_raw() {
        return refuse(path, &format!("belongs to user {}, not to the daemon's", found.uid()));
    }
    let occupied = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    if found.mode() & WRITABLE_BY_OTHERS != 0 && occupied() {
        let reason = format!(
            "others may write to it (mode {:o}), so what is in it cannot be trusted; look through \
             it, then take the permission away",
            found.mode() & 0o7777
        );
        return refuse(path, &reason);
    }
    fchmod(&directory, Mode::from_raw_mode(mode))
        .map_err(|errno| Error::io("set mode of", path, errno.into()))
}

/// Refuses a directory in which others may replace what is ours: one that everybody may write to,
/// without the bit that keeps entries to their owners.
pub(crate) fn refuse_open(path: &Path) -> Result<()> {
    let found = fs::metadata(path).map_err(|error| Error::io("inspect", path, error))?;
    if found.mode() & EVERYBODY_WRITES != 0 && found.mode() & STICKY == 0 {
        return refuse(path, "everybody may write to it and replace a socket in it");
    }
    Ok(())
}

fn refuse(path: &Path, reason: &str) -> Result<()> {
    Err(Error::Directory { path: path.to_path_buf(), reason: reason.to_owned() })
}

const WRITABLE_BY_OTHERS: u32 = 0o022;
const EVERYBODY_WRITES: u32 = 0o002;
const STICKY: u32 = 0o1000;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_directory_is_made_and_keeps_its_mode() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        own(&path, 0o700).unwrap();
        assert_eq!(mode(&path), 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        own(&path, 0o711).unwrap();
        assert_eq!(mode(&path), 0o711, "nobody had put anything into it");
    }

    #[test]
    fn links_files_and_what_others_wrote_to_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let (real, link) = (parent.path().join("real"), parent.path().join("link"));
        fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        fs::write(real.join("planted"), "x").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o777)).unwrap();
        for path in [&real, &link, &real.join("planted")] {
            let error = own(path, 0o700).unwrap_err();
            assert!(!error.to_string().is_empty());
        }
        assert!(matches!(own(&link, 0o700), Err(Error::Directory { .. })));
        assert!(matches!(own(&real, 0o700), Err(Error::Directory { .. })));
        assert_eq!(mode(&real), 0o777, "left as it was found");
        assert!(matches!(refuse_open(&real), Err(Error::Directory { .. })));
        fs::set_permissions(&real, fs::Permissions::from_mode(0o1777)).unwrap();
        refuse_open(&real).unwrap();
    }
}
