//! Entries one after another, extension headers merged.

use crate::error::{Error, Result};
use crate::tar::entry::{Entry, EntryKind};
use crate::tar::header::{Header, text};
use crate::tar::pax::{PAX_BYTES_MAX, Pax, PaxSparse};
use crate::tar::sparse::{self, REGIONS_MAX, Region};
use crate::tar::{BLOCK_BYTES, Stream, padding};

/// Reads a tar forward, in constant memory.
pub(crate) struct TarReader<'a> {
    stream: Stream<'a>,
    /// Bytes of data the current entry still has.
    data_left: u64,
    /// Bytes between that data and the next header.
    padding_left: u64,
}

/// Extension headers seen before the entry they belong to.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// Longest GNU long name: sixteen times what the kernel resolves.
const LONG_NAME_BYTES_MAX: u64 = 64 << 10;

impl<'a> TarReader<'a> {
    pub(crate) fn new(stream: Stream<'a>) -> Self {
        Self { stream, data_left: 0, padding_left: 0 }
    }

    /// The next entry, or `None` after the last. Data of the entry before that
    /// nobody read is passed over.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.stream.skip(self.data_left)?;
        self.stream.skip(self.padding_left)?;
        (self.data_left, self.padding_left) = (0, 0);

        let mut pending = Pending::default();
        loop {
            let Some(block) = self.stream.block()? else {
                pending.ensure_empty()?;
                return Ok(None);
            };
            if block == [0; BLOCK_BYTES] {
                pending.ensure_empty()?;
                return self.end();
            }
            let header = Header::parse(&block)?;
            match header.kind {
                b'x' => {
                    let data = self.extension(&header, PAX_BYTES_MAX)?;
                    set_once(&mut pending.pax, Pax::parse(&data)?)?;
                }
                b'g' => {
                    pending.ensure_empty()?;
                    let data = self.extension(&header, PAX_BYTES_MAX)?;
                    Pax::check_global(&data)?;
                }
                b'L' => set_once(&mut pending.long_name, self.long_name(&header)?)?,
                b'K' => set_once(&mut pending.long_link, self.long_name(&header)?)?,
                _ => return self.entry(&block, header, pending).map(Some),
            }
        }
    }

    /// Up to `max` of the next bytes of the current entry; `max` is not zero
    /// and no more than the entry holds.
    pub(crate) fn data(&mut self, max: u64) -> Result<&[u8]> {
        debug_assert!(max <= self.data_left);
        let chunk = self.stream.chunk(max.min(self.data_left))?;
        self.data_left -= chunk.len() as u64;
        Ok(chunk)
    }

    /// Reads what follows the archive; then the length of everything.
    pub(crate) fn finish(self) -> Result<u64> {
        self.stream.finish()
    }

    /// After one block of zeros: another one, or the end of the stream.
    fn end(&mut self) -> Result<Option<Entry>> {
        match self.stream.block()? {
            None => Ok(None),
            Some(block) if block == [0; BLOCK_BYTES] => Ok(None),
            Some(_) => Err(Error::archive(b"", "lone block of zeros between entries")),
        }
    }

    fn entry(&mut self, block: &[u8; BLOCK_BYTES], header: Header, with: Pending) -> Result<Entry> {
        let pax = with.pax.unwrap_or_default();
        let path = one_of(pax.path, with.long_name)?.unwrap_or(header.name);
        let link = one_of(pax.link, with.long_link)?.unwrap_or(header.link);
        let refuse = |reason: &str| Error::archive(&path, reason);

        let stored = match pax.size {
            Some(size) if header.size != 0 && header.size != size => {
                return Err(refuse("headers give two sizes"));
            }
            Some(size) => size,
            None => header.size,
        };
        let kind = kind_of(header.kind, &path)
            .ok_or_else(|| refuse(&format!("unknown type {:?}", char::from(header.kind))))?;
        if kind != EntryKind::File && stored != 0 {
            return Err(refuse("data in an entry that is no file"));
        }
        self.data_left = stored;
        self.padding_left = padding(stored);

        let mut entry = Entry {
            kind,
            mode: header.mode & 0o7777,
            uid: owner(pax.uid.unwrap_or(header.uid)).ok_or_else(|| refuse("bad uid"))?,
            gid: owner(pax.gid.unwrap_or(header.gid)).ok_or_else(|| refuse("bad gid"))?,
            mtime: pax.mtime.unwrap_or((header.mtime, 0)),
            atime: pax.atime,
            size: stored,
            sparse: None,
            major: header.major,
            minor: header.minor,
            xattrs: pax.xattrs,
            link,
            path,
        };
        match (header.kind, pax.sparse.is_some()) {
            (b'S', false) => self.gnu_sparse(block, &mut entry)?,
            (b'0' | 0, true) => self.pax_sparse(pax.sparse, &mut entry)?,
            (_, true) => return Err(Error::archive(&entry.path, "sparse map without a file")),
            (_, false) => {}
        }
        Ok(entry)
    }

    /// Old GNU format: regions in the header and in blocks after it.
    fn gnu_sparse(&mut self, block: &[u8; BLOCK_BYTES], entry: &mut Entry) -> Result<()> {
        let header = Header::gnu_sparse(block)?;
        let (mut regions, mut extended) = (header.regions, header.extended);
        while extended {
            let refuse = || Error::archive(&entry.path, "bad sparse extension");
            let block = self.stream.block()?.ok_or_else(refuse)?;
            let (more, again) = Header::gnu_sparse_extension(&block).ok_or_else(refuse)?;
            regions.extend(more);
            extended = again;
            limit_regions(regions.len() as u64)?;
        }
        sparse::check(&entry.path, &regions, self.data_left, header.real_size)?;
        entry.size = header.real_size;
        entry.sparse = Some(regions);
        Ok(())
    }

    /// GNU's three ways of saying it in extended headers.
    fn pax_sparse(&mut self, sparse: PaxSparse, entry: &mut Entry) -> Result<()> {
        let path = entry.path.clone();
        let refuse = |reason: &str| Error::archive(&path, reason);
        let (regions, real_size) = match (sparse.major, sparse.minor) {
            (Some(1), Some(0)) => {
                if sparse.map.is_some() || !sparse.numbers.is_empty() {
                    return Err(refuse("two sparse maps"));
                }
                (self.leading_map(&path)?, sparse.real_size)
            }
            (None, None) | (Some(0), Some(0 | 1)) => {
                let regions = match (sparse.map, sparse.numbers) {
                    (Some(map), numbers) if numbers.is_empty() => map,
                    (None, numbers) if numbers.len() % 2 == 0 => numbers
                        .chunks_exact(2)
                        .map(|pair| Region { offset: pair[0], length: pair[1] })
                        .collect(),
                    _ => return Err(refuse("two sparse maps, or half of one")),
                };
                if sparse.region_count.is_some_and(|count| count != regions.len() as u64) {
                    return Err(refuse("sparse map is not as long as it says"));
                }
                (regions, one_of(sparse.size, sparse.real_size)?)
            }
            _ => return Err(refuse("unknown sparse format")),
        };
        let real_size = real_size.ok_or_else(|| refuse("sparse file without a size"))?;
        sparse::check(&path, &regions, self.data_left, real_size)?;
        entry.size = real_size;
        entry.sparse = Some(regions);
        if let Some(name) = sparse.name {
            entry.path = name;
        }
        Ok(())
    }

    /// Version 1.0: decimal lines before the data, padded to a block.
    fn leading_map(&mut self, path: &[u8]) -> Result<Vec<Region>> {
        let refuse = || Error::archive(path, "bad sparse map before the data");
        let mut lines = MapLines::default();
        let mut numbers = Vec::new();
        let mut wanted = None;
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let number = loop {
                if let Some(number) = lines.next_number().map_err(|()| refuse())? {
                    break number;
                }
                self.data_left =
                    self.data_left.checked_sub(BLOCK_BYTES as u64).ok_or_else(refuse)?;
                lines.add(&self.stream.block()?.ok_or_else(refuse)?);
            };
            match wanted {
                None => {
                    limit_regions(number)?;
                    wanted = Some(number as usize * 2);
                }
                Some(_) => numbers.push(number),
            }
        }
        Ok(numbers
            .chunks_exact(2)
            .map(|pair| Region { offset: pair[0], length: pair[1] })
            .collect())
    }

    /// The data of an extension header.
    fn extension(&mut self, header: &Header, max: u64) -> Result<Vec<u8>> {
        if header.size > max {
            return Err(Error::LimitExceeded { limit: "extension header bytes", max });
        }
        let mut data = Vec::new();
        let mut left = header.size;
        while left > 0 {
            let chunk = self.stream.chunk(left)?;
            left -= chunk.len() as u64;
            data.extend_from_slice(chunk);
        }
        self.stream.skip(padding(header.size))?;
        Ok(data)
    }

    /// A GNU long name: text, then zero bytes only.
    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>> {
        let data = self.extension(header, LONG_NAME_BYTES_MAX)?;
        let name = text(&data);
        if name.is_empty() || data[name.len()..].iter().any(|&byte| byte != 0) {
            return Err(Error::archive(name, "malformed long name"));
        }
        Ok(name.to_vec())
    }
}

impl Pending {
    fn ensure_empty(&self) -> Result<()> {
        match self {
            Self { pax: None, long_name: None, long_link: None } => Ok(()),
            _ => Err(Error::archive(b"", "extension header without an entry")),
        }
    }
}

/// Decimal lines cut out of blocks.
#[derive(Default)]
struct MapLines {
    bytes: Vec<u8>,
    at: usize,
}

impl MapLines {
    fn add(&mut self, block: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(block);
    }

    /// The next whole line's number, `None` if a block is wanted first.
    fn next_number(&mut self) -> Result<Option<u64>, ()> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            // Twenty digits hold any 64-bit number.
            return if rest.len() > 20 { Err(()) } else { Ok(None) };
        };
        let line = std::str::from_utf8(&rest[..length]).map_err(drop)?;
        if line.is_empty() || !line.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(());
        }
        self.at += length + 1;
        line.parse().map(Some).map_err(drop)
    }
}

fn limit_regions(count: u64) -> Result<()> {
    let max = REGIONS_MAX as u64;
    match count > max {
        true => Err(Error::LimitExceeded { limit: "sparse regions", max }),
        false => Ok(()),
    }
}

fn kind_of(flag: u8, path: &[u8]) -> Option<EntryKind> {
    Some(match flag {
        // Before ustar a directory was a file whose name ends in a slash.
        b'0' | 0 if path.ends_with(b"/") => EntryKind::Directory,
        b'0' | 0 | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharacterDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        _ => return None,
    })
}

/// A user or group id; the greatest number means "no change" to the kernel.
fn owner(id: i64) -> Option<u32> {
    u32::try_from(id).ok().filter(|&id| id != u32::MAX)
}

fn one_of<T>(a: Option<T>, b: Option<T>) -> Result<Option<T>> {
    match (a, b) {
        (Some(_), Some(_)) => Err(Error::archive(b"", "two extension headers say the same")),
        (a, b) => Ok(a.or(b)),
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::archive(b"", "two extension headers of one kind")),
    }
}
