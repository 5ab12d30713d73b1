use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::local::dir::Dir;
use crate::local::direct::{Direct, Lease};
use crate::local::layout::Layout;
use crate::sys::BUFFER_SIZE_BYTES;
use crate::{Algorithm, Hasher};

/// Whether io_uring with direct I/O works on this filesystem, found out by using it. Fails where
/// the kernel lacks or forbids either.
pub(crate) fn direct_io(layout: &Layout) -> io::Result<()> {
    let other = |error: crate::Error| match error {
        crate::Error::Io { source, .. } => source,
        error => io::Error::other(error),
    };
    let (name, plain) = layout.create_temporary(0o600).map_err(other)?;
    let result = write_and_read(layout, &name, plain);
    layout.temporary.remove_file(&name)?;
    result
}

/// Whether direct I/O could bring anything: a filesystem in memory or one stacked on another has
/// no device of its own.
pub(crate) fn has_device(layout: &Layout) -> bool {
    match rustix::fs::fstatfs(&layout.root) {
        Ok(stat) => !WITHOUT_DEVICE.contains(&(stat.f_type as u64 & 0xffff_ffff)),
        Err(_) => false,
    }
}

/// Whether data that has reached the disk is durable together with any change of a directory made
/// afterwards.
///
/// So it is where metadata goes through a journal, in order, whose every commit first flushes the
/// cache of the device: the change of the directory cannot be in the journal without the size and
/// the blocks of the file, which were noted before, and not on the disk without the data. True of
/// XFS, and of ext4 unless it has no journal of its own or commits it asynchronously.
pub(crate) fn journal_keeps_order(root: &Dir) -> bool {
    let Ok(stat) = rustix::fs::fstatfs(root) else { return false };
    match stat.f_type as u64 & 0xffff_ffff {
        XFS => true,
        EXT4 => ext4_has_ordinary_journal(root).unwrap_or(false),
        _ => false,
    }
}

fn ext4_has_ordinary_journal(root: &Dir) -> io::Result<bool> {
    let device = rustix::fs::fstat(root)?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = fs::read_link(format!("/sys/dev/block/{major}:{minor}"))?;
    let name = block.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::NotFound)?;
    let ext4 = Path::new("/proc/fs/ext4").join(name).join("options");
    // One in the filesystem itself, which is inode 8: a journal elsewhere flushes another device.
    let has_journal = Path::new("/proc/fs/jbd2").join(format!("{name}-8")).exists();
    let options = fs::read_to_string(ext4)?;
    let is_on = |option: &str| options.lines().any(|line| line == option);
    Ok(has_journal && is_on("barrier") && !is_on("journal_async_commit"))
}

fn write_and_read(layout: &Layout, name: &str, plain: std::fs::File) -> io::Result<()> {
    let lane = Lease::take().ok_or(io::ErrorKind::Unsupported)?;
    let direct = layout.temporary.open_file(name, OFlags::WRONLY | OFlags::DIRECT, 0)?;
    let mut sink = Direct::new(lane, direct, plain, Hasher::new(Algorithm::Sha256), None)?;
    let pattern = vec![0x5a; BUFFER_SIZE_BYTES + 1];
    let mut rest = pattern.as_slice();
    while !rest.is_empty() {
        let count = sink.write(rest)?;
        rest = &rest[count..];
    }
    sink.settle()?;
    let mut read = vec![0; pattern.len()];
    sink.file().read_exact_at(&mut read, 0)?;
    if read != pattern {
        return Err(io::Error::other("direct writes are not read back"));
    }
    Ok(())
}

/// From the kernel's `magic.h`.
const EXT4: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;

/// tmpfs, ramfs, overlayfs, from the kernel's `magic.h`.
const WITHOUT_DEVICE: [u64; 3] = [0x0102_1994, 0x8584_58f6, 0x794c_7630];
