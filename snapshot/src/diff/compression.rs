//! How layers are compressed.

use std::io::{self, BufRead, Read, Write};

use flate2::write::GzEncoder;

/// The compression of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A plain tar.
    #[default]
    None,
    /// Gzip, of one member or many.
    Gzip,
    /// Zstandard, of one frame or many.
    Zstd,
}

/// A compressing writer whose end has to be written explicitly.
pub enum Encoder<W: Write> {
    /// Passes bytes on.
    Plain(W),
    /// Gzip without name and time, so that equal input gives equal bytes.
    Gzip(GzEncoder<W>),
    /// Zstandard.
    Zstd(zstd::Encoder<'static, W>),
}

impl Compression {
    /// Tells the compression from the first bytes of a stream;
    /// [`SNIFF_BYTES`] of them are enough. What is neither gzip nor Zstandard
    /// counts as plain.
    pub fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame: seekable variants of Zstandard begin so.
            [low, 0x2a, 0x4d, 0x18, ..] if low & 0xf0 == 0x50 => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The media type of an OCI layer compressed so.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// A reader of the uncompressed bytes.
    ///
    /// It follows gzip members and Zstandard frames to the end of `reader` and
    /// fails on anything else after them. Frames that need more memory than a
    /// window of 2^[`ZSTD_WINDOW_LOG_MAX`] bytes are refused.
    ///
    /// # Errors
    ///
    /// When no decoder could be set up.
    pub fn decoder<'a>(self, reader: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(reader),
            #[cfg(feature = "isal")]
            Self::Gzip => Box::new(crate::isal::GzipDecoder::new(reader)?),
            #[cfg(not(feature = "isal"))]
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(reader)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
        })
    }

    /// A writer that compresses into `writer`.
    ///
    /// # Errors
    ///
    /// When no encoder could be set up.
    pub fn encoder<W: Write>(self, writer: W) -> io::Result<Encoder<W>> {
        Ok(match self {
            Self::None => Encoder::Plain(writer),
            Self::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                Encoder::Gzip(GzEncoder::new(writer, level))
            }
            Self::Zstd => Encoder::Zstd(zstd::Encoder::new(writer, ZSTD_LEVEL)?),
        })
    }
}

impl<W: Write> Encoder<W> {
    /// Writes what is pending and the trailer, and returns the writer.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(writer) => Ok(writer),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(writer) => writer.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(writer) => writer.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// How many bytes [`Compression::detect`] needs at most.
pub const SNIFF_BYTES: usize = 4;

/// Largest window a Zstandard frame may ask for, as a power of two: 128 MiB,
/// what the format's own tools accept without being told.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Level 6 is one per cent smaller for a fifth more time.
const GZIP_LEVEL: u32 = 4;

/// The library's default, and already denser than any gzip.
const ZSTD_LEVEL: i32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_detected_and_decoded() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mut encoder = compression.encoder(Vec::new()).unwrap();
            encoder.write_all(b"some bytes").unwrap();
            let bytes = encoder.finish().unwrap();
            assert_eq!(Compression::detect(&bytes), compression);

            let mut text = String::new();
            let mut decoder = compression.decoder(&bytes[..]).unwrap();
            decoder.read_to_string(&mut text).unwrap();
            assert_eq!(text, "some bytes");
        }
    }

    #[test]
    fn a_skippable_frame_is_zstd() {
        assert_eq!(Compression::detect(&[0x5e, 0x2a, 0x4d, 0x18]), Compression::Zstd);
        assert_eq!(Compression::detect(&[0x6e, 0x2a, 0x4d, 0x18]), Compression::None);
    }
}
