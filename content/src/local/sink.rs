//! Where the bytes of an ingest go: the seam between a writer and the two ways to the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, OFlags};

use crate::local::Backend;
use crate::local::dir::Dir;
use crate::local::direct::{Direct, Lease};

/// The data file of one ingest, open for appending.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Through the page cache.
    Buffered {
        /// The data file.
        file: File,
        /// Where the next byte goes.
        offset: u64,
    },
    /// Past the page cache, through io_uring.
    Direct(Box<Direct>),
}

impl Sink {
    /// Opens `name` in `dir` to continue at `offset`, cutting off what lies behind.
    pub(crate) fn open(
        dir: &Dir,
        name: &str,
        offset: u64,
        total: Option<u64>,
        backend: Backend,
    ) -> io::Result<Self> {
        let file = dir.open_file(name, OFlags::RDWR | OFlags::CREATE, 0o644)?;
        file.set_len(offset)?;
        if backend == Backend::Uring
            && let Some(lane) = Lease::take()
        {
            match dir.open_file(name, OFlags::WRONLY | OFlags::DIRECT, 0) {
                Ok(direct) => {
                    let direct = Direct::new(lane, direct, file, offset, total)?;
                    return Ok(Self::Direct(Box::new(direct)));
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(total) = total {
            reserve(&file, total)?;
        }
        Ok(Self::Buffered { file, offset })
    }

    /// Takes some of `bytes`, at least one unless empty.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Buffered { file, offset } => {
                let count = bytes.len().min(PIECE_SIZE_BYTES);
                file.write_all_at(&bytes[..count], *offset)?;
                *offset += count as u64;
                Ok(count)
            }
            Self::Direct(direct) => direct.write(bytes),
        }
    }

    /// How many bytes from the start a killed process would leave in the file.
    pub(crate) fn landed(&mut self) -> io::Result<u64> {
        match self {
            Self::Buffered { offset, .. } => Ok(*offset),
            Self::Direct(direct) => direct.landed(),
        }
    }

    /// Brings every byte taken into the file and gives the file its true length.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        match self {
            // Also gives back what was reserved beyond the end.
            Self::Buffered { file, offset } => file.set_len(*offset),
            Self::Direct(direct) => direct.settle(),
        }
    }

    /// Forgets every byte.
    pub(crate) fn truncate(&mut self) -> io::Result<()> {
        match self {
            Self::Buffered { file, offset } => {
                *offset = 0;
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
const PIECE_SIZE_BYTES: usize = 256 * 1024;
