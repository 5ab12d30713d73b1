//! A directory tree into the file of an image.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::format::{self, BLOCK, Dirent, HOLE, Inode, Layout, Superblock};
use super::plan::{Content, Node, Plan, READ_ENTRY, changed};
use crate::copy;
use crate::error::{Error, Result};
use crate::snapshotter::Usage;
use crate::tree::Dir;

/// Packs the directory `root` into `image`, an empty file: a read-only EROFS
/// filesystem with everything that is in the directory, its own owner, mode,
/// attributes and time included.
///
/// Owners, modes, attributes of the `user`, `trusted`, `security` and ACL
/// namespaces, times of modification, hard links, devices and holes are kept;
/// nothing is compressed. The same tree gives the same bytes. Nobody else may
/// write to the tree meanwhile. Nothing is synced. Returns what the image
/// occupies, and how many inodes it has.
///
/// Such an image mounts since Linux 5.15; from the file itself since 6.12.
///
/// # Errors
///
/// [`Error::LimitExceeded`] for attributes or contents that the format has no
/// room for (64 KiB, 16 TiB); [`Error::Io`].
pub fn write_erofs(root: &Path, image: &File) -> Result<Usage> {
    let root = Dir::open(root)?;
    let plan = Plan::of(&root)?;
    let out = |e: std::io::Error| Error::io("write image of", root.path(), e);
    let mut writer = Writer {
        plan: &plan,
        image,
        metadata: Vec::with_capacity(2 * FLUSH_BYTES),
        flushed: 0,
        first: Vec::with_capacity(BLOCK as usize),
        hasher: Sha256::new(),
    };
    image.set_len(u64::from(plan.blocks) * BLOCK).map_err(out)?;
    writer.inode(0, None)?;
    writer.below(&root, 0)?;
    writer.finish().map_err(out)?;
    let blocks = std::os::unix::fs::MetadataExt::blocks(&image.metadata().map_err(out)?);
    Ok(Usage { size_bytes: blocks * 512, inodes: plan.nodes.len() as u64 })
}

struct Writer<'a> {
    plan: &'a Plan,
    image: &'a File,
    /// Inodes not written yet, from the place `flushed` on.
    metadata: Vec<u8>,
    flushed: u64,
    /// The first block, which gets the superblock.
    first: Vec<u8>,
    /// Of all inodes and names: what tells images apart.
    hasher: Sha256,
}

/// Inodes written at once.
const FLUSH_BYTES: usize = 1 << 20;

impl Writer<'_> {
    /// Writes what is in the directory `index`, then what is below: the order
    /// of the plan.
    fn below(&mut self, dir: &Dir, index: usize) -> Result<()> {
        let plan = self.plan;
        let Content::Dir { entries, .. } = &plan.nodes[index].content else { return Ok(()) };
        let own = || entries.iter().filter(|(_, _, own)| *own);
        for (name, node, _) in own() {
            self.inode(*node, Some((dir, name)))?;
        }
        for (name, node, _) in own().filter(|(_, node, _)| plan.nodes[*node].stat.is_dir()) {
            let child = dir.open_dir(name)?.ok_or_else(|| changed(dir, name))?;
            self.below(&child, *node)?;
        }
        Ok(())
    }

    /// One inode and its content, from the entry it is read from.
    fn inode(&mut self, index: usize, entry: Option<(&Dir, &CStr)>) -> Result<()> {
        let plan = self.plan;
        let node = &plan.nodes[index];
        let failed = |e: std::io::Error| match entry {
            Some((dir, name)) => Error::io("pack", dir.entry_path(name), e),
            None => Error::io("pack", "the root", e),
        };
        let inode = Inode {
            stat: &node.stat,
            number: index as u32 + 1,
            links: node.links,
            size: node.size,
            xattr_bytes: node.xattrs.len(),
            layout: node.layout,
        };
        self.metadata.resize((node.at - self.flushed) as usize, 0);
        self.metadata.extend_from_slice(&inode.encode());
        self.metadata.extend_from_slice(&node.xattrs);
        match (&node.content, entry) {
            (Content::Nothing, _) => Ok(()),
            (Content::Dir { .. }, _) => self.bytes(node, &self.directory(index)),
            (Content::Link(target), _) => self.bytes(node, target.to_bytes()),
            (Content::File { map, .. }, Some((dir, name))) => {
                let file = rustix::fs::openat(dir, name, READ_ENTRY, Mode::empty())
                    .map_err(|e| failed(e.into()))?;
                let size = rustix::fs::fstat(&file).map_err(|e| failed(e.into()))?.st_size;
                if size as u64 != node.size {
                    return Err(changed(dir, name));
                }
                self.file(node, &file, map)
            }
            (Content::File { .. }, None) => Ok(()),
        }
        .and_then(|()| self.flush_if_large())
        .map_err(failed)
    }

    /// Content that is in memory.
    fn bytes(&mut self, node: &Node, bytes: &[u8]) -> std::io::Result<()> {
        match node.layout {
            Layout::Inline { block } => {
                let (whole, tail) = bytes.split_at(bytes.len() - bytes.len() % BLOCK as usize);
                self.metadata.extend_from_slice(tail);
                self.image.write_all_at(whole, u64::from(block) * BLOCK)
            }
            Layout::Plain { block } => self.image.write_all_at(bytes, u64::from(block) * BLOCK),
            Layout::Chunks { .. } | Layout::Device { .. } => Ok(()),
        }
    }

    fn file(&mut self, node: &Node, file: &OwnedFd, map: &[u32]) -> std::io::Result<()> {
        match node.layout {
            Layout::Inline { .. } => {
                let mut bytes = vec![0; node.size as usize];
                let mut filled = 0;
                while filled < bytes.len() {
                    match rustix::io::pread(file, &mut bytes[filled..], filled as u64)? {
                        0 => return Err(Errno::STALE.into()),
                        count => filled += count,
                    }
                }
                self.bytes(node, &bytes)
            }
            Layout::Plain { block } => {
                let to = u64::from(block) * BLOCK;
                Ok(copy::range(file, 0, self.image, to, node.size)?)
            }
            Layout::Chunks { bits } => {
                let chunk = BLOCK << bits;
                for (at, &block) in (0..).zip(map) {
                    self.metadata.extend_from_slice(&block.to_le_bytes());
                    if block != HOLE {
                        let length = chunk.min(node.size - at * chunk);
                        copy::range(
                            file,
                            at * chunk,
                            self.image,
                            u64::from(block) * BLOCK,
                            length,
                        )?;
                    }
                }
                Ok(())
            }
            Layout::Device { .. } => Ok(()),
        }
    }

    fn directory(&self, index: usize) -> Vec<u8> {
        let plan = self.plan;
        let Content::Dir { parent, entries } = &plan.nodes[index].content else {
            return Vec::new();
        };
        let dirent = |name, node: usize| Dirent {
            name,
            inode: plan.number(node),
            kind: format::dirent_kind(&plan.nodes[node].stat),
        };
        let mut dirents: Vec<Dirent<'_>> =
            entries.iter().map(|(name, node, _)| dirent(name.to_bytes(), *node)).collect();
        dirents.extend([dirent(b".", index), dirent(b"..", *parent)]);
        dirents.sort_unstable_by(|a, b| a.name.cmp(b.name));
        format::directory(&dirents)
    }

    fn flush_if_large(&mut self) -> std::io::Result<()> {
        if self.metadata.len() < FLUSH_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.image.write_all_at(&self.metadata, self.flushed)?;
        self.hasher.update(&self.metadata);
        let missing = BLOCK as usize - self.first.len();
        self.first.extend_from_slice(&self.metadata[..missing.min(self.metadata.len())]);
        self.flushed += self.metadata.len() as u64;
        self.metadata.clear();
        Ok(())
    }

    /// The superblock comes last: until then this is no filesystem.
    fn finish(mut self) -> std::io::Result<()> {
        self.flush()?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.hasher.finalize_reset()[..16]);
        // Version 8, own scheme: RFC 9562.
        uuid[6] = (uuid[6] & 0x0f) | 0x80;
        uuid[8] = (uuid[8] & 0x3f) | 0x80;
        let superblock = Superblock {
            root: self.plan.number(0) as u16,
            inodes: self.plan.nodes.len() as u64,
            blocks: self.plan.blocks,
            uuid,
            chunks: self.plan.chunks,
        };
        self.first.resize(BLOCK as usize, 0);
        superblock.seal(&mut self.first);
        self.image.write_all_at(&self.first, 0)
    }
}
