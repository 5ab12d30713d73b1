//! Directories held open: everything below is reached from their descriptors,
//! one name at a time and never through a symbolic link.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// An open directory that remembers its path for messages.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    depth: usize,
}

/// The part of a file's status which matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) mode: u32,
    pub(crate) links: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u64,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) atime: (i64, u32),
    pub(crate) mtime: (i64, u32),
    pub(crate) ctime: (i64, u32),
}

/// Deepest tree that is walked: each level holds one descriptor. Paths of real
/// systems stay below one hundred.
pub(crate) const DEPTH_MAX: usize = 512;

impl Dir {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|e| Error::io("open", path, e))?;
        Ok(Self { fd, path: path.to_owned(), depth: 0 })
    }

    /// Opens the directory `name` in one held by somebody else.
    pub(crate) fn open_below(dir: BorrowedFd<'_>, name: &CStr) -> Result<Self> {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()));
        match rustix::fs::openat(dir, name, DIR_FLAGS, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path, depth: 0 }),
            Err(errno) => Err(Error::io("open", path, errno)),
        }
    }

    /// A second handle of the same directory.
    pub(crate) fn again(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|e| self.error("duplicate", e))?;
        Ok(Self { fd, path: self.path.clone(), depth: self.depth })
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn entry_path(&self, name: &CStr) -> PathBuf {
        self.path.join(std::ffi::OsStr::from_bytes(name.to_bytes()))
    }

    pub(crate) fn stat(&self) -> Result<Stat> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|e| self.error("stat", e))?;
        Ok(Stat::from(stat))
    }

    /// The status of an entry itself, or `None` if there is no such entry.
    pub(crate) fn stat_entry(&self, name: &CStr) -> Result<Option<Stat>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Stat::from(stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io("stat", self.entry_path(name), errno)),
        }
    }

    /// Opens a directory in this one, or `None` if it is gone or no directory.
    pub(crate) fn open_dir(&self, name: &CStr) -> Result<Option<Self>> {
        if self.depth == DEPTH_MAX {
            return Err(Error::LimitExceeded { limit: "directory depth", max: DEPTH_MAX as u64 });
        }
        match rustix::fs::openat(&self.fd, name, DIR_FLAGS, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path: self.entry_path(name), depth: self.depth + 1 })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(Error::io("open", self.entry_path(name), errno)),
        }
    }

    /// Names of all entries, without `.` and `..`, in the order of their bytes.
    pub(crate) fn names(&self) -> Result<Vec<CString>> {
        let mut names = entries(&self.fd).map_err(|e| self.error("list", e))?;
        names.sort_unstable();
        Ok(names)
    }

    /// The target of a symbolic link.
    pub(crate) fn read_link(&self, name: &CStr) -> Result<CString> {
        rustix::fs::readlinkat(&self.fd, name, Vec::new())
            .map_err(|e| Error::io("read link", self.entry_path(name), e))
    }

    /// A path by which calls that want one reach an entry, without trusting
    /// more than its last component.
    pub(crate) fn magic_path(&self, name: &CStr) -> PathBuf {
        entry_magic_path(self.fd.as_fd(), name)
    }

    pub(crate) fn error(&self, op: &'static str, source: impl Into<io::Error>) -> Error {
        Error::io(op, &self.path, source)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Stat {
    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    pub(crate) fn is_file(&self) -> bool {
        self.file_type() == FileType::RegularFile
    }

    /// Overlayfs' whiteout: a character device 0:0.
    pub(crate) fn is_whiteout(&self) -> bool {
        self.file_type() == FileType::CharacterDevice && self.rdev == 0
    }
}

impl From<rustix::fs::Stat> for Stat {
    #[allow(
        clippy::unnecessary_cast,
        clippy::useless_conversion,
        reason = "the fields' types differ between architectures"
    )]
    fn from(stat: rustix::fs::Stat) -> Self {
        Self {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            mode: stat.st_mode,
            links: stat.st_nlink as u64,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev as u64,
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            atime: (stat.st_atime as i64, stat.st_atime_nsec as u32),
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
        }
    }
}

/// Names of all entries of an open directory.
pub(crate) fn entries(fd: impl AsFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// `/proc/self/fd/<dir>/<name>`.
pub(crate) fn entry_magic_path(dir: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    let mut path = magic_path(dir).into_os_string().into_vec();
    path.push(b'/');
    path.extend_from_slice(name.to_bytes());
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

/// `/proc/self/fd/<fd>`: the open file itself, also for an `O_PATH` one.
pub(crate) fn magic_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// A time for the kernel.
#[allow(clippy::unnecessary_cast, reason = "the field's type differs between architectures")]
pub(crate) fn timespec((seconds, nanoseconds): (i64, u32)) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ }
}

/// Deletes what is at `path`, and all below it if it is a directory. Nothing
/// there is fine.
///
/// Works from descriptors: links are deleted and not followed, whoever renames
/// things meanwhile, and at any depth.
///
/// # Errors
///
/// [`Error::Io`], also at the first mount point inside, whose content stays.
pub fn remove_tree(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::invalid("path", format!("{} has no name", path.display())));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let name =
        CString::new(name.as_bytes()).map_err(|_| Error::invalid("path", "zero byte in it"))?;
    let dir = match Dir::open(parent) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        dir => dir?,
    };
    remove(dir.as_fd(), &name).map_err(|e| Error::io("remove", path, e))
}

/// Deletes the entry `name` of `dir` and all below it. A missing one is fine.
///
/// Stays on the entry's filesystem: a mount point inside is an error and keeps
/// its content. Works at any depth, with few descriptors: directories found
/// too deep are moved up and deleted from there.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let top = match rustix::fs::openat(dir, name, DIR_FLAGS, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let device = rustix::fs::fstat(&top)?.st_dev;
    let mut moved = 0_u64;
    loop {
        empty(&top, &top, device, 0, &mut moved)?;
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Directories were moved up into it, or somebody still writes.
            Err(Errno::NOTEMPTY) if moved < MOVED_MAX => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Deletes what is in `dir`, which lies `level` levels below `top`.
fn empty(
    top: &OwnedFd,
    dir: &OwnedFd,
    device: u64,
    level: usize,
    moved: &mut u64,
) -> rustix::io::Result<()> {
    for name in entries(dir)? {
        match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        let child = match rustix::fs::openat(dir, &name, DIR_FLAGS, Mode::empty()) {
            Ok(child) => child,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        if rustix::fs::fstat(&child)?.st_dev != device {
            return Err(Errno::XDEV);
        }
        if level == REMOVE_LEVELS_MAX {
            *moved += 1;
            let up = format!(".removed-{}-{moved}", std::process::id());
            rustix::fs::renameat_with(dir, &name, top, up, RenameFlags::NOREPLACE)?;
            continue;
        }
        empty(top, &child, device, level + 1, moved)?;
        drop(child);
        match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Levels deleted by descending, with one descriptor each.
const REMOVE_LEVELS_MAX: usize = 64;

/// Ends the fight with somebody who fills a directory while it is deleted.
const MOVED_MAX: u64 = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_descriptors_allow_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        rustix::fs::mkdirat(&dir, c"deep", Mode::RWXU).unwrap();
        let mut at = rustix::fs::openat(&dir, c"deep", DIR_FLAGS, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, c"d", DIR_FLAGS, Mode::empty()).unwrap();
        }
        remove(dir.as_fd(), c"deep").unwrap();
        assert_eq!(dir.names().unwrap(), Vec::<CString>::new());
    }

    #[test]
    fn a_link_is_removed_and_not_what_it_points_to() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("kept")).unwrap();
        std::os::unix::fs::symlink("kept", temp.path().join("link")).unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        remove(dir.as_fd(), c"link").unwrap();
        assert_eq!(dir.names().unwrap(), [c"kept".to_owned()]);
    }
}
