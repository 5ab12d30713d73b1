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
    walk(&dir, &mut usage, &mut linked)?;
    Ok(usage)
}

fn walk(dir: &Dir, usage: &mut Usage, linked: &mut HashSet<(u64, u64)>) -> Result<()> {
    for name in dir.names()? {
        let Some(stat) = dir.stat_entry(&name)? else { continue };
        count(usage, linked, &stat);
        if stat.is_dir()
            && let Some(child) = dir.open_dir(&name)?
        {
            walk(&child, usage, linked)?;
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
