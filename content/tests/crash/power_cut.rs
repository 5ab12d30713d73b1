//! The power goes at random moments.
//!
//! A disk image lies on a filesystem that can clone files. While a store inside the image is at
//! work the image is cloned, which takes the state of the disk at one moment and nothing of what
//! the page cache still held. Mounting the clone is what the machine would find after the cut.
//!
//! Needs root, `mkfs.xfs` and `mkfs.ext4`. `CRATED_POWER_CUTS` sets the number of cuts per
//! filesystem.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crated_content::local::{Builder, OmittedSync};
use crated_content::{Commit, Digest, Ingest, Ingester, LocalStore, Manager};
use tempfile::TempDir;

use crate::workload::{Random, bytes, bytes_from, check, check_ingest};
use crate::{scale, skip};

#[test]
fn what_was_acknowledged_survives_power_cuts_on_ext4() {
    survive(&EXT4);
}

#[test]
fn what_was_acknowledged_survives_power_cuts_on_xfs() {
    survive(&XFS);
}

#[test]
fn the_test_notices_when_data_is_not_synced() {
    notice(OmittedSync::Data);
}

#[test]
fn the_test_notices_when_the_directory_is_not_synced() {
    notice(OmittedSync::Directory);
}

fn survive(filesystem: &'static Filesystem) {
    let Some(bench) = Bench::new(filesystem) else { return };
    let cuts = scale("CRATED_POWER_CUTS", 100);
    let outcome = bench.run(LocalStore::builder(), cuts, 0);
    let summary = outcome.unwrap_or_else(|violation| panic!("{violation}"));
    eprintln!("{}: {summary}", filesystem.name);
}

fn notice(step: OmittedSync) {
    let Some(bench) = Bench::new(&EXT4) else { return };
    let outcome = bench.run(LocalStore::builder().omit_sync(step), 100, 40);
    let violation = outcome.expect_err("no violation without a sync");
    eprintln!("without {step:?}: {violation}");
}

/// A filesystem to cut the power of.
struct Filesystem {
    name: &'static str,
    mkfs: &'static [&'static str],
    options: &'static str,
    size_bytes: u64,
}

const EXT4: Filesystem = Filesystem {
    name: "ext4",
    mkfs: &["mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=1,lazy_journal_init=1"],
    options: "noatime",
    size_bytes: 1 << 30,
};

const XFS: Filesystem = Filesystem {
    name: "xfs",
    mkfs: &["mkfs.xfs", "-q", "-s", "size=4096"],
    options: "noatime,nouuid",
    size_bytes: 1 << 30,
};

const OUTER: Filesystem = Filesystem {
    name: "xfs for clones",
    mkfs: &["mkfs.xfs", "-q", "-s", "size=4096", "-m", "reflink=1"],
    options: "noatime,nouuid",
    size_bytes: 8 << 30,
};

/// The disk, running, on a filesystem that can clone it.
struct Bench {
    // Dropped in this order: innermost first.
    disk: Mounted,
    outer: Mounted,
    _dir: TempDir,
    filesystem: &'static Filesystem,
}

impl Bench {
    /// `None`, with a message, where the means are missing.
    fn new(filesystem: &'static Filesystem) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("power cuts need root, for mounting");
            return None;
        }
        for tool in ["mkfs.xfs", "mkfs.ext4"] {
            if Command::new(tool).arg("-V").output().is_err() {
                skip(&format!("power cuts need {tool}"));
                return None;
            }
        }
        let dir = tempfile::tempdir_in(place_for_images()).unwrap();
        let outer_image = make(&OUTER, &dir.path().join("outer.img"));
        let outer = Mounted::new(&OUTER, &outer_image, &dir.path().join("outer")).unwrap();
        let image = make(filesystem, &outer.at.join("disk.img"));
        let disk = Mounted::new(filesystem, &image, &dir.path().join("disk")).unwrap();
        Some(Self { disk, outer, _dir: dir, filesystem })
    }

    /// Cuts the power `cuts` times under a store at work and looks at what is left. Each time at
    /// least `fresh` blobs have been acknowledged since the last: on a busy machine there may be
    /// none for a while, and then there is nothing to lose.
    fn run(&self, builder: Builder, cuts: usize, fresh: usize) -> Result<String, String> {
        let store = builder.open(self.disk.at.join("store")).unwrap();
        let acknowledged = Mutex::new(BTreeSet::new());
        let phase = Phase::default();
        let mut random = Random::from_clock();
        let seeds: Vec<u64> = (0..MIXED_WRITERS + SMALL_WRITERS).map(|_| random.next()).collect();
        let mut summary = Summary::default();
        std::thread::scope(|scope| {
            for (thread, seed) in seeds.into_iter().enumerate() {
                let (store, acknowledged, phase) = (&store, &acknowledged, &phase);
                let small = thread >= MIXED_WRITERS;
                scope.spawn(move || churn(store, thread, seed, small, acknowledged, phase));
            }
            let (store, phase) = (&store, &phase);
            scope.spawn(move || grow(store, phase));
            let mut outcome = Ok(());
            for _ in 0..cuts {
                let awaited = phase.acknowledged.load(Ordering::Relaxed) + fresh;
                std::thread::sleep(Duration::from_micros(random.below(40_000)));
                let until = Instant::now() + FRESH_WAIT_MAX;
                while phase.acknowledged.load(Ordering::Relaxed) < awaited && Instant::now() < until
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                outcome = self.cut(phase, &acknowledged, &mut summary);
                if outcome.is_err() {
                    break;
                }
            }
            phase.set(STOPPED);
            outcome
        })?;
        Ok(format!(
            "{cuts} cuts, {} blobs found again, endless ingest resumed at up to {} bytes",
            summary.blobs, summary.resumed_at
        ))
    }

    fn cut(
        &self,
        phase: &Phase,
        acknowledged: &Mutex<BTreeSet<Digest>>,
        summary: &mut Summary,
    ) -> Result<(), String> {
        let before = acknowledged.lock().unwrap().clone();
        let image = self.outer.at.join("cut.img");
        let disk = File::open(self.outer.at.join("disk.img")).unwrap();
        let clone = File::create(&image).unwrap();
        rustix::fs::ioctl_ficlone(&clone, &disk).unwrap();
        drop(clone);
        phase.set(PAUSED);
        // What is about to be deleted leaves the set first, so both together are what must exist.
        let after = acknowledged.lock().unwrap().clone();
        let required: BTreeSet<_> = before.intersection(&after).cloned().collect();

        let cut = Mounted::new(self.filesystem, &image, &self.outer.at.join("cut"));
        let cut = cut.map_err(|error| format!("the filesystem itself is lost: {error}"))?;
        {
            let root = cut.at.join("store");
            let store = LocalStore::open(root).map_err(|error| format!("open: {error}"))?;
            check(&store, &required)?;
            let offset = check_ingest(&store, "endless", ENDLESS_SEED)?;
            summary.resumed_at = summary.resumed_at.max(offset);
            summary.blobs += required.len();
        }
        drop(cut);
        std::fs::remove_file(&image).unwrap();
        phase.set(RUNNING);
        Ok(())
    }
}

#[derive(Default)]
struct Summary {
    blobs: usize,
    resumed_at: usize,
}

/// Whether the store is to work. It pauses, wherever it is, while the clone is looked at: two
/// processors cannot do both quickly.
#[derive(Default)]
struct Phase {
    state: AtomicU8,
    /// How many blobs have been acknowledged so far.
    acknowledged: AtomicUsize,
}

const RUNNING: u8 = 0;
const PAUSED: u8 = 1;
const STOPPED: u8 = 2;

impl Phase {
    fn set(&self, phase: u8) {
        self.state.store(phase, Ordering::Relaxed);
    }

    fn goes_on(&self) -> bool {
        loop {
            match self.state.load(Ordering::Relaxed) {
                RUNNING => return true,
                STOPPED => return false,
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Stores blobs and deletes the older ones.
fn churn(
    store: &LocalStore,
    thread: usize,
    seed: u64,
    small: bool,
    acknowledged: &Mutex<BTreeSet<Digest>>,
    phase: &Phase,
) {
    const KEPT: usize = 6;
    let mut random = Random::new(seed);
    let mut kept = VecDeque::new();
    while phase.goes_on() {
        let size_bytes = match small {
            true => 1 + random.below(6000) as usize,
            false => random.size_bytes(),
        };
        let bytes = bytes(random.next(), size_bytes);
        let mut writer = store.writer(&Ingest::new(format!("blob {thread}"))).unwrap();
        for piece in bytes.chunks(100_000) {
            if !phase.goes_on() {
                return;
            }
            writer.write_all(piece).unwrap();
        }
        let info = writer.commit(&Commit::expecting(Digest::of(&bytes))).unwrap();
        acknowledged.lock().unwrap().insert(info.digest.clone());
        phase.acknowledged.fetch_add(1, Ordering::Relaxed);
        kept.push_back(info.digest);
        if kept.len() > KEPT {
            let old = kept.pop_front().unwrap();
            acknowledged.lock().unwrap().remove(&old);
            store.delete(&old).unwrap();
        }
    }
}

/// Writes one long ingest over and over, through several writers each time.
fn grow(store: &LocalStore, phase: &Phase) {
    while phase.goes_on() {
        let mut writer = store.writer(&Ingest::new("endless")).unwrap();
        let mut offset = writer.status().offset as usize;
        if offset >= ENDLESS_SIZE_BYTES {
            writer.truncate().unwrap();
            offset = 0;
        }
        for _ in 0..60 {
            if !phase.goes_on() {
                return;
            }
            let piece = bytes_from(ENDLESS_SEED, offset, 500_001);
            writer.write_all(&piece).unwrap();
            offset += piece.len();
        }
    }
}

/// A mounted image, unmounted and detached when dropped.
struct Mounted {
    at: PathBuf,
    device: String,
}

impl Mounted {
    fn new(filesystem: &Filesystem, image: &Path, at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).unwrap();
        let image = image.to_str().unwrap();
        // Past the cache of the filesystem below, which cloning would have to write out first.
        let attach = ["losetup", "--find", "--show", "--direct-io=on", "--sector-size=4096", image];
        let device = command(&attach)?;
        let mounted = Self { at: at.to_owned(), device: device.trim().to_owned() };
        let at = at.to_str().unwrap();
        command(&["mount", "-o", filesystem.options, &mounted.device, at])?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let steps =
            [vec!["umount", self.at.to_str().unwrap()], vec!["losetup", "-d", &self.device]];
        for step in steps {
            // Whoever looks at all block devices keeps this one busy for a moment.
            let done = (0..100).any(|_| {
                let done = command(&step).is_ok();
                if !done {
                    std::thread::sleep(Duration::from_millis(50));
                }
                done
            });
            if !done {
                eprintln!("left behind: {} on {}", self.device, self.at.display());
            }
        }
    }
}

/// Memory, where there is enough of it: the syncs of a disk below would only cost time.
fn place_for_images() -> &'static Path {
    const NEEDED_SIZE_BYTES: u64 = 4 << 30;
    let memory = Path::new("/dev/shm");
    match rustix::fs::statvfs(memory) {
        Ok(stat) if stat.f_bavail * stat.f_frsize >= NEEDED_SIZE_BYTES => memory,
        _ => Path::new(env!("CARGO_TARGET_TMPDIR")),
    }
}

fn make(filesystem: &Filesystem, image: &Path) -> PathBuf {
    File::create(image).unwrap().set_len(filesystem.size_bytes).unwrap();
    let mut arguments = filesystem.mkfs.to_vec();
    arguments.push(image.to_str().unwrap());
    command(&arguments).unwrap();
    image.to_owned()
}

pub(crate) fn command(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(arguments[0]).args(&arguments[1..]).output().unwrap();
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{}: {reason}", arguments.join(" ")))
}

/// Bounds the wait for acknowledgements.
const FRESH_WAIT_MAX: Duration = Duration::from_secs(30);

/// Writers of blobs of all sizes, which take every way to the disk.
const MIXED_WRITERS: usize = 3;
/// Enough for rounds of group commit.
const SMALL_WRITERS: usize = 20;

const ENDLESS_SEED: u64 = 43;
/// Well past the first synced checkpoint, so that some cuts leave one.
const ENDLESS_SIZE_BYTES: usize = 160_000_000;
