use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::error::{Error, Result};

/// An open directory. Everything in it is reached by a single name relative to the descriptor, so
/// nothing that happens to the path above can redirect an access.
///
/// Names come from this crate: constants, hex digits and numbers, never text from outside.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    /// For messages only.
    path: PathBuf,
}

impl Dir {
    /// Opens the directory at `path`, which must not be a symbolic link itself.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let flags = DIR | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(fail("open", path))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// The directory `name`, created with `mode` when absent.
    pub(crate) fn create_dir(&self, name: &str, mode: u32) -> Result<Self> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(self.fail("create directory", name)(error)),
        }
        self.open_dir(name).map_err(self.fail("open directory", name))
    }

    /// The directory `name`.
    pub(crate) fn open_dir(&self, name: &str) -> io::Result<Self> {
        let fd = self.open_beneath(name, DIR, 0)?;
        Ok(Self { fd, path: self.path.join(name) })
    }

    /// The existing file `name`, for reading. Does not wait for the writer of a FIFO.
    pub(crate) fn read_file(&self, name: &str) -> io::Result<File> {
        self.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK, 0)
    }

    /// Opens or creates the file `name`.
    pub(crate) fn open_file(&self, name: &str, flags: OFlags, mode: u32) -> io::Result<File> {
        self.open_beneath(name, flags | OFlags::CLOEXEC, mode).map(File::from)
    }

    fn open_beneath(&self, name: &str, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        debug_assert!(is_single_name(name), "{name:?} would leave {}", self.path.display());
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(mode);
        if !OPENAT2_MISSING.load(Ordering::Relaxed) {
            // A mount below the root would break every rename, and be emptied by a removal.
            let resolve = ResolveFlags::BENEATH
                | ResolveFlags::NO_SYMLINKS
                | ResolveFlags::NO_MAGICLINKS
                | ResolveFlags::NO_XDEV;
            match rustix::fs::openat2(&self.fd, name, flags, mode, resolve) {
                Err(rustix::io::Errno::NOSYS) => OPENAT2_MISSING.store(true, Ordering::Relaxed),
                result => return Ok(result?),
            }
        }
        // One name without a slash, opened without following links: only mounts go unnoticed.
        Ok(rustix::fs::openat(&self.fd, name, flags, mode)?)
    }

    /// An empty file in no directory, to be given a name in this one; `None` where the filesystem
    /// has no such thing.
    pub(crate) fn create_unnamed(&self, mode: u32) -> io::Result<Option<File>> {
        use rustix::io::Errno;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, c".", flags, Mode::from_raw_mode(mode)) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a file without a name its first. Fails with `AlreadyExists` if `name` is taken.
    pub(crate) fn link_unnamed(&self, file: &File, name: &str) -> io::Result<()> {
        use rustix::io::Errno;
        debug_assert!(is_single_name(name), "{name:?} would leave {}", self.path.display());
        match rustix::fs::linkat(file, c"", &self.fd, name, AtFlags::EMPTY_PATH) {
            // What an older kernel says to those without CAP_DAC_READ_SEARCH.
            Err(Errno::NOENT) => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let follow = AtFlags::SYMLINK_FOLLOW;
                Ok(rustix::fs::linkat(rustix::fs::CWD, path, &self.fd, name, follow)?)
            }
            result => Ok(result?),
        }
    }

    /// What `name` is, not following a link.
    pub(crate) fn stat(&self, name: &str) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub(crate) fn remove_file(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    pub(crate) fn rename(&self, name: &str, target: &Self, target_name: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.fd, name, &target.fd, target_name)?)
    }

    /// Removes `name` and, should it be a directory, everything in it.
    pub(crate) fn remove_all(&self, name: &str) -> io::Result<()> {
        match self.remove_file(name) {
            Err(error) if error.raw_os_error() == Some(EISDIR) => {}
            result => return result,
        }
        let dir = self.open_dir(name)?;
        dir.clear()?;
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    /// Removes everything in this directory.
    pub(crate) fn clear(&self) -> io::Result<()> {
        for entry in self.entries()? {
            match self.remove_all(&entry?) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The names in this directory, one at a time. Names that are not UTF-8 were not made by this
    /// crate and are left out.
    pub(crate) fn entries(&self) -> io::Result<impl Iterator<Item = io::Result<String>> + use<>> {
        // A descriptor of its own, so that concurrent walks have positions of their own.
        let fd = rustix::fs::openat(&self.fd, c".", DIR, Mode::empty())?;
        let entries = rustix::fs::Dir::new(fd)?;
        Ok(entries.filter_map(|entry| match entry {
            Ok(entry) => name_of(entry.file_name()).map(Ok),
            Err(error) => Some(Err(error.into())),
        }))
    }

    /// The content of the small file `name`, at most `size_bytes_max`; `None` when absent or not a
    /// regular file of that size.
    pub(crate) fn read_small(
        &self,
        name: &str,
        size_bytes_max: u64,
    ) -> io::Result<Option<Vec<u8>>> {
        let file = match self.read_file(name) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        if !is_regular(&rustix::fs::fstat(&file)?) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(size_bytes_max + 1).read_to_end(&mut bytes)?;
        Ok((bytes.len() as u64 <= size_bytes_max).then_some(bytes))
    }

    /// Replaces the small file `name` such that a reader or a killed process sees the old content
    /// or the new. Survives a power cut only once both it and this directory are synced.
    pub(crate) fn write_small(&self, name: &str, bytes: &[u8]) -> io::Result<File> {
        let temporary = format!("{name}.tmp");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let mut file = self.open_file(&temporary, flags, 0o644)?;
        file.write_all(bytes)?;
        self.rename(&temporary, self, name)?;
        Ok(file)
    }

    /// Makes creations, removals and renames in this directory durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Turns an OS error about `name` into this crate's.
    pub(crate) fn fail<E: Into<io::Error>>(
        &self,
        op: &'static str,
        name: &str,
    ) -> impl FnOnce(E) -> Error + use<E> {
        let path = self.path.join(name);
        move |error| Error::Io { op, path, source: error.into() }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(crate) fn fail<E: Into<io::Error>>(op: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    move |error| Error::Io { op, path: path.to_owned(), source: error.into() }
}

pub(crate) fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Nothing there, or something that can not be opened as a file in its own right.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ELOOP)
}

fn is_single_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn name_of(name: &CStr) -> Option<String> {
    let name = name.to_str().ok()?;
    is_single_name(name).then(|| name.to_owned())
}

/// Set when this kernel turns out to have no openat2 (before 5.6).
static OPENAT2_MISSING: AtomicBool = AtomicBool::new(false);

const DIR: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

const EISDIR: i32 = rustix::io::Errno::ISDIR.raw_os_error();
const ELOOP: i32 = rustix::io::Errno::LOOP.raw_os_error();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_neither_with_nor_without_openat2() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "content").unwrap();
        std::os::unix::fs::symlink("file", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/tmp", root.path().join("dir")).unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let missing = OPENAT2_MISSING.load(Ordering::Relaxed);
        for pretended in [missing, true] {
            OPENAT2_MISSING.store(pretended, Ordering::Relaxed);
            assert_eq!(dir.read_small("file", 100).unwrap().unwrap(), b"content");
            assert!(is_absent(&dir.read_file("link").unwrap_err()));
            assert!(dir.open_dir("dir").is_err());
            assert!(dir.read_small("link", 100).unwrap().is_none());
        }
        OPENAT2_MISSING.store(missing, Ordering::Relaxed);
    }

    #[test]
    fn removal_empties_directories_and_leaves_what_links_point_to() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("kept"), "").unwrap();
        std::fs::create_dir_all(root.path().join("a/b/c")).unwrap();
        std::fs::write(root.path().join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("a/link")).unwrap();
        let dir = Dir::open(root.path()).unwrap();
        dir.remove_all("a").unwrap();
        assert_eq!(dir.entries().unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
        assert_eq!(dir.remove_all("a").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_small_file_that_is_too_large_or_no_file_reads_as_absent() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        dir.write_small("file", &[1; 10]).unwrap();
        assert_eq!(dir.read_small("file", 10).unwrap().unwrap(), [1; 10]);
        assert!(dir.read_small("file", 9).unwrap().is_none());
        assert!(dir.read_small("missing", 9).unwrap().is_none());
        dir.create_dir("dir", 0o700).unwrap();
        assert!(dir.read_small("dir", 9).unwrap().is_none());
    }
}
