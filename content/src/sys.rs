//! The unsafe part: a ring of asynchronous writes from buffers registered with the kernel.
#![allow(unsafe_code, reason = "io_uring shares memory with the kernel")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};

/// A ring and the buffers it writes from.
///
/// A buffer is either *free*, and the caller's to fill, or *in flight*, and the kernel's to read;
/// the methods panic when the two are confused. Dropping a lane waits for what is in flight.
pub(crate) struct Lane {
    ring: IoUring,
    /// One allocation, never resized. The buffers are parts of it, from `skew` on.
    memory: Vec<u8>,
    /// Bytes before the first aligned one.
    skew: usize,
    in_flight: [bool; BUFFERS],
    /// Set when the kernel refused a submission: the entry is still queued and names a file that
    /// may be closed by now, so the ring must not be entered again.
    poisoned: bool,
}

/// The end of one write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) buffer: usize,
    /// Bytes written, or the negated error number.
    pub(crate) result: i32,
}

impl Lane {
    /// A ring with its buffers registered. Fails where io_uring is missing, forbidden, or the
    /// limit on locked memory is spent.
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::new(BUFFERS as u32)?;
        let memory = vec![0; BUFFERS * BUFFER_SIZE_BYTES + ALIGNMENT_BYTES];
        let skew = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
        assert!(skew < ALIGNMENT_BYTES, "the allocation holds an aligned byte early on");
        let mut lane = Self { ring, memory, skew, in_flight: [false; BUFFERS], poisoned: false };
        let parts: Vec<libc::iovec> = (0..BUFFERS)
            .map(|index| libc::iovec {
                iov_base: lane.buffer(index).as_mut_ptr().cast(),
                iov_len: BUFFER_SIZE_BYTES,
            })
            .collect();
        // SAFETY: each part lies inside `memory`, which is neither resized nor freed while the
        // ring exists: both are fields of `lane`, and `ring` is declared, hence dropped, first.
        unsafe { lane.ring.submitter().register_buffers(&parts)? };
        Ok(lane)
    }

    /// A free buffer, to fill.
    pub(crate) fn buffer(&mut self, index: usize) -> &mut [u8] {
        assert!(!self.in_flight[index], "buffer {index} is being written");
        let start = self.skew + index * BUFFER_SIZE_BYTES;
        &mut self.memory[start..start + BUFFER_SIZE_BYTES]
    }

    /// A buffer that is not in flight, if there is one.
    pub(crate) fn free(&self) -> Option<usize> {
        self.in_flight.iter().position(|busy| !busy)
    }

    /// Starts to write the first `len` bytes of a free buffer at `offset` of `file`.
    pub(crate) fn submit(
        &mut self,
        file: &File,
        index: usize,
        len: usize,
        offset: u64,
    ) -> io::Result<()> {
        assert!(len <= BUFFER_SIZE_BYTES);
        let from = self.buffer(index).as_ptr();
        let write =
            opcode::WriteFixed::new(types::Fd(file.as_raw_fd()), from, len as u32, index as u16)
                .offset(offset)
                .build()
                .user_data(index as u64);
        // SAFETY: `from..from + len` is part of the registered buffer `index`. It stays allocated
        // and unchanged until its completion is reaped: `buffer` refuses to hand it out while
        // `in_flight` is set, and `drop` waits. The kernel takes its own reference to the file at
        // submission, which happens below, while `file` is borrowed; should that fail, `poisoned`
        // keeps the entry from ever being submitted.
        let pushed = unsafe { self.ring.submission().push(&write) };
        pushed.map_err(|_| io::Error::other("submission queue is full"))?;
        self.in_flight[index] = true;
        self.enter(0).inspect_err(|_| self.poisoned = true)
    }

    /// The next completion, waiting for it when `wait`; `None` when none is ready or nothing is in
    /// flight.
    pub(crate) fn reap(&mut self, wait: bool) -> io::Result<Option<Completion>> {
        loop {
            if let Some(entry) = self.ring.completion().next() {
                let buffer = entry.user_data() as usize;
                assert!(self.in_flight[buffer], "completion of a buffer that was not in flight");
                self.in_flight[buffer] = false;
                return Ok(Some(Completion { buffer, result: entry.result() }));
            }
            if !wait || !self.is_busy() {
                return Ok(None);
            }
            if self.poisoned {
                return Err(io::Error::other("the ring refused an earlier write"));
            }
            self.enter(1)?;
        }
    }

    /// Whether anything is in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight.contains(&true)
    }

    /// Submits what was pushed and waits for `want` completions.
    fn enter(&self, want: usize) -> io::Result<()> {
        loop {
            match self.ring.submitter().submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory, which passes: let it run and try again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        while self.is_busy() {
            if self.reap(true).is_err() {
                // The kernel may still read the buffers, so they must outlive everything.
                std::mem::forget(std::mem::take(&mut self.memory));
                return;
            }
        }
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

/// Enough to keep a device busy while the core hashes: measured, more gains nothing.
pub(crate) const BUFFERS: usize = 4;

/// Large enough that submission costs nothing beside the copy.
pub(crate) const BUFFER_SIZE_BYTES: usize = 1024 * 1024;

/// What direct I/O asks of addresses, offsets and lengths on every device in use.
pub(crate) const ALIGNMENT_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_dropped_in_flight_has_written_everything() {
        let file = tempfile::tempfile().unwrap();
        let mut lane = match Lane::new() {
            Ok(lane) => lane,
            Err(error) => return crate::testing::skip(&format!("no io_uring here: {error}")),
        };
        for index in 0..BUFFERS {
            lane.buffer(index).fill(index as u8 + 1);
            let offset = index * BUFFER_SIZE_BYTES;
            lane.submit(&file, index, BUFFER_SIZE_BYTES, offset as u64).unwrap();
        }
        drop(lane);
        let mut last = [0; 1];
        std::os::unix::fs::FileExt::read_at(
            &file,
            &mut last,
            (BUFFERS * BUFFER_SIZE_BYTES) as u64 - 1,
        )
        .unwrap();
        assert_eq!(last, [BUFFERS as u8]);
    }

    #[test]
    fn a_failed_write_is_reported_with_its_buffer() {
        let read_only = File::open("/dev/null").unwrap();
        let mut lane = match Lane::new() {
            Ok(lane) => lane,
            Err(error) => return crate::testing::skip(&format!("no io_uring here: {error}")),
        };
        lane.submit(&read_only, 2, 4096, 0).unwrap();
        let completion = lane.reap(true).unwrap().unwrap();
        assert_eq!(completion.buffer, 2);
        assert_eq!(completion.result, -libc::EBADF);
        assert!(!lane.is_busy());
    }
}
