//! The bytes of an archive as they arrive: counted, and inflated where they are compressed.

use std::fmt;
use std::io::Write as _;

use bytes::{Buf as _, Bytes, BytesMut};
use flate2::write::MultiGzDecoder;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use zstd::stream::raw::{Decoder, InBuffer, Operation as _, OutBuffer};

use crate::error::{Error, Result};

/// A stream that yields plain bytes whatever it is compressed with.
pub(super) struct Input {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    /// As they came.
    raw: BytesMut,
    /// Ready to be handed out.
    plain: BytesMut,
    codec: Codec,
    ended: bool,
    /// Plain bytes so far.
    total: u64,
    total_max: u64,
}

enum Codec {
    /// The first bytes have not been seen yet.
    Unknown,
    None,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zstd {
        decoder: Decoder<'static>,
        /// Whether a frame has begun and not ended.
        inside: bool,
        /// Whether it may have more to give without being given more.
        holds_back: bool,
    },
}

impl Input {
    pub(super) fn new(stream: Box<dyn AsyncRead + Send + Unpin>, total_max: u64) -> Self {
        let (raw, plain) = (BytesMut::new(), BytesMut::new());
        Self { stream, raw, plain, codec: Codec::Unknown, ended: false, total: 0, total_max }
    }

    /// Between one and `max` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::UnexpectedEof`] when there are none left.
    pub(super) async fn take(&mut self, max: u64) -> Result<Bytes> {
        if self.plain.is_empty() && !self.fill().await? {
            let (have, want) = (self.total, self.total.saturating_add(max));
            return Err(Error::UnexpectedEof { what: "tar archive".into(), have, want });
        }
        let len = usize::try_from(max).unwrap_or(usize::MAX).min(self.plain.len());
        Ok(self.plain.split_to(len).freeze())
    }

    /// How many bytes were handed out, as long as they are the bytes of the stream.
    pub(super) fn offset(&self) -> Option<u64> {
        matches!(self.codec, Codec::None).then(|| self.total - self.plain.len() as u64)
    }

    /// Whatever comes next, `None` at the end of the stream.
    pub(super) async fn rest(&mut self) -> Result<Option<Bytes>> {
        if self.plain.is_empty() && !self.fill().await? {
            return Ok(None);
        }
        Ok(Some(self.plain.split().freeze()))
    }

    /// Makes more plain bytes; says whether there are any.
    async fn fill(&mut self) -> Result<bool> {
        while self.plain.is_empty() {
            if self.raw.is_empty() && !self.codec.holds_back() && !self.receive().await? {
                self.close()?;
                return Ok(!self.plain.is_empty());
            }
            if let Codec::Unknown = self.codec {
                // The longest magic number has four bytes; a shorter stream is no archive anyway.
                while self.raw.len() < 4 && self.receive().await? {}
                self.codec = Codec::of(&self.raw)?;
            }
            let before = self.plain.len();
            self.codec.decode(&mut self.raw, &mut self.plain)?;
            self.total += (self.plain.len() - before) as u64;
            if self.total > self.total_max {
                let what = "archive: bytes in all".into();
                return Err(Error::LimitExceeded { what, limit: self.total_max });
            }
        }
        Ok(true)
    }

    /// Waits for more bytes of the stream; says whether there are any.
    async fn receive(&mut self) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        self.raw.reserve(READ_BYTES);
        let read =
            self.stream.read_buf(&mut self.raw).await.map_err(Error::io("read", "archive"))?;
        self.ended = read == 0;
        Ok(read > 0)
    }

    /// A compressed stream must not stop in the middle.
    fn close(&mut self) -> Result<()> {
        match &mut self.codec {
            Codec::Gzip(decoder) => {
                decoder.try_finish().map_err(broken)?;
                self.plain.extend_from_slice(decoder.get_ref());
                decoder.get_mut().clear();
            }
            Codec::Zstd { inside: true, .. } => {
                let what = "zstd frame of an archive".into();
                return Err(Error::UnexpectedEof { what, have: self.total, want: self.total + 1 });
            }
            _ => {}
        }
        Ok(())
    }
}

impl Codec {
    fn of(first: &[u8]) -> Result<Self> {
        if first.starts_with(&[0x1f, 0x8b]) {
            return Ok(Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))));
        }
        // Either a frame, or a frame to be skipped before the first.
        let skippable = first.len() >= 4 && first[0] & 0xf0 == 0x50 && first[1..4] == SKIPPABLE;
        if first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable {
            let mut decoder = Decoder::new().map_err(broken)?;
            let window = zstd::stream::raw::DParameter::WindowLogMax(WINDOW_LOG_MAX);
            decoder.set_parameter(window).map_err(broken)?;
            return Ok(Self::Zstd { decoder, inside: false, holds_back: false });
        }
        for (magic, name) in [(&b"BZh"[..], "bzip2"), (b"\xfd7zX", "xz")] {
            if first.starts_with(magic) {
                return Err(Error::Unsupported { what: format!("archive compressed with {name}") });
            }
        }
        Ok(Self::None)
    }

    fn holds_back(&self) -> bool {
        matches!(self, Self::Zstd { holds_back: true, .. })
    }

    /// Moves some of `raw` to `plain`. Little at a time, since a few bytes can become megabytes.
    fn decode(&mut self, raw: &mut BytesMut, plain: &mut BytesMut) -> Result<()> {
        match self {
            Self::Unknown | Self::None => *plain = raw.split(),
            Self::Gzip(decoder) => {
                let some = raw.len().min(GZIP_STEP_BYTES);
                decoder.write_all(&raw[..some]).map_err(broken)?;
                raw.advance(some);
                plain.extend_from_slice(decoder.get_ref());
                decoder.get_mut().clear();
            }
            Self::Zstd { decoder, inside, holds_back } => {
                let mut out = [0; ZSTD_STEP_BYTES];
                let mut from = InBuffer::around(raw);
                let mut to = OutBuffer::around(&mut out[..]);
                let hint = decoder.run(&mut from, &mut to).map_err(broken)?;
                let (read, written) = (from.pos(), to.pos());
                if read == 0 && written == 0 && !raw.is_empty() {
                    return Err(Error::document("archive", "zstd stream makes no progress"));
                }
                *inside = hint != 0;
                *holds_back = written == ZSTD_STEP_BYTES;
                raw.advance(read);
                plain.extend_from_slice(&out[..written]);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").field("total", &self.total).finish_non_exhaustive()
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::document("archive", format!("compressed stream is damaged: {error}"))
}

/// Large enough that a system call per piece does not matter.
const READ_BYTES: usize = 128 * 1024;
/// Inflates to 4 MiB at most.
const GZIP_STEP_BYTES: usize = 4 * 1024;
const ZSTD_STEP_BYTES: usize = 64 * 1024;
/// 128 MiB of history, what decoders accept that were not told otherwise.
const WINDOW_LOG_MAX: u32 = 27;
/// The bytes of a skippable frame's magic number after its first.
const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
