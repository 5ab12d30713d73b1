//! Where the bytes of an ingest go: the seam between a writer and the two ways to the disk, each of
//! which hashes what it takes in its own way.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, OFlags};

use crate::Hasher;
use crate::local::Backend;
use crate::local::dir::Dir;
use crate::local::direct::{Direct, Lease};
use crate::sys::BUFFER_SIZE_BYTES;

/// The data file of one ingest, open for appending.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Through the page cache.
    Buffered {
        /// The data file.
        file: File,
        /// Has seen every byte before the next.
        hasher: Box<Hasher>,
        /// At the newest multiple of [`CHECKPOINT_SIZE_BYTES`], until asked for.
        reached: Option<Box<Hasher>>,
    },
    /// Past the page cache, through io_uring.
    Direct(Box<Direct>),
}

impl Sink {
    /// Opens `name` in `dir` to continue after the bytes `hasher` has seen, cutting off what lies
    /// behind.
    pub(crate) fn open(
        dir: &Dir,
        name: &str,
        hasher: Hasher,
        total: Option<u64>,
        backend: Backend,
    ) -> io::Result<Self> {
        let file = dir.open_file(name, OFlags::RDWR | OFlags::CREATE, 0o644)?;
        file.set_len(hasher.size_bytes())?;
        if backend == Backend::Uring
            && let Some(lane) = Lease::take()
        {
            match dir.open_file(name, OFlags::WRONLY | OFlags::DIRECT, 0) {
                Ok(direct) => {
                    let direct = Direct::new(lane, direct, file, hasher, total)?;
                    return Ok(Self::Direct(Box::new(direct)));
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(total) = total {
            reserve(&file, total)?;
        }
        Ok(Self::Buffered { file, hasher: Box::new(hasher), reached: None })
    }

    /// Takes some of `bytes`, at least one unless empty.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Buffered { file, hasher, reached } => {
                let offset = hasher.size_bytes();
                let room = CHECKPOINT_SIZE_BYTES - offset % CHECKPOINT_SIZE_BYTES;
                let room = usize::try_from(room).unwrap_or(usize::MAX);
                let piece = &bytes[..bytes.len().min(PIECE_SIZE_BYTES).min(room)];
                file.write_all_at(piece, offset)?;
                hasher.update(piece);
                if piece.len() == room {
                    *reached = Some(hasher.clone());
                }
                Ok(piece.len())
            }
            Self::Direct(direct) => direct.write(bytes),
        }
    }

    /// The hash of every byte taken.
    pub(crate) fn state(&mut self) -> io::Result<Hasher> {
        match self {
            Self::Buffered { hasher, .. } => Ok((**hasher).clone()),
            Self::Direct(direct) => direct.state(),
        }
    }

    /// The newest state at a multiple of [`CHECKPOINT_SIZE_BYTES`] all bytes of which a killed
    /// process would leave in the file; each once.
    pub(crate) fn landed(&mut self) -> io::Result<Option<Hasher>> {
        match self {
            Self::Buffered { reached, .. } => Ok(reached.take().map(|state| *state)),
            Self::Direct(direct) => direct.landed(),
        }
    }

    /// Brings every byte taken into the file and gives the file its true length.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        match self {
            // Also gives back what was reserved beyond the end.
            Self::Buffered { file, hasher, .. } => file.set_len(hasher.size_bytes()),
            Self::Direct(direct) => direct.settle(),
        }
    }

    /// Forgets every byte.
    pub(crate) fn truncate(&mut self) -> io::Result<()> {
        match self {
            Self::Buffered { file, hasher, reached } => {
                (**hasher, *reached) = (Hasher::new(hasher.algorithm()), None);
                file.set_len(0)
            }
            Self::Direct(direct) => direct.truncate(),
        }
    }

    /// The data file, for reading and syncing.
    pub(crate) fn file(&self) -> &File {
        match self {
            Self::Buffered { file, .. } => file,
            Self::Direct(direct) => direct.file(),
        }
    }

    /// See [`Checkpoint::length_is_progress`](super::checkpoint::Checkpoint).
    pub(crate) fn length_is_progress(&self) -> bool {
        matches!(self, Self::Buffered { .. })
    }
}

/// Claims the space, so that a full disk is reported before the bytes are fetched.
fn reserve(file: &File, total: u64) -> io::Result<()> {
    use rustix::io::Errno;
    if total == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, total) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Pieces are hashed right after they were copied, while they are in cache.
pub(crate) const PIECE_SIZE_BYTES: usize = 256 * 1024;

/// How often the hash state is kept: with every write buffer, so that what a killed process had not
/// yet written is all that has to be taken in again.
pub(crate) const CHECKPOINT_SIZE_BYTES: u64 = BUFFER_SIZE_BYTES as u64;
