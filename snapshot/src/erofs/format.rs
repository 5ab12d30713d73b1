//! The bytes of an EROFS image: pure encoding.
//!
//! Source: `fs/erofs/erofs_fs.h` of Linux, and the "EROFS core on-disk format"
//! of its documentation. All numbers are little-endian.

use crate::tree::Stat;

/// Size of a block.
pub(super) const BLOCK: u64 = 4096;
const BLOCK_BITS: u8 = 12;

/// Where the superblock is, and where it ends.
pub(super) const SUPERBLOCK_AT: usize = 1024;
pub(super) const SUPERBLOCK_END: u64 = 1152;

/// An inode's number is its place in the image in units of this.
pub(super) const SLOT: u64 = 32;
/// An inode with full owner, time and link count.
pub(super) const INODE_BYTES: u64 = 64;

/// `f_type` of a mounted one, and the first bytes of a superblock.
pub(super) const MAGIC: u32 = 0xE0F5_E1E2;

const DIRENT_BYTES: usize = 12;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKS: u32 = 4;

/// A chunk that is a hole.
pub(super) const HOLE: u32 = u32::MAX;

/// Where an inode's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// In blocks from this one on.
    Plain { block: u32 },
    /// The last part behind the inode, whole blocks before from this one on.
    Inline { block: u32 },
    /// In chunks of `BLOCK << bits` bytes; their places stand behind the inode.
    Chunks { bits: u8 },
    /// Nowhere: a device, or nothing at all.
    Device { number: u32 },
}

/// Everything an inode says besides its content.
pub(super) struct Inode<'a> {
    pub(super) stat: &'a Stat,
    pub(super) number: u32,
    pub(super) links: u32,
    pub(super) size: u64,
    pub(super) xattr_bytes: usize,
    pub(super) layout: Layout,
}

impl Inode<'_> {
    pub(super) fn encode(&self) -> [u8; INODE_BYTES as usize] {
        const EXTENDED: u16 = 1;
        let (layout, place) = match self.layout {
            Layout::Plain { block } => (0, block),
            Layout::Inline { block } => (2, block),
            Layout::Chunks { bits } => (4, u32::from(bits)),
            Layout::Device { number } => (0, number),
        };
        // In units of four bytes, the header counted as one.
        let xattr_count = match self.xattr_bytes {
            0 => 0,
            bytes => (bytes - XATTR_HEADER_BYTES) / 4 + 1,
        };
        let mut inode = [0; INODE_BYTES as usize];
        put(&mut inode, 0, &(EXTENDED | layout << 1).to_le_bytes());
        put(&mut inode, 2, &(xattr_count as u16).to_le_bytes());
        put(&mut inode, 4, &(self.stat.mode as u16).to_le_bytes());
        put(&mut inode, 8, &self.size.to_le_bytes());
        put(&mut inode, 16, &place.to_le_bytes());
        put(&mut inode, 20, &self.number.to_le_bytes());
        put(&mut inode, 24, &self.stat.uid.to_le_bytes());
        put(&mut inode, 28, &self.stat.gid.to_le_bytes());
        put(&mut inode, 32, &self.stat.mtime.0.to_le_bytes());
        put(&mut inode, 40, &self.stat.mtime.1.to_le_bytes());
        put(&mut inode, 44, &self.links.to_le_bytes());
        inode
    }
}

/// What a superblock says.
pub(super) struct Superblock {
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) uuid: [u8; 16],
    pub(super) chunks: bool,
}

impl Superblock {
    /// Puts it into the first block, which holds everything else already.
    pub(super) fn seal(&self, block: &mut [u8]) {
        let incompat = if self.chunks { INCOMPAT_CHUNKS } else { 0 };
        let at = SUPERBLOCK_AT;
        put(block, at, &MAGIC.to_le_bytes());
        put(block, at + 4, &0_u32.to_le_bytes());
        put(block, at + 8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(block, at + 12, &[BLOCK_BITS]);
        put(block, at + 14, &self.root.to_le_bytes());
        put(block, at + 16, &self.inodes.to_le_bytes());
        put(block, at + 36, &self.blocks.to_le_bytes());
        put(block, at + 48, &self.uuid);
        put(block, at + 80, &incompat.to_le_bytes());
        let checksum = crc32c(&block[at..]);
        put(block, at + 4, &checksum.to_le_bytes());
    }
}

/// The number the kernel knows a device by: `new_encode_dev`.
pub(super) fn device(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// An entry of a directory: its name, the inode's number, and its type as
/// directories say it.
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u64,
    pub(super) kind: u8,
}

/// The type of an entry with this mode.
pub(super) fn dirent_kind(stat: &Stat) -> u8 {
    use rustix::fs::FileType as Type;
    match stat.file_type() {
        Type::RegularFile => 1,
        Type::Directory => 2,
        Type::CharacterDevice => 3,
        Type::BlockDevice => 4,
        Type::Fifo => 5,
        Type::Socket => 6,
        Type::Symlink => 7,
        Type::Unknown => 0,
    }
}

/// How many of `names`, from the first on, fit in one block, and the bytes
/// they take.
fn one_block<'a>(names: impl Iterator<Item = &'a [u8]>) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for name in names {
        let more = DIRENT_BYTES + name.len();
        if bytes + more > BLOCK as usize {
            break;
        }
        (count, bytes) = (count + 1, bytes + more);
    }
    (count, bytes)
}

/// Size of a directory with these names, which are sorted by their bytes.
pub(super) fn directory_size(names: &[&[u8]]) -> u64 {
    let (mut rest, mut size) = (names, 0);
    loop {
        let (count, bytes) = one_block(rest.iter().copied());
        rest = &rest[count..];
        if rest.is_empty() || count == 0 {
            return size + bytes as u64;
        }
        size += BLOCK;
    }
}

/// A directory with these entries, which are sorted by the bytes of their
/// names, `.` and `..` among them.
pub(super) fn directory(entries: &[Dirent<'_>]) -> Vec<u8> {
    let (mut rest, mut out) = (entries, Vec::new());
    while !rest.is_empty() {
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        let (count, _) = one_block(rest.iter().map(|entry| entry.name));
        let (here, later) = rest.split_at(count.max(1));
        let mut name_at = here.len() * DIRENT_BYTES;
        for entry in here {
            out.extend_from_slice(&entry.inode.to_le_bytes());
            out.extend_from_slice(&(name_at as u16).to_le_bytes());
            out.extend_from_slice(&[entry.kind, 0]);
            name_at += entry.name.len();
        }
        for entry in here {
            out.extend_from_slice(entry.name);
        }
        rest = later;
    }
    out
}

const XATTR_HEADER_BYTES: usize = 12;

/// Attributes of one inode, sorted; `None` when they take more than an inode
/// can say. Those of unknown namespaces are left out.
pub(super) fn xattrs(attributes: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    let mut out = vec![0; XATTR_HEADER_BYTES];
    for (name, value) in attributes {
        let Some((index, rest)) = namespace(name) else { continue };
        let length = u16::try_from(value.len()).ok()?;
        out.extend_from_slice(&[u8::try_from(rest.len()).ok()?, index]);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    match out.len() {
        XATTR_HEADER_BYTES => Some(Vec::new()),
        length if length / 4 > usize::from(u16::MAX) => None,
        _ => Some(out),
    }
}

/// The number that stands for the beginning of a name, and the rest of it.
fn namespace(name: &[u8]) -> Option<(u8, &[u8])> {
    const NAMESPACES: [(u8, &[u8]); 5] = [
        (1, b"user."),
        (2, b"system.posix_acl_access"),
        (3, b"system.posix_acl_default"),
        (4, b"trusted."),
        (6, b"security."),
    ];
    NAMESPACES.iter().find_map(|&(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
}

/// CRC-32C without the usual inversion at the end, as EROFS has it.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    })
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn directories_are_as_long_as_planned() {
        for count in [2, 3, 200, 227, 228, 5000] {
            let names: Vec<String> = (0..count).map(|at| format!("name-{at:06}")).collect();
            let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
            let entries: Vec<Dirent<'_>> =
                names.iter().map(|name| Dirent { name, inode: 36, kind: 1 }).collect();
            assert_eq!(directory(&entries).len() as u64, directory_size(&names), "{count}");
        }
    }

    #[test]
    fn attributes_that_do_not_fit_are_refused() {
        let one = |size| xattrs(&[(b"user.x".to_vec(), vec![0; size])]);
        assert_eq!(one(10).unwrap().len(), XATTR_HEADER_BYTES + 16);
        assert!(one(usize::from(u16::MAX)).is_some());
        assert!(one(usize::from(u16::MAX) + 1).is_none());
        assert_eq!(xattrs(&[(b"btrfs.compression".to_vec(), vec![1])]), Some(Vec::new()));
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(device(rustix::fs::makedev(1, 3)), 0x103);
        assert_eq!(device(rustix::fs::makedev(259, 0x12345)), 0x1231_0345);
    }
}
