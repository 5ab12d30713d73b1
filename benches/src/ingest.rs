//! Blobs into the content store, and simpler ways to have them hashed and on the disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crated_content::{Commit, Digest, Ingest, Ingester, LocalStore};
use sha2::{Digest as _, Sha256};

use crate::direct::{self, Aligned};
use crate::noise::Noise;
use crate::samples::{Contender, Measured, interleave};
use crate::settings::Settings;
use crate::volume::Volume;

/// The times and ratios of this hop.
///
/// # Errors
///
/// The first of a store, a comparison or the volume.
pub fn measure(volume: &mut Volume, settings: &Settings) -> io::Result<Measured> {
    let mut measured = Measured::default();
    large(volume, settings, &mut measured)?;
    small(volume, settings, &mut measured)?;
    Ok(measured)
}

fn large(volume: &mut Volume, settings: &Settings, measured: &mut Measured) -> io::Result<()> {
    let blob = Large::new(settings.blob_size_bytes);
    let names = [
        "large blob: crated-content",
        "large blob: sha256 alone",
        "large blob: O_DIRECT write alone",
        "large blob: write, hash, fsync in one thread",
    ];
    let mut contenders: [Contender<'_>; 4] = [
        Box::new(|directory| blob.store(directory)),
        Box::new(|_| Ok(blob.hash())),
        Box::new(|directory| blob.write_direct(directory)),
        Box::new(|directory| blob.write_and_hash(directory)),
    ];
    let samples = interleave(volume, settings.rounds, &mut contenders)?;
    let [crated, hash, direct, one_thread] = measured.rows(&names, samples)[..] else {
        unreachable!("one median for each contender")
    };
    measured.ratio("ingest-large-over-ceiling", crated, hash.max(direct));
    measured.ratio("ingest-large-speedup", one_thread, crated);
    Ok(())
}

fn small(volume: &mut Volume, settings: &Settings, measured: &mut Measured) -> io::Result<()> {
    let blobs = Small::new(settings.small_blobs);
    let names = [
        "small blobs: crated-content, 64 writers",
        "small blobs: fsync, rename, directory fsync, 1 thread",
        "small blobs: fsync, rename, directory fsync, 64 threads",
    ];
    let mut contenders: [Contender<'_>; 3] = [
        Box::new(|directory| blobs.store(directory, THREADS)),
        Box::new(|directory| blobs.rename(directory, 1)),
        Box::new(|directory| blobs.rename(directory, THREADS)),
    ];
    let samples = interleave(volume, settings.rounds, &mut contenders)?;
    let [crated, one_thread, threads] = measured.rows(&names, samples)[..] else {
        unreachable!("one median for each contender")
    };
    measured.ratio("ingest-small-speedup-one-thread", one_thread, crated);
    measured.ratio("ingest-small-speedup-64-threads", threads, crated);
    Ok(())
}

/// One blob the size of a layer.
#[derive(Debug)]
pub struct Large {
    bytes: Aligned,
    digest: Digest,
}

impl Large {
    /// A blob of that size, the same in every run.
    pub fn new(size_bytes: usize) -> Self {
        let bytes = Aligned::noise(size_bytes);
        let digest = Digest::of(bytes.as_slice());
        Self { bytes, digest }
    }

    /// Into a new content store, from the first byte to the acknowledgement that it is durable.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub fn store(&self, directory: &Path) -> io::Result<Duration> {
        let store = LocalStore::open(directory.join("store")).map_err(io::Error::other)?;
        let bytes = self.bytes.as_slice();
        let ingest = Ingest::new("layer").total(bytes.len() as u64).expected(self.digest.clone());
        let start = Instant::now();
        let mut writer = store.writer(&ingest).map_err(io::Error::other)?;
        for piece in bytes.chunks(PIECE_BYTES) {
            writer.write_all(piece)?;
        }
        writer.commit(&Commit::expecting(self.digest.clone())).map_err(io::Error::other)?;
        Ok(start.elapsed())
    }

    /// sha256 and nothing else: no blob can be verified faster on one core.
    pub fn hash(&self) -> Duration {
        let start = Instant::now();
        let mut hasher = Sha256::new();
        for piece in self.bytes.as_slice().chunks(PIECE_BYTES) {
            hasher.update(piece);
        }
        std::hint::black_box(hasher.finalize());
        start.elapsed()
    }

    /// To the disk past the page cache and nothing else.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub fn write_direct(&self, directory: &Path) -> io::Result<Duration> {
        let path = directory.join("blob");
        let start = Instant::now();
        direct::write(&path, &self.bytes)?;
        Ok(start.elapsed())
    }

    /// Piece by piece written and hashed, then fsync: the obvious way.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub fn write_and_hash(&self, directory: &Path) -> io::Result<Duration> {
        let path = directory.join("blob");
        let start = Instant::now();
        let mut file = File::create(path)?;
        let mut hasher = Sha256::new();
        for piece in self.bytes.as_slice().chunks(1 << 20) {
            file.write_all(piece)?;
            hasher.update(piece);
        }
        file.sync_all()?;
        std::hint::black_box(hasher.finalize());
        Ok(start.elapsed())
    }
}

/// Many blobs of 4 KiB, like configurations and manifests.
#[derive(Debug)]
pub struct Small {
    blobs: Vec<(Digest, Vec<u8>)>,
}

impl Small {
    /// `count` blobs, all different, the same in every run.
    pub fn new(count: usize) -> Self {
        let mut noise = Noise::new(3);
        let blob = |_| {
            let mut bytes = vec![0; SMALL_BYTES];
            noise.fill(&mut bytes);
            (Digest::of(&bytes), bytes)
        };
        Self { blobs: (0..count).map(blob).collect() }
    }

    /// Into a new content store from that many threads, each of which takes the next blob once
    /// its last one is acknowledged durable.
    ///
    /// # Errors
    ///
    /// The first of the store.
    pub fn store(&self, directory: &Path, threads: usize) -> io::Result<Duration> {
        let store = LocalStore::open(directory.join("store")).map_err(io::Error::other)?;
        self.each(threads, |digest, bytes| {
            let ingest = Ingest::new(digest.hex()).total(SMALL_BYTES as u64);
            let ingest = ingest.expected(digest.clone());
            let mut writer = store.writer(&ingest).map_err(io::Error::other)?;
            writer.write_all(bytes)?;
            writer.commit(&Commit::expecting(digest.clone())).map_err(io::Error::other)?;
            Ok(())
        })
    }

    /// The same with a file each: hash, write, fsync, rename, fsync of the directory.
    ///
    /// # Errors
    ///
    /// What the storage says first.
    pub fn rename(&self, directory: &Path, threads: usize) -> io::Result<Duration> {
        let (temporary, blobs) = (directory.join("tmp"), directory.join("blobs"));
        fs::create_dir(&temporary)?;
        fs::create_dir(&blobs)?;
        let opened = File::open(&blobs)?;
        self.each(threads, |digest, bytes| {
            if Digest::of(bytes) != *digest {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let path = temporary.join(digest.hex());
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(path, blobs.join(digest.hex()))?;
            opened.sync_all()
        })
    }

    /// Times `publish` over all blobs from that many threads, including their start.
    fn each(
        &self,
        threads: usize,
        publish: impl Fn(&Digest, &[u8]) -> io::Result<()> + Sync,
    ) -> io::Result<Duration> {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some((digest, bytes)) = self.blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                publish(digest, bytes)?;
            }
            Ok(())
        };
        let start = Instant::now();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| {
                worker.join().unwrap_or_else(|_| Err(io::Error::other("a writer panicked")))
            })
        })?;
        Ok(start.elapsed())
    }
}

/// As many as hand in blobs at once.
pub const THREADS: usize = 64;

/// What a copy reads at once, and what stays in cache between writing and hashing.
const PIECE_BYTES: usize = 256 << 10;

const SMALL_BYTES: usize = 4096;
