use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, Stat};

use crate::error::{Error, Result};
use crate::local::dir::{Dir, fail, is_absent, is_regular};
use crate::local::probe;
use crate::{Algorithm, Digest, sys};

/// The directories of a store, held open, and the lock on its root.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) root: Dir,
    pub(crate) ingest: Dir,
    pub(crate) temporary: Dir,
    pub(crate) quarantine: Dir,
    /// One per algorithm, in the order of [`Algorithm::ALL`].
    blobs: Vec<Dir>,
    labels: Vec<Dir>,
    next_temporary: AtomicU64,
    /// See [`probe::journal_keeps_order`].
    pub(crate) journal_keeps_order: bool,
    omitted: Option<OmittedSync>,
    /// Locked for as long as it is open.
    _lock: File,
}

/// A step of the durability protocol to leave out, to show that a test notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(
    not(feature = "testsuite"),
    allow(dead_code, unreachable_pub, reason = "only a test may ask for it")
)]
pub enum OmittedSync {
    /// The bytes of a blob are not synced before it is renamed into place.
    Data,
    /// The directory is not synced after a blob was renamed into it.
    Directory,
}

impl Layout {
    pub(crate) fn open(path: &Path, omitted: Option<OmittedSync>) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fail("create", parent))?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(fail("create", path)(error));
            }
            _ => {}
        }
        let root = Dir::open(path)?;
        ensure_private(&root, path)?;
        let lock = lock(&root, path)?;
        let blobs = root.create_dir("blobs", 0o755)?;
        let labels = root.create_dir("labels", 0o755)?;
        let per_algorithm = |dir: &Dir| -> Result<Vec<Dir>> {
            Algorithm::ALL.iter().map(|known| dir.create_dir(known.name(), 0o755)).collect()
        };
        let layout = Self {
            ingest: root.create_dir("ingest", 0o755)?,
            temporary: root.create_dir("tmp", 0o700)?,
            quarantine: root.create_dir("quarantine", 0o700)?,
            blobs: per_algorithm(&blobs)?,
            labels: per_algorithm(&labels)?,
            journal_keeps_order: probe::journal_keeps_order(&root),
            root,
            next_temporary: AtomicU64::new(0),
            omitted,
            _lock: lock,
        };
        layout.temporary.clear().map_err(fail("clear", &path.join("tmp")))?;
        // A killed process may have renamed a blob into place and not synced the directory. From
        // here on whatever is visible is also durable.
        for dir in layout.blobs.iter().chain([&blobs, &labels, &layout.root]) {
            layout.sync_dir(dir)?;
        }
        Ok(layout)
    }

    pub(crate) fn blobs(&self, algorithm: Algorithm) -> &Dir {
        &self.blobs[position(algorithm)]
    }

    pub(crate) fn labels(&self, algorithm: Algorithm) -> &Dir {
        &self.labels[position(algorithm)]
    }

    /// What stands in the place of `digest`; [`Error::Corrupt`] unless it is a regular file.
    pub(crate) fn stat_blob(&self, digest: &Digest) -> Result<Stat> {
        let dir = self.blobs(digest.algorithm());
        match dir.stat(digest.hex()) {
            Ok(stat) if is_regular(&stat) => Ok(stat),
            Ok(_) => Err(not_a_file(digest)),
            Err(error) if is_absent(&error) => Err(Error::NotFound(digest.clone())),
            Err(error) => Err(dir.fail("stat", digest.hex())(error)),
        }
    }

    /// Opens the blob for reading.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<(File, Stat)> {
        let dir = self.blobs(digest.algorithm());
        let file = match dir.read_file(digest.hex()) {
            Ok(file) => file,
            // Distinguishes what is missing from a link or a socket in its place.
            Err(error) => {
                self.stat_blob(digest)?;
                return Err(dir.fail("open", digest.hex())(error));
            }
        };
        let stat = rustix::fs::fstat(&file).map_err(dir.fail("stat", digest.hex()))?;
        if !is_regular(&stat) {
            return Err(not_a_file(digest));
        }
        Ok((file, stat))
    }

    /// Moves what stands in the place of `digest` out of sight and notes why.
    pub(crate) fn set_aside(&self, digest: &Digest, reason: &str) -> Result<()> {
        let name = loop {
            let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{}-{number}", digest.algorithm(), digest.hex());
            if self.quarantine.stat(&name).is_err_and(|error| is_absent(&error)) {
                break name;
            }
        };
        let note = format!("{name}.reason");
        self.quarantine
            .write_small(&note, format!("{reason}\n").as_bytes())
            .map_err(self.quarantine.fail("write", &note))?;
        let dir = self.blobs(digest.algorithm());
        dir.rename(digest.hex(), &self.quarantine, &name)
            .map_err(dir.fail("quarantine", digest.hex()))?;
        tracing::warn!(%digest, reason, quarantine = name, "content quarantined");
        self.sync_dir(&self.quarantine)?;
        self.sync_dir(dir)
    }

    /// A new empty file in `tmp` and its name.
    pub(crate) fn create_temporary(&self, mode: u32) -> Result<(String, File)> {
        let name = self.next_temporary.fetch_add(1, Ordering::Relaxed).to_string();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = self.temporary.open_file(&name, flags, mode);
        let file = file.map_err(self.temporary.fail("create", &name))?;
        Ok((name, file))
    }

    /// Removes one of those again. Should that fail, the next start clears it.
    pub(crate) fn drop_temporary(&self, name: &str) {
        if let Err(error) = self.temporary.remove_file(name)
            && !is_absent(&error)
        {
            tracing::warn!(name, %error, "cannot remove temporary file");
        }
    }

    pub(crate) fn sync_file(&self, file: &File) -> io::Result<()> {
        match self.omitted {
            Some(OmittedSync::Data) => Ok(()),
            _ => file.sync_all(),
        }
    }

    /// Sends the data of a file on its way to the disk.
    pub(crate) fn start_writing(&self, file: &File) -> io::Result<()> {
        match self.omitted {
            Some(OmittedSync::Data) => Ok(()),
            _ => sys::start_writing(file),
        }
    }

    /// Waits until the data of a file has reached the disk. It survives a power cut once something
    /// that was done later is durable, on a filesystem whose journal keeps order.
    pub(crate) fn finish_writing(&self, file: &File) -> io::Result<()> {
        match self.omitted {
            Some(OmittedSync::Data) => Ok(()),
            _ => sys::finish_writing(file),
        }
    }

    /// Everything on the filesystem, in one go.
    pub(crate) fn sync_filesystem(&self) -> io::Result<()> {
        match self.omitted {
            Some(OmittedSync::Data) => Ok(()),
            _ => Ok(rustix::fs::syncfs(&self.root)?),
        }
    }

    pub(crate) fn sync_dir(&self, dir: &Dir) -> Result<()> {
        match self.omitted {
            Some(OmittedSync::Directory) => Ok(()),
            _ => dir.sync().map_err(dir.fail("sync", "")),
        }
    }
}

/// A root that others may write to cannot keep any promise.
fn ensure_private(root: &Dir, path: &Path) -> Result<()> {
    let stat = rustix::fs::fstat(root).map_err(fail("stat", path))?;
    let reason = if stat.st_uid != rustix::process::geteuid().as_raw() {
        format!("{} belongs to user {}", path.display(), stat.st_uid)
    } else if stat.st_mode & 0o022 != 0 {
        format!("{} is writable by others", path.display())
    } else {
        return Ok(());
    };
    Err(Error::Unavailable { reason })
}

/// Claims the root for this process. The lock goes with the process however it ends.
fn lock(root: &Dir, path: &Path) -> Result<File> {
    let failed = || root.fail("open", "lock");
    let flags = OFlags::RDWR | OFlags::CREATE;
    let mut file = root.open_file("lock", flags, 0o600).map_err(failed())?;
    let mut locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    for _ in 0..LOCK_RETRIES {
        if locked != Err(rustix::io::Errno::WOULDBLOCK) {
            break;
        }
        std::thread::sleep(LOCK_RETRY_INTERVAL);
        locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    }
    match locked {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Only names the culprit: unreadable is as good as empty.
            let _ = file.take(20).read_to_string(&mut holder);
            let holder = holder.trim();
            let reason = format!("{} is in use by process {holder}", path.display());
            return Err(Error::Unavailable { reason });
        }
        Err(error) => return Err(root.fail("lock", "lock")(error)),
    }
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(failed())?;
    file.set_len(0).map_err(failed())?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(failed())?;
    Ok(file)
}

fn not_a_file(digest: &Digest) -> Error {
    Error::Corrupt { digest: digest.clone(), reason: "not a regular file".to_owned() }
}

fn position(algorithm: Algorithm) -> usize {
    let position = Algorithm::ALL.iter().position(|known| *known == algorithm);
    position.expect("every algorithm is listed")
}

/// A holder that has just gone may have forked a child that keeps a copy of its descriptors until
/// it executes another program.
const LOCK_RETRIES: u32 = 20;
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);
