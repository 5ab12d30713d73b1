//! The content store of a namespace: sharing, leases, ingests, crashes.

mod metadata_support;

use std::io::Write;
use std::sync::{Arc, Barrier};
use std::thread;

use crated::filters::Filters;
use crated::metadata::{Error as MetadataError, LabelUpdate, Labels, Sharing};
use crated_content::{
    Algorithm, Commit, Digest, Error, Ingest, IngestManager, Ingester, LocalStore, Manager,
    MemoryStore, Provider, Store, read_blob,
};
use metadata_support::{World, labels, scope};

fn expecting(reference: &str, bytes: &[u8]) -> Ingest {
    Ingest::new(reference).total(bytes.len() as u64).expected(Digest::of(bytes))
}

fn local() -> (tempfile::TempDir, Arc<dyn Store>) {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path().join("content")).unwrap();
    (directory, Arc::new(store))
}

#[test]
fn a_second_namespace_shares_bytes_without_sending_them() {
    let (_directory, blobs) = local();
    let world = World::with(blobs, Sharing::Shared);
    let (one, two) = (scope("one"), scope("two"));
    let bytes = b"shared by all".as_slice();
    let digest = world.blob(&one, bytes, &[("owner", "one")]);

    let store = world.store(&two);
    assert!(matches!(store.info(&digest), Err(Error::NotFound(_))));
    assert!(matches!(store.reader(&digest).err(), Some(Error::NotFound(_))));
    let mut writer = store.writer(&expecting("pull", bytes)).unwrap();
    let status = writer.status();
    assert_eq!((status.offset, status.total), (bytes.len() as u64, Some(bytes.len() as u64)));
    assert_eq!(status.reference, "pull");
    assert_eq!(writer.digest().unwrap(), digest);
    assert_eq!(store.status("pull").unwrap().offset, bytes.len() as u64);
    let commit =
        Commit { size_bytes: Some(bytes.len() as u64), ..Commit::expecting(digest.clone()) };
    let info = writer.commit(&commit).unwrap();
    assert!(info.labels.is_empty(), "labels are the namespace's own");
    assert_eq!(store.statuses().unwrap(), []);

    world.store(&one).delete(&digest).unwrap();
    world.collect();
    assert!(!world.has_blob(&one, &digest));
    // Nothing refers to it in the second namespace either, so it goes with its record.
    assert!(!world.has_bytes(&digest));
}

#[test]
fn deleting_in_one_namespace_leaves_the_other_readable() {
    let (_directory, blobs) = local();
    let world = World::with(blobs, Sharing::Shared);
    let (one, two) = (scope("one"), scope("two"));
    let digest = world.blob(&one, b"bytes", &[("containerd.io/gc.root", "1")]);
    world.blob(&two, b"bytes", &[("containerd.io/gc.root", "1")]);
    world.store(&one).delete(&digest).unwrap();
    world.collect();
    assert!(!world.has_blob(&one, &digest));
    let reader = world.store(&two);
    assert_eq!(read_blob(&reader, &digest, 100).unwrap(), b"bytes");
}

#[test]
fn a_shared_ingest_keeps_its_bytes_from_the_collector() {
    let world = World::new();
    let (one, two) = (scope("one"), scope("two"));
    let digest = world.blob(&one, b"bytes", &[]);
    let store = world.store(&two);
    let writer = store.writer(&expecting("r", b"bytes")).unwrap();
    world.store(&one).delete(&digest).unwrap();
    world.collect();
    assert!(world.has_bytes(&digest));
    writer.commit(&Commit::expecting(digest.clone())).unwrap();
    assert!(world.has_blob(&two, &digest));
}

#[test]
fn shared_bytes_are_checked_against_the_promise() {
    let world = World::new();
    let digest = world.blob(&scope("one"), b"bytes", &[]);
    let store = world.store(&scope("two"));
    let open =
        |reference: &str| store.writer(&Ingest::new(reference).expected(digest.clone())).unwrap();
    assert!(matches!(
        open("a").commit(&Commit { size_bytes: Some(4), ..Commit::default() }),
        Err(Error::SizeMismatch { expected: 4, actual: 5 })
    ));
    assert!(matches!(
        open("b").commit(&Commit::expecting(Digest::of(b"other"))),
        Err(Error::DigestMismatch { .. })
    ));
    // Another size than announced is not shared.
    let ingest = Ingest::new("c").expected(digest.clone()).total(4);
    assert_eq!(store.writer(&ingest).unwrap().status().offset, 0);
    assert!(matches!(store.info(&digest), Err(Error::NotFound(_))));
}

#[test]
fn writing_to_a_shared_ingest_goes_on_from_its_bytes() {
    let world = World::new();
    let digest = world.blob(&scope("one"), b"hello", &[]);
    let store = world.store(&scope("two"));
    let mut writer = store.writer(&Ingest::new("r").expected(digest.clone())).unwrap();
    writer.write_all(b" world").unwrap();
    assert_eq!(writer.status().offset, 11);
    assert_eq!(store.status("r").unwrap().offset, 11);
    writer.commit(&Commit::expecting(Digest::of(b"hello world"))).unwrap();
    assert_eq!(read_blob(&store, &Digest::of(b"hello world"), 100).unwrap(), b"hello world");
    assert!(matches!(store.info(&digest), Err(Error::NotFound(_))));

    let mut writer = store.writer(&Ingest::new("s").expected(digest)).unwrap();
    writer.truncate().unwrap();
    assert_eq!(writer.status().offset, 0);
    writer.write_all(b"anew").unwrap();
    writer.commit(&Commit::expecting(Digest::of(b"anew"))).unwrap();
}

#[test]
fn isolated_namespaces_send_their_own_bytes_unless_the_source_shares() {
    let world = World::with(Arc::new(MemoryStore::new()), Sharing::Isolated);
    let (one, two) = (scope("one"), scope("two"));
    let digest = world.blob(&one, b"bytes", &[]);
    let store = world.store(&two);
    let writer = store.writer(&expecting("r", b"bytes")).unwrap();
    assert_eq!(writer.status().offset, 0);
    assert!(matches!(
        writer.commit(&Commit::expecting(digest.clone())),
        Err(Error::DigestMismatch { .. })
    ));
    let mut writer = store.writer(&expecting("r2", b"bytes")).unwrap();
    writer.write_all(b"bytes").unwrap();
    writer.commit(&Commit::expecting(digest.clone())).unwrap();

    let share = LabelUpdate::Replace(labels(&[("containerd.io/namespace.shareable", "true")]));
    world.db.namespaces().update(&one.namespace, &share).unwrap();
    let other = world.blob(&one, b"more", &[]);
    let writer = world.store(&scope("three")).writer(&expecting("r", b"more")).unwrap();
    assert_eq!(writer.status().offset, 4);
    writer.commit(&Commit::expecting(other)).unwrap();
}

#[test]
fn what_exists_is_attached_to_the_lease_at_open_and_at_commit() {
    let world = World::new();
    let plain = scope("default");
    let namespace = &plain.namespace;
    for lease in ["open", "commit", "fresh", "attach"] {
        world.db.leases().create(namespace, Some(lease), &Labels::new()).unwrap();
    }
    let held = |lease: &str| -> Vec<String> {
        let resources = world.db.leases().resources(namespace, lease).unwrap();
        resources.into_iter().map(|it| format!("{} {}", it.kind, it.id)).collect()
    };
    let digest = world.blob(&plain, b"bytes", &[("a", "1")]);
    let of_digest = format!("content {digest}");

    let store = world.store(&plain.clone().with_lease("open"));
    assert!(matches!(store.writer(&expecting("r", b"bytes")).err(), Some(Error::AlreadyExists(_))));
    assert_eq!(held("open"), std::slice::from_ref(&of_digest));

    let store = world.store(&plain.clone().with_lease("commit"));
    let mut writer = store.writer(&"second".into()).unwrap();
    assert_eq!(held("commit"), ["ingests second"]);
    writer.write_all(b"bytes").unwrap();
    let commit = Commit { labels: labels(&[("a", "2")]), ..Commit::default() };
    assert!(matches!(writer.commit(&commit), Err(Error::AlreadyExists(_))));
    assert_eq!(held("commit"), std::slice::from_ref(&of_digest));
    assert_eq!(store.statuses().unwrap(), []);
    assert_eq!(store.info(&digest).unwrap().labels, labels(&[("a", "1")]), "labels stay");

    let leased = plain.clone().with_lease("fresh");
    let fresh = world.blob(&leased, b"fresh", &[]);
    assert_eq!(held("fresh"), [format!("content {fresh}")]);

    let store = world.store(&plain.clone().with_lease("attach"));
    assert!(store.attach(&digest).unwrap());
    assert!(!store.attach(&Digest::of(b"unknown")).unwrap());
    assert_eq!(held("attach"), [of_digest]);
    // Reading attaches nothing.
    store.info(&fresh).unwrap();
    assert_eq!(held("attach").len(), 1);

    for lease in ["open", "commit", "attach"] {
        world.collect();
        assert!(world.has_blob(&plain, &digest));
        world.db.leases().delete(namespace, lease).unwrap();
    }
    world.collect();
    assert!(!world.has_blob(&plain, &digest));
    assert!(world.has_blob(&plain, &fresh));
}

#[test]
fn an_unknown_lease_leaves_no_ingest_behind() {
    let world = World::new();
    let store = world.store(&scope("default").with_lease("none"));
    let error = store.writer(&"r".into()).err().expect("refused");
    assert!(matches!(MetadataError::from(error), MetadataError::LeaseNotFound { .. }));
    assert_eq!(world.store(&scope("default")).statuses().unwrap(), []);
    assert_eq!(world.blobs.statuses().unwrap(), []);
}

#[test]
fn a_lease_that_goes_before_the_commit_fails_it() {
    let world = World::new();
    let scope = scope("default").with_lease("l");
    world.db.leases().create(&scope.namespace, Some("l"), &Labels::new()).unwrap();
    let mut writer = world.store(&scope).writer(&"r".into()).unwrap();
    writer.write_all(b"bytes").unwrap();
    world.db.leases().delete(&scope.namespace, "l").unwrap();
    let error = writer.commit(&Commit::default()).unwrap_err();
    assert!(matches!(MetadataError::from(error), MetadataError::LeaseNotFound { .. }));
    world.collect();
    assert!(!world.has_bytes(&Digest::of(b"bytes")));
}

#[test]
fn references_of_two_namespaces_never_meet() {
    let world = World::new();
    let (one, two) = (world.store(&scope("one")), world.store(&scope("two")));
    let mut first = one.writer(&"same ref: a/b@c".into()).unwrap();
    let mut second = two.writer(&"same ref: a/b@c".into()).unwrap();
    first.write_all(b"first").unwrap();
    second.write_all(b"2nd").unwrap();
    assert_eq!(one.status("same ref: a/b@c").unwrap().offset, 5);
    assert_eq!(two.statuses().unwrap()[0].reference, "same ref: a/b@c");
    drop(second);
    two.abort("same ref: a/b@c").unwrap();
    first.commit(&Commit::expecting(Digest::of(b"first"))).unwrap();
}

#[test]
fn a_reference_is_locked_until_its_writer_is_gone() {
    let world = World::new();
    let store = world.store(&scope("default"));
    for _ in 0..3 {
        let writer = store.writer(&"r".into()).unwrap();
        let commits = world.db.commits();
        match store.writer(&"r".into()).err() {
            Some(Error::Locked { reference, .. }) => assert_eq!(reference, "r"),
            other => panic!("{other:?}"),
        }
        assert_eq!(world.db.commits(), commits, "being refused costs no commit");
        drop(writer);
    }
    // A shared one, which has no writer below, is locked as well.
    world.blob(&scope("other"), b"bytes", &[]);
    let writer = store.writer(&expecting("s", b"bytes")).unwrap();
    assert!(matches!(store.writer(&expecting("s", b"bytes")).err(), Some(Error::Locked { .. })));
    drop(writer);
    store.writer(&expecting("s", b"bytes")).unwrap();
}

#[test]
fn an_ingest_resumes_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let open = |root| {
        let blobs: Arc<dyn Store> =
            Arc::new(LocalStore::open(directory.path().join("content")).unwrap());
        let layers = Arc::new(metadata_support::layers::Layers::default());
        World::over(root, blobs, layers, Sharing::Shared)
    };
    let world = open(root);
    let mut writer = world.store(&scope("default")).writer(&"r".into()).unwrap();
    writer.write_all(b"first half, ").unwrap();
    drop(writer);
    world.collect();
    let World { root, db, content, blobs, snapshots, collector, .. } = world;
    drop((db, content, blobs, snapshots, collector));

    let world = open(root);
    world.collect();
    let store = world.store(&scope("default"));
    let mut writer = store.writer(&"r".into()).unwrap();
    assert_eq!(writer.status().offset, 12);
    writer.write_all(b"second half").unwrap();
    writer.commit(&Commit::expecting(Digest::of(b"first half, second half"))).unwrap();
}

#[test]
fn a_failed_commit_leaves_an_ingest_that_can_be_aborted() {
    let world = World::new();
    let store = world.store(&scope("default"));
    let mut writer = store.writer(&"r".into()).unwrap();
    writer.write_all(b"bytes").unwrap();
    let wrong = Commit { size_bytes: Some(6), ..Commit::default() };
    assert!(matches!(writer.commit(&wrong), Err(Error::SizeMismatch { .. })));
    assert_eq!(store.statuses().unwrap().len(), 1);
    store.abort("r").unwrap();
    assert!(matches!(store.abort("r"), Err(Error::IngestNotFound(reference)) if reference == "r"));
    assert_eq!(world.blobs.statuses().unwrap(), []);
}

#[test]
fn another_algorithm_may_be_demanded_at_commit() {
    let (_directory, blobs) = local();
    let world = World::with(blobs, Sharing::Shared);
    let store = world.store(&scope("default"));
    let mut writer = store.writer(&"r".into()).unwrap();
    writer.write_all(b"bytes").unwrap();
    let digest = Digest::of_with(Algorithm::Sha512, b"bytes");
    let info = writer.commit(&Commit::expecting(digest.clone())).unwrap();
    assert_eq!(info.digest, digest);
    assert_eq!(read_blob(&store, &digest, 100).unwrap(), b"bytes");
}

#[test]
fn labels_are_merged_replaced_and_never_create() {
    let world = World::new();
    let scope = scope("default");
    let digest = world.blob(&scope, b"bytes", &[("a.b/c", "1"), ("d", "2")]);
    let store = world.store(&scope);
    let merge = LabelUpdate::Merge(
        [("a.b/c".to_owned(), Some(String::new())), ("e".to_owned(), Some("3".to_owned()))].into(),
    );
    let before = store.info(&digest).unwrap();
    let after = store.update(&digest, &merge).unwrap();
    assert_eq!(after.labels, labels(&[("d", "2"), ("e", "3")]));
    assert_eq!(after.created_at, before.created_at);
    let unknown = Digest::of(b"unknown");
    assert!(matches!(store.update(&unknown, &merge), Err(Error::NotFound(_))));
    assert!(matches!(store.delete(&unknown), Err(Error::NotFound(_))));
    let filter = Filters::parse(&["labels.d==2"]).unwrap();
    assert!(filter.matches(&after));
}

#[test]
fn events_follow_commits_and_deletions_but_not_what_exists() {
    let world = World::new();
    let scope = scope("default");
    let digest = world.blob(&scope, b"bytes", &[]);
    let store = world.store(&scope);
    assert!(store.writer(&expecting("r", b"bytes")).is_err());
    let mut again = store.writer(&"r".into()).unwrap();
    again.write_all(b"bytes").unwrap();
    assert!(again.commit(&Commit::default()).is_err());
    store.delete(&digest).unwrap();
    assert_eq!(world.events.topics(), ["/content/create", "/content/delete"]);
}

#[test]
fn bytes_published_before_a_crash_are_taken_up_or_collected() {
    let (_directory, blobs) = local();
    let world = World::with(blobs.clone(), Sharing::Shared);
    // What a crash between publishing and recording leaves behind.
    let mut writer = blobs.writer(&"default/9/lost".into()).unwrap();
    writer.write_all(b"orphan").unwrap();
    writer.commit(&Commit::default()).unwrap();
    let mut half = blobs.writer(&"default/9/half".into()).unwrap();
    half.write_all(b"half").unwrap();
    drop(half);

    let store = world.store(&scope("default"));
    let digest = Digest::of(b"orphan");
    assert!(matches!(store.info(&digest), Err(Error::NotFound(_))));
    let writer = store.writer(&expecting("again", b"orphan")).unwrap();
    assert_eq!(writer.status().offset, 6, "the bytes need not be sent again");
    writer.commit(&Commit::default()).unwrap();
    assert_eq!(read_blob(&store, &digest, 100).unwrap(), b"orphan");

    store.delete(&digest).unwrap();
    world.collect();
    assert!(!world.has_bytes(&digest));
    assert_eq!(blobs.statuses().unwrap(), [], "an ingest nobody knows goes too");
}

#[test]
fn a_blob_lost_below_can_be_fetched_again() {
    let world = World::new();
    let scope = scope("default");
    let digest = world.blob(&scope, b"bytes", &[("keep", "me")]);
    world.blobs.delete(&digest).unwrap();
    let store = world.store(&scope);
    let mut writer = store.writer(&expecting("again", b"bytes")).unwrap();
    assert_eq!(writer.status().offset, 0);
    writer.write_all(b"bytes").unwrap();
    assert!(matches!(writer.commit(&Commit::default()), Err(Error::AlreadyExists(_))));
    assert_eq!(read_blob(&store, &digest, 100).unwrap(), b"bytes");
    assert_eq!(store.info(&digest).unwrap().labels, labels(&[("keep", "me")]));
}

#[test]
fn hundreds_of_writers_and_a_collector_do_not_block_each_other() {
    const WRITERS: usize = 500;
    let (_directory, blobs) = local();
    let world = World::with(blobs, Sharing::Shared);
    let scope = scope("default").with_lease("pull");
    world.db.leases().create(&scope.namespace, Some("pull"), &Labels::new()).unwrap();
    let (store, start) = (world.store(&scope), Barrier::new(17));
    let commits = world.db.commits();
    thread::scope(|threads| {
        for worker in 0..16 {
            let (store, start) = (&store, &start);
            threads.spawn(move || {
                start.wait();
                for number in (worker..WRITERS).step_by(16) {
                    let bytes = format!("blob {number}");
                    let ingest = expecting(&format!("layer {number}"), bytes.as_bytes());
                    let mut writer = store.writer(&ingest).unwrap();
                    writer.write_all(bytes.as_bytes()).unwrap();
                    writer.commit(&Commit::expecting(Digest::of(bytes.as_bytes()))).unwrap();
                }
            });
        }
        start.wait();
        for _ in 0..10 {
            world.collect();
        }
    });
    world.collect();
    for number in 0..WRITERS {
        let digest = Digest::of(format!("blob {number}").as_bytes());
        assert_eq!(read_blob(&store, &digest, 100).unwrap(), format!("blob {number}").as_bytes());
    }
    let shared = world.db.commits() - commits;
    assert!(shared < 2 * WRITERS as u64, "{shared} commits for {WRITERS} blobs: none was shared");
}
