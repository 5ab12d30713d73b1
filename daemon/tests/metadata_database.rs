//! The database file: sharing commits, surviving, refusing.

mod metadata_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Barrier};
use std::thread;

use crated::filters::Filters;
use crated::metadata::fsck::{LABEL_RECREATED, Plan};
use crated::metadata::{Db, Error, Labels, NoEvents, Sharing};
use crated_content::{Digest, Manager};
use crated_snapshot::Snapshotter;
use metadata_support::{SNAPSHOTTER, World, container, database, image, scope};

fn open(root: &std::path::Path) -> Result<Db, Error> {
    Db::open(root, Arc::new(NoEvents))
}

#[test]
fn writers_that_come_together_share_commits() {
    const THREADS: usize = 32;
    const EACH: usize = 25;
    let world = World::new();
    let namespace = scope("default").namespace;
    let (leases, start) = (world.db.leases(), Barrier::new(THREADS));
    let before = world.db.commits();
    thread::scope(|threads| {
        for thread in 0..THREADS {
            let (leases, namespace, start) = (&leases, &namespace, &start);
            threads.spawn(move || {
                start.wait();
                for number in 0..EACH {
                    let id = format!("{thread}-{number}");
                    leases.create(namespace, Some(&id), &Labels::new()).unwrap();
                    // Half of them fail, which must not disturb those they share a commit with.
                    assert!(leases.create(namespace, Some(&id), &Labels::new()).is_err());
                }
            });
        }
    });
    assert_eq!(leases.list(&namespace, &Filters::all()).unwrap().len(), THREADS * EACH);
    let commits = world.db.commits() - before;
    // How many share one is up to the disk and the scheduler; that none ever does is a defect.
    assert!(commits < (THREADS * EACH) as u64, "{commits} commits, none was shared");
}

#[test]
fn one_of_many_creators_wins() {
    let world = World::new();
    let scope = scope("default");
    let containers = world.db.containers();
    let wins = thread::scope(|threads| {
        let racers: Vec<_> = (0..16)
            .map(|_| {
                threads.spawn(|| match containers.create(&scope, container("same", None)) {
                    Ok(_) => 1,
                    Err(Error::AlreadyExists { .. }) => 0,
                    Err(error) => panic!("{error}"),
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).sum::<i32>()
    });
    assert_eq!(wins, 1);
}

#[test]
fn each_call_costs_one_commit_and_a_refused_one_none() {
    let world = World::new();
    let scope = scope("default");
    let commits = || world.db.commits();
    let before = commits();
    world.image(&scope, "i", &Digest::of(b"x"), &[]);
    assert_eq!(commits(), before + 1);
    assert!(world.db.images().create(&scope, image("i", &Digest::of(b"x"), &[]), None).is_err());
    assert!(world.db.images().image(&scope, "missing").is_err());
    assert_eq!(commits(), before + 1);
    world.active(&scope, "k", None);
    assert_eq!(commits(), before + 2);
}

#[test]
fn everything_survives_reopening() {
    let root = tempfile::tempdir().unwrap();
    let scope = scope("default");
    let made = {
        let db = open(root.path()).unwrap();
        db.leases().create(&scope.namespace, Some("l"), &Labels::new()).unwrap();
        db.containers().create(&scope, container("c", Some("k"))).unwrap()
    };
    let db = open(root.path()).unwrap();
    assert_eq!(db.containers().container(&scope, "c").unwrap(), made);
    assert_eq!(db.leases().list(&scope.namespace, &Filters::all()).unwrap().len(), 1);
}

#[test]
fn the_file_is_for_its_owner_alone() {
    let root = tempfile::tempdir().unwrap();
    let _db = open(root.path()).unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&database(root.path())), 0o600);
    assert_eq!(mode(database(root.path()).parent().unwrap()), 0o700);
}

#[test]
fn a_second_daemon_is_told_that_the_database_is_in_use() {
    let root = tempfile::tempdir().unwrap();
    let db = open(root.path()).unwrap();
    let error = open(root.path()).err().expect("refused");
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert!(error.to_string().contains("meta.redb"), "{error}");
    drop(db);
    open(root.path()).unwrap();
}

#[test]
fn files_that_are_no_database_are_refused_by_name_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()).unwrap());
    let path = database(root.path());
    for junk in [b"not a database".to_vec(), vec![0; 4096], vec![0xff; 100_000]] {
        fs::write(&path, &junk).unwrap();
        let error = open(root.path()).err().expect("refused");
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("meta.redb"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), junk);
    }
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    assert!(open(root.path()).is_err(), "a link is not followed");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(open(root.path()).is_err());
}

#[test]
fn a_newer_layout_and_foreign_files_are_refused() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()).unwrap());
    let path = database(root.path());
    let table: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("meta");
    {
        let file = redb::Database::open(&path).unwrap();
        let transaction = file.begin_write().unwrap();
        transaction
            .open_table(table)
            .unwrap()
            .insert(b"version".as_slice(), 99_u32.to_le_bytes().as_slice())
            .unwrap();
        transaction.commit().unwrap();
    }
    let error = open(root.path()).err().expect("refused");
    assert!(error.to_string().contains("newer release"), "{error}");

    fs::remove_file(&path).unwrap();
    {
        let file = redb::Database::create(&path).unwrap();
        let transaction = file.begin_write().unwrap();
        let other: redb::TableDefinition<'_, u64, u64> = redb::TableDefinition::new("other");
        transaction.open_table(other).unwrap().insert(1, 2).unwrap();
        transaction.commit().unwrap();
    }
    let error = open(root.path()).err().expect("refused");
    assert!(error.to_string().contains("not a database of this daemon"), "{error}");
}

/// A database with something in every table, and its bytes.
fn filled() -> (tempfile::TempDir, Vec<u8>) {
    let world = World::new();
    let scope = scope("default");
    let digest = world.blob(&scope, b"bytes", &[("a", "1")]);
    for number in 0..30 {
        world.image(&scope, &format!("image-{number}"), &digest, &[("k", "v")]);
        world.db.containers().create(&scope, container(&format!("c{number}"), None)).unwrap();
    }
    world.layer(&scope, "base", None, &[]);
    world.active(&scope, "k", Some("base"));
    let World { root, db, content, snapshots, collector, .. } = world;
    drop((db, content, snapshots, collector));
    let bytes = fs::read(database(root.path())).unwrap();
    (root, bytes)
}

/// Opens damaged bytes and, if that works, reads everything; nothing may panic.
fn survives(root: &std::path::Path, bytes: &[u8]) -> bool {
    fs::write(database(root), bytes).unwrap();
    // What is written back is older than the last one that opened.
    let _ = fs::remove_file(identity(root));
    match open(root) {
        Ok(db) => {
            let scope = scope("default");
            let _ = db.images().list(&scope, &Filters::all());
            let _ = db.containers().list(&scope, &Filters::all());
            let _ = db.namespaces().list();
            true
        }
        Err(error) => {
            assert!(error.to_string().contains("meta.redb"), "{error}");
            false
        }
    }
}

#[test]
fn a_truncated_file_is_refused_or_recovered_but_never_trusted() {
    let (root, bytes) = filled();
    assert!(survives(root.path(), &bytes));
    let step = (bytes.len() / 24).next_multiple_of(512);
    let mut opened = 0;
    for length in (512..bytes.len()).step_by(step) {
        opened += usize::from(survives(root.path(), &bytes[..length]));
    }
    assert!(opened <= 24);
    assert!(survives(root.path(), &bytes), "the whole file still opens");
}

#[test]
fn flipped_and_zeroed_pages_are_refused_or_harmless() {
    let (root, bytes) = filled();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for round in 0..40 {
        let mut bytes = bytes.clone();
        let at = next(bytes.len());
        if round % 2 == 0 {
            bytes[at] ^= 1 << next(8);
        } else {
            let page = at / 4096 * 4096;
            let end = (page + 4096).min(bytes.len());
            bytes[page..end].fill(0);
        }
        survives(root.path(), &bytes);
    }
}

#[test]
fn a_full_disk_fails_writes_and_keeps_what_is_there() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root for a small tmpfs");
        println!("skipped: needs root for a small tmpfs");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let Some(_mounted) = Tmpfs::mount(root.path(), "size=4m") else { return };
    let scope = scope("default");
    let db = open(root.path()).unwrap();
    db.containers().create(&scope, container("first", None)).unwrap();
    let mut big = container("x", None);
    big.spec.value = vec![7; 256 << 10];
    let mut stored = 0;
    let error = loop {
        big.id = format!("c{stored}");
        match db.containers().create(&scope, big.clone()) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 64, "a 4 MiB filesystem cannot hold this much");
    };
    assert!(matches!(error, Error::Storage { .. } | Error::Internal { .. }), "{error}");
    assert!(db.containers().container(&scope, "first").is_ok(), "reads go on");
    assert_eq!(db.containers().list(&scope, &Filters::all()).unwrap().len(), stored + 1);
    // Deleting is what makes room again.
    db.containers().delete(&scope, "c0").unwrap();
    assert_eq!(db.containers().list(&scope, &Filters::all()).unwrap().len(), stored);
    drop(db);
    let db = open(root.path()).unwrap();
    assert_eq!(db.containers().list(&scope, &Filters::all()).unwrap().len(), stored);
}

/// What stands beside the database and says which one belongs here.
fn identity(root: &std::path::Path) -> std::path::PathBuf {
    database(root).with_file_name("identity")
}

#[test]
fn an_older_copy_and_that_of_another_root_are_refused() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()).unwrap());
    let copy = fs::read(database(root.path())).unwrap();
    drop(open(root.path()).unwrap());
    let present = fs::read(database(root.path())).unwrap();
    fs::write(database(root.path()), &copy).unwrap();
    let error = open(root.path()).err().expect("refused");
    assert!(error.to_string().contains("older copy"), "{error}");
    assert!(error.to_string().contains("crated fsck"), "{error}");
    fs::write(database(root.path()), &present).unwrap();
    drop(open(root.path()).unwrap());

    let other = tempfile::tempdir().unwrap();
    drop(open(other.path()).unwrap());
    fs::copy(database(other.path()), database(root.path())).unwrap();
    let error = open(root.path()).err().expect("refused");
    assert!(error.to_string().contains("another root"), "{error}");
    fs::remove_file(database(root.path())).unwrap();
    let error = open(root.path()).err().expect("refused");
    assert!(error.to_string().contains("another was here"), "{error}");
}

#[test]
fn a_crash_between_the_two_counts_of_a_start_is_no_loss() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()).unwrap());
    let before = fs::read(identity(root.path())).unwrap();
    drop(open(root.path()).unwrap());
    // The database has counted the start, the file beside it has not.
    fs::write(identity(root.path()), before).unwrap();
    drop(open(root.path()).unwrap());
    for nothing in ["", "nonsense", "half "] {
        fs::write(identity(root.path()), nothing).unwrap();
        drop(open(root.path()).unwrap());
    }
    fs::remove_file(identity(root.path())).unwrap();
    drop(open(root.path()).unwrap());
}

#[test]
fn records_that_others_refer_to_are_recreated_and_the_rest_is_reported() {
    let world = World::new();
    let scope = scope("default");
    let kept = world.blob(&scope, b"kept", &[]);
    world.image(&scope, "whole", &kept, &[]);
    let plan = Plan::make(&world.db, &*world.blobs, &below(&world), false).unwrap();
    assert!(plan.findings().is_empty(), "{:?}", plan.findings());

    // A record lost while its image is there, bytes lost while their record is there, and both.
    world.store(&scope).delete(&kept).unwrap();
    let bare = world.blob(&scope, b"bare", &[]);
    world.blobs.delete(&bare).unwrap();
    world.image(&scope, "gone", &Digest::of(b"never stored"), &[]);
    world.db.containers().create(&scope, container("c", Some("no such"))).unwrap();
    let plan = Plan::make(&world.db, &*world.blobs, &below(&world), false).unwrap();
    let found: Vec<_> =
        plan.findings().iter().map(|found| (found.object.clone(), found.provable)).collect();
    let mut expected = vec![
        ("container c".to_owned(), false),
        (format!("content {bare}"), false),
        (format!("content {kept}"), true),
        ("image gone".to_owned(), false),
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert!(!world.has_blob(&scope, &kept), "a comparison changes nothing");

    plan.apply(&world.db).unwrap();
    assert!(world.has_blob(&scope, &kept));
    let plan = Plan::make(&world.db, &*world.blobs, &below(&world), false).unwrap();
    assert_eq!(plan.findings().len(), 3);
}

#[test]
fn after_a_loss_snapshots_come_back_under_their_names_and_stay() {
    let world = World::new();
    let scope = scope("default");
    world.layer(&scope, "base", None, &[("containerd.io/snapshot/note", "kept")]);
    world.active(&scope, "writable", Some("base"));
    let (blobs, layers) = (world.blobs.clone(), world.layers.clone());
    drop(world);

    let root = tempfile::tempdir().unwrap();
    let world = World::over(root, blobs, layers, Sharing::Shared);
    assert!(!world.has_snapshot(&scope, "writable"));
    let plan = Plan::make(&world.db, &*world.blobs, &below(&world), true).unwrap();
    assert!(plan.findings().iter().all(|found| found.provable), "{:?}", plan.findings());
    plan.apply(&world.db).unwrap();
    world.collect();
    let stat = world.snapshotter(&scope).stat("writable").unwrap();
    assert_eq!(stat.parent.unwrap().as_str(), "base");
    let stat = world.snapshotter(&scope).stat("base").unwrap();
    assert_eq!(stat.labels.get("containerd.io/snapshot/note").map(String::as_str), Some("kept"));
    assert!(stat.labels.contains_key(LABEL_RECREATED));
    world.active(&scope, "another", Some("base"));
    assert!(world.snapshotter(&scope).remove("base").is_err(), "its children are known");
}

/// The snapshotters of a world, as a comparison wants them.
fn below(world: &World) -> Vec<(String, Arc<dyn Snapshotter>)> {
    vec![(SNAPSHOTTER.to_owned(), world.layers.clone())]
}

/// A filesystem of its own, through the mount program so that this file needs no unsafe code.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    #[allow(clippy::print_stdout, reason = "says why the test did not run")]
    fn mount(at: &std::path::Path, options: &str) -> Option<Self> {
        let done = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(at)
            .status();
        if done.is_ok_and(|status| status.success()) {
            return Some(Self(at.to_owned()));
        }
        assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot mount a tmpfs");
        println!("skipped: cannot mount a tmpfs");
        None
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
