//! What a directory tree occupies.

use std::collections::HashSet;
use std::path::Path;

use crate::error::Result;
use crate::snapshotter::Usage;
use crate::tree::{Dir, Stat};

/// Walks `root`, itself included: allocated bytes, hard links once.
///
/// What disappears during the walk is not counted.
pub(crate) fn of(root: &Path) -> Result<Usage> {
    let dir = Dir::open(root)?;
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    count(&mut usage, &mut linked, &dir.stat()?);
    walk(None, &dir, &mut usage, &mut linked)?;
    Ok(usage)
}

/// Walks `root` and counts what is not the same inode, unchanged since, in
/// `base`: for filesystems whose snapshots keep inode numbers.
pub(crate) fn beyond(base: &Path, root: &Path) -> Result<Usage> {
    let (base, root) = (Dir::open(base)?, Dir::open(root)?);
    let mut usage = Usage::default();
    walk(Some(&base), &root, &mut usage, &mut HashSet::new())?;
    Ok(usage)
}

fn walk(
    base: Option<&Dir>,
    dir: &Dir,
    usage: &mut Usage,
    linked: &mut HashSet<(u64, u64)>,
) -> Result<()> {
    for name in dir.names()? {
        let Some(stat) = dir.stat_entry(&name)? else { continue };
        let below = match base {
            Some(base) => base.stat_entry(&name)?,
            None => None,
        };
        let same = |below: Stat| (below.ino, below.ctime) == (stat.ino, stat.ctime);
        if !below.is_some_and(same) {
            count(usage, linked, &stat);
        }
        if stat.is_dir()
            && let Some(child) = dir.open_dir(&name)?
        {
            let base = match base {
                Some(base) => base.open_dir(&name)?,
                None => None,
            };
            walk(base.as_ref(), &child, usage, linked)?;
        }
    }
    Ok(())
}

fn count(usage: &mut Usage, linked: &mut HashSet<(u64, u64)>, stat: &Stat) {
    if stat.links > 1 && !stat.is_dir() && !linked.insert((stat.dev, stat.ino)) {
        return;
    }
    usage.size_bytes += stat.blocks * STAT_BLOCK_BYTES;
    usage.inodes += 1;
}

/// Unit of `st_blocks`, whatever the filesystem's own blocks are.
const STAT_BLOCK_BYTES: u64 = 512;
