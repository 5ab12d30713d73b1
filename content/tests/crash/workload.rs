//! Bytes that can be told from their position, and a generator of random choices.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use crated_content::{Digest, Error, Ingest, Ingester, LocalStore, Manager, read_blob};

/// A small generator; runs differ, and print their seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn from_clock() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = u64::from(now.subsec_nanos()) ^ u64::from(std::process::id()) << 32;
        eprintln!("seed {seed}");
        Self::new(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Mostly small, at times large: the sizes that take different ways to the disk.
    pub(crate) fn size_bytes(&mut self) -> usize {
        let limit = match self.below(10) {
            0..=5 => 8 * 1024,
            6..=7 => 200 * 1024,
            8 => 900 * 1024,
            _ => 3 * 1024 * 1024,
        };
        1 + self.below(limit) as usize
    }
}

/// Bytes `offset..offset + size_bytes` of the stream `seed`, in which every block says where it
/// belongs.
pub(crate) fn bytes_from(seed: u64, offset: usize, size_bytes: usize) -> Vec<u8> {
    const BLOCK: usize = 4096;
    let first = offset / BLOCK;
    let last = (offset + size_bytes).div_ceil(BLOCK);
    let mut bytes = vec![seed as u8; (last - first) * BLOCK];
    for (index, block) in (first..last).zip(bytes.chunks_exact_mut(BLOCK)) {
        block[..8].copy_from_slice(&seed.to_le_bytes());
        block[8..16].copy_from_slice(&(index as u64).to_le_bytes());
        block[4095] = index as u8;
    }
    bytes.drain(..offset - first * BLOCK);
    bytes.truncate(size_bytes);
    bytes
}

/// The first `size_bytes` of the stream `seed`.
pub(crate) fn bytes(seed: u64, size_bytes: usize) -> Vec<u8> {
    bytes_from(seed, 0, size_bytes)
}

/// Everything the store shows is whole, and everything in `acknowledged` is there.
pub(crate) fn check(store: &LocalStore, acknowledged: &BTreeSet<Digest>) -> Result<(), String> {
    let mut visible = BTreeSet::new();
    store
        .walk(&mut |info| {
            visible.insert(info.digest);
            ControlFlow::Continue(())
        })
        .map_err(|error| format!("walk: {error}"))?;
    for digest in &visible {
        store.verify(digest).map_err(|error| format!("visible but damaged: {error}"))?;
    }
    for digest in acknowledged {
        if !visible.contains(digest) {
            return Err(format!("acknowledged but gone: {digest}"));
        }
    }
    if let Some(digest) = visible.first() {
        read_blob(store, digest, u64::MAX).map_err(|error| format!("read: {error}"))?;
    }
    Ok(())
}

/// The ingest `reference` of the blob `seed` resumes at a prefix of it. Returns the offset.
pub(crate) fn check_ingest(
    store: &LocalStore,
    reference: &str,
    seed: u64,
) -> Result<usize, String> {
    let mut writer = match store.writer(&Ingest::new(reference)) {
        Ok(writer) => writer,
        Err(error @ Error::Locked { .. }) => panic!("nobody else is here: {error}"),
        Err(error) => return Err(format!("resume {reference}: {error}")),
    };
    let offset = writer.status().offset as usize;
    let digest = writer.digest().map_err(|error| format!("hash {reference}: {error}"))?;
    if digest != Digest::of(&bytes(seed, offset)) {
        return Err(format!("{reference} resumes at {offset} with bytes nobody wrote"));
    }
    Ok(offset)
}
