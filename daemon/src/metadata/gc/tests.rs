//! What happens between mark and sweep, step by step.

use std::io::Write;
use std::sync::Arc;

use crated_content::{
    Commit, Digest, Ingest, Ingester, LabelUpdate, Manager, MemoryStore, Provider,
};

use super::{Collector, Report};
use crate::metadata::{
    Content, Db, Image, ImageUpdate, Labels, NamespacedStore, NoEvents, Resource, Scope, Sharing,
    Target,
};

struct World {
    db: Db,
    scope: Scope,
    store: NamespacedStore,
    collector: Collector,
    _root: tempfile::TempDir,
}

fn world() -> World {
    let root = tempfile::tempdir().unwrap();
    let db = Db::open(root.path(), Arc::new(NoEvents)).unwrap();
    let content = Content::new(&db, Arc::new(MemoryStore::new()), Sharing::Shared);
    let scope = Scope::new("default".parse().unwrap());
    let store = content.scoped(scope.clone());
    let collector = Collector::new(&db, Some(content), Vec::new());
    World { db, scope, store, collector, _root: root }
}

impl World {
    fn blob(&self, text: &str, labels: &[(&str, &str)]) -> Digest {
        let mut writer = self.store.writer(&Ingest::new(text)).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        writer.commit(&Commit { labels, ..Commit::default() }).unwrap().digest
    }

    /// A blob that refers to a blob that refers to a blob; the first and the last.
    fn chain(&self) -> (Digest, Digest) {
        let last = self.blob("last", &[]);
        let middle = self.blob("middle", &[(REFERENCE, last.as_str())]);
        (self.blob("first", &[(REFERENCE, middle.as_str())]), last)
    }

    fn lease(&self) -> Scope {
        self.db.leases().create(&self.scope.namespace, Some("l"), &Labels::new()).unwrap();
        self.scope.clone().with_lease("l")
    }

    fn has(&self, digest: &Digest) -> bool {
        self.store.info(digest).is_ok()
    }

    fn collect(&self, meanwhile: impl FnOnce()) -> usize {
        let mut meanwhile = Some(meanwhile);
        self.collect_between(|_| {
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile();
            }
        })
    }

    /// As above, with `between` before each of the sweep's transactions.
    fn collect_between(&self, between: impl FnMut(usize)) -> usize {
        let mut report = Report::default();
        self.collector.collect_records(None, &mut report, between).unwrap();
        report.removed.len()
    }
}

fn image(target: &Digest) -> Image {
    Image {
        name: "image".to_owned(),
        labels: Labels::new(),
        target: Target {
            media_type: "m".to_owned(),
            digest: target.clone(),
            size_bytes: 1,
            annotations: Labels::new(),
        },
        created_at: std::time::SystemTime::UNIX_EPOCH,
        updated_at: std::time::SystemTime::UNIX_EPOCH,
    }
}

const REFERENCE: &str = "containerd.io/gc.ref.content.0";

#[test]
fn garbage_found_existing_meanwhile_is_kept_with_all_behind_it() {
    let world = world();
    let (first, last) = world.chain();
    let leased = world.lease();
    let removed = world.collect(|| {
        let store = world.store.content.scoped(leased);
        let ingest = Ingest::new("again").expected(first.clone());
        assert!(
            store
                .writer(&ingest)
                .is_err_and(|error| { matches!(error, crated_content::Error::AlreadyExists(_)) })
        );
    });
    assert_eq!(removed, 0);
    assert!(world.has(&first) && world.has(&last));
    assert_eq!(world.collect(|| ()), 0);
}

#[test]
fn garbage_tagged_or_leased_meanwhile_is_kept_with_all_behind_it() {
    for tag in [true, false] {
        let world = world();
        let (first, last) = world.chain();
        world.lease();
        let removed = world.collect(|| {
            if tag {
                world.db.images().create(&world.scope, image(&first), None).unwrap();
            } else {
                let resource = Resource { kind: "content".to_owned(), id: first.to_string() };
                world.db.leases().add_resource(&world.scope.namespace, "l", &resource).unwrap();
            }
        });
        assert_eq!(removed, 0);
        assert!(world.has(&last));
    }
}

#[test]
fn garbage_that_something_kept_comes_to_refer_to_is_kept() {
    let world = world();
    let (first, last) = world.chain();
    let kept = world.blob("kept", &[("containerd.io/gc.root", "1")]);
    let removed = world.collect(|| {
        let to = [(REFERENCE.to_owned(), Some(first.to_string()))].into();
        world.store.update(&kept, &LabelUpdate::Merge(to)).unwrap();
    });
    assert_eq!(removed, 0);
    assert!(world.has(&last));
}

#[test]
fn what_depends_on_garbage_taken_up_meanwhile_is_kept() {
    let world = world();
    let anchor = world.blob("anchor", &[]);
    let dependant = world.blob("dependant", &[("containerd.io/gc.bref.content", anchor.as_str())]);
    let removed = world.collect(|| {
        world.db.images().create(&world.scope, image(&anchor), None).unwrap();
    });
    assert_eq!(removed, 0);
    assert!(world.has(&dependant));
}

#[test]
fn what_is_let_go_meanwhile_goes_with_the_next_collection() {
    let world = world();
    let (first, last) = world.chain();
    world.db.images().create(&world.scope, image(&first), None).unwrap();
    let other = world.blob("other", &[]);
    let removed = world.collect(|| {
        let update = ImageUpdate { target: Some(image(&other).target), ..ImageUpdate::default() };
        world.db.images().update(&world.scope, "image", update, None).unwrap();
    });
    assert_eq!(removed, 0, "it was held when the collection began");
    assert_eq!(world.collect(|| ()), 3);
    assert!(world.has(&other) && !world.has(&last));
}

#[test]
fn what_was_made_before_the_collection_and_left_alone_goes() {
    let world = world();
    let (first, last) = world.chain();
    let removed = world.collect(|| {
        world.blob("unrelated", &[]);
    });
    assert_eq!(removed, 3);
    assert!(!world.has(&first) && !world.has(&last));
}

#[test]
fn what_is_found_between_two_transactions_of_a_sweep_is_whole() {
    for taken_at in 0..4 {
        let mut world = world();
        world.collector.sweep_len = 1;
        let (first, last) = world.chain();
        let chain = [first, Digest::of(b"middle"), last];
        world.blob("stray", &[]);
        let complete = |at: &str| {
            let here: Vec<bool> = chain.iter().map(|digest| world.has(digest)).collect();
            assert!(
                here.is_sorted(),
                "{at}: something is there without what it refers to: {here:?}"
            );
            here.iter().position(|here| *here)
        };
        let mut taken = None;
        world.collect_between(|number| {
            let left = complete(&format!("before transaction {number}"));
            if number == taken_at
                && let Some(left) = left
            {
                let labels = [("seen".to_owned(), Some("1".to_owned()))].into();
                world.store.update(&chain[left], &LabelUpdate::Merge(labels)).unwrap();
                taken = Some(left);
            }
        });
        assert_eq!(complete("in the end"), taken, "taken up at {taken_at}");
    }
}
