//! One daemon per root directory.
//!
//! `<root>/crated.lock` holds the process id of the daemon and an advisory lock that the kernel
//! drops with the process, however it ends. The file itself stays: deleting it would let two
//! daemons lock two different files.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

const NAME: &str = "crated.lock";

/// The right to use a root directory, until it is dropped.
#[derive(Debug)]
pub struct RootLock {
    path: PathBuf,
    // Closing the file releases the lock.
    _file: File,
}

impl RootLock {
    /// Takes the lock of `root`, which must exist.
    ///
    /// # Errors
    ///
    /// [`Error::RootBusy`] naming the holder, [`Error::Io`].
    pub fn take(root: &Path) -> Result<Self> {
        let path = root.join(NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::io("open", &path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::RootBusy {
                    path: root.to_path_buf(),
                    holder: holder(&mut file),
                });
            }
            Err(errno) => return Err(Error::io("lock", &path, errno.into())),
        }
        let note = |error| Error::io("write", &path, error);
        file.set_len(0).map_err(note)?;
        file.rewind().map_err(note)?;
        writeln!(file, "{}", std::process::id()).map_err(note)?;
        Ok(Self { path, _file: file })
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Who holds the lock, as far as the file says; only ever used for a message.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(HOLDER_BYTES_MAX).read_to_string(&mut text);
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        _ => "another process".to_owned(),
    }
}

/// A process id has no more digits than this.
const HOLDER_BYTES_MAX: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_learns_who_holds_the_root() {
        let root = tempfile::tempdir().unwrap();
        let first = RootLock::take(root.path()).unwrap();
        let error = RootLock::take(root.path()).unwrap_err();
        assert!(error.to_string().ends_with(&format!("held by process {}", std::process::id())));
        drop(first);
        RootLock::take(root.path()).unwrap();
    }
}
