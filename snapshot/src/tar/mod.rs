//! The tar format: a strict streaming reader and a reproducible writer.
//!
//! The reader knows ustar, PAX, GNU long names and all four encodings of
//! sparse files. Where readers in use disagree on what bytes mean it refuses,
//! so that nobody can hide an entry in the difference.

pub(crate) use self::entry::{Entry, EntryKind};
pub(crate) use self::reader::TarReader;
pub(crate) use self::stream::Stream;
pub(crate) use self::writer::TarWriter;

mod entry;
mod header;
mod pax;
mod reader;
mod sparse;
mod stream;
mod writer;

/// Everything in a tar is a multiple of this.
pub(crate) const BLOCK_BYTES: usize = 512;

/// Zero bytes after `size` bytes of data, up to the next block.
pub(crate) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}
