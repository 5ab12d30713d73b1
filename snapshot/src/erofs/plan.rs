//! What goes where in an image: one walk over the tree, without its contents.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::format::{self, BLOCK, HOLE, INODE_BYTES, Layout, SLOT, SUPERBLOCK_END};
use crate::diff::apply::metadata::{xattr, xattr_names};
use crate::error::{Error, Result};
use crate::tree::{Dir, Stat, magic_path};

/// Every inode of the image, in the order of their places.
pub(super) struct Plan {
    pub(super) nodes: Vec<Node>,
    /// Where the inodes end.
    pub(super) metadata_end: u64,
    /// First block after everything.
    pub(super) blocks: u32,
    /// Whether any file has holes.
    pub(super) chunks: bool,
}

/// One inode.
pub(super) struct Node {
    pub(super) stat: Stat,
    pub(super) links: u32,
    pub(super) size: u64,
    pub(super) xattrs: Vec<u8>,
    pub(super) content: Content,
    pub(super) layout: Layout,
    /// Where it is in the image.
    pub(super) at: u64,
}

/// What an inode holds.
pub(super) enum Content {
    Dir {
        parent: usize,
        /// Sorted by name; true for the name its inode is written under.
        entries: Vec<(CString, usize, bool)>,
    },
    File {
        /// Which chunks hold data; empty for a file without holes.
        chunks: Vec<bool>,
        /// Where they are, once that is known.
        map: Vec<u32>,
    },
    Link(CString),
    Nothing,
}

/// Most chunks that a file with holes is divided into: their places take four
/// bytes each.
const CHUNKS_MAX: u64 = 1 << 18;

/// Attributes of overlayfs that describe where a file was, not what it is.
const TRANSIENT: [&[u8]; 5] =
    [b"overlay.origin", b"overlay.impure", b"overlay.nlink", b"overlay.uuid", b"overlay.upper"];

const PATH_ENTRY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
pub(super) const READ_ENTRY: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

impl Plan {
    /// Plans an image of what is in `root`, and of its own metadata.
    pub(super) fn of(root: &Dir) -> Result<Self> {
        let mut planner = Planner { nodes: Vec::new(), linked: HashMap::new() };
        let stat = root.stat()?;
        let xattrs = attributes(root, None)?;
        planner.push(stat, xattrs, Content::Dir { parent: 0, entries: Vec::new() });
        planner.visit(root, 0)?;
        let mut plan = Self { nodes: planner.nodes, metadata_end: 0, blocks: 0, chunks: false };
        plan.place()?;
        Ok(plan)
    }

    /// The number of an inode: its place.
    pub(super) fn number(&self, node: usize) -> u64 {
        self.nodes[node].at / SLOT
    }

    fn place(&mut self) -> Result<()> {
        let mut at = SUPERBLOCK_END;
        for node in &mut self.nodes {
            at = node.settle(at);
        }
        self.metadata_end = at;
        let mut next = at.div_ceil(BLOCK);
        for node in &mut self.nodes {
            node.allocate(&mut next);
            self.chunks |= matches!(node.layout, Layout::Chunks { .. });
        }
        // The last number means a hole.
        match u32::try_from(next) {
            Ok(blocks) if blocks < HOLE => self.blocks = blocks,
            _ => {
                let max = u64::from(HOLE) * BLOCK;
                return Err(Error::LimitExceeded { limit: "bytes of an erofs image", max });
            }
        }
        Ok(())
    }
}

impl Node {
    /// Chooses the layout and a place not before `at`; where the next may be.
    fn settle(&mut self, at: u64) -> u64 {
        let head = INODE_BYTES + self.xattrs.len() as u64;
        let whole = self.size.is_multiple_of(BLOCK);
        let tail = self.size % BLOCK;
        let fits = !whole && head + tail <= BLOCK;
        let behind = match &self.content {
            Content::Nothing => 0,
            Content::File { chunks, .. } if !chunks.is_empty() => 4 * chunks.len() as u64,
            // A large file is copied without looking at it, so its end stays with it.
            Content::File { .. } if self.size > BLOCK => 0,
            Content::File { .. } | Content::Link(_) | Content::Dir { .. } if fits => {
                self.layout = Layout::Inline { block: 0 };
                tail
            }
            _ => 0,
        };
        let inline = matches!(self.layout, Layout::Inline { .. });
        // What stands behind the inode must not cross into another block.
        let crosses = (at + head) / BLOCK != (at + head + behind.max(1) - 1) / BLOCK;
        self.at = if inline && crosses { at.next_multiple_of(BLOCK) } else { at };
        (self.at + head + behind).next_multiple_of(SLOT)
    }

    /// Takes the blocks it needs from `next` on.
    fn allocate(&mut self, next: &mut u64) {
        // Checked all at once afterwards: a plan that wraps is refused.
        let block = *next as u32;
        let size = self.size;
        match (&mut self.layout, &mut self.content) {
            (Layout::Chunks { bits }, Content::File { chunks, map }) => {
                let chunk = BLOCK << *bits;
                for (at, used) in (0..).zip(chunks.iter()) {
                    map.push(if *used { *next as u32 } else { HOLE });
                    if *used {
                        *next += (size - at * chunk).min(chunk).div_ceil(BLOCK);
                    }
                }
            }
            (Layout::Plain { block: place }, _) => {
                *place = block;
                *next += size.div_ceil(BLOCK);
            }
            (Layout::Inline { block: place }, _) => {
                *place = block;
                *next += size / BLOCK;
            }
            _ => {}
        }
    }
}

struct Planner {
    nodes: Vec<Node>,
    /// Inodes with several names that were met before.
    linked: HashMap<(u64, u64), usize>,
}

impl Planner {
    fn push(&mut self, stat: Stat, xattrs: Vec<u8>, content: Content) -> usize {
        let (size, layout) = match &content {
            Content::File { chunks, .. } if !chunks.is_empty() => {
                (stat.size, Layout::Chunks { bits: chunk_bits(stat.size) })
            }
            Content::File { .. } => (stat.size, Layout::Plain { block: 0 }),
            Content::Link(target) => (target.count_bytes() as u64, Layout::Plain { block: 0 }),
            // Its size is known when its names are.
            Content::Dir { .. } => (0, Layout::Plain { block: 0 }),
            Content::Nothing => (0, Layout::Device { number: format::device(stat.rdev) }),
        };
        let links = if stat.is_dir() { 2 } else { 1 };
        self.nodes.push(Node { stat, links, size, xattrs, content, layout, at: 0 });
        self.nodes.len() - 1
    }

    /// Makes nodes of what is in `dir`, then of what is below.
    fn visit(&mut self, dir: &Dir, index: usize) -> Result<()> {
        let mut entries = Vec::new();
        for name in dir.names()? {
            let Some(stat) = dir.stat_entry(&name)? else { continue };
            let id = (stat.dev, stat.ino);
            if !stat.is_dir()
                && stat.links > 1
                && let Some(&first) = self.linked.get(&id)
            {
                self.nodes[first].links += 1;
                entries.push((name, first, false));
                continue;
            }
            let xattrs = attributes(dir, Some(&name))?;
            let content = match stat.file_type() {
                FileType::Directory => Content::Dir { parent: index, entries: Vec::new() },
                FileType::RegularFile => {
                    Content::File { chunks: holes(dir, &name, &stat)?, map: Vec::new() }
                }
                FileType::Symlink => Content::Link(dir.read_link(&name)?),
                _ => Content::Nothing,
            };
            let node = self.push(stat, xattrs, content);
            if stat.is_dir() {
                self.nodes[index].links += 1;
            } else if stat.links > 1 {
                self.linked.insert(id, node);
            }
            entries.push((name, node, true));
        }
        let below: Vec<(CString, usize)> = entries
            .iter()
            .filter(|(_, node, _)| self.nodes[*node].stat.is_dir())
            .map(|(name, node, _)| (name.clone(), *node))
            .collect();
        let mut names: Vec<&[u8]> = entries.iter().map(|(name, ..)| name.to_bytes()).collect();
        names.extend([b".".as_slice(), b".."]);
        names.sort_unstable();
        self.nodes[index].size = format::directory_size(&names);
        self.nodes[index].content = match self.nodes[index].content {
            Content::Dir { parent, .. } => Content::Dir { parent, entries },
            _ => Content::Nothing,
        };
        for (name, node) in below {
            let child = dir.open_dir(&name)?.ok_or_else(|| changed(dir, &name))?;
            self.visit(&child, node)?;
        }
        Ok(())
    }
}

/// The encoded attributes of `dir` itself, or of an entry of it.
fn attributes(dir: &Dir, name: Option<&CStr>) -> Result<Vec<u8>> {
    let path = match name {
        Some(name) => dir.entry_path(name),
        None => dir.path().to_owned(),
    };
    let error = |e: Errno| Error::io("read attributes of", &path, e);
    let held: Option<OwnedFd> = name
        .map(|name| rustix::fs::openat(dir, name, PATH_ENTRY, Mode::empty()))
        .transpose()
        .map_err(error)?;
    let magic = magic_path(held.as_ref().map_or(dir.as_fd(), |held| held.as_fd()));
    let mut found = Vec::new();
    for name in xattr_names(&magic).map_err(error)? {
        if is_transient(name.as_bytes()) {
            continue;
        }
        if let Some(value) = xattr(&magic, &name).map_err(error)? {
            found.push((name.into_vec(), value));
        }
    }
    found.sort_unstable();
    format::xattrs(&found)
        .ok_or(Error::LimitExceeded { limit: "bytes of an attribute", max: u16::MAX.into() })
}

fn is_transient(name: &[u8]) -> bool {
    let rest = name.strip_prefix(b"trusted.").or_else(|| name.strip_prefix(b"user."));
    rest.is_some_and(|rest| TRANSIENT.contains(&rest))
}

/// Which chunks of a file with holes hold data; empty if it has none.
fn holes(dir: &Dir, name: &CStr, stat: &Stat) -> Result<Vec<bool>> {
    if stat.size <= BLOCK || stat.blocks * 512 >= stat.size {
        return Ok(Vec::new());
    }
    let error = |e: Errno| Error::io("look for holes in", dir.entry_path(name), e);
    let file = rustix::fs::openat(dir, name, READ_ENTRY, Mode::empty()).map_err(error)?;
    let chunk = BLOCK << chunk_bits(stat.size);
    let count = stat.size.div_ceil(chunk);
    let mut used = vec![false; usize::try_from(count).map_err(|_| error(Errno::FBIG))?];
    let mut at = 0;
    while at < stat.size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(error(errno)),
        };
        at = rustix::fs::seek(&file, SeekFrom::Hole(start)).map_err(error)?.min(stat.size);
        let (first, last) = (start / chunk, at.div_ceil(chunk).min(count));
        used.iter_mut().take(last as usize).skip(first as usize).for_each(|used| *used = true);
    }
    Ok(if used.iter().all(|used| *used) { Vec::new() } else { used })
}

/// The smallest chunks that are not too many.
fn chunk_bits(size: u64) -> u8 {
    (0..=31).find(|bits| size.div_ceil(BLOCK << bits) <= CHUNKS_MAX).unwrap_or(31)
}

/// Somebody writes to a tree that is being packed.
pub(super) fn changed(dir: &Dir, name: &CStr) -> Error {
    Error::io("pack, while it changes,", dir.entry_path(name), Errno::STALE)
}
