//! A copy of a directory tree that shares blocks where the filesystem can.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;

use crate::diff::apply::metadata::{Held, set_mode, set_owner, set_times, xattr, xattr_names};
use crate::error::{Error, Result};
use crate::tree::{Dir, Stat, magic_path};

/// Copies what is in `from`, and its own metadata, to the empty directory
/// `to`: owners, modes, attributes, times, holes and hard links included.
///
/// Nobody else may be able to write to either.
pub(crate) fn tree(from: &Dir, to: &Dir) -> Result<()> {
    let mut copier = Copier { linked: HashMap::new() };
    let stat = from.stat()?;
    copier.contents(from, to)?;
    describe(from.as_fd(), to.as_fd(), Held::Open, &stat).map_err(|e| to.error("copy", e))
}

struct Copier {
    /// Where the first name of each file with several ones went.
    linked: HashMap<(u64, u64), PathBuf>,
}

const PATH_ENTRY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Copier {
    fn contents(&mut self, from: &Dir, to: &Dir) -> Result<()> {
        for name in from.names()? {
            let Some(stat) = from.stat_entry(&name)? else { continue };
            let error = |e: Errno| Error::io("copy", from.entry_path(&name), e);
            if stat.is_dir() {
                rustix::fs::mkdirat(to, &name, Mode::RWXU).map_err(error)?;
                let gone = || error(Errno::STALE);
                let source = from.open_dir(&name)?.ok_or_else(gone)?;
                let copy = to.open_dir(&name)?.ok_or_else(gone)?;
                self.contents(&source, &copy)?;
                describe(source.as_fd(), copy.as_fd(), Held::Open, &stat).map_err(error)?;
            } else if !self.link(to, &name, &stat).map_err(error)? {
                entry(from, to, &name, &stat).map_err(error)?;
            }
        }
        Ok(())
    }

    /// Links a name to a file that was copied under another one.
    fn link(&mut self, to: &Dir, name: &CStr, stat: &Stat) -> rustix::io::Result<bool> {
        if stat.links < 2 {
            return Ok(false);
        }
        let path = to.entry_path(name);
        if let Some(first) = self.linked.get(&(stat.dev, stat.ino)) {
            match rustix::fs::linkat(CWD, first, to, name, AtFlags::empty()) {
                Ok(()) => return Ok(true),
                // As many links as the filesystem has room for: begin again.
                Err(Errno::MLINK) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.linked.insert((stat.dev, stat.ino), path);
        Ok(false)
    }
}

/// Copies anything but a directory.
fn entry(from: &Dir, to: &Dir, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
    if stat.is_file() {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let copy = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
        data(&source, &copy, stat.size)?;
        return describe(source.as_fd(), copy.as_fd(), Held::Open, stat);
    }
    match stat.file_type() {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target, to, name)?;
        }
        kind => rustix::fs::mknodat(to, name, kind, Mode::empty(), stat.rdev)?,
    }
    let source = rustix::fs::openat(from, name, PATH_ENTRY, Mode::empty())?;
    let copy = rustix::fs::openat(to, name, PATH_ENTRY, Mode::empty())?;
    describe(source.as_fd(), copy.as_fd(), Held::Path, stat)
}

/// Shares all blocks, or copies each stretch of data and leaves out holes.
fn data(source: &OwnedFd, copy: &OwnedFd, size: u64) -> rustix::io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    match rustix::fs::ioctl_ficlone(copy, source) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {}
        Err(errno) => return Err(errno),
    }
    rustix::fs::ftruncate(copy, size)?;
    let mut end = 0;
    while end < size {
        let start = match rustix::fs::seek(source, SeekFrom::Data(end)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        end = rustix::fs::seek(source, SeekFrom::Hole(start))?.min(size);
        range(source, start, copy, start, end - start)?;
    }
    Ok(())
}

/// Copies `length` bytes of `source` to another place in `copy`, inside the
/// kernel if it can.
pub(crate) fn range(
    source: impl AsFd,
    from: u64,
    copy: impl AsFd,
    to: u64,
    length: u64,
) -> rustix::io::Result<()> {
    let mut done = 0;
    while done < length {
        let (mut read_at, mut write_at) = (from + done, to + done);
        let rest = usize::try_from(length - done).unwrap_or(usize::MAX).min(COPY_BYTES_MAX);
        let copied = rustix::fs::copy_file_range(
            &source,
            Some(&mut read_at),
            &copy,
            Some(&mut write_at),
            rest,
        );
        done += match copied {
            // Shorter than it said: somebody truncated it.
            Ok(0) => return Err(Errno::STALE),
            Ok(count) => count as u64,
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                by_hand(source.as_fd(), from + done, copy.as_fd(), to + done, rest)?
            }
            Err(Errno::INTR) => 0,
            Err(errno) => return Err(errno),
        };
    }
    Ok(())
}

fn by_hand(
    source: BorrowedFd<'_>,
    from: u64,
    copy: BorrowedFd<'_>,
    to: u64,
    length: usize,
) -> rustix::io::Result<u64> {
    let mut buffer = vec![0; HAND_BYTES.min(length)];
    let count = rustix::io::pread(source, &mut buffer, from)?;
    if count == 0 {
        return Err(Errno::STALE);
    }
    let mut done = 0;
    while done < count {
        done += rustix::io::pwrite(copy, &buffer[done..count], to + done as u64)?;
    }
    Ok(count as u64)
}

/// Owner, attributes, mode and times.
fn describe(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    held: Held,
    stat: &Stat,
) -> rustix::io::Result<()> {
    set_owner(to, stat.uid, stat.gid)?;
    let (source, copy) = (magic_path(from), magic_path(to));
    for name in xattr_names(&source)? {
        let Some(value) = xattr(&source, &name)? else { continue };
        match rustix::fs::setxattr(&copy, name.as_bytes(), &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    if stat.file_type() != FileType::Symlink {
        set_mode(to, held, stat.mode & 0o7777)?;
    }
    set_times(to, held, (stat.atime, stat.mtime))
}

/// One call's worth, so that a signal never waits for a whole disk.
const COPY_BYTES_MAX: usize = 1 << 30;
const HAND_BYTES: usize = 256 << 10;
