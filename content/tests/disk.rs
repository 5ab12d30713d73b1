//! What the local store does with its directory: layout, damage, resumption by another process,
//! hostile roots and full disks.
#![allow(clippy::print_stderr, reason = "skipped tests are for people")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crated_content::local::{Backend, Scrub};
use crated_content::{
    Algorithm, Commit, Digest, Error, Ingest, IngestManager, Ingester, LabelUpdate, Labels,
    LocalStore, Manager, Provider, read_blob, reader, write_blob,
};
use tempfile::TempDir;

fn root() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "{reason}");
    eprintln!("skipped: {reason}");
}

/// Every backend that works here.
fn backends() -> Vec<Backend> {
    let mut backends = vec![Backend::Buffered];
    match LocalStore::builder().backend(Backend::Uring).open(root().path()) {
        Ok(_) => backends.push(Backend::Uring),
        Err(error) => skip(&error.to_string()),
    }
    backends
}

fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

fn ingest_path(root: &Path, reference: &str) -> PathBuf {
    root.join("ingest").join(Digest::of(reference.as_bytes()).hex())
}

fn pattern(size_bytes: usize) -> Vec<u8> {
    (0..size_bytes).map(|at| (at / 4096) as u8 ^ at as u8).collect()
}

#[test]
fn blobs_and_ingests_lie_where_other_tools_expect_them() {
    let root = root();
    let store = LocalStore::open(root.path()).unwrap();
    let digest = write_blob(&store, "ref", b"content").unwrap();
    let path = blob_path(root.path(), &digest);
    assert_eq!(fs::read(&path).unwrap(), b"content");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o444);

    let large = pattern(500_000);
    let mut writer = store.writer(&Ingest::new("k8s/1/layer").total(900_000)).unwrap();
    writer.write_all(&large).unwrap();
    drop(writer);
    let dir = ingest_path(root.path(), "k8s/1/layer");
    assert_eq!(fs::read_to_string(dir.join("ref")).unwrap(), "k8s/1/layer");
    assert_eq!(fs::read_to_string(dir.join("total")).unwrap(), "900000");
    assert!(fs::read(dir.join("data")).unwrap() == large);
    for name in ["startedat", "updatedat"] {
        assert!(fs::read_to_string(dir.join(name)).unwrap().ends_with('Z'));
    }
    let mut writer = store.writer(&"k8s/1/layer".into()).unwrap();
    writer.write_all(b"end").unwrap();
    let info = writer.commit(&Commit::default()).unwrap();
    let mode = fs::metadata(blob_path(root.path(), &info.digest)).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o444);
    assert!(!dir.exists());
    assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn an_ingest_left_by_another_program_is_resumed() {
    let root = root();
    let store = LocalStore::open(root.path()).unwrap();
    let dir = ingest_path(root.path(), "foreign");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("ref"), "foreign").unwrap();
    fs::write(dir.join("startedat"), "2026-01-02T03:04:05.5+01:00").unwrap();
    fs::write(dir.join("updatedat"), "2026-01-02T03:04:06Z").unwrap();
    fs::write(dir.join("total"), "10").unwrap();
    fs::write(dir.join("data"), "01234").unwrap();

    let status = store.status("foreign").unwrap();
    assert_eq!((status.offset, status.total), (5, Some(10)));
    let started = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_319_445_500);
    assert_eq!(status.started_at, started);
    let mut writer = store.writer(&"foreign".into()).unwrap();
    assert_eq!(writer.digest().unwrap(), Digest::of(b"01234"));
    writer.write_all(b"56789").unwrap();
    let commit = Commit { size_bytes: Some(10), ..Commit::expecting(Digest::of(b"0123456789")) };
    writer.commit(&commit).unwrap();
}

#[test]
fn a_store_opened_again_has_its_blobs_labels_and_ingests() {
    for backend in backends() {
        let root = root();
        let open = || LocalStore::builder().backend(backend).open(root.path()).unwrap();
        let bytes = pattern(12_000_007);
        let labels = Labels::from([("kept".to_owned(), "yes".to_owned())]);
        let ingest = Ingest::new("layer").expected(Digest::of_with(Algorithm::Sha512, &bytes));
        let store = open();
        let digest = write_blob(&store, "config", b"{}").unwrap();
        let info = store.update(&digest, &LabelUpdate::Replace(labels)).unwrap();
        let mut writer = store.writer(&ingest).unwrap();
        writer.write_all(&bytes[..11_000_003]).unwrap();
        drop((writer, store));

        let store = open();
        assert_eq!(store.info(&digest).unwrap(), info);
        let status = store.status("layer").unwrap();
        assert_eq!((status.offset, &status.expected), (11_000_003, &ingest.expected));
        let mut writer = store.writer(&"layer".into()).unwrap();
        writer.write_all(&bytes[11_000_003..]).unwrap();
        writer.commit(&Commit { digest: ingest.expected.clone(), ..Commit::default() }).unwrap();
    }
}

#[test]
fn a_resumed_writer_does_not_hash_from_the_start() {
    // The data before the last checkpoint is changed underneath: a writer that read it again would
    // come to another digest.
    for backend in backends() {
        let root = root();
        let store = LocalStore::builder().backend(backend).open(root.path()).unwrap();
        let bytes = pattern(9_000_000);
        let mut writer = store.writer(&Ingest::new("layer").total(10_000_000)).unwrap();
        writer.write_all(&bytes).unwrap();
        drop(writer);
        let data =
            fs::File::options().write(true).open(ingest_path(root.path(), "layer").join("data"));
        data.unwrap().write_all_at(b"changed", 100).unwrap();
        let mut writer = store.writer(&"layer".into()).unwrap();
        assert_eq!(writer.digest().unwrap(), Digest::of(&bytes));
    }
}

#[test]
fn an_ingest_with_a_damaged_checkpoint_starts_over() {
    for (damage, expected) in [("flipped", 0), ("empty", 0), ("missing", 300_000)] {
        let root = root();
        let store = LocalStore::open(root.path()).unwrap();
        let mut writer = store.writer(&Ingest::new("layer").total(400_000)).unwrap();
        writer.write_all(&pattern(300_000)).unwrap();
        drop(writer);
        let path = ingest_path(root.path(), "layer").join("checkpoint");
        let mut bytes = fs::read(&path).unwrap();
        match damage {
            "flipped" => {
                bytes.chunks_mut(512).for_each(|slot| slot[25] ^= 1);
                fs::write(&path, bytes).unwrap();
            }
            "empty" => fs::write(&path, "").unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        assert_eq!(store.status("layer").unwrap().offset, expected, "{damage}");
        let mut writer = store.writer(&"layer".into()).unwrap();
        assert_eq!(writer.status().offset, expected, "{damage}");
        let prefix = pattern(300_000)[..expected as usize].to_vec();
        assert_eq!(writer.digest().unwrap(), Digest::of(&prefix), "{damage}");
    }
}

#[test]
fn an_ingest_directory_of_another_reference_is_replaced() {
    let root = root();
    let store = LocalStore::open(root.path()).unwrap();
    let mut writer = store.writer(&"layer".into()).unwrap();
    writer.write_all(b"bytes").unwrap();
    drop(writer);
    fs::write(ingest_path(root.path(), "layer").join("ref"), "other").unwrap();
    assert!(matches!(store.status("layer"), Err(Error::IngestNotFound(_))));
    let writer = store.writer(&"layer".into()).unwrap();
    assert_eq!(writer.status().offset, 0);
    writer.commit(&Commit::expecting(Digest::of(b""))).unwrap();
}

#[test]
fn old_ingests_are_collected_and_live_or_young_ones_are_not() {
    let root = root();
    let store = LocalStore::open(root.path()).unwrap();
    for reference in ["old", "young", "old but alive"] {
        store.writer(&reference.into()).unwrap().write_all(b"bytes").unwrap();
    }
    let alive = store.writer(&"old but alive".into()).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    for reference in ["old", "old but alive"] {
        let dir = ingest_path(root.path(), reference);
        fs::write(dir.join("updatedat"), "2026-01-01T00:00:00Z").unwrap();
        fs::File::open(dir.join("data")).unwrap().set_modified(long_ago).unwrap();
    }
    let remains = ingest_path(root.path(), "remains");
    fs::create_dir(&remains).unwrap();
    fs::write(remains.join("startedat"), "").unwrap();
    fs::File::open(&remains).unwrap().set_modified(long_ago).unwrap();

    assert_eq!(store.collect_ingests(Duration::from_secs(3600)).unwrap(), ["old"]);
    assert!(!remains.exists());
    drop(alive);
    let left: Vec<_> = store.statuses().unwrap().into_iter().map(|s| s.reference).collect();
    assert_eq!(left, ["old but alive", "young"]);
}

#[test]
fn a_damaged_blob_is_found_set_aside_and_healed_by_another_commit() {
    let root = root();
    let store = LocalStore::open(root.path()).unwrap();
    let sound = write_blob(&store, "sound", b"sound").unwrap();
    let blobs: [&[u8]; 3] = [b"flipped", b"shortened", b"lengthened"];
    let digests = blobs.map(|bytes| write_blob(&store, "damaged", bytes).unwrap());
    for (digest, damaged) in digests.iter().zip(["fl1pped", "short", "lengthened!"]) {
        let path = blob_path(root.path(), digest);
        fs::remove_file(&path).unwrap();
        fs::write(&path, damaged).unwrap();
    }
    let report = store.scrub(&Scrub::default(), &mut |_| ControlFlow::Continue(())).unwrap();
    let found: BTreeSet<_> = report.damaged.iter().map(|damage| damage.digest.clone()).collect();
    assert_eq!((report.sound, found), (1, digests.clone().into()));
    store.verify(&sound).unwrap();
    for (digest, bytes) in digests.iter().zip(blobs) {
        assert!(matches!(store.info(digest), Err(Error::NotFound(_))));
        assert_eq!(&write_blob(&store, "again", bytes).unwrap(), digest);
        store.verify(digest).unwrap();
    }
    // Kept for whoever wants to know.
    let kept = fs::read_dir(root.path().join("quarantine")).unwrap().count();
    assert_eq!(kept, 2 * digests.len());
}

#[test]
fn a_blob_of_another_length_than_announced_is_ingested_again() {
    let root = root();
    let store = LocalStore::open(root.path()).unwrap();
    let digest = write_blob(&store, "blob", b"content").unwrap();
    let path = blob_path(root.path(), &digest);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    let ingest = Ingest::new("again").total(7).expected(digest.clone());
    let mut writer = store.writer(&ingest).unwrap();
    writer.write_all(b"content").unwrap();
    writer.commit(&Commit::expecting(digest.clone())).unwrap();
    assert_eq!(read_blob(&store, &digest, 100).unwrap(), b"content");
}

#[test]
fn more_writers_than_buffers_at_once_all_finish() {
    for backend in backends() {
        let root = root();
        let store = &LocalStore::builder().backend(backend).open(root.path()).unwrap();
        let mut writers: Vec<_> = (0..24_u8)
            .map(|n| store.writer(&Ingest::new(format!("layer {n}")).total(2_500_000)).unwrap())
            .collect();
        for _ in 0..5 {
            for (n, writer) in writers.iter_mut().enumerate() {
                writer.write_all(&vec![n as u8; 500_000]).unwrap();
            }
        }
        for (n, writer) in writers.into_iter().enumerate() {
            let digest = Digest::of(&vec![n as u8; 2_500_000]);
            writer.commit(&Commit::expecting(digest.clone())).unwrap();
            store.verify(&digest).unwrap();
        }
    }
}

#[test]
fn a_writer_moves_between_threads_that_end() {
    for backend in backends() {
        let root = root();
        let store = LocalStore::builder().backend(backend).open(root.path()).unwrap();
        let bytes = pattern(9_000_001);
        let mut writer = store.writer(&Ingest::new("layer")).unwrap();
        for piece in bytes.chunks(1_100_000) {
            let piece = piece.to_vec();
            writer = std::thread::spawn(move || {
                writer.write_all(&piece).unwrap();
                writer
            })
            .join()
            .unwrap();
        }
        let info = writer.commit(&Commit::expecting(Digest::of(&bytes))).unwrap();
        store.verify(&info.digest).unwrap();
    }
}

#[test]
fn whatever_stands_in_the_place_of_a_blob_is_not_read_and_makes_way() {
    let root = root();
    let store = LocalStore::open(root.path()).unwrap();
    for kind in ["symlink", "dangling", "directory", "fifo", "socket", "shortened"] {
        let digest = write_blob(&store, "blob", kind.as_bytes()).unwrap();
        let path = blob_path(root.path(), &digest);
        fs::remove_file(&path).unwrap();
        match kind {
            "symlink" => symlink("/etc/passwd", &path).unwrap(),
            "dangling" => symlink("nowhere", &path).unwrap(),
            "directory" => {
                fs::create_dir(&path).unwrap();
                fs::write(path.join("file"), "").unwrap();
            }
            "fifo" => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
            // Bound by its short name from within: socket paths are limited to 108 bytes.
            "socket" => {
                let parent = fs::File::open(path.parent().unwrap()).unwrap();
                use std::os::fd::AsRawFd;
                let name = format!("/proc/self/fd/{}/{}", parent.as_raw_fd(), digest.hex());
                std::os::unix::net::UnixListener::bind(name).unwrap();
            }
            _ => fs::write(&path, "short").unwrap(),
        }
        if kind != "shortened" {
            for result in [store.info(&digest).map(drop), store.reader(&digest).map(drop)] {
                assert!(matches!(result, Err(Error::Corrupt { .. })), "{kind}: {result:?}");
            }
        }
        assert!(read_blob(&store, &digest, 100).is_err(), "{kind}");
        let mut writer = store.writer(&Ingest::new("heal")).unwrap();
        writer.write_all(kind.as_bytes()).unwrap();
        writer.commit(&Commit::expecting(digest.clone())).unwrap();
        assert_eq!(read_blob(&store, &digest, 100).unwrap(), kind.as_bytes());
    }
}

#[test]
fn a_blob_truncated_under_a_reader_ends_in_an_error_not_early() {
    let root = root();
    let store = LocalStore::open(root.path()).unwrap();
    let digest = write_blob(&store, "blob", &pattern(100_000)).unwrap();
    let mut blob = reader(store.reader(&digest).unwrap());
    let path = blob_path(root.path(), &digest);
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(50_000).unwrap();
    let error = blob.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn names_that_are_no_digests_are_left_alone() {
    let root = root();
    let store = LocalStore::open(root.path()).unwrap();
    let digest = write_blob(&store, "blob", b"content").unwrap();
    for name in ["x", "UPPER", "..data", &"f".repeat(63), &"F".repeat(64)] {
        fs::write(root.path().join("blobs/sha256").join(name), "junk").unwrap();
    }
    fs::create_dir(root.path().join("blobs/md5")).unwrap();
    let mut seen = Vec::new();
    store
        .walk(&mut |info| {
            seen.push(info.digest);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, [digest]);
    let report = store.scrub(&Scrub::default(), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((report.sound, report.damaged.len()), (1, 0));
}

#[test]
fn a_scrub_keeps_to_its_rate_and_stops_when_told() {
    let root = root();
    let store = LocalStore::open(root.path()).unwrap();
    for seed in 0..4 {
        write_blob(&store, "blob", &vec![seed; 100_000]).unwrap();
    }
    let started = std::time::Instant::now();
    let scrub = Scrub { bytes_per_second: Some(2_000_000) };
    let report = store.scrub(&scrub, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((report.sound, report.size_bytes), (4, 400_000));
    assert!(started.elapsed() >= Duration::from_millis(199));
    let report = store.scrub(&Scrub::default(), &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((report.sound, report.damaged.len()), (0, 0));
}

#[test]
fn one_store_per_root_and_the_holder_is_named() {
    let root = root();
    let store = LocalStore::open(root.path()).unwrap();
    let error = LocalStore::open(root.path()).unwrap_err();
    let holder = format!("in use by process {}", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");
    let writer = store.writer(&"layer".into()).unwrap();
    drop(store);
    LocalStore::open(root.path()).expect_err("a writer keeps the root");
    drop(writer);
    LocalStore::open(root.path()).unwrap();
}

#[test]
fn roots_others_could_tamper_with_are_refused() {
    let dir = root();
    let root = dir.path().join("root");
    drop(LocalStore::open(&root).unwrap());
    let mode = |mode| fs::set_permissions(&root, PermissionsExt::from_mode(mode)).unwrap();
    for writable in [0o777, 0o775, 0o757] {
        mode(writable);
        let error = LocalStore::open(&root).unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    }
    mode(0o755);
    drop(LocalStore::open(&root).unwrap());
    let link = dir.path().join("link");
    symlink(&root, &link).unwrap();
    assert!(matches!(LocalStore::open(&link), Err(Error::Io { .. })));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(LocalStore::open(&file), Err(Error::Io { .. })));
    // What stands in the root is not followed either.
    fs::remove_dir(root.join("ingest")).unwrap();
    symlink("/tmp", root.join("ingest")).unwrap();
    assert!(matches!(LocalStore::open(&root), Err(Error::Io { .. })));
}

#[test]
fn leftovers_of_a_killed_process_are_cleared_at_the_next_start() {
    let root = root();
    drop(LocalStore::open(root.path()).unwrap());
    fs::write(root.path().join("tmp/17"), "half a blob").unwrap();
    fs::create_dir_all(root.path().join("tmp/dir/dir")).unwrap();
    let _store = LocalStore::open(root.path()).unwrap();
    assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_filesystem_without_direct_io_or_device_is_served_through_the_cache() {
    let Some(mount) = Tmpfs::new("64m") else { return };
    let store = LocalStore::open(mount.at.join("store")).unwrap();
    let bytes = pattern(3_000_001);
    let digest = write_blob(&store, "layer", &bytes).unwrap();
    assert!(read_blob(&store, &digest, u64::MAX).unwrap() == bytes);
    store.verify(&digest).unwrap();
}

#[test]
fn a_full_disk_is_reported_early_and_leaves_the_store_usable() {
    let Some(mount) = Tmpfs::new("8m") else { return };
    let store = LocalStore::open(mount.at.join("store")).unwrap();
    let kept = write_blob(&store, "kept", &pattern(1_000_000)).unwrap();

    let announced = store.writer(&Ingest::new("huge").total(1 << 40)).map(drop).unwrap_err();
    assert!(announced.is_storage_full(), "{announced}");
    assert!(matches!(store.status("huge"), Err(Error::IngestNotFound(_))));

    let mut writer = store.writer(&"endless".into()).unwrap();
    let piece = pattern(1_000_000);
    let error = (0..20).find_map(|_| writer.write_all(&piece).err()).expect("the disk is full");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    // The writer stays refused, and what it left is a prefix.
    writer.write_all(b"more").unwrap_err();
    writer.commit(&Commit::default()).unwrap_err();
    let mut writer = store.writer(&"endless".into()).unwrap();
    let offset = writer.status().offset as usize;
    let whole = piece.repeat(20);
    assert_eq!(writer.digest().unwrap(), Digest::of(&whole[..offset]));
    drop(writer);

    // Deleting needs no space and makes room.
    store.abort("endless").unwrap();
    let more = write_blob(&store, "more", &pattern(3_000_000)).unwrap();
    store.delete(&more).unwrap();
    store.verify(&kept).unwrap();
}

/// A small filesystem of its own, unmounted when dropped.
struct Tmpfs {
    at: PathBuf,
    _dir: TempDir,
}

impl Tmpfs {
    fn new(size: &str) -> Option<Self> {
        let dir = root();
        let at = dir.path().to_owned();
        let options = format!("size={size},mode=0755");
        let mount = ["-t", "tmpfs", "-o", &options, "tmpfs"];
        let status = Command::new("mount").args(mount).arg(&at).status();
        if !status.is_ok_and(|status| status.success()) {
            skip("mounting needs root");
            return None;
        }
        Some(Self { at, _dir: dir })
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.at).status();
        assert!(status.is_ok_and(|status| status.success()), "umount {}", self.at.display());
    }
}
