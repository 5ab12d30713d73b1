//! The bytes under a tar: counted and limited as they pass.

use std::io::{self, Read};

use crate::error::{Error, Result};
use crate::tar::BLOCK_BYTES;

/// Hands out whole blocks, or pieces of whatever length is buffered.
pub(crate) struct Stream<'a> {
    inner: &'a mut dyn Read,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    size_bytes: u64,
    size_bytes_max: u64,
}

/// Large enough for one write call per typical file, small enough for a core's
/// own cache.
const BUFFER_BYTES: usize = 256 << 10;

impl<'a> Stream<'a> {
    pub(crate) fn new(inner: &'a mut dyn Read, size_bytes_max: u64) -> Self {
        Self {
            inner,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            size_bytes: 0,
            size_bytes_max,
        }
    }

    /// The next block, or `None` at the end. A part of a block is an error.
    pub(crate) fn block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            let part = self.peek(BLOCK_BYTES - filled)?;
            let length = part.len();
            if length == 0 {
                return match filled {
                    0 => Ok(None),
                    _ => Err(truncated()),
                };
            }
            block[filled..filled + length].copy_from_slice(part);
            self.consume(length);
            filled += length;
        }
        Ok(Some(block))
    }

    /// Between 1 and `max` of the next bytes; `max` is not zero. The end of
    /// the stream is an error.
    pub(crate) fn chunk(&mut self, max: u64) -> Result<&[u8]> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let length = match self.peek(max)?.len() {
            0 => return Err(truncated()),
            length => length,
        };
        let start = self.start;
        self.consume(length);
        Ok(&self.buffer[start..start + length])
    }

    /// Passes over `count` bytes.
    pub(crate) fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            count -= self.chunk(count)?.len() as u64;
        }
        Ok(())
    }

    /// Reads to the end; then the length of everything.
    pub(crate) fn finish(mut self) -> Result<u64> {
        loop {
            let length = self.peek(usize::MAX)?.len();
            if length == 0 {
                return Ok(self.size_bytes);
            }
            self.consume(length);
        }
    }

    /// Up to `max` buffered bytes, none only at the end of the stream.
    fn peek(&mut self, max: usize) -> Result<&[u8]> {
        if self.start == self.end {
            self.fill()?;
        }
        let available = &self.buffer[self.start..self.end];
        Ok(&available[..available.len().min(max)])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }

    fn fill(&mut self) -> Result<()> {
        let length = loop {
            match self.inner.read(&mut self.buffer) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(stream_error(source)),
            }
        };
        (self.start, self.end) = (0, length);
        self.size_bytes += length as u64;
        if self.size_bytes > self.size_bytes_max {
            let max = self.size_bytes_max;
            return Err(Error::LimitExceeded { limit: "uncompressed size in bytes", max });
        }
        Ok(())
    }
}

/// Gives an error of this crate that passed through [`Read`] back its type.
fn stream_error(source: io::Error) -> Error {
    match source.downcast::<Error>() {
        Ok(error) => error,
        Err(source) => Error::Stream { op: "read", source },
    }
}

fn truncated() -> Error {
    Error::archive(b"", "stream ends in the middle")
}
