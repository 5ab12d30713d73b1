//! The tar format, as far as image archives use it: read strictly, written one way.
//!
//! POSIX ustar with the extensions that real writers use for long names and large sizes (PAX
//! records `path`, `linkpath` and `size`, and the long-name entries of GNU tar). Whatever two
//! readers could understand differently is refused: repeated or malformed extensions, mixtures of
//! both kinds, sparse files, numbers that do not fit.

use bytes::{Bytes, BytesMut};

use super::input::Input;
use crate::error::{Error, Result};

/// One entry, without its data.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) size_bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// Relative to the directory it is in.
    Symlink(Vec<u8>),
    /// Relative to the root of the archive.
    Hardlink(Vec<u8>),
    /// Devices and pipes, which no image archive has a use for.
    Special,
}

/// Reads entries one after the other.
#[derive(Debug)]
pub(super) struct Reader {
    input: Input,
    /// Data of the current entry not handed out yet, and the filling behind it.
    left: u64,
    padding: u64,
    /// Whether the first of the empty blocks was read.
    ended: bool,
}

impl Reader {
    pub(super) fn new(input: Input) -> Self {
        Self { input, left: 0, padding: 0, ended: false }
    }

    /// The next entry, `None` at the end of the archive. Skips what is left of the last one.
    pub(super) async fn next(&mut self) -> Result<Option<Header>> {
        if self.ended {
            return Ok(None);
        }
        while self.chunk().await?.is_some() {}
        let mut extended = Extended::default();
        loop {
            let Some(block) = self.block().await? else {
                if !extended.is_empty() {
                    return Err(malformed("extension without an entry"));
                }
                self.ended = true;
                return Ok(None);
            };
            let raw = Raw(&block);
            raw.check_sum()?;
            let size = raw.size()?;
            match raw.kind() {
                b'x' => extended.pax(&self.small(size).await?)?,
                b'g' => check_global(&self.small(size).await?)?,
                b'L' => extended.gnu_path(&self.small(size).await?)?,
                b'K' => extended.gnu_link(&self.small(size).await?)?,
                kind => {
                    let header = extended.apply(&raw, kind, size)?;
                    self.left = header.size_bytes;
                    self.padding = padding(self.left);
                    return Ok(Some(header));
                }
            }
        }
    }

    /// How many bytes of the stream were handed out, unless it is compressed.
    pub(super) fn offset(&self) -> Option<u64> {
        self.input.offset()
    }

    /// Data of the current entry, `None` after the last.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        if self.left > 0 {
            let bytes = self.input.take(self.left).await?;
            self.left -= bytes.len() as u64;
            return Ok(Some(bytes));
        }
        while self.padding > 0 {
            self.padding -= self.input.take(self.padding).await?.len() as u64;
        }
        Ok(None)
    }

    /// Reads the rest of the stream, which holds nothing.
    pub(super) async fn finish(&mut self) -> Result<()> {
        while let Some(bytes) = self.input.rest().await? {
            if bytes.iter().any(|byte| *byte != 0) {
                return Err(malformed("data after the end"));
            }
        }
        Ok(())
    }

    /// A header block, `None` for the first of the two empty ones that end an archive.
    async fn block(&mut self) -> Result<Option<Bytes>> {
        let block = self.exactly(BLOCK_BYTES).await?;
        Ok(block.iter().any(|byte| *byte != 0).then_some(block))
    }

    /// The data of an extension.
    async fn small(&mut self, size: u64) -> Result<Bytes> {
        if size > EXTENSION_BYTES_MAX {
            let what = "tar archive: extension header".into();
            return Err(Error::LimitExceeded { what, limit: EXTENSION_BYTES_MAX });
        }
        let bytes = self.exactly(size).await?;
        self.exactly(padding(size)).await?;
        Ok(bytes)
    }

    async fn exactly(&mut self, len: u64) -> Result<Bytes> {
        let first = if len == 0 { Bytes::new() } else { self.input.take(len).await? };
        if first.len() as u64 == len {
            return Ok(first);
        }
        let mut whole = BytesMut::from(&first[..]);
        while (whole.len() as u64) < len {
            whole.extend_from_slice(&self.input.take(len - whole.len() as u64).await?);
        }
        Ok(whole.freeze())
    }
}

/// A header block as it stands.
struct Raw<'b>(&'b [u8]);

impl Raw<'_> {
    fn field(&self, at: usize, len: usize) -> &[u8] {
        &self.0[at..at + len]
    }

    /// A text field ends at its first NUL or where it ends.
    fn text(&self, at: usize, len: usize) -> &[u8] {
        until_nul(self.field(at, len))
    }

    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn size(&self) -> Result<u64> {
        let size = number(self.field(124, 12))?;
        if size > i64::MAX as u64 {
            return Err(malformed("size does not fit 63 bits"));
        }
        Ok(size)
    }

    fn check_sum(&self) -> Result<()> {
        let stored = number(self.field(148, 8))?;
        let sum: u64 = self
            .0
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
            .sum();
        if stored != sum {
            return Err(malformed("wrong header checksum"));
        }
        Ok(())
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        // GNU headers keep times where POSIX ones keep the front part of a path.
        let posix = self.field(257, 6) == b"ustar\0";
        let prefix = if posix { self.text(345, 155) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }
}

/// What the extensions before an entry say about it.
#[derive(Default)]
struct Extended {
    pax: Option<Pax>,
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
}

#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size_bytes: Option<u64>,
}

impl Extended {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.gnu_path.is_none() && self.gnu_link.is_none()
    }

    fn pax(&mut self, data: &[u8]) -> Result<()> {
        if !self.is_empty() {
            return Err(malformed("repeated or mixed extensions"));
        }
        let mut pax = Pax::default();
        records(data, |key, value| {
            match key {
                b"path" => once(&mut pax.path, value.to_vec())?,
                b"linkpath" => once(&mut pax.link, value.to_vec())?,
                b"size" => once(&mut pax.size_bytes, decimal(value)?)?,
                key if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
                // Times, owners and attributes mean nothing to a blob.
                _ => {}
            }
            Ok(())
        })?;
        self.pax = Some(pax);
        Ok(())
    }

    fn gnu_path(&mut self, data: &[u8]) -> Result<()> {
        if self.pax.is_some() {
            return Err(malformed("repeated or mixed extensions"));
        }
        once(&mut self.gnu_path, until_nul(data).to_vec())
    }

    fn gnu_link(&mut self, data: &[u8]) -> Result<()> {
        if self.pax.is_some() {
            return Err(malformed("repeated or mixed extensions"));
        }
        once(&mut self.gnu_link, until_nul(data).to_vec())
    }

    fn apply(self, raw: &Raw<'_>, kind: u8, size: u64) -> Result<Header> {
        let pax = self.pax.unwrap_or_default();
        let path = pax.path.or(self.gnu_path).unwrap_or_else(|| raw.path());
        let link = || pax.link.or(self.gnu_link).unwrap_or_else(|| raw.text(157, 100).to_vec());
        let size = pax.size_bytes.unwrap_or(size);
        let kind = match kind {
            // Before POSIX, directories were files whose name ends with a slash.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::Hardlink(link()),
            b'2' => Kind::Symlink(link()),
            b'3' | b'4' | b'6' => Kind::Special,
            b'5' => Kind::Directory,
            b'S' => return Err(sparse()),
            _ => return Err(malformed("entry of unknown type")),
        };
        // Readers disagree whether data follows the others, so there must be none.
        if kind != Kind::File && size != 0 {
            return Err(malformed("data in an entry that is not a file"));
        }
        Ok(Header { path, kind, size_bytes: size })
    }
}

/// Splits PAX data into its records, `length key=value\n`.
fn records(mut data: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let wrong = || malformed("malformed extension record");
    while !data.is_empty() {
        let space = data.iter().take(20).position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let len = usize::try_from(decimal(&data[..space])?).map_err(|_| wrong())?;
        if len <= space + 1 || len > data.len() || data[len - 1] != b'\n' {
            return Err(wrong());
        }
        let record = &data[space + 1..len - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        // An empty value deletes what an earlier record said, of which only some readers know.
        let matters = matches!(key, b"path" | b"linkpath" | b"size");
        if key.is_empty() || (matters && value.is_empty()) {
            return Err(wrong());
        }
        each(key, value)?;
        data = &data[len..];
    }
    Ok(())
}

/// What holds for all entries may be a comment, but not what they are.
fn check_global(data: &[u8]) -> Result<()> {
    records(data, |key, _| match key {
        b"path" | b"linkpath" | b"size" => Err(malformed("global extension of names or sizes")),
        key if key.starts_with(b"GNU.sparse.") => Err(sparse()),
        _ => Ok(()),
    })
}

/// A number in octal digits, or in base 256 as GNU tar writes large ones.
fn number(field: &[u8]) -> Result<u64> {
    if field[0] & 0x80 != 0 {
        // The second bit is the sign; the first only marks the form.
        let mut value = u64::from(field[0] & 0x7f);
        for byte in &field[1..] {
            if value >> 56 != 0 {
                return Err(malformed("number is negative or too large"));
            }
            value = value << 8 | u64::from(*byte);
        }
        return Ok(value);
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if rest.iter().any(|byte| !matches!(byte, 0 | b' ')) {
        return Err(malformed("malformed number"));
    }
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'7' => Ok(value << 3 | u64::from(digit - b'0')),
        _ => Err(malformed("malformed number")),
    })
}

fn decimal(text: &[u8]) -> Result<u64> {
    let wrong = || malformed("malformed number");
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(wrong());
    }
    let value: i64 =
        std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or_else(wrong)?;
    u64::try_from(value).map_err(|_| wrong())
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(malformed("repeated or mixed extensions")),
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

pub(super) fn malformed(reason: &str) -> Error {
    Error::document("tar archive", reason)
}

fn sparse() -> Error {
    Error::Unsupported { what: "sparse files in a tar archive".into() }
}

/// The filling after `size` bytes up to a whole block.
fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK_BYTES) - size
}

/// The blocks before the data of an entry: no owner, no time, so that equal content makes equal
/// archives.
pub(super) fn entry(path: &str, mode: u32, directory: bool, size_bytes: u64) -> Bytes {
    let mut records = String::new();
    if path.len() > NAME_BYTES_MAX {
        records.push_str(&pax_record("path", path));
    }
    let octal = size_bytes < OCTAL_SIZE_MAX;
    if !octal {
        records.push_str(&pax_record("size", &size_bytes.to_string()));
    }
    let mut blocks = BytesMut::new();
    if !records.is_empty() {
        let len = records.len() as u64;
        blocks.extend_from_slice(&header("pax", 0o644, b'x', len));
        blocks.extend_from_slice(records.as_bytes());
        blocks.extend_from_slice(&filling(len));
    }
    let kind = if directory { b'5' } else { b'0' };
    blocks.extend_from_slice(&header(path, mode, kind, if octal { size_bytes } else { 0 }));
    blocks.freeze()
}

/// What follows the data of an entry.
pub(super) fn filling(size_bytes: u64) -> Bytes {
    Bytes::from_static(&ZEROS[..padding(size_bytes) as usize])
}

/// What ends an archive.
pub(super) fn end() -> Bytes {
    Bytes::from_static(&ZEROS)
}

fn header(path: &str, mode: u32, kind: u8, size: u64) -> [u8; BLOCK_BYTES as usize] {
    let mut block = [0; BLOCK_BYTES as usize];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &path.as_bytes()[..path.len().min(NAME_BYTES_MAX)]);
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, b"0000000\x000000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    put(329, b"0000000\x000000000\0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A record whose length counts its own digits.
fn pax_record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    format!("{len} {key}={value}\n")
}

const BLOCK_BYTES: u64 = 512;
static ZEROS: [u8; 2 * BLOCK_BYTES as usize] = [0; 2 * BLOCK_BYTES as usize];
/// What the name field holds; longer paths are written as extensions.
const NAME_BYTES_MAX: usize = 100;
/// The first size that eleven octal digits cannot hold.
const OCTAL_SIZE_MAX: u64 = 1 << 33;
/// Extensions hold a path and some attributes; nothing here needs more than a few lines.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_and_large_sizes_are_written_so_that_they_are_read_back() {
        let long = format!("blobs/sha512/{}", "a".repeat(128));
        for (path, size) in [
            ("blobs/sha256/x", 0),
            ("blobs/sha256/x", 511),
            ("blobs/sha256/x", OCTAL_SIZE_MAX),
            (&long, 1),
            (&long, i64::MAX as u64),
        ] {
            let blocks = entry(path, 0o444, false, size);
            let mut extended = Extended::default();
            let mut at = 0;
            if blocks.len() > 512 {
                let len = Raw(&blocks[..512]).size().unwrap() as usize;
                extended.pax(&blocks[512..512 + len]).unwrap();
                at = 1024;
            }
            let raw = Raw(&blocks[at..]);
            raw.check_sum().unwrap();
            let header = extended.apply(&raw, raw.kind(), raw.size().unwrap()).unwrap();
            assert_eq!((header.size_bytes, header.kind), (size, Kind::File));
            assert_eq!(header.path, path.as_bytes());
        }
    }

    #[test]
    fn numbers_are_read_to_the_bit_or_refused() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]).unwrap(), 256);
        for bad in [&b"0000648\0"[..], b"-000001\0", &[0xff; 12], b"12 34\0\0\0"] {
            number(bad).unwrap_err();
        }
        let mut large = [0; 12];
        (large[0], large[3]) = (0x80, 1);
        number(&large).unwrap_err();
    }
}
