//! Whole archives: whatever the bytes are, reading ends with contents or an error.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crated_distribution::archive::{ArchiveLimits, ArchiveReader};
use crated_distribution::{Hasher, Result};
use libfuzzer_sys::fuzz_target;

async fn read(bytes: Vec<u8>) -> Result<()> {
    let mut limits = ArchiveLimits::default();
    limits.total_bytes_max = 16 << 20;
    let mut archive = ArchiveReader::new(std::io::Cursor::new(bytes), limits);
    while let Some(mut blob) = archive.next().await? {
        assert!(!blob.path().starts_with('/') && !blob.path().split('/').any(|part| part == ".."));
        let mut hasher = Hasher::new(blob.algorithm());
        while let Some(bytes) = blob.chunk().await? {
            hasher.update(&bytes);
        }
        blob.stored(hasher.finish())?;
    }
    archive.finish().await.map(drop)
}

/// Drives a future that never waits, since the bytes are in memory.
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let _ = run(read(bytes.to_vec()));
});
