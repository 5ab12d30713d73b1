//! Direct I/O through io_uring: the device writes while the core hashes, and the page cache is
//! left alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::FallocateFlags;

use crate::sys::{ALIGNMENT_BYTES, BUFFER_SIZE_BYTES, BUFFERS, Lane};

/// The data file of one ingest, written in whole aligned buffers ahead of which it is extended.
///
/// After an error the file holds an unknown mixture behind [`landed`](Self::landed): the ingest
/// has to fall back to its last checkpoint.
#[derive(Debug)]
pub(crate) struct Direct {
    lane: Lease,
    /// Opened with `O_DIRECT`.
    direct: File,
    /// Opened without, for the tail.
    plain: File,
    /// The buffer being filled.
    current: usize,
    filled: usize,
    /// Where `current` belongs in the file; a multiple of the alignment.
    start: u64,
    flights: [Option<Flight>; BUFFERS],
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
    /// Continues at `offset`; the file holds that many bytes.
    pub(crate) fn new(
        mut lane: Lease,
        direct: File,
        plain: File,
        offset: u64,
        total: Option<u64>,
    ) -> io::Result<Self> {
        let filled = (offset % ALIGNMENT_BYTES as u64) as usize;
        let start = offset - filled as u64;
        let current = lane.get().free().expect("a leased lane is idle");
        plain.read_exact_at(&mut lane.get().buffer(current)[..filled], start)?;
        let flights = [None; BUFFERS];
        let mut sink =
            Self { lane, direct, plain, current, filled, start, flights, extended: offset, total };
        if let Some(total) = total.filter(|total| *total > offset) {
            sink.extend(total)?;
        }
        Ok(sink)
    }

    /// Takes as much of `bytes` as the current buffer holds.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filled == BUFFER_SIZE_BYTES {
            self.submit()?;
        }
        let buffer = &mut self.lane.get().buffer(self.current)[self.filled..];
        let count = buffer.len().min(bytes.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.filled += count;
        if self.filled == BUFFER_SIZE_BYTES {
            self.submit()?;
        }
        Ok(count)
    }

    /// How many bytes from the start are in the file whatever happens to this process.
    pub(crate) fn landed(&mut self) -> io::Result<u64> {
        while self.reap(false)? {}
        let oldest = self.flights.iter().flatten().map(|flight| flight.offset).min();
        Ok(oldest.unwrap_or(self.start))
    }

    /// Completes every write and gives the file its true length. Writing may go on afterwards.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        while self.reap(true)? {}
        // Through the page cache, which accepts any length. A later direct write of the whole
        // buffer replaces it: the kernel drops cached pages a direct write covers.
        let tail = &self.lane.get().buffer(self.current)[..self.filled];
        self.plain.write_all_at(tail, self.start)?;
        self.extended = self.start + self.filled as u64;
        self.plain.set_len(self.extended)
    }

    /// Forgets all bytes.
    pub(crate) fn truncate(&mut self) -> io::Result<()> {
        while self.reap(true)? {}
        self.plain.set_len(0)?;
        (self.filled, self.start, self.extended) = (0, 0, 0);
        match self.total {
            Some(total) => self.extend(total),
            None => Ok(()),
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.plain
    }

    fn submit(&mut self) -> io::Result<()> {
        let end = self.start + BUFFER_SIZE_BYTES as u64;
        if end > self.extended {
            // Writes that extend the file are taken one at a time by the kernel.
            self.extend(end.max(self.extended + EXTENSION_SIZE_BYTES))?;
        }
        let (index, len) = (self.current, self.filled);
        self.flights[index] = Some(Flight { offset: self.start, len });
        self.lane.get().submit(&self.direct, index, len, self.start)?;
        (self.start, self.filled) = (end, 0);
        while self.reap(false)? {}
        self.current = loop {
            match self.lane.get().free() {
                Some(free) => break free,
                None => self.reap(true)?,
            };
        };
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

/// The lanes of this process.
struct Pool {
    idle: Vec<Lane>,
    out: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), out: 0 });

/// At most 8 x 4 MiB of buffers; further writers use the page cache.
const LANES_MAX: usize = 8;

/// Kept for the next writer: enough to spare an image's layers the set-up, at 8 MiB.
const IDLE_LANES_MAX: usize = 2;

/// How far the file is extended ahead when its final length is unknown.
const EXTENSION_SIZE_BYTES: u64 = 64 * 1024 * 1024;

/// Reasons for which the kernel gave up a write that may simply be done again.
const RETRY_ERRNO: [i32; 3] = [libc::ECANCELED, libc::EINTR, libc::EAGAIN];
