//! Owner, mode, attributes and times, set on open files only.

use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::diff::apply::resolve::{fs_error, lossy};
use crate::error::{Error, Result};
use crate::tar::Entry;
use crate::tree::{Stat, magic_path, timespec};

/// Access and modification time.
pub(crate) type Times = ((i64, u32), (i64, u32));

/// How the file is held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// For reading or writing.
    Open,
    /// By `O_PATH`: calls take the descriptor and an empty path, or its link
    /// in `/proc`, which leads to this very file whatever its name is now.
    Path,
}

/// Sets owner, attributes and mode, in the order in which none undoes another:
/// a new owner clears setuid bits and capabilities.
pub(crate) fn set(fd: BorrowedFd<'_>, held: Held, stat: &Stat, entry: &Entry) -> Result<()> {
    let path = &entry.path;
    let chown = (stat.uid, stat.gid) != (entry.uid, entry.gid);
    if chown {
        set_owner(fd, entry.uid, entry.gid).map_err(|e| fs_error("change owner", path, e))?;
    }
    for (name, value) in &entry.xattrs {
        set_xattr(fd, held, stat.file_type(), name, value, path)?;
    }
    let special = entry.mode & 0o6000 != 0;
    if stat.file_type() != FileType::Symlink
        && (chown && special || stat.mode & 0o7777 != entry.mode)
    {
        set_mode(fd, held, entry.mode).map_err(|e| fs_error("change mode", path, e))?;
    }
    Ok(())
}

pub(crate) fn set_owner(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)
}

pub(crate) fn set_mode(fd: BorrowedFd<'_>, held: Held, mode: u32) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    match held {
        Held::Open => rustix::fs::fchmod(fd, mode),
        Held::Path => rustix::fs::chmodat(CWD, magic_path(fd), mode, AtFlags::empty()),
    }
}

pub(crate) fn set_times(fd: BorrowedFd<'_>, held: Held, times: Times) -> rustix::io::Result<()> {
    let times = Timestamps { last_access: timespec(times.0), last_modification: timespec(times.1) };
    match held {
        Held::Open => rustix::fs::futimens(fd, &times),
        Held::Path => match rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH) {
            // Kernels before 5.8.
            Err(Errno::INVAL | Errno::NOENT) => {
                rustix::fs::utimensat(CWD, magic_path(fd), &times, AtFlags::empty())
            }
            result => result,
        },
    }
}

/// The times of an entry: nobody reads before writing, and nothing lies
/// outside of what ext4 can store, so that all filesystems agree.
pub(crate) fn times(entry: &Entry) -> Times {
    let clamp = |(seconds, nanoseconds): (i64, u32)| match seconds {
        ..SECONDS_MIN => (SECONDS_MIN, 0),
        SECONDS_MIN..=SECONDS_MAX => (seconds, nanoseconds),
        _ => (SECONDS_MAX, 0),
    };
    let mtime = clamp(entry.mtime);
    let atime = entry.atime.map_or(mtime, clamp).max(mtime);
    (atime, mtime)
}

const SECONDS_MIN: i64 = -0x8000_0000;
const SECONDS_MAX: i64 = 0x3_7fff_ffff;

/// Whether a layer may set this attribute.
///
/// Attributes by which overlayfs is steered would let a layer redirect or
/// reveal files; labels of security modules belong to the host's policy.
fn permitted(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

fn set_xattr(
    fd: BorrowedFd<'_>,
    held: Held,
    kind: FileType,
    name: &[u8],
    value: &[u8],
    path: &[u8],
) -> Result<()> {
    let shown = lossy(name);
    if !permitted(name) {
        tracing::debug!(path = %lossy(path).display(), name = %shown.display(), "attribute left out");
        return Ok(());
    }
    let result = match held {
        Held::Open => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
        Held::Path => rustix::fs::setxattr(magic_path(fd), name, value, XattrFlags::empty()),
    };
    let plain = matches!(kind, FileType::RegularFile | FileType::Directory);
    match result {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => {
            tracing::warn!(path = %lossy(path).display(), name = %shown.display(),
                "filesystem has no such attributes");
            Ok(())
        }
        // The kernel knows user attributes on files and directories only.
        Err(Errno::PERM) if !plain && name.starts_with(b"user.") => Ok(()),
        Err(Errno::TOOBIG | Errno::RANGE | Errno::INVAL) => {
            Err(Error::archive(path, "attribute the kernel refuses"))
        }
        Err(errno) => Err(fs_error("set attribute", path, errno)),
    }
}

/// Gives `to` the owner, mode and attributes of a directory below, except
/// those that steer overlayfs.
pub(crate) fn copy_dir(from: BorrowedFd<'_>, stat: &Stat, to: BorrowedFd<'_>) -> Result<()> {
    let path = magic_path(from);
    let error = |op, errno: Errno| Error::io(op, "parent directory", errno);
    set_owner(to, stat.uid, stat.gid).map_err(|e| error("change owner", e))?;
    for name in xattr_names(&path).map_err(|e| error("list attributes", e))? {
        let bytes = name.as_bytes();
        if bytes.starts_with(b"trusted.overlay.") || bytes.starts_with(b"user.overlay.") {
            continue;
        }
        let value = xattr(&path, &name).map_err(|e| error("read attribute", e))?;
        let Some(value) = value else { continue };
        match rustix::fs::setxattr(magic_path(to), &*name, &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(error("set attribute", errno)),
        }
    }
    set_mode(to, Held::Path, stat.mode & 0o7777).map_err(|e| error("change mode", e))
}

/// Names of all attributes of the file at `path`, which is not followed.
pub(crate) fn xattr_names(path: &std::path::Path) -> rustix::io::Result<Vec<std::ffi::OsString>> {
    let list = grown(|buffer| rustix::fs::listxattr(path, buffer));
    let list = match list {
        Err(Errno::OPNOTSUPP) => Vec::new(),
        list => list?,
    };
    Ok(list
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| std::ffi::OsStr::from_bytes(name).to_owned())
        .collect())
}

/// One attribute of the file at `path`, if it has it.
pub(crate) fn xattr(
    path: &std::path::Path,
    name: &std::ffi::OsStr,
) -> rustix::io::Result<Option<Vec<u8>>> {
    match grown(|buffer| rustix::fs::getxattr(path, name, buffer)) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Calls `read` with a buffer that holds any list or value, in two steps.
fn grown(
    mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    for size in [256, XATTR_BYTES_MAX] {
        let mut buffer = vec![0; size];
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::RANGE)
}

/// The kernel's limit for a value, and for a list of names.
const XATTR_BYTES_MAX: usize = 64 << 10;
