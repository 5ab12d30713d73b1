//! Entries into a tar, the same bytes for the same input.

use std::io::{self, Write};

use crate::tar::{BLOCK_BYTES, Entry, EntryKind, padding};

/// Writes ustar headers, preceded by PAX ones where ustar cannot say it.
pub(crate) struct TarWriter<W: Write> {
    inner: W,
    data_left: u64,
    padding_left: u64,
}

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, data_left: 0, padding_left: 0 }
    }

    /// Begins an entry. Holes are not expressed; names, owners and times of
    /// any size are. Directories must end in a slash.
    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        debug_assert_eq!(self.data_left, 0, "the entry before is not finished");
        let size = if entry.kind == EntryKind::File { entry.size } else { 0 };
        let mut records = Vec::new();
        let mut block = [0; BLOCK_BYTES];

        put_name(&mut block, &entry.path, &mut records);
        match entry.link.len() {
            0..=100 if entry.link.is_ascii() => put(&mut block[157..257], &entry.link),
            _ => record(&mut records, b"linkpath", &entry.link),
        }
        put_octal(&mut block[100..108], u64::from(entry.mode));
        put_number(&mut block[108..116], entry.uid.into(), b"uid", &mut records);
        put_number(&mut block[116..124], entry.gid.into(), b"gid", &mut records);
        put_number(&mut block[124..136], size, b"size", &mut records);
        match u64::try_from(entry.mtime.0) {
            Ok(seconds) => put_number(&mut block[136..148], seconds, b"mtime", &mut records),
            Err(_) => {
                put_octal(&mut block[136..148], 0);
                record(&mut records, b"mtime", entry.mtime.0.to_string().as_bytes());
            }
        }
        if matches!(entry.kind, EntryKind::CharacterDevice | EntryKind::BlockDevice) {
            put_octal(&mut block[329..337], entry.major.into());
            put_octal(&mut block[337..345], entry.minor.into());
        }
        for (name, value) in &entry.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        block[156] = match entry.kind {
            EntryKind::File => b'0',
            EntryKind::HardLink => b'1',
            EntryKind::Symlink => b'2',
            EntryKind::CharacterDevice => b'3',
            EntryKind::BlockDevice => b'4',
            EntryKind::Directory => b'5',
            EntryKind::Fifo => b'6',
        };

        if !records.is_empty() {
            self.extension(records)?;
        }
        seal(&mut block);
        self.inner.write_all(&block)?;
        (self.data_left, self.padding_left) = (size, padding(size));
        self.pad_if_done()
    }

    /// Writes a part of the entry's data.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.data_left = match self.data_left.checked_sub(bytes.len() as u64) {
            Some(left) => left,
            None => return Err(io::Error::other("more data than the entry announced")),
        };
        self.inner.write_all(bytes)?;
        self.pad_if_done()
    }

    /// Ends the archive and returns the writer.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&[0; 2 * BLOCK_BYTES])?;
        Ok(self.inner)
    }

    fn extension(&mut self, mut records: Vec<(Vec<u8>, Vec<u8>)>) -> io::Result<()> {
        records.sort();
        let data: Vec<u8> =
            records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        let mut block = [0; BLOCK_BYTES];
        put(&mut block[..100], b"PaxHeaders/entry");
        put_octal(&mut block[100..108], 0o644);
        put_octal(&mut block[108..116], 0);
        put_octal(&mut block[116..124], 0);
        put_octal(&mut block[124..136], data.len() as u64);
        put_octal(&mut block[136..148], 0);
        block[156] = b'x';
        seal(&mut block);
        self.inner.write_all(&block)?;
        self.inner.write_all(&data)?;
        self.inner.write_all(&[0; BLOCK_BYTES][..padding(data.len() as u64) as usize])
    }

    fn pad_if_done(&mut self) -> io::Result<()> {
        if self.data_left == 0 && self.padding_left > 0 {
            let count = std::mem::take(&mut self.padding_left) as usize;
            self.inner.write_all(&[0; BLOCK_BYTES][..count])?;
        }
        Ok(())
    }
}

/// Puts a name into the name field, or splits it at a slash into prefix and
/// name, or makes it a record.
fn put_name(block: &mut [u8; BLOCK_BYTES], name: &[u8], records: &mut Records) {
    if name.is_ascii() {
        if name.len() <= 100 {
            return put(&mut block[..100], name);
        }
        // The rightmost slash that leaves something on both sides.
        let split = (1..name.len().min(156))
            .rev()
            .find(|&at| name[at] == b'/' && at + 1 < name.len() && name.len() - at - 1 <= 100);
        if let Some(at) = split {
            put(&mut block[345..500], &name[..at]);
            return put(&mut block[..100], &name[at + 1..]);
        }
    }
    record(records, b"path", name);
}

type Records = Vec<(Vec<u8>, Vec<u8>)>;

fn record(records: &mut Records, key: &[u8], value: &[u8]) {
    records.push((key.to_vec(), value.to_vec()));
}

/// A number in octal if it fits, else zero and a record.
fn put_number(field: &mut [u8], number: u64, key: &[u8], records: &mut Records) {
    let bits = 3 * (field.len() - 1);
    if number >> bits == 0 {
        put_octal(field, number);
    } else {
        put_octal(field, 0);
        record(records, key, number.to_string().as_bytes());
    }
}

fn put(field: &mut [u8], bytes: &[u8]) {
    field[..bytes.len()].copy_from_slice(bytes);
}

/// Leading zeros, and a zero byte at the end.
fn put_octal(field: &mut [u8], mut number: u64) {
    let last = field.len() - 1;
    for digit in field[..last].iter_mut().rev() {
        *digit = b'0' + (number & 7) as u8;
        number >>= 3;
    }
    debug_assert_eq!(number, 0, "number does not fit its field");
}

/// Magic and checksum.
fn seal(block: &mut [u8; BLOCK_BYTES]) {
    put(&mut block[257..265], b"ustar\x0000");
    put(&mut block[148..156], b"        ");
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    put_octal(&mut block[148..155], sum);
}

/// `length key=value`, where the length counts its own digits.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + " =\n".len();
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} ").into_bytes();
    record.extend_from_slice(key);
    record.push(b'=');
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{Stream, TarReader};

    fn entry(path: &[u8]) -> Entry {
        Entry {
            path: path.to_vec(),
            link: Vec::new(),
            kind: EntryKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (1, 0),
            atime: None,
            size: 0,
            sparse: None,
            major: 0,
            minor: 0,
            xattrs: Vec::new(),
        }
    }

    #[test]
    fn record_lengths_count_themselves() {
        assert_eq!(pax_record(b"path", b"a"), b"9 path=a\n");
        for length in 80..120 {
            let record = pax_record(b"k", &vec![b'v'; length]);
            assert!(record.starts_with(format!("{} k=", record.len()).as_bytes()));
        }
        assert_eq!(pax_record(b"path", &[b'a'; 91]).len(), 101);
    }

    #[test]
    fn what_ustar_cannot_say_is_said_and_read_back() {
        let long = [b"d/".repeat(90), vec![b'n'; 120]].concat();
        let entries = [
            entry(b"short"),
            entry(&[vec![b'p'; 120], b"/".to_vec(), vec![b'n'; 90]].concat()),
            entry(&long),
            entry("\u{e9}".as_bytes()),
            entry(b"\xff\xfe"),
            Entry { uid: 3_000_000, gid: u32::MAX - 1, mtime: (-5, 0), ..entry(b"ids") },
            Entry { kind: EntryKind::Symlink, link: long.clone(), ..entry(b"link") },
            Entry {
                xattrs: vec![(b"security.capability".to_vec(), b"\0\n=\xff".to_vec())],
                ..entry(b"caps")
            },
        ];
        let mut writer = TarWriter::new(Vec::new());
        for entry in &entries {
            writer.entry(entry).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let mut input = &bytes[..];
        let mut reader = TarReader::new(Stream::new(&mut input, u64::MAX));
        for entry in &entries {
            assert_eq!(reader.next_entry().unwrap().as_ref(), Some(entry));
        }
        assert_eq!(reader.next_entry().unwrap(), None);
    }
}
