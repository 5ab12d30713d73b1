//! One entry of a tar, all its headers merged.

use crate::tar::sparse::Region;

/// What an entry is and holds, before anything of it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Raw name, as written.
    pub(crate) path: Vec<u8>,
    /// Raw target of a hard or symbolic link.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// The twelve permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) atime: Option<(i64, u32)>,
    /// Size of the file it makes, holes included.
    pub(crate) size: u64,
    /// Where the stored data goes, if there are holes.
    pub(crate) sparse: Option<Vec<Region>>,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}
