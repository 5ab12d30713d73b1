//! The power goes at random moments.
//!
//! The image of a disk lies on a filesystem that clones files. While a
//! snapshotter on the disk is at work the image is cloned, which takes what is
//! on the disk at one moment and nothing of what the page cache still holds.
//! The mounted clone is what a machine would find after the cut.
//!
//! Needs root, `mkfs.xfs` and `mkfs.ext4`. `CRATED_POWER_CUTS` sets the number
//! of cuts for each test.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crated_mount::{Mount, TempMount};
use crated_snapshot::testsuite::{TestDir, is_root, may_run};
use crated_snapshot::{
    ErofsOptions, ErofsSnapshotter, Kind, OverlayOptions, OverlaySnapshotter, Result, Snapshotter,
    SyncMode,
};

use crate::workload::{Site, build, damage, make_again};

type Open = fn(PathBuf) -> Result<Box<dyn Snapshotter>>;

#[test]
fn what_survives_power_cuts_on_ext4_is_whole() {
    survive(&EXT4, overlay);
}

#[test]
fn what_survives_power_cuts_on_xfs_is_whole() {
    survive(&XFS, overlay);
}

#[test]
fn images_that_survive_power_cuts_are_whole() {
    survive(&EXT4, erofs);
}

#[test]
fn each_commit_can_be_made_to_survive_power_cuts() {
    survive(&EXT4, overlay_syncing_each_commit);
}

/// Containers full of empty files, with a database that says all is well:
/// what happens to those who never sync.
#[test]
fn without_any_sync_layers_are_damaged_and_the_test_notices() {
    let Some(bench) = Bench::new(&EXT4) else { return };
    let outcome = bench.run(overlay_without_sync, [false; 2], 80);
    let violation = outcome.expect_err("no damage without a sync");
    assert!(violation.contains("not what was written"), "{violation}");
    say(&format!("without syncs: {violation}"));
}

fn overlay(root: PathBuf) -> Result<Box<dyn Snapshotter>> {
    overlay_with(root, SyncMode::default())
}

fn overlay_syncing_each_commit(root: PathBuf) -> Result<Box<dyn Snapshotter>> {
    overlay_with(root, SyncMode::EachCommit)
}

fn overlay_without_sync(root: PathBuf) -> Result<Box<dyn Snapshotter>> {
    overlay_with(root, SyncMode::Never)
}

fn overlay_with(root: PathBuf, sync: SyncMode) -> Result<Box<dyn Snapshotter>> {
    let options = OverlayOptions { root, sync, ..OverlayOptions::default() };
    Ok(Box::new(OverlaySnapshotter::open(options)?))
}

fn erofs(root: PathBuf) -> Result<Box<dyn Snapshotter>> {
    let options = ErofsOptions { root, ..ErofsOptions::default() };
    Ok(Box::new(ErofsSnapshotter::open(options)?))
}

fn survive(filesystem: &'static Filesystem, open: Open) {
    let Some(bench) = Bench::new(filesystem) else { return };
    let cuts = match std::env::var("CRATED_POWER_CUTS") {
        Ok(text) => text.parse().expect("CRATED_POWER_CUTS is a number"),
        Err(_) => 10,
    };
    let summary =
        bench.run(open, [true, false], cuts).unwrap_or_else(|violation| panic!("{violation}"));
    say(&format!("{}: {cuts} cuts, {summary:?}", filesystem.kind));
}

#[allow(clippy::print_stderr, reason = "summaries are for people")]
fn say(line: &str) {
    eprintln!("{line}");
}

struct Filesystem {
    kind: &'static str,
    mkfs: &'static [&'static str],
    options: &'static [&'static str],
    size_bytes: u64,
}

const EXT4: Filesystem = Filesystem {
    kind: "ext4",
    mkfs: &["-q", "-O", "has_journal", "-E", "lazy_itable_init=1,lazy_journal_init=1"],
    options: &["loop", "noatime"],
    size_bytes: 512 << 20,
};

const XFS: Filesystem = Filesystem {
    kind: "xfs",
    mkfs: &["-q"],
    options: &["loop", "noatime", "nouuid"],
    size_bytes: 512 << 20,
};

/// What clones.
const OUTER: Filesystem = Filesystem {
    kind: "xfs",
    mkfs: &["-q", "-m", "reflink=1"],
    options: &["loop", "noatime", "nouuid"],
    size_bytes: 3 << 30,
};

impl Filesystem {
    fn make(&self, image: &Path) {
        File::create(image).unwrap().set_len(self.size_bytes).unwrap();
        let mkfs = format!("mkfs.{}", self.kind);
        let output = Command::new(mkfs).args(self.mkfs).arg(image).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn mount(&self, image: &Path, place: &Path) -> std::result::Result<TempMount, String> {
        let mount = Mount {
            kind: self.kind.to_owned(),
            source: image.display().to_string(),
            target: String::new(),
            options: self.options.iter().copied().map(String::from).collect(),
        };
        TempMount::attach(&[mount], place).map_err(|error| error.to_string())
    }
}

/// A disk at work, on a filesystem that can clone it.
struct Bench {
    // Dropped in this order: innermost first.
    disk: TempMount,
    outer: TempMount,
    dir: TestDir,
    _images: tempfile::TempDir,
    filesystem: &'static Filesystem,
}

#[derive(Debug, Default)]
struct Summary {
    whole: usize,
    lost: usize,
}

impl Bench {
    /// `None`, with a message, where the means are missing.
    fn new(filesystem: &'static Filesystem) -> Option<Self> {
        let tools = ["mkfs.xfs", "mkfs.ext4"];
        let found = tools.iter().all(|tool| Command::new(tool).arg("-V").output().is_ok());
        if !may_run(is_root() && found, "needs root, mkfs.xfs and mkfs.ext4") {
            return None;
        }
        let (dir, images) = (TestDir::new(), tempfile::tempdir_in(place_for_images()).unwrap());
        let outer_image = images.path().join("outer");
        OUTER.make(&outer_image);
        let outer = OUTER.mount(&outer_image, &dir.path().join("outer")).unwrap();
        let image = outer.path().join("disk");
        filesystem.make(&image);
        let disk = filesystem.mount(&image, &dir.path().join("disk")).unwrap();
        Some(Self { disk, outer, dir, _images: images, filesystem })
    }

    /// Cuts the power `cuts` times under builders that settle their images or
    /// do not, and says what was found, or what was wrong.
    fn run(
        &self,
        open: Open,
        builders: [bool; 2],
        cuts: usize,
    ) -> std::result::Result<Summary, String> {
        let snapshotter = open(self.disk.path().join("root")).unwrap();
        let (s, site) = (&*snapshotter, &Site::default());
        let mut summary = Summary::default();
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let mut moment = u64::from(clock.subsec_nanos()) | 1;
        std::thread::scope(|scope| {
            let _stop = site.stop_on_drop();
            for (builder, settles) in builders.into_iter().enumerate() {
                scope.spawn(move || build(s, builder, settles, site));
            }
            for _ in 0..cuts {
                moment ^= moment << 13;
                moment ^= moment >> 7;
                moment ^= moment << 17;
                site.wait_for_commit();
                std::thread::sleep(Duration::from_micros(moment % 50_000));
                self.cut(open, site, &mut summary)?;
            }
            Ok(summary)
        })
    }

    fn cut(
        &self,
        open: Open,
        site: &Site,
        summary: &mut Summary,
    ) -> std::result::Result<(), String> {
        let before = site.settled();
        let image = self.outer.path().join("cut");
        let disk = File::open(self.outer.path().join("disk")).unwrap();
        let clone = File::create(&image).unwrap();
        rustix::fs::ioctl_ficlone(&clone, &disk).unwrap();
        drop(clone);
        // Two processors cannot build and look at once.
        let _paused = site.pause();
        // What is to be removed leaves the list first: what is on both must be there.
        let required: BTreeSet<String> = before.intersection(&site.settled()).cloned().collect();
        let cut = self.filesystem.mount(&image, &self.dir.path().join("cut"))?;
        {
            let root = cut.path().join("root");
            let s = open(root.clone()).map_err(|error| format!("does not open: {error}"))?;
            self.look(&*s, &root, required, summary)?;
        }
        cut.close().map_err(|error| error.to_string())?;
        fs::remove_file(&image).unwrap();
        Ok(())
    }

    fn look(
        &self,
        s: &dyn Snapshotter,
        root: &Path,
        mut required: BTreeSet<String>,
        summary: &mut Summary,
    ) -> std::result::Result<(), String> {
        let (mut committed, mut others) = (BTreeSet::new(), Vec::new());
        s.walk(&mut |info| {
            match info.kind {
                Kind::Committed => drop(committed.insert(info.name)),
                Kind::Active | Kind::View => others.push(info.name),
            }
            ControlFlow::Continue(())
        })
        .map_err(|error| format!("does not list: {error}"))?;
        required.retain(|name| !committed.contains(name));
        if let Some(missing) = required.first() {
            return Err(format!("{missing} was settled and is gone"));
        }
        let mounts_at = self.dir.path().join("look");
        for name in &committed {
            if let Some(damage) = damage(s, name, &mounts_at) {
                return Err(damage);
            }
        }
        summary.whole += committed.len();
        // Interrupted work goes, and what was lost can be made again, and is whole then.
        for name in others {
            s.remove(&name).unwrap();
        }
        s.cleanup().unwrap();
        let left = fs::read_dir(root.join("snapshots")).unwrap().count();
        assert_eq!(left, committed.len(), "directories after the cleanup");
        let lost: Vec<String> = s.lost().unwrap();
        for name in lost.iter().filter(|name| !name.starts_with("work")) {
            summary.lost += 1;
            make_again(s, name);
            assert_eq!(damage(s, name, &mounts_at), None);
        }
        assert!(s.lost().unwrap().iter().all(|name| name.starts_with("work")));
        s.forget_lost(&lost).unwrap();
        assert_eq!(s.lost().unwrap(), [""; 0]);
        Ok(())
    }
}

/// Memory, where there is enough of it: the syncs of a disk only cost time.
fn place_for_images() -> PathBuf {
    const NEEDED_BYTES: u64 = 3 << 30;
    let memory = Path::new("/dev/shm");
    match rustix::fs::statvfs(memory) {
        Ok(stat) if stat.f_bavail * stat.f_frsize >= NEEDED_BYTES => memory.to_owned(),
        _ => std::env::temp_dir(),
    }
}
