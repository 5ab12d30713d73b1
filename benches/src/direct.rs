//! Writing past the page cache: the fastest plain way to the disk, to compare with.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use rustix::fs::{FallocateFlags, OFlags};

use crate::noise::Noise;

/// Bytes at an address that direct I/O accepts.
#[derive(Debug)]
pub struct Aligned {
    memory: Vec<u8>,
    skew: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeroes.
    pub fn zeroes(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT_BYTES];
        let skew = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
        assert!(skew < ALIGNMENT_BYTES, "an aligned byte comes early in the allocation");
        Self { memory, skew, len }
    }

    /// `len` bytes that nothing compresses, the same in every run.
    pub fn noise(len: usize) -> Self {
        let mut aligned = Self::zeroes(len);
        Noise::new(len as u64).fill(&mut aligned.memory);
        aligned
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.memory[self.skew..self.skew + self.len]
    }
}

/// Writes `bytes` to a new file at `path` and makes them durable: space allocated first, then
/// several writes of 1 MiB at a time straight from `bytes`, then fsync.
///
/// # Errors
///
/// What the storage says; `InvalidInput` where the filesystem has no direct I/O.
pub fn write(path: &Path, bytes: &Aligned) -> io::Result<()> {
    let file = create(path)?;
    let bytes = bytes.as_slice();
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes.len() as u64)?;
    let whole = bytes.len() - bytes.len() % ALIGNMENT_BYTES;
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..QUEUE_DEPTH)
            .map(|lane| {
                let pieces = bytes[..whole].chunks(PIECE_BYTES).enumerate();
                let mine = pieces.skip(lane).step_by(QUEUE_DEPTH);
                let file = &file;
                scope.spawn(move || {
                    for (index, piece) in mine {
                        file.write_all_at(piece, (index * PIECE_BYTES) as u64)?;
                    }
                    Ok(())
                })
            })
            .collect();
        lanes.into_iter().try_for_each(|lane| lane.join().expect("a lane only writes"))
    })
    .and_then(|()| match &bytes[whole..] {
        [] => Ok(()),
        rest => OpenOptions::new().write(true).open(path)?.write_all_at(rest, whole as u64),
    })?;
    file.sync_all()
}

/// Fills `path` with `size_bytes` zeroes, all of them written.
pub(crate) fn write_zeroes(path: &Path, size_bytes: u64) -> io::Result<()> {
    let file = create(path)?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size_bytes)?;
    let zeroes = Aligned::zeroes(4 * PIECE_BYTES);
    let mut offset = 0;
    while offset < size_bytes {
        let count = (size_bytes - offset).min(zeroes.len as u64) as usize;
        file.write_all_at(&zeroes.as_slice()[..count], offset)?;
        offset += count as u64;
    }
    file.sync_all()
}

fn create(path: &Path) -> io::Result<File> {
    let direct = OFlags::DIRECT.bits() as i32;
    OpenOptions::new().write(true).create(true).truncate(false).custom_flags(direct).open(path)
}

/// What every disk and filesystem in use accepts.
const ALIGNMENT_BYTES: usize = 4096;

/// Larger writes are not faster, nor are more than four at once.
const PIECE_BYTES: usize = 1 << 20;
const QUEUE_DEPTH: usize = 4;
