//! Unix sockets that clients find finished or not at all.
//!
//! A socket is bound inside a private directory, given its owner and mode there, and renamed to
//! its address: no client ever meets it with wrong permissions, and a dead daemon's socket is
//! replaced in one step. A socket on which somebody answers is never touched.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::net::UnixListener;

use crate::directory;
use crate::error::{Error, Result};

/// Owner and group may connect.
const MODE: u32 = 0o660;

/// Longest path that fits a socket address, without the terminating zero.
const PATH_BYTES_MAX: usize = 107;

/// A listening socket that removes itself from its address when dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    inode: u64,
}

/// Listens on `path` for `uid` and `gid`.
///
/// # Errors
///
/// - [`Error::SocketBusy`]: another process answers there.
/// - [`Error::Directory`]: everybody may replace the socket.
/// - [`Error::SocketAddress`]: the path is too long, or something else than a socket is there.
/// - [`Error::Io`]: the operating system refused a step.
///
/// # Panics
///
/// Outside a tokio runtime.
pub fn listen(path: &Path, uid: u32, gid: u32) -> Result<(UnixListener, Socket)> {
    if path.as_os_str().len() > PATH_BYTES_MAX {
        let reason = format!("the path is longer than {PATH_BYTES_MAX} bytes");
        return Err(Error::SocketAddress { path: path.to_path_buf(), reason });
    }
    let (parent, name) = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => (parent, name),
        _ => {
            let reason = "the path names no file".to_owned();
            return Err(Error::SocketAddress { path: path.to_path_buf(), reason });
        }
    };
    fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, error))?;
    directory::refuse_open(parent)?;
    refuse_busy(path)?;

    let private = Private::create(parent)?;
    let draft = private.path.join(name);
    let bind = || -> io::Result<(StdListener, u64)> {
        // Through the descriptor the address stays short, however long the path is.
        let directory = rustix::fs::open(
            &private.path,
            OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        let listener = StdListener::bind(short)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(MODE))?;
        chown(&draft, Some(uid), Some(gid))?;
        let inode = fs::symlink_metadata(&draft)?.ino();
        fs::rename(&draft, path)?;
        Ok((listener, inode))
    };
    let (listener, inode) = bind().map_err(|error| Error::io("bind", path, error))?;
    let socket = Socket { path: path.to_path_buf(), inode };
    let listener =
        UnixListener::from_std(listener).map_err(|error| Error::io("listen", path, error))?;
    Ok((listener, socket))
}

impl Socket {
    /// Where clients connect.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another daemon may have taken the address over meanwhile: remove only what is ours.
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "remove socket");
        }
    }
}

/// Refuses an address where somebody answers, or that is no socket.
fn refuse_busy(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("inspect", path, error)),
        Ok(found) if !found.file_type().is_socket() => {
            let reason = "something that is no socket is in the way".to_owned();
            return Err(Error::SocketAddress { path: path.to_path_buf(), reason });
        }
        Ok(_) => {}
    }
    let probe = || -> rustix::io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)
    };
    match probe() {
        // Nobody listens: the socket of a daemon that is gone.
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        // Answered, or too busy to answer at once.
        Ok(()) | Err(Errno::WOULDBLOCK) => Err(Error::SocketBusy { path: path.to_path_buf() }),
        Err(errno) => Err(Error::io("probe", path, errno.into())),
    }
}

/// A directory of our own beside the socket's address, empty again when dropped.
struct Private {
    path: PathBuf,
}

impl Private {
    fn create(parent: &Path) -> Result<Self> {
        let path = parent.join(format!(".crated-{}", std::process::id()));
        let fail = |error| Error::io("create", &path, error);
        match fs::create_dir(&path) {
            // Left by a process that had our id; rename over what it left in there is harmless.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(fail)?,
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(fail)?;
        Ok(Self { path })
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // Not empty when binding failed half-way: take the draft along.
        if let Ok(entries) = fs::read_dir(&self.path) {
            for entry in entries.flatten() {
                let _ = fs::remove_file(entry.path());
            }
        }
        let _ = fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> (u32, u32) {
        (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())
    }

    #[tokio::test]
    async fn a_live_socket_is_refused_and_a_dead_one_replaced() {
        let (uid, gid) = owner();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d.sock");
        let (listener, socket) = listen(&path, uid, gid).unwrap();
        assert!(matches!(listen(&path, uid, gid), Err(Error::SocketBusy { .. })));

        std::mem::forget(socket);
        drop(listener);
        assert!(path.exists(), "a killed daemon leaves its socket behind");
        let (_listener, socket) = listen(&path, uid, gid).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        drop(socket);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn other_files_are_left_alone() {
        let (uid, gid) = owner();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path, uid, gid), Err(Error::SocketAddress { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
