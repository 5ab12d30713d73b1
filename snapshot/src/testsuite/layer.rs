//! Layers put together byte by byte, the impossible ones too.

/// One entry to write.
#[derive(Clone, Debug)]
pub struct Item<'a> {
    /// Type flag.
    pub kind: u8,
    /// Name, at most 100 bytes.
    pub name: &'a [u8],
    /// Link target, at most 100 bytes.
    pub link: &'a [u8],
    /// Data; its length goes into the header.
    pub data: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Device numbers.
    pub device: (u32, u32),
}

/// A tar under construction.
#[derive(Clone, Debug, Default)]
pub struct LayerBuilder {
    bytes: Vec<u8>,
}

impl Default for Item<'_> {
    fn default() -> Self {
        Self {
            kind: b'0',
            name: b"",
            link: b"",
            data: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            device: (0, 0),
        }
    }
}

impl LayerBuilder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a regular file.
    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.item(&Item { name: name.as_bytes(), data, ..Item::default() })
    }

    /// Adds a directory of mode 0755.
    pub fn dir(self, name: &str) -> Self {
        let name = name.as_bytes();
        self.item(&Item { kind: b'5', name, mode: 0o755, ..Item::default() })
    }

    /// Adds a symbolic link.
    pub fn symlink(self, name: &str, link: &str) -> Self {
        let (name, link) = (name.as_bytes(), link.as_bytes());
        self.item(&Item { kind: b'2', name, link, mode: 0o777, ..Item::default() })
    }

    /// Adds a hard link.
    pub fn hard_link(self, name: &str, link: &str) -> Self {
        let (name, link) = (name.as_bytes(), link.as_bytes());
        self.item(&Item { kind: b'1', name, link, ..Item::default() })
    }

    /// Adds a PAX header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.item(&Item { kind: b'x', name: b"pax", data: &data, ..Item::default() })
    }

    /// Adds any entry.
    pub fn item(mut self, item: &Item<'_>) -> Self {
        self.bytes.extend_from_slice(&header(item, item.data.len() as u64));
        self.data(item.data)
    }

    /// Adds a block, or any other bytes, as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Adds data and what fills its last block.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(data);
        let rest = data.len().wrapping_neg() % 512;
        self.bytes.resize(self.bytes.len() + rest, 0);
        self
    }

    /// Ends the archive.
    pub fn finish(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes
    }

    /// The bytes without an end.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

/// A ustar header with a size of one's own.
///
/// # Panics
///
/// When name or link are longer than 100 bytes.
pub fn header(item: &Item<'_>, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    assert!(item.name.len() <= 100 && item.link.len() <= 100, "too long for a plain header");
    put(0, item.name);
    put(100, format!("{:07o}\0", item.mode).as_bytes());
    put(108, format!("{:07o}\0", item.uid).as_bytes());
    put(116, format!("{:07o}\0", item.gid).as_bytes());
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{:011o}\0", item.mtime).as_bytes());
    put(156, &[item.kind]);
    put(157, item.link);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}\0", item.device.0).as_bytes());
    put(337, format!("{:07o}\0", item.device.1).as_bytes());
    seal(&mut block);
    block
}

/// Computes the checksum of a header anew.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..).find(|n| rest + n.to_string().len() == *n).unwrap_or(rest);
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// The names of a tar's entries with the sizes of the files they make, as the
/// applier reads them, without making any.
///
/// # Errors
///
/// Those of the applier.
pub fn list_layer(bytes: &[u8]) -> crate::error::Result<Vec<(Vec<u8>, u64)>> {
    let mut bytes = bytes;
    let mut tar = crate::tar::TarReader::new(crate::tar::Stream::new(&mut bytes, u64::MAX));
    let mut list = Vec::new();
    while let Some(entry) = tar.next_entry()? {
        list.push((entry.path, entry.size));
    }
    tar.finish()?;
    Ok(list)
}
