//! Direct I/O through io_uring: the device writes while the core hashes, and the page cache is
//! left alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::FallocateFlags;

use crate::Hasher;
use crate::local::hashing::Hashing;
use crate::local::sink::{CHECKPOINT_SIZE_BYTES, PIECE_SIZE_BYTES};
use crate::sys::{ALIGNMENT_BYTES, BUFFER_SIZE_BYTES, Lane};

/// The data file of one ingest, written in whole aligned buffers ahead of which it is extended.
///
/// After an error the file holds an unknown mixture behind what has [landed](Self::landed): the
/// ingest has to fall back to its last checkpoint.
#[derive(Debug)]
pub(crate) struct Direct {
    /// Dropped before the lane, whose buffers it reads, goes to the next writer.
    hashing: Hashing,
    lane: Lease,
    /// Opened with `O_DIRECT`.
    direct: File,
    /// Opened without, for the tail.
    plain: File,
    /// The buffer being filled.
    current: usize,
    filled: usize,
    /// How much of `current` has been handed over to be hashed.
    hashed: usize,
    /// Where `current` belongs in the file; a multiple of the alignment.
    start: u64,
    flights: Vec<Option<Flight>>,
    /// Length of the file, at least as far as any write in flight.
    extended: u64,
    total: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    offset: u64,
    len: usize,
}

impl Direct {
    /// Continues behind the bytes `hasher` has seen, which the file holds.
    pub(crate) fn new(
        mut lane: Lease,
        direct: File,
        plain: File,
        hasher: Hasher,
        total: Option<u64>,
    ) -> io::Result<Self> {
        let offset = hasher.size_bytes();
        let filled = (offset % ALIGNMENT_BYTES as u64) as usize;
        let start = offset - filled as u64;
        let buffer = lane.get().fill(0).expect("a leased lane is idle");
        plain.read_exact_at(&mut buffer[..filled], start)?;
        let beside =
            total.is_none_or(|total| total >= offset.saturating_add(BESIDE_SIZE_BYTES_MIN));
        let flights = vec![None; lane.get().len()];
        let mut sink = Self {
            hashing: Hashing::new(hasher, CHECKPOINT_SIZE_BYTES, beside),
            lane,
            direct,
            plain,
            current: 0,
            filled,
            hashed: filled,
            start,
            flights,
            extended: offset,
            total,
        };
        if let Some(total) = total.filter(|total| *total > offset) {
            sink.extend(total)?;
        }
        Ok(sink)
    }

    /// Takes as much of `bytes` as the current buffer holds.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filled == self.room() {
            self.submit()?;
        }
        let mut count = bytes.len().min(self.room() - self.filled);
        if self.hashing.is_here() {
            count = count.min(PIECE_SIZE_BYTES);
        }
        self.fill_current()?[..count].copy_from_slice(&bytes[..count]);
        self.filled += count;
        if self.hashing.is_here() {
            self.hash()?;
        }
        if self.filled == self.room() {
            self.submit()?;
        }
        Ok(count)
    }

    /// The hash of all bytes taken.
    pub(crate) fn state(&mut self) -> io::Result<Hasher> {
        self.hash()?;
        self.hashing.state()
    }

    /// The newest state at a multiple of [`CHECKPOINT_SIZE_BYTES`] all bytes of which are in the
    /// file whatever happens to this process; each once.
    pub(crate) fn landed(&mut self) -> io::Result<Option<Hasher>> {
        while self.reap(false)? {}
        let oldest = self.flights.iter().flatten().map(|flight| flight.offset).min();
        Ok(self.hashing.newest(oldest.unwrap_or(self.start)))
    }

    /// Completes every write and gives the file its true length. Writing may go on afterwards.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        while self.reap(true)? {}
        // Through the page cache, which accepts any length. A later direct write of the whole
        // buffer replaces it: the kernel drops cached pages a direct write covers.
        let tail = &self.lane.get().buffer(self.current)[..self.filled];
        self.plain.write_all_at(tail, self.start)?;
        let end = self.start + self.filled as u64;
        if end != self.extended {
            self.plain.set_len(end)?;
            self.extended = end;
        }
        Ok(())
    }

    /// Forgets all bytes.
    pub(crate) fn truncate(&mut self) -> io::Result<()> {
        while self.reap(true)? {}
        self.plain.set_len(0)?;
        let empty = Hasher::new(self.hashing.state()?.algorithm());
        self.hashing = Hashing::new(empty, CHECKPOINT_SIZE_BYTES, !self.hashing.is_here());
        (self.filled, self.hashed, self.start, self.extended) = (0, 0, 0, 0);
        match self.total {
            Some(total) => self.extend(total),
            None => Ok(()),
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.plain
    }

    /// How much of the current buffer is used: later ones begin at multiples of their size, so that
    /// one ends at every checkpoint.
    fn room(&self) -> usize {
        BUFFER_SIZE_BYTES - (self.start % BUFFER_SIZE_BYTES as u64) as usize
    }

    /// The free part of the current buffer, once nobody reads what is before it.
    fn fill_current(&mut self) -> io::Result<&mut [u8]> {
        let (current, filled) = (self.current, self.filled);
        self.claim(current)?;
        let buffer = self.lane.get().fill(current).expect("claimed just now");
        Ok(&mut buffer[filled..])
    }

    /// Waits until nobody reads the buffer.
    fn claim(&mut self, index: usize) -> io::Result<()> {
        while self.lane.get().fill(index).is_none() {
            match self.lane.get().is_in_flight(index) {
                true => {
                    self.reap(true)?;
                }
                false => self.hashing.wait()?,
            }
        }
        Ok(())
    }

    /// Hands over what is in the current buffer to be hashed.
    fn hash(&mut self) -> io::Result<()> {
        if self.hashed < self.filled {
            let buffer = self.lane.get().buffer(self.current);
            self.hashing.update(buffer, self.hashed..self.filled)?;
            self.hashed = self.filled;
        }
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        let end = self.start + self.filled as u64;
        if end > self.extended {
            // Writes that extend the file are taken one at a time by the kernel.
            self.extend(end.max(self.extended + EXTENSION_SIZE_BYTES))?;
        }
        let (index, len) = (self.current, self.filled);
        self.hash()?;
        self.flights[index] = Some(Flight { offset: self.start, len });
        self.lane.get().submit(&self.direct, index, len, self.start)?;
        (self.start, self.filled, self.hashed) = (end, 0, 0);
        while self.reap(false)? {}
        // In turn, since that is the order in which they are hashed.
        self.current = (index + 1) % self.lane.get().len();
        Ok(())
    }

    /// Collects one completion; `false` when there was none to collect.
    fn reap(&mut self, wait: bool) -> io::Result<bool> {
        let Some(done) = self.lane.get().reap(wait)? else { return Ok(false) };
        let flight = self.flights[done.buffer].take().expect("a completion belongs to a flight");
        let written = usize::try_from(done.result).unwrap_or(0);
        if written < flight.len {
            let errno = -done.result.min(0);
            if errno != 0 && !RETRY_ERRNO.contains(&errno) {
                return Err(io::Error::from_raw_os_error(errno));
            }
            // Cut short, or cancelled because the thread that submitted it ended: the rest is
            // written here and now, which also reports the cause should there be one.
            let rest = &self.lane.get().buffer(done.buffer)[written..flight.len];
            self.plain.write_all_at(rest, flight.offset + written as u64)?;
        }
        Ok(true)
    }

    fn extend(&mut self, len: u64) -> io::Result<()> {
        use rustix::io::Errno;
        let extra = len - self.extended;
        match rustix::fs::fallocate(&self.plain, FallocateFlags::empty(), self.extended, extra) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.plain.set_len(len)?,
            Err(error) => return Err(error.into()),
        }
        self.extended = len;
        Ok(())
    }
}

/// A lane borrowed from the process-wide pool, returned when dropped.
#[derive(Debug)]
pub(crate) struct Lease(Option<Lane>);

impl Lease {
    /// A lane, unless as many as allowed are out or the system grants no more.
    pub(crate) fn take() -> Option<Self> {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = match pool.idle.pop() {
            Some(lane) => lane,
            None if pool.out < LANES_MAX => Lane::new().ok()?,
            None => return None,
        };
        pool.out += 1;
        Some(Self(Some(lane)))
    }

    fn get(&mut self) -> &mut Lane {
        self.0.as_mut().expect("a lease holds its lane until dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut lane) = self.0.take() else { return };
        while matches!(lane.reap(true), Ok(Some(_))) {}
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        pool.out -= 1;
        if pool.idle.len() < IDLE_LANES_MAX && !lane.is_busy() {
            pool.idle.push(lane);
        }
    }
}

/// Gives up the lanes that wait for a writer; answers with how many those were.
pub(crate) fn release_idle() -> usize {
    // Freed after the lock is: unregistering buffers takes the kernel a while.
    let idle = std::mem::take(&mut POOL.lock().unwrap_or_else(PoisonError::into_inner).idle);
    idle.len()
}

/// The lanes of this process.
struct Pool {
    idle: Vec<Lane>,
    out: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), out: 0 });

/// At most 4 x 8 MiB of buffers for the whole process; further writers use the page cache.
const LANES_MAX: usize = 4;

/// Kept for the next writer: enough to spare an image's layers the set-up, at 16 MiB.
const IDLE_LANES_MAX: usize = 2;

/// Below this a thread that hashes costs more than it saves.
const BESIDE_SIZE_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// How far the file is extended ahead when its final length is unknown.
const EXTENSION_SIZE_BYTES: u64 = 64 * 1024 * 1024;

/// Reasons for which the kernel gave up a write that may simply be done again.
const RETRY_ERRNO: [i32; 3] = [libc::ECANCELED, libc::EINTR, libc::EAGAIN];
