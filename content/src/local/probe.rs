use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;

use crate::local::direct::{Direct, Lease};
use crate::local::layout::Layout;
use crate::sys::BUFFER_SIZE_BYTES;

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

fn write_and_read(layout: &Layout, name: &str, plain: std::fs::File) -> io::Result<()> {
    let lane = Lease::take().ok_or(io::ErrorKind::Unsupported)?;
    let direct = layout.temporary.open_file(name, OFlags::WRONLY | OFlags::DIRECT, 0)?;
    let mut sink = Direct::new(lane, direct, plain, 0, None)?;
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

/// tmpfs, ramfs, overlayfs, from the kernel's `magic.h`.
const WITHOUT_DEVICE: [u64; 3] = [0x0102_1994, 0x8584_58f6, 0x794c_7630];
