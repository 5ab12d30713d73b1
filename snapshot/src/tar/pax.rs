//! PAX extended headers: `length key=value` lines.

use crate::error::{Error, Result};
use crate::tar::sparse::Region;

/// What an extended header says about the next entry.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) atime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: PaxSparse,
}

/// What it says about holes, in any of GNU tar's three versions.
#[derive(Debug, Default)]
pub(crate) struct PaxSparse {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// `realsize` of version 1.0.
    pub(crate) real_size: Option<u64>,
    /// `size` of versions 0.0 and 0.1.
    pub(crate) size: Option<u64>,
    pub(crate) region_count: Option<u64>,
    pub(crate) map: Option<Vec<Region>>,
    /// Alternating offsets and lengths of version 0.0.
    pub(crate) numbers: Vec<u64>,
}

/// Largest extended header. Names and attributes of real files need a few
/// kilobytes; the kernel takes 64 KiB of attributes.
pub(crate) const PAX_BYTES_MAX: u64 = 1 << 20;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

impl Pax {
    /// Parses the data of an extended header.
    pub(crate) fn parse(data: &[u8]) -> Result<Self> {
        let mut pax = Self::default();
        for record in Records(data) {
            let (key, value) = record?;
            pax.set(key, value).map_err(|reason| Error::archive(key, reason))?;
        }
        Ok(pax)
    }

    /// Checks a global header, whose content is otherwise ignored: it may not
    /// bend names or sizes, because readers disagree on whether that counts.
    pub(crate) fn check_global(data: &[u8]) -> Result<()> {
        for record in Records(data) {
            let (key, _) = record?;
            if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(SPARSE_PREFIX) {
                return Err(Error::archive(key, "global header changes every entry"));
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => once(&mut self.path, name(value)?),
            b"linkpath" => once(&mut self.link, name(value)?),
            b"size" => once(&mut self.size, decimal(value)?),
            // An empty value means that the header's own holds.
            b"uid" | b"gid" | b"mtime" | b"atime" if value.is_empty() => Ok(()),
            b"uid" => once(&mut self.uid, id(value)?),
            b"gid" => once(&mut self.gid, id(value)?),
            b"mtime" => once(&mut self.mtime, time(value)?),
            b"atime" => once(&mut self.atime, time(value)?),
            b"SCHILY.realsize" | b"SCHILY.offset" => Err("sparse format of star"),
            _ => {
                if let Some(key) = key.strip_prefix(XATTR_PREFIX) {
                    self.set_xattr(key, value)
                } else if let Some(key) = key.strip_prefix(SPARSE_PREFIX) {
                    self.sparse.set(key, value)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn set_xattr(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if key.is_empty() || key.contains(&0) {
            return Err("bad attribute name");
        }
        if self.xattrs.len() == XATTRS_MAX {
            return Err("too many attributes");
        }
        if self.xattrs.iter().any(|(other, _)| other == key) {
            return Err(DUPLICATE);
        }
        self.xattrs.push((key.to_vec(), value.to_vec()));
        Ok(())
    }
}

impl PaxSparse {
    /// Whether anything was said about holes.
    pub(crate) fn is_some(&self) -> bool {
        self.major.is_some()
            || self.minor.is_some()
            || self.name.is_some()
            || self.real_size.is_some()
            || self.size.is_some()
            || self.region_count.is_some()
            || self.map.is_some()
            || !self.numbers.is_empty()
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"major" => once(&mut self.major, decimal(value)?),
            b"minor" => once(&mut self.minor, decimal(value)?),
            b"name" => once(&mut self.name, name(value)?),
            b"realsize" => once(&mut self.real_size, decimal(value)?),
            b"size" => once(&mut self.size, decimal(value)?),
            b"numblocks" => once(&mut self.region_count, decimal(value)?),
            b"map" => once(&mut self.map, map(value)?),
            b"offset" => self.push(0, decimal(value)?),
            b"numbytes" => self.push(1, decimal(value)?),
            _ => Err("unknown sparse record"),
        }
    }

    fn push(&mut self, parity: usize, number: u64) -> Result<(), &'static str> {
        if self.numbers.len() % 2 != parity {
            return Err("sparse offsets and lengths do not alternate");
        }
        self.numbers.push(number);
        Ok(())
    }
}

/// Splits records off the front, strictly.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split_record(self.0);
        self.0 = record.map_or(&[], |(_, _, rest)| rest);
        Some(match record {
            Some((key, value, _)) => Ok((key, value)),
            None => Err(Error::archive(b"", "malformed extended header")),
        })
    }
}

/// Key, value and what follows the first record.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // Seven digits cover the largest header taken.
    let space = data.iter().take(8).position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&data[..space]).ok()?).ok()?;
    if length <= space + 1 || length > data.len() {
        return None;
    }
    let (record, rest) = data.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(DUPLICATE),
    }
}

fn name(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    match value.is_empty() || value.contains(&0) {
        true => Err("empty name or zero byte in it"),
        false => Ok(value.to_vec()),
    }
}

fn decimal(value: &[u8]) -> Result<u64, &'static str> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err("bad number");
    }
    let mut number = 0_u64;
    for digit in value {
        number = number
            .checked_mul(10)
            .and_then(|n| n.checked_add(u64::from(digit - b'0')))
            .filter(|&n| i64::try_from(n).is_ok())
            .ok_or("number out of range")?;
    }
    Ok(number)
}

fn id(value: &[u8]) -> Result<i64, &'static str> {
    decimal(value)?.try_into().map_err(|_| "number out of range")
}

/// Seconds with an optional fraction, of which nine digits count. Seconds
/// beyond 64 bits stop there.
fn time(value: &[u8]) -> Result<(i64, u32), &'static str> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |&byte| byte == b'.');
    let whole = parts.next().unwrap_or_default();
    let fraction = parts.next().unwrap_or_default();
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return Err("bad time");
    }
    let seconds = whole.iter().fold(0_i64, |seconds, digit| {
        seconds.saturating_mul(10).saturating_add(i64::from(digit - b'0'))
    });
    let nanoseconds = (0..9).fold(0_u32, |nanoseconds, at| {
        nanoseconds * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'))
    });
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => ((-seconds).saturating_sub(1), 1_000_000_000 - nanoseconds),
    })
}

/// `offset,length,offset,length`.
fn map(value: &[u8]) -> Result<Vec<Region>, &'static str> {
    let mut regions = Vec::new();
    if value.is_empty() {
        return Ok(regions);
    }
    let mut numbers = value.split(|&byte| byte == b',');
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or("odd count of numbers in sparse map")?;
        regions.push(Region { offset: decimal(offset)?, length: decimal(length)? });
    }
    Ok(regions)
}

/// Most attributes of one entry; filesystems hold a few dozen.
const XATTRS_MAX: usize = 1024;

const DUPLICATE: &str = "said twice in one extended header";

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(data: &[u8]) -> bool {
        Pax::parse(data).is_err()
    }

    #[test]
    fn records_are_read() {
        let pax = Pax::parse(b"12 path=a/b\n10 size=7\n25 SCHILY.xattr.user.k=v\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.size, Some(7));
        assert_eq!(pax.xattrs, [(b"user.k".to_vec(), b"v".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in [
            &b"12 path=a/b"[..],
            b"12 path=a/bX",
            b"11 path=a/b\n",
            b"13 path=a/b\n",
            b"x path=a\n",
            b"0 path=a\n",
            b"3 \n",
            b"7 =abc\n",
            b"99999999999999999999 path=a\n",
            b"8 path=\n",
            b"11 path=\0b\n\n",
            b"9 size=-\n",
            b"10 size=-1\n",
            b"9 path=a\n9 path=b\n",
            b"29 size=99999999999999999999\n",
        ] {
            assert!(refused(data), "{}", data.escape_ascii());
        }
    }

    #[test]
    fn times_have_signs_and_fractions() {
        assert_eq!(time(b"1.5"), Ok((1, 500_000_000)));
        assert_eq!(time(b"-1.5"), Ok((-2, 500_000_000)));
        assert_eq!(time(b"-3"), Ok((-3, 0)));
        assert_eq!(time(b"1.0000000009"), Ok((1, 0)));
        assert_eq!(time(b"99999999999999999999"), Ok((i64::MAX, 0)));
        assert!(time(b"1e3").is_err());
        assert!(time(b".5").is_err());
    }
}
