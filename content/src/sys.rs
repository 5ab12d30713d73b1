//! The unsafe part: a ring of asynchronous writes from buffers registered with the kernel, and one
//! system call.
#![allow(unsafe_code, reason = "io_uring shares memory with the kernel")]

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

/// Memory for one write, aligned as direct I/O wants it.
pub(crate) struct Buffer {
    /// Never resized. The buffer is the part from `skew` on.
    memory: Vec<u8>,
    /// Bytes before the first aligned one.
    skew: usize,
}

impl Buffer {
    fn new() -> Self {
        let memory = vec![0; BUFFER_SIZE_BYTES + ALIGNMENT_BYTES];
        let skew = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
        assert!(skew < ALIGNMENT_BYTES, "the allocation holds an aligned byte early on");
        Self { memory, skew }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.skew..self.skew + BUFFER_SIZE_BYTES]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.skew..self.skew + BUFFER_SIZE_BYTES]
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").finish_non_exhaustive()
    }
}

/// A ring and the buffers it writes from.
///
/// Whoever reads a buffer holds a share of it: the kernel while it is in flight, others as long as
/// they like. It can be filled only while nobody does. Dropping a lane waits for what is in flight.
pub(crate) struct Lane {
    ring: IoUring,
    buffers: Vec<Arc<Buffer>>,
    /// The kernel's share of each buffer it is writing from.
    in_flight: Vec<Option<Arc<Buffer>>>,
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
        Self::with_buffers(BUFFERS_MAX).or_else(|_| Self::with_buffers(BUFFERS_MIN))
    }

    fn with_buffers(count: usize) -> io::Result<Self> {
        let ring = IoUring::new(count as u32)?;
        let mut buffers: Vec<Buffer> = (0..count).map(|_| Buffer::new()).collect();
        let parts: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: BUFFER_SIZE_BYTES,
            })
            .collect();
        let buffers = buffers.into_iter().map(Arc::new).collect();
        let lane = Self { ring, buffers, in_flight: vec![None; count], poisoned: false };
        // SAFETY: each part is the heap memory of one of `buffers`, which is neither resized nor
        // freed while the ring exists, wherever the `Buffer` itself moves: both are fields of
        // `lane`, and `ring` is declared, hence dropped, first.
        unsafe { lane.ring.submitter().register_buffers(&parts)? };
        Ok(lane)
    }

    /// How many buffers there are.
    pub(crate) fn len(&self) -> usize {
        self.buffers.len()
    }

    /// The buffer, to fill; `None` while somebody reads it.
    pub(crate) fn fill(&mut self, index: usize) -> Option<&mut [u8]> {
        Arc::get_mut(&mut self.buffers[index]).map(|buffer| &mut **buffer)
    }

    /// The buffer, to read.
    pub(crate) fn buffer(&self, index: usize) -> &Arc<Buffer> {
        &self.buffers[index]
    }

    /// Whether the kernel is writing from the buffer.
    pub(crate) fn is_in_flight(&self, index: usize) -> bool {
        self.in_flight[index].is_some()
    }

    /// Starts to write the first `len` bytes of a buffer at `offset` of `file`.
    pub(crate) fn submit(
        &mut self,
        file: &File,
        index: usize,
        len: usize,
        offset: u64,
    ) -> io::Result<()> {
        assert!(len <= BUFFER_SIZE_BYTES);
        assert!(!self.is_in_flight(index), "buffer {index} is being written");
        let from = self.buffers[index].as_ptr();
        let write =
            opcode::WriteFixed::new(types::Fd(file.as_raw_fd()), from, len as u32, index as u16)
                .offset(offset)
                .build()
                .user_data(index as u64);
        // SAFETY: `from..from + len` is part of the registered buffer `index`. It stays allocated
        // and unchanged until its completion is reaped: the share in `in_flight` keeps anybody
        // from getting it mutably, and `drop` waits. The kernel takes its own reference to the
        // file at submission, which happens below, while `file` is borrowed; should that fail,
        // `poisoned` keeps the entry from ever being submitted.
        let pushed = unsafe { self.ring.submission().push(&write) };
        pushed.map_err(|_| io::Error::other("submission queue is full"))?;
        self.in_flight[index] = Some(Arc::clone(&self.buffers[index]));
        self.enter(0).inspect_err(|_| self.poisoned = true)
    }

    /// The next completion, waiting for it when `wait`; `None` when none is ready or nothing is in
    /// flight.
    pub(crate) fn reap(&mut self, wait: bool) -> io::Result<Option<Completion>> {
        loop {
            if let Some(entry) = self.ring.completion().next() {
                let buffer = entry.user_data() as usize;
                let share = self.in_flight[buffer].take();
                assert!(share.is_some(), "completion of a buffer that was not in flight");
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
        self.in_flight.iter().any(Option::is_some)
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
                std::mem::forget(std::mem::take(&mut self.in_flight));
                return;
            }
        }
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("is_busy", &self.is_busy()).finish_non_exhaustive()
    }
}

/// Sends the dirty pages of `file` on their way to the disk and does not wait for them.
pub(crate) fn start_writing(file: &File) -> io::Result<()> {
    sync_range(file, libc::SYNC_FILE_RANGE_WRITE)
}

/// Waits until all pages of `file` are on the disk, or in its cache. Writes no metadata.
pub(crate) fn finish_writing(file: &File) -> io::Result<()> {
    sync_range(
        file,
        libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER,
    )
}

fn sync_range(file: &File, flags: libc::c_uint) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open while `file` is borrowed; no memory is passed.
        let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Some being written, some being hashed, one being filled: more gain nothing.
const BUFFERS_MAX: usize = 8;

/// Where the limit on locked memory allows no more.
const BUFFERS_MIN: usize = 4;

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
        let count = lane.len();
        for index in 0..count {
            lane.fill(index).unwrap().fill(index as u8 + 1);
            let offset = index * BUFFER_SIZE_BYTES;
            lane.submit(&file, index, BUFFER_SIZE_BYTES, offset as u64).unwrap();
            assert!(lane.fill(index).is_none(), "the kernel is reading it");
        }
        drop(lane);
        let mut last = [0; 1];
        std::os::unix::fs::FileExt::read_at(
            &file,
            &mut last,
            (count * BUFFER_SIZE_BYTES) as u64 - 1,
        )
        .unwrap();
        assert_eq!(last, [count as u8]);
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
