//! The collector: what it keeps, what it removes, and that it loses nothing to those who work
//! meanwhile.

mod metadata_support;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crated::metadata::gc::{Collector, Config, Node, Scheduler};
use crated::metadata::{Content, LabelUpdate, Labels, Resource, Scope, Sharing, Snapshots};
use crated_content::{Commit, Digest, Ingest, Ingester, LocalStore, Manager, MemoryStore, Store};
use crated_snapshot::{Key, NativeSnapshotter, Snapshotter};
use metadata_support::layers::Layers;
use metadata_support::{SNAPSHOTTER, World, container, eventually, labels, rfc3339, scope};

const EXPIRE: &str = "containerd.io/gc.expire";
const FLAT: &str = "containerd.io/gc.flat";
const ROOT: &str = "containerd.io/gc.root";

fn reference(to: &Digest) -> (String, String) {
    ("containerd.io/gc.ref.content.0".to_owned(), to.to_string())
}

fn snapshot_label(snapshotter: &str) -> String {
    format!("containerd.io/gc.ref.snapshot.{snapshotter}")
}

fn lease(world: &World, scope: &Scope, id: &str, lease_labels: &[(&str, &str)]) {
    world.db.leases().create(&scope.namespace, Some(id), &labels(lease_labels)).unwrap();
}

fn hold(world: &World, scope: &Scope, id: &str, kind: &str, resource: &str) {
    let resource = Resource { kind: kind.to_owned(), id: resource.to_owned() };
    world.db.leases().add_resource(&scope.namespace, id, &resource).unwrap();
}

#[test]
fn an_image_keeps_its_tree_and_its_unpacked_layers() {
    let world = World::new();
    let scope = scope("default");
    let layer = world.blob(&scope, b"layer", &[]);
    let config = world.blob(&scope, b"config", &[(&snapshot_label(SNAPSHOTTER), "sha256:top")]);
    let manifest = world.blob(
        &scope,
        b"manifest",
        &[
            ("containerd.io/gc.ref.content.config", config.as_str()),
            ("containerd.io/gc.ref.content.l.0", layer.as_str()),
            ("containerd.io/gc.ref.content.l.1", Digest::of(b"not here").as_str()),
        ],
    );
    let index =
        world.blob(&scope, b"index", &[("containerd.io/gc.ref.content.m.0", manifest.as_str())]);
    let stray = world.blob(&scope, b"stray", &[]);
    world.layer(&scope, "sha256:base", None, &[]);
    world.layer(&scope, "sha256:top", Some("sha256:base"), &[]);
    world.layer(&scope, "sha256:stray", Some("sha256:base"), &[]);
    world.image(&scope, "image", &index, &[]);

    world.collect();
    for digest in [&index, &manifest, &config, &layer] {
        assert!(world.has_blob(&scope, digest) && world.has_bytes(digest));
    }
    assert!(!world.has_blob(&scope, &stray) && !world.has_bytes(&stray));
    assert!(world.has_snapshot(&scope, "sha256:base") && world.has_snapshot(&scope, "sha256:top"));
    assert!(!world.has_snapshot(&scope, "sha256:stray"));

    world.db.images().delete(&scope, "image", None).unwrap();
    world.collect();
    for digest in [&index, &manifest, &config, &layer] {
        assert!(!world.has_blob(&scope, digest) && !world.has_bytes(digest));
    }
    assert_eq!(world.layers_below(), 0);
}

#[test]
fn a_container_keeps_its_snapshot_and_what_its_labels_name() {
    let world = World::new();
    let scope = scope("default");
    world.layer(&scope, "base", None, &[]);
    world.active(&scope, "rootfs", Some("base"));
    let named = world.blob(&scope, b"named", &[]);
    let mut record = container("c", Some("rootfs"));
    let (key, value) = reference(&named);
    record.labels.insert(key, value);
    world.db.containers().create(&scope, record).unwrap();
    world.collect();
    assert!(world.has_snapshot(&scope, "rootfs") && world.has_snapshot(&scope, "base"));
    assert!(world.has_blob(&scope, &named));
    world.db.containers().delete(&scope, "c").unwrap();
    world.collect();
    assert_eq!(world.layers_below(), 0);
    assert!(!world.has_blob(&scope, &named));
}

#[test]
fn a_lease_keeps_its_resources_and_all_they_refer_to() {
    let world = World::new();
    let scope = scope("default");
    let child = world.blob(&scope, b"child", &[]);
    let (key, value) = reference(&child);
    let parent = world.blob(&scope, b"parent", &[(&key, &value)]);
    world.layer(&scope, "base", None, &[]);
    let of_layer = world.blob(&scope, b"of layer", &[]);
    let (key, value) = reference(&of_layer);
    world.layer(&scope, "top", Some("base"), &[(&key, &value)]);
    lease(&world, &scope, "l", &[]);
    hold(&world, &scope, "l", "content", parent.as_str());
    hold(&world, &scope, "l", &format!("snapshots/{SNAPSHOTTER}"), "top");
    world.collect();
    for digest in [&parent, &child, &of_layer] {
        assert!(world.has_blob(&scope, digest));
    }
    assert!(world.has_snapshot(&scope, "base") && world.has_snapshot(&scope, "top"));
    world.db.leases().delete(&scope.namespace, "l").unwrap();
    let report = world.collect();
    assert_eq!(report.removed.len(), 5);
    assert_eq!((report.blobs_removed, report.snapshots_removed), (3, 2));
}

#[test]
fn a_flat_lease_keeps_only_what_it_names_and_the_parents_of_snapshots() {
    let world = World::new();
    let scope = scope("default");
    let child = world.blob(&scope, b"child", &[]);
    let (key, value) = reference(&child);
    let parent = world.blob(&scope, b"parent", &[(&key, &value)]);
    world.layer(&scope, "base", None, &[]);
    world.layer(&scope, "top", Some("base"), &[(&key, &value)]);
    world.image(&scope, "expired", &parent, &[(EXPIRE, "2001-01-01T00:00:00Z"), (&key, &value)]);
    lease(&world, &scope, "l", &[(FLAT, "1")]);
    hold(&world, &scope, "l", "images", "expired");
    hold(&world, &scope, "l", &format!("snapshots/{SNAPSHOTTER}"), "top");
    world.collect();
    assert!(world.has_image(&scope, "expired") && world.has_blob(&scope, &parent));
    assert!(world.has_snapshot(&scope, "base") && world.has_snapshot(&scope, "top"));
    assert!(!world.has_blob(&scope, &child), "labels of flat objects are not followed");
}

#[test]
fn reached_flat_and_in_full_counts_as_in_full() {
    let world = World::new();
    let scope = scope("default");
    let child = world.blob(&scope, b"child", &[]);
    let (key, value) = reference(&child);
    let parent = world.blob(&scope, b"parent", &[(&key, &value)]);
    lease(&world, &scope, "flat", &[(FLAT, "1")]);
    lease(&world, &scope, "full", &[]);
    for id in ["flat", "full"] {
        hold(&world, &scope, id, "content", parent.as_str());
    }
    world.collect();
    assert!(world.has_blob(&scope, &child));
    world.db.leases().delete(&scope.namespace, "full").unwrap();
    world.collect();
    assert!(world.has_blob(&scope, &parent) && !world.has_blob(&scope, &child));
}

#[test]
fn expired_leases_and_images_go_and_malformed_times_never_expire() {
    let world = World::new();
    let scope = scope("default");
    let blob = |name: &str| world.blob(&scope, name.as_bytes(), &[]);
    let cases = [
        ("past", "2001-01-01T00:00:00.5+02:00".to_owned(), false),
        ("just past", rfc3339(-2), false),
        ("future", rfc3339(3600), true),
        ("nonsense", "soon".to_owned(), true),
        ("zero", "0".to_owned(), true),
    ];
    for (name, time, _) in &cases {
        world.image(&scope, name, &blob(&format!("image {name}")), &[(EXPIRE, time)]);
        lease(&world, &scope, name, &[(EXPIRE, time)]);
        let held = blob(&format!("lease {name}"));
        hold(&world, &scope, name, "content", held.as_str());
    }
    world.events.take();
    world.collect();
    let leases =
        world.db.leases().list(&scope.namespace, &crated::filters::Filters::all()).unwrap();
    for (name, _, kept) in &cases {
        assert_eq!(world.has_image(&scope, name), *kept, "image {name}");
        assert_eq!(leases.iter().any(|lease| lease.id == *name), *kept, "lease {name}");
        for blob in [format!("image {name}"), format!("lease {name}")] {
            assert_eq!(world.has_blob(&scope, &Digest::of(blob.as_bytes())), *kept, "{blob}");
        }
    }
    assert_eq!(world.events.topics(), ["/images/delete", "/images/delete"]);
}

#[test]
fn root_labels_keep_content_and_snapshots() {
    let world = World::new();
    let scope = scope("default");
    let rooted = world.blob(&scope, b"rooted", &[("containerd.io/gc.root.anything", "2001")]);
    let snapshotter = world.snapshotter(&scope);
    snapshotter.prepare(&Key::new("k").unwrap(), None, &labels(&[(ROOT, "x")])).unwrap();
    world.collect();
    assert!(world.has_blob(&scope, &rooted) && world.has_snapshot(&scope, "k"));
    world.store(&scope).update(&rooted, &LabelUpdate::Replace(Labels::new())).unwrap();
    snapshotter.update("k", &crated_snapshot::LabelUpdate::Replace(Labels::new())).unwrap();
    world.collect();
    assert!(!world.has_blob(&scope, &rooted) && !world.has_snapshot(&scope, "k"));
}

#[test]
fn back_references_live_as_long_as_what_they_name() {
    let world = World::new();
    let scope = scope("default");
    world.db.containers().create(&scope, container("c", None)).unwrap();
    let anchor = world.blob(&scope, b"anchor", &[]);
    world.image(&scope, "image", &anchor, &[]);
    world.layer(&scope, "layer", None, &[(ROOT, "1")]);
    let of_container = world.blob(&scope, b"1", &[("containerd.io/gc.bref.container", "c")]);
    let of_image = world.blob(&scope, b"2", &[("containerd.io/gc.bref.image.x", "image")]);
    let of_content =
        world.blob(&scope, b"3", &[("containerd.io/gc.bref.content", anchor.as_str())]);
    let of_layer = world.blob(
        &scope,
        b"4",
        &[(&format!("containerd.io/gc.bref.snapshot.{SNAPSHOTTER}"), "layer")],
    );
    let of_nothing = world.blob(&scope, b"5", &[("containerd.io/gc.bref.container", "none")]);
    world.image(
        &scope,
        "extra",
        &of_content,
        &[(EXPIRE, "2001-01-01T00:00:00Z"), ("containerd.io/gc.bref.image", "image")],
    );
    world.collect();
    for digest in [&of_container, &of_image, &of_content, &of_layer] {
        assert!(world.has_blob(&scope, digest), "{digest}");
    }
    assert!(world.has_image(&scope, "extra"));
    assert!(!world.has_blob(&scope, &of_nothing));

    world.db.containers().delete(&scope, "c").unwrap();
    world.db.images().delete(&scope, "image", None).unwrap();
    world.collect();
    for digest in [&of_container, &of_image, &of_content, &anchor] {
        assert!(!world.has_blob(&scope, digest), "{digest}");
    }
    assert!(!world.has_image(&scope, "extra") && world.has_blob(&scope, &of_layer));
}

#[test]
fn conditions_weigh_when_a_snapshot_was_used() {
    let world = World::new();
    let scope = scope("default");
    let used = rfc3339(-1800);
    world.layer(&scope, "s", None, &[(ROOT, "1"), ("containerd.io/gc.cond.value-usedat", &used)]);
    let label = format!("containerd.io/gc.cond.snapshot.{SNAPSHOTTER}/0");
    let kept = world.blob(&scope, b"1", &[(&label, "usedat>5h,usedat<1h|s")]);
    let gone = world.blob(&scope, b"2", &[(&label, "usedat<10m|s")]);
    world.collect();
    assert!(world.has_blob(&scope, &kept) && !world.has_blob(&scope, &gone));
}

#[test]
fn ingests_stay_a_day_or_as_long_as_their_lease() {
    let world = World::new();
    let plain = scope("default");
    lease(&world, &plain, "l", &[]);
    for (scope, reference) in [(plain.clone(), "free"), (plain.clone().with_lease("l"), "leased")] {
        world.store(&scope).writer(&reference.into()).unwrap().write_all(b"half").unwrap();
    }
    world.collect();
    assert!(world.has_ingest(&plain, "free") && world.has_ingest(&plain, "leased"));
    world.db.leases().delete(&plain.namespace, "l").unwrap();
    world.collect();
    assert!(world.has_ingest(&plain, "free") && !world.has_ingest(&plain, "leased"));
    assert_eq!(world.blobs.statuses().unwrap().len(), 1);
}

#[test]
fn references_do_not_cross_namespaces() {
    let world = World::new();
    let (one, two) = (scope("one"), scope("two"));
    let digest = world.blob(&one, b"bytes", &[]);
    world.blob(&two, b"bytes", &[]);
    world.image(&two, "image", &digest, &[]);
    world.layer(&one, "layer", None, &[]);
    let mut record = container("c", Some("layer"));
    record.snapshot_key = Some("layer".to_owned());
    world.db.containers().create(&two, record).unwrap();
    world.collect();
    assert!(!world.has_blob(&one, &digest) && world.has_blob(&two, &digest));
    assert!(world.has_bytes(&digest) && !world.has_snapshot(&one, "layer"));
}

#[test]
fn removals_are_reported_and_announced_in_their_namespace() {
    let world = World::new();
    let scope = scope("k8s.io");
    world.active(&scope, "k", None);
    let digest = world.blob(&scope, b"x", &[]);
    world.events.take();
    let report = world.collect();
    assert_eq!(
        report.removed,
        [
            (scope.namespace.clone(), Node::Content(digest)),
            (
                scope.namespace.clone(),
                Node::Snapshot { snapshotter: SNAPSHOTTER.to_owned(), key: "k".to_owned() }
            ),
        ]
    );
    let events = world.events.take();
    assert_eq!(events.len(), 1, "content goes silently");
    assert_eq!((events[0].0.as_str(), events[0].1.topic()), ("k8s.io", "/snapshot/remove"));
    let commits = world.db.commits();
    assert_eq!(world.collect().removed, []);
    assert_eq!(world.db.commits(), commits, "a collection without garbage writes nothing");
}

#[test]
fn removing_from_one_lease_leaves_the_entry_in_others() {
    let world = World::new();
    let plain = scope("default");
    lease(&world, &plain, "mine", &[]);
    lease(&world, &plain, "other", &[]);
    let mine = plain.clone().with_lease("mine");
    let digest = world.blob(&mine, b"bytes", &[]);
    hold(&world, &plain, "other", "content", digest.as_str());
    world.store(&mine).delete(&digest).unwrap();
    let held = |id: &str| world.db.leases().resources(&plain.namespace, id).unwrap().len();
    assert_eq!((held("mine"), held("other")), (0, 1));
    // The dangling entry protects a later object of the same name.
    world.blob(&plain, b"bytes", &[]);
    world.collect();
    assert!(world.has_blob(&plain, &digest));
}

fn quick() -> Config {
    Config { startup_delay: Duration::from_millis(1), ..Config::default() }
}

fn scheduled(world: World, config: Config) -> (World, Scheduler) {
    let collector =
        Collector::new(&world.db, Some(world.content.clone()), vec![world.snapshots.clone()]);
    (world, Scheduler::start(collector, config).unwrap())
}

#[test]
fn creations_alone_start_no_collection_and_a_deletion_does() {
    let (world, scheduler) = scheduled(World::new(), quick());
    eventually("the first run", || scheduler.runs() == 1);
    let scope = scope("default");
    let blob = world.blob(&scope, b"unreferenced", &[]);
    for number in 0..40 {
        world.db.containers().create(&scope, container(&format!("c{number}"), None)).unwrap();
    }
    thread::sleep(Duration::from_millis(700));
    assert_eq!(scheduler.runs(), 1);
    assert!(world.has_blob(&scope, &blob));
    world.db.containers().delete(&scope, "c0").unwrap();
    eventually("the run after a deletion", || scheduler.runs() == 2);
    assert!(world.has_blob(&scope, &blob), "it is still fresh");
    eventually("the run that looks again", || !world.has_bytes(&blob));
    assert!(!world.has_blob(&scope, &blob));
}

#[test]
fn many_creations_start_a_collection() {
    let (world, scheduler) = scheduled(World::new(), quick());
    eventually("the first run", || scheduler.runs() == 1);
    let scope = scope("default");
    for number in 0..120 {
        world.db.containers().create(&scope, container(&format!("c{number}"), None)).unwrap();
    }
    eventually("a run", || scheduler.runs() >= 2);
    thread::sleep(Duration::from_millis(700));
    assert!(scheduler.runs() <= 3, "a collection is no reason for another");
}

#[test]
fn fresh_active_snapshots_survive_runs_nobody_asked_for() {
    let (world, scheduler) = scheduled(World::new(), quick());
    eventually("the first run", || scheduler.runs() == 1);
    let scope = scope("default");
    world.layer(&scope, "base", None, &[]);
    world.active(&scope, "about to be a container", Some("base"));
    world.db.containers().create(&scope, container("x", None)).unwrap();
    world.db.containers().delete(&scope, "x").unwrap();
    eventually("a run", || scheduler.runs() >= 2);
    assert!(world.has_snapshot(&scope, "about to be a container"));
    scheduler.collect_and_wait().unwrap();
    assert_eq!(world.layers_below(), 0, "who waits wants everything gone");
}

#[test]
fn fresh_blobs_survive_runs_nobody_asked_for() {
    let (world, scheduler) = scheduled(World::new(), quick());
    eventually("the first run", || scheduler.runs() == 1);
    let scope = scope("default");
    let digest = world.blob(&scope, b"about to be labelled", &[]);
    world.db.containers().create(&scope, container("x", None)).unwrap();
    world.db.containers().delete(&scope, "x").unwrap();
    eventually("a run", || scheduler.runs() >= 2);
    assert!(world.has_blob(&scope, &digest));
    scheduler.collect_and_wait().unwrap();
    assert!(!world.has_blob(&scope, &digest), "who waits wants everything gone");
}

#[test]
fn those_who_wait_share_runs_that_began_after_they_asked() {
    const WAITERS: usize = 24;
    let (world, scheduler) = scheduled(World::new(), quick());
    let scope = scope("default");
    for number in 0..WAITERS {
        let digest = world.blob(&scope, format!("layer {number}").as_bytes(), &[]);
        world.image(&scope, &format!("image {number}"), &digest, &[]);
    }
    eventually("the first run", || scheduler.runs() >= 1);
    let before = scheduler.runs();
    thread::scope(|threads| {
        for number in 0..WAITERS {
            let (world, scheduler, scope) = (&world, &scheduler, &scope);
            threads.spawn(move || {
                world.db.images().delete(scope, &format!("image {number}"), None).unwrap();
                scheduler.collect_and_wait().unwrap();
                let digest = Digest::of(format!("layer {number}").as_bytes());
                assert!(!world.has_blob(scope, &digest) && !world.has_bytes(&digest));
            });
        }
    });
    let runs = usize::try_from(scheduler.runs() - before).unwrap();
    assert!(runs < WAITERS, "{runs} runs for {WAITERS} waiters");
}

#[test]
fn waiting_ends_with_an_error_when_the_scheduler_stops() {
    let (_world, scheduler) = scheduled(World::new(), quick());
    scheduler.collect_and_wait().unwrap();
    drop(scheduler);
}

#[test]
fn directories_are_gone_when_a_waiting_deletion_returns() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root");
        println!("skipped: needs root");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let blobs: Arc<dyn Store> = Arc::new(LocalStore::open(root.path().join("content")).unwrap());
    let layers = Arc::new(NativeSnapshotter::open(root.path().join("native")).unwrap());
    let directories = || std::fs::read_dir(layers.root().join("snapshots")).unwrap().count();
    let (directory, below) = (root.path().to_owned(), layers.clone());
    let (world, scheduler) =
        scheduled(World::over(root, blobs, below, Sharing::Shared), Config::default());
    let scope = scope("default");
    lease(&world, &scope, "c1", &[]);
    let leased = scope.clone().with_lease("c1");
    world.layer(&leased, "base", None, &[]);
    world.active(&leased, "c1", Some("base"));
    let blob = world.blob(&leased, b"bytes", &[]);
    scheduler.collect_and_wait().unwrap();
    assert_eq!(directories(), 2);
    world.db.leases().delete(&scope.namespace, "c1").unwrap();
    scheduler.collect_and_wait().unwrap();
    assert_eq!(directories(), 0);
    assert!(!directory.join("content/blobs/sha256").join(blob.hex()).exists());
}

/// Threads that pull under a lease, tag, look, untag and release, while others collect without
/// pause: nothing that is referred to may ever be missing, and in the end nothing is left.
#[test]
fn nothing_referred_to_is_lost_while_collecting_without_pause() {
    const THREADS: usize = 32;
    const ROUNDS: usize = 6;
    let layers = Arc::new(Layers::default());
    let root = tempfile::tempdir().unwrap();
    let world = World::over(root, Arc::new(MemoryStore::new()), layers, Sharing::Shared);
    let done = AtomicBool::new(false);
    let collections = AtomicUsize::new(0);
    thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    world.collector.collect(None).unwrap();
                    collections.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let world = &world;
                threads.spawn(move || {
                    for round in 0..ROUNDS {
                        // Half of the threads share their images with another one.
                        pull_and_release(world, thread, thread % (THREADS / 2), round);
                    }
                })
            })
            .collect();
        let outcomes: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Release);
        assert!(outcomes.iter().all(Result::is_ok), "a worker failed");
    });
    assert!(collections.load(Ordering::Relaxed) > 4);
    world.collect();
    world.collect();
    assert_eq!(world.layers_below(), 0);
    let mut left = 0;
    world
        .blobs
        .walk(&mut |_| {
            left += 1;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((left, world.blobs.statuses().unwrap().len()), (0, 0));
}

fn pull_and_release(world: &World, thread: usize, shared: usize, round: usize) {
    let plain = scope(["one", "two", "three"][shared % 3]);
    let id = format!("lease {thread} {round}");
    lease(world, &plain, &id, &[]);
    let leased = plain.clone().with_lease(&id);
    // The same objects are let go and wanted again, by this thread and by another.
    let tag = format!("{shared}");

    let layer = fetch(world, &leased, &format!("layer {tag}"), &[]);
    let chain = format!("sha256:chain {tag} {}", plain.namespace);
    unpack(world, &leased, &chain, thread);
    let config =
        fetch(world, &leased, &format!("config {tag}"), &[(&snapshot_label(SNAPSHOTTER), &chain)]);
    // Others may have recorded the same blob without this label.
    let update = LabelUpdate::Merge([(snapshot_label(SNAPSHOTTER), Some(chain.clone()))].into());
    world.store(&leased).update(&config, &update).unwrap();
    let manifest = fetch(
        world,
        &leased,
        &format!("manifest {tag}"),
        &[
            ("containerd.io/gc.ref.content.config", config.as_str()),
            ("containerd.io/gc.ref.content.l.0", layer.as_str()),
        ],
    );
    let image = format!("image {thread}");
    world.image(&plain, &image, &manifest, &[]);
    world.db.leases().delete(&plain.namespace, &id).unwrap();

    for _ in 0..3 {
        for digest in [&layer, &config, &manifest] {
            assert!(world.has_blob(&plain, digest), "{digest} was lost");
            assert!(world.has_bytes(digest), "the bytes of {digest} were lost");
        }
        assert!(world.has_snapshot(&plain, &chain), "{chain} was lost");
        thread::yield_now();
    }
    world.db.images().delete(&plain, &image, None).unwrap();
}

/// Fetches a blob as clients do: what exists is fine, what is locked is tried again.
fn fetch(world: &World, scope: &Scope, text: &str, blob_labels: &[(&str, &str)]) -> Digest {
    let digest = Digest::of(text.as_bytes());
    let store = world.store(scope);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < deadline, "{text} stays locked");
        let ingest =
            Ingest::new(format!("ref {digest}")).total(text.len() as u64).expected(digest.clone());
        let mut writer = match store.writer(&ingest) {
            Ok(writer) => writer,
            Err(crated_content::Error::AlreadyExists(_)) => return digest,
            Err(crated_content::Error::Locked { .. }) => {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        if writer.status().offset == 0 {
            writer.write_all(text.as_bytes()).unwrap();
        }
        let commit = Commit { labels: labels(blob_labels), ..Commit::expecting(digest.clone()) };
        match writer.commit(&commit) {
            Ok(_) | Err(crated_content::Error::AlreadyExists(_)) => return digest,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Unpacks a layer as clients do: a layer that exists is fine.
fn unpack(world: &World, scope: &Scope, chain: &str, thread: usize) {
    let snapshotter = world.snapshotter(scope);
    let key = Key::new(format!("extract {thread} {chain}")).unwrap();
    let target = labels(&[(metadata_support::layers::REF, chain)]);
    match snapshotter.prepare(&key, None, &target) {
        Ok(_) => {}
        Err(crated_snapshot::Error::AlreadyExists(_)) => return,
        Err(error) => panic!("{error}"),
    }
    let options = crated_snapshot::CommitOptions { labels: target, parent: None };
    match snapshotter.commit(&chain.try_into().unwrap(), &key, &options) {
        Ok(()) => {}
        Err(crated_snapshot::Error::AlreadyExists(_)) => snapshotter.remove(key.as_str()).unwrap(),
        Err(error) => panic!("{error}"),
    }
}

/// A busy host: marking must not make writers wait, and must end in seconds even unoptimised.
#[test]
fn a_hundred_thousand_references_are_followed_without_holding_writers() {
    const IMAGES: usize = 10_000;
    const LAYERS: usize = 9;
    let world = World::new();
    let scope = scope("default");
    fill(&world, &scope, IMAGES, LAYERS);
    let stray = world.blob(&scope, b"stray", &[]);
    let stop = AtomicBool::new(false);
    let (report, slowest) = thread::scope(|threads| {
        let writer = threads.spawn(|| {
            let mut slowest = Duration::ZERO;
            let mut number = 0;
            while !stop.load(Ordering::Acquire) {
                let started = Instant::now();
                world
                    .db
                    .leases()
                    .create(&scope.namespace, Some(&format!("{number}")), &Labels::new())
                    .unwrap();
                slowest = slowest.max(started.elapsed());
                number += 1;
            }
            slowest
        });
        let report = world.collect();
        stop.store(true, Ordering::Release);
        (report, writer.join().unwrap())
    });
    println!(
        "{} objects: {:?} marked and swept, {:?} pause, slowest write {slowest:?}",
        IMAGES * (LAYERS + 1),
        report.elapsed,
        report.pause
    );
    assert_eq!(report.removed.len(), 1);
    assert!(!world.has_blob(&scope, &stray));
    assert!(report.pause < Duration::from_secs(30), "{:?}", report.pause);
}

/// While records are removed, writers get in between: `CRATED_GC_OBJECTS` sets how many records,
/// 10,000 by default.
#[test]
fn writers_go_on_while_many_objects_are_removed() {
    let objects = std::env::var("CRATED_GC_OBJECTS").ok().and_then(|text| text.parse().ok());
    let objects: usize = objects.unwrap_or(10_000);
    let world = World::new();
    let scope = scope("default");
    let next = AtomicUsize::new(0);
    thread::scope(|threads| {
        for _ in 0..64 {
            threads.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < objects {
                    let name = format!("image {}", next.load(Ordering::Relaxed));
                    let name = format!("{name} {:?}", thread::current().id());
                    let expired = [("containerd.io/gc.expire", "2020-01-01T00:00:00Z")];
                    world.image(&scope, &name, &Digest::of(name.as_bytes()), &expired);
                }
            });
        }
    });
    let stop = AtomicBool::new(false);
    let (report, writes, slowest) = thread::scope(|threads| {
        let writer = threads.spawn(|| {
            let (mut slowest, mut writes) = (Duration::ZERO, 0);
            while !stop.load(Ordering::Acquire) || writes == 0 {
                let started = Instant::now();
                let id = format!("{writes}");
                world.db.leases().create(&scope.namespace, Some(&id), &Labels::new()).unwrap();
                slowest = slowest.max(started.elapsed());
                writes += 1;
            }
            (writes, slowest)
        });
        let report = world.collect();
        stop.store(true, Ordering::Release);
        let (writes, slowest) = writer.join().unwrap();
        (report, writes, slowest)
    });
    println!(
        "{objects} objects removed in {:?}, longest pause {:?}; {writes} writes, slowest {slowest:?}",
        report.elapsed, report.pause
    );
    assert_eq!(report.removed.len(), objects);
    assert!(report.pause < Duration::from_secs(30), "{:?}", report.pause);
}

/// Makes images of layers, many to a transaction so that the test is about collecting.
fn fill(world: &World, scope: &Scope, images: usize, layers: usize) {
    let next = AtomicUsize::new(0);
    thread::scope(|threads| {
        for _ in 0..32 {
            threads.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= images {
                        return;
                    }
                    let target = Digest::of(format!("{number}").as_bytes());
                    let names: Vec<_> = (0..layers)
                        .map(|layer| {
                            let key = format!("containerd.io/gc.ref.content.l.{layer}");
                            (key, Digest::of(format!("{number} {layer}").as_bytes()).to_string())
                        })
                        .collect();
                    let mut image_labels: Vec<_> =
                        names.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
                    image_labels.push(("note", "a label that means nothing to the collector"));
                    world.image(scope, &format!("image {number}"), &target, &image_labels);
                }
            });
        }
    });
}

#[test]
fn a_store_that_fails_fails_the_run_and_is_tried_again() {
    let world = World::new();
    let scope = scope("default");
    let broken = Arc::new(Broken::default());
    let content = Content::new(&world.db, Arc::new(MemoryStore::new()), Sharing::Shared);
    let snapshots = Snapshots::new(&world.db, "broken", broken.clone());
    let collector =
        Collector::new(&world.db, Some(content), vec![snapshots, world.snapshots.clone()]);
    world.active(&scope, "k", None);
    broken.fail.store(true, Ordering::Release);
    let error = collector.collect(None).unwrap_err();
    assert!(error.to_string().contains("snapshotter broken"), "{error}");
    assert_eq!(world.layers_below(), 0, "the others were cleaned up all the same");
    broken.fail.store(false, Ordering::Release);
    collector.collect(None).unwrap();
    assert_eq!(broken.cleanups.load(Ordering::Acquire), 1);
}

/// A snapshotter whose storage is away at times.
#[derive(Default)]
struct Broken {
    fail: AtomicBool,
    cleanups: AtomicUsize,
    layers: Layers,
}

impl Snapshotter for Broken {
    fn stat(&self, key: &str) -> crated_snapshot::Result<crated_snapshot::Info> {
        self.layers.stat(key)
    }
    fn update(
        &self,
        key: &str,
        labels: &crated_snapshot::LabelUpdate,
    ) -> crated_snapshot::Result<crated_snapshot::Info> {
        self.layers.update(key, labels)
    }
    fn usage(&self, key: &str) -> crated_snapshot::Result<crated_snapshot::Usage> {
        self.layers.usage(key)
    }
    fn mounts(&self, key: &Key) -> crated_snapshot::Result<Vec<crated_snapshot::Mount>> {
        self.layers.mounts(key)
    }
    fn prepare(
        &self,
        key: &Key,
        parent: Option<&crated_snapshot::Name>,
        labels: &Labels,
    ) -> crated_snapshot::Result<Vec<crated_snapshot::Mount>> {
        self.layers.prepare(key, parent, labels)
    }
    fn view(
        &self,
        key: &Key,
        parent: Option<&crated_snapshot::Name>,
        labels: &Labels,
    ) -> crated_snapshot::Result<Vec<crated_snapshot::Mount>> {
        self.layers.view(key, parent, labels)
    }
    fn commit(
        &self,
        name: &crated_snapshot::Name,
        key: &Key,
        options: &crated_snapshot::CommitOptions,
    ) -> crated_snapshot::Result<()> {
        self.layers.commit(name, key, options)
    }
    fn remove(&self, key: &str) -> crated_snapshot::Result<()> {
        self.layers.remove(key)
    }
    fn walk(
        &self,
        visit: &mut dyn FnMut(crated_snapshot::Info) -> std::ops::ControlFlow<()>,
    ) -> crated_snapshot::Result<()> {
        assert!(!self.fail.load(Ordering::Acquire), "storage is away");
        self.layers.walk(visit)
    }
    fn cleanup(&self) -> crated_snapshot::Result<()> {
        self.cleanups.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}
