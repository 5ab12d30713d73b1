use std::io;
use std::path::PathBuf;

/// How much to measure. [`Default`] is meant for a developer's machine, a few minutes in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the image of the volume goes; on a disk, with room for it.
    pub directory: PathBuf,
    /// Size of that image.
    pub volume_size_bytes: u64,
    /// Size of the large blob.
    pub blob_size_bytes: usize,
    /// How many blobs of 4 KiB.
    pub small_blobs: usize,
    /// Size of the files in the Debian-like layer, all together.
    pub root_size_bytes: u64,
    /// How many files in the layer of small files.
    pub small_files: usize,
    /// How many snapshots there are while one is prepared, mounted and removed.
    pub snapshots: Vec<usize>,
    /// How many lower directories an overlay has.
    pub lowers: Vec<usize>,
    /// Rounds counted, after one that is not.
    pub rounds: usize,
    /// Cycles of prepare to remove, and of attach and detach, counted for each size.
    pub cycles: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            directory: std::env::temp_dir(),
            volume_size_bytes: 6 * GIB,
            blob_size_bytes: 256 * MIB,
            small_blobs: 2_000,
            root_size_bytes: 200_000_000,
            small_files: 30_000,
            snapshots: vec![10, 100, 1_000, 10_000],
            lowers: vec![10, 128, 500],
            rounds: 5,
            cycles: 500,
        }
    }
}

impl Settings {
    /// The defaults, changed by the environment:
    ///
    /// | variable | changes |
    /// |---|---|
    /// | `CRATED_BENCH_DIR` | `directory` |
    /// | `CRATED_BENCH_BLOB_MIB` | `blob_size_bytes` |
    /// | `CRATED_BENCH_SMALL_BLOBS` | `small_blobs` |
    /// | `CRATED_BENCH_SMALL_FILES` | `small_files` |
    /// | `CRATED_BENCH_ROUNDS` | `rounds` |
    /// | `CRATED_BENCH_CYCLES` | `cycles` |
    ///
    /// The volume grows with the blob.
    ///
    /// # Errors
    ///
    /// `InvalidInput` naming the variable that is no positive number.
    pub fn from_env() -> io::Result<Self> {
        let mut settings = Self::default();
        if let Some(directory) = std::env::var_os("CRATED_BENCH_DIR") {
            settings.directory = directory.into();
        }
        if let Some(blob_mib) = count("CRATED_BENCH_BLOB_MIB")? {
            settings.blob_size_bytes = blob_mib * MIB;
        }
        for (name, value) in [
            ("CRATED_BENCH_SMALL_BLOBS", &mut settings.small_blobs),
            ("CRATED_BENCH_SMALL_FILES", &mut settings.small_files),
            ("CRATED_BENCH_ROUNDS", &mut settings.rounds),
            ("CRATED_BENCH_CYCLES", &mut settings.cycles),
        ] {
            if let Some(count) = count(name)? {
                *value = count;
            }
        }
        // A volume is emptied when half full, so that half must hold what is compared.
        let needed_bytes = 4 * settings.blob_size_bytes as u64;
        settings.volume_size_bytes = settings.volume_size_bytes.max(needed_bytes);
        Ok(settings)
    }

    /// As little of everything as still runs every line; the numbers mean nothing.
    pub fn smallest() -> Self {
        Self {
            volume_size_bytes: 256 * MIB as u64,
            blob_size_bytes: 4 * MIB + 1,
            small_blobs: 64,
            root_size_bytes: 4_000_000,
            small_files: 200,
            snapshots: vec![2, 8],
            lowers: vec![2, 8],
            rounds: 1,
            cycles: 3,
            ..Self::default()
        }
    }
}

fn count(name: &str) -> io::Result<Option<usize>> {
    let Some(text) = std::env::var_os(name) else { return Ok(None) };
    match text.to_str().and_then(|text| text.parse::<usize>().ok()) {
        Some(count) if count > 0 => Ok(Some(count)),
        _ => {
            let reason = format!("{name} is {text:?}, not a positive number");
            Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
        }
    }
}

const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;
