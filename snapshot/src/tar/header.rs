//! The 512-byte header block.
//!
//! ```text
//!   0 name 100 │ 100 mode 8 │ 108 uid 8 │ 116 gid 8 │ 124 size 12 │ 136 mtime 12
//! 148 checksum 8 │ 156 type 1 │ 157 link 100 │ 257 magic 8 │ 265 user, group 64
//! 329 major 8 │ 337 minor 8 │ 345 prefix 155 (ustar only)
//! GNU sparse: 386 four regions of 24 │ 482 extended 1 │ 483 real size 12
//! ```

use crate::error::{Error, Result};
use crate::tar::BLOCK_BYTES;
use crate::tar::sparse::Region;

/// The fields of a header block, numbers parsed, nothing merged yet.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// The extra fields of a GNU sparse header.
#[derive(Debug)]
pub(crate) struct GnuSparse {
    pub(crate) regions: Vec<Region>,
    pub(crate) extended: bool,
    pub(crate) real_size: u64,
}

type Block = [u8; BLOCK_BYTES];

impl Header {
    pub(crate) fn parse(block: &Block) -> Result<Self> {
        let short = text(&block[0..100]);
        let refuse = |what: &str| Error::archive(short, format!("bad {what} in header"));
        if !checksum_matches(block) {
            return Err(Error::archive(short, "bad header checksum"));
        }

        let ustar = &block[257..263] == b"ustar\0";
        let mut name = Vec::new();
        // GNU writers keep other fields where ustar has its prefix, and star
        // ends it early with two times before a mark of its own.
        let prefix = if &block[508..512] == b"tar\0" { &block[345..476] } else { &block[345..500] };
        if ustar && prefix[0] != 0 {
            name.extend_from_slice(text(prefix));
            name.push(b'/');
        }
        name.extend_from_slice(short);

        let kind = block[156];
        let device = matches!(kind, b'3' | b'4');
        let device_number = |field: &[u8], what: &str| match device {
            true => number(field).and_then(|n| u32::try_from(n).ok()).ok_or_else(|| refuse(what)),
            false => Ok(0),
        };
        Ok(Self {
            name,
            link: text(&block[157..257]).to_vec(),
            kind,
            mode: number(&block[100..108])
                .and_then(|mode| u32::try_from(mode).ok())
                .ok_or_else(|| refuse("mode"))?,
            uid: number(&block[108..116]).ok_or_else(|| refuse("uid"))?,
            gid: number(&block[116..124]).ok_or_else(|| refuse("gid"))?,
            size: size(&block[124..136]).ok_or_else(|| refuse("size"))?,
            mtime: number(&block[136..148]).ok_or_else(|| refuse("mtime"))?,
            major: device_number(&block[329..337], "device number")?,
            minor: device_number(&block[337..345], "device number")?,
        })
    }

    pub(crate) fn gnu_sparse(block: &Block) -> Result<GnuSparse> {
        let refuse = || Error::archive(text(&block[0..100]), "bad sparse header");
        Ok(GnuSparse {
            regions: regions(&block[386..482]).ok_or_else(refuse)?,
            extended: block[482] != 0,
            real_size: size(&block[483..495]).ok_or_else(refuse)?,
        })
    }

    /// Regions of a block that continues a GNU sparse header, and whether
    /// another one follows.
    pub(crate) fn gnu_sparse_extension(block: &Block) -> Option<(Vec<Region>, bool)> {
        Some((regions(&block[0..504])?, block[504] != 0))
    }
}

/// The field up to its first zero byte.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// The sum of all bytes, the checksum field counting as spaces. Some old
/// writers summed signed bytes.
fn checksum_matches(block: &Block) -> bool {
    let Some(stored) = octal(&block[148..156]) else { return false };
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    stored == unsigned || stored == signed
}

fn regions(fields: &[u8]) -> Option<Vec<Region>> {
    let mut regions = Vec::new();
    for field in fields.chunks_exact(24) {
        if field[0] == 0 {
            break;
        }
        regions.push(Region { offset: size(&field[..12])?, length: size(&field[12..])? });
    }
    Some(regions)
}

fn size(field: &[u8]) -> Option<u64> {
    number(field).and_then(|size| u64::try_from(size).ok())
}

/// A number in octal, or in base 256 if its first bit is set.
fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // Two's complement over the whole field, without its marker bit.
    let negative = first & 0x40 != 0;
    let mut value = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
    for &byte in rest {
        // Twelve bytes at most: 95 bits never overflow this.
        value = (value << 8) | i128::from(byte);
    }
    i64::try_from(value).ok()
}

/// Octal digits between spaces and zero bytes; none at all is zero.
fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let mut value = 0_i64;
    for &digit in &field[start..end] {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_octal_and_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff"), Some(-1));
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(b"-000644\0"), None);
        assert_eq!(number(b"00 0644\0"), None);
        assert_eq!(number(b"\x80\0\0\x01\0\0\0\0\0\0\0\0"), None, "beyond 63 bits");
    }
}
