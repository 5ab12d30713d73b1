//! A snapshotter of a namespace: adoption, leases, rebasing, crashes.

mod metadata_support;

use std::ops::ControlFlow;
use std::sync::Arc;

use crated::filters::Filters;
use crated::metadata::{Error as MetadataError, LABEL_UNPACKING, Labels, Sharing};
use crated_content::MemoryStore;
use crated_snapshot::{CommitOptions, Error, Key, Kind, LabelUpdate, Name, Snapshotter};
use metadata_support::layers::{Layers, REF};
use metadata_support::{SNAPSHOTTER, World, labels, scope};

fn key(key: &str) -> Key {
    Key::new(key).unwrap()
}

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn world() -> (World, Arc<Layers>) {
    let layers = Arc::new(Layers::default());
    let root = tempfile::tempdir().unwrap();
    (World::over(root, Arc::new(MemoryStore::new()), layers.clone(), Sharing::Shared), layers)
}

fn walked(snapshotter: &dyn Snapshotter, filter: &str) -> Vec<String> {
    let filters = Filters::parse(&[filter]).unwrap();
    let mut names = Vec::new();
    snapshotter
        .walk(&mut |info| {
            if filters.matches(&info) {
                names.push(info.name);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    names
}

#[test]
fn keys_below_carry_namespace_and_number() {
    let (world, layers) = world();
    let (one, two) = (scope("one"), scope("two"));
    world.active(&one, "a key/with everything", None);
    world.active(&two, "a key/with everything", None);
    world.layer(&one, "sha256:1", None, &[]);
    assert_eq!(
        layers.names(),
        ["one/1/a key/with everything", "one/3/sha256:1", "two/1/a key/with everything"]
    );
    assert_eq!(walked(&world.snapshotter(&one), ""), ["a key/with everything", "sha256:1"]);
    world.snapshotter(&one).remove("a key/with everything").unwrap();
    assert!(world.has_snapshot(&two, "a key/with everything"));
}

#[test]
fn numbers_used_before_a_crash_are_passed_over() {
    let (world, layers) = world();
    for number in 1..=3 {
        layers.prepare(&key(&format!("default/{number}/k")), None, &Labels::new()).unwrap();
    }
    world.active(&scope("default"), "k", None);
    assert!(layers.names().contains(&"default/4/k".to_owned()));
    world.collect();
    assert_eq!(layers.names().len(), 0, "nothing refers to any of them");
}

#[test]
fn what_is_taken_exists_and_is_attached_to_the_lease() {
    let (world, _) = world();
    let plain = scope("default");
    world.layer(&plain, "sha256:chain", None, &[]);
    world.active(&plain, "k", Some("sha256:chain"));
    for lease in ["prepare", "target", "commit"] {
        world.db.leases().create(&plain.namespace, Some(lease), &Labels::new()).unwrap();
    }
    let held = |lease: &str| -> Vec<String> {
        let resources = world.db.leases().resources(&plain.namespace, lease).unwrap();
        resources.into_iter().map(|it| format!("{} {}", it.kind, it.id)).collect()
    };
    let with = |lease: &str| world.snapshotter(&plain.clone().with_lease(lease));

    let error = with("prepare").prepare(&key("k"), None, &Labels::new()).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists(k) if k == "k"));
    assert_eq!(held("prepare"), [format!("snapshots/{SNAPSHOTTER} k")]);

    let to = labels(&[(REF, "sha256:chain")]);
    let error = with("target").prepare(&key("extract-1 x"), None, &to).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists(k) if k == "sha256:chain"));
    assert_eq!(held("target"), [format!("snapshots/{SNAPSHOTTER} sha256:chain")]);
    assert!(!world.has_snapshot(&plain, "extract-1 x"));

    world.active(&plain, "draft", None);
    let error = with("commit")
        .commit(&name("sha256:chain"), &key("draft"), &CommitOptions::default())
        .unwrap_err();
    assert!(matches!(error, Error::AlreadyExists(_)));
    assert_eq!(held("commit"), [format!("snapshots/{SNAPSHOTTER} sha256:chain")]);
    assert!(world.has_snapshot(&plain, "draft"), "the key stays");
}

#[test]
fn an_unknown_lease_leaves_nothing_below() {
    let (world, layers) = world();
    let snapshotter = world.snapshotter(&scope("default").with_lease("none"));
    let error = snapshotter.prepare(&key("k"), None, &Labels::new()).unwrap_err();
    assert!(matches!(MetadataError::from(error), MetadataError::LeaseNotFound { .. }));
    assert!(layers.names().is_empty());
}

#[test]
fn a_missing_parent_is_not_found() {
    let (world, layers) = world();
    let snapshotter = world.snapshotter(&scope("default"));
    let error = snapshotter.prepare(&key("k"), Some(&name("p")), &Labels::new()).unwrap_err();
    assert!(matches!(error, Error::NotFound(parent) if parent == "p"));
    assert!(layers.names().is_empty());
}

#[test]
fn a_layer_that_the_snapshotter_has_is_adopted() {
    let (world, layers) = world();
    let one = scope("one");
    let snapshotter = world.snapshotter(&one);
    let below = layers.know("sha256:1", None);
    layers.know("sha256:2", Some("elsewhere"));

    let request = labels(&[(REF, "sha256:1"), ("mine", "yes"), ("origin", "near")]);
    let error = snapshotter.prepare(&key("extract"), None, &request).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists(chain) if chain == "sha256:1"));
    let info = snapshotter.stat("sha256:1").unwrap();
    assert_eq!(info.kind, Kind::Committed);
    assert_eq!(info.labels["mine"], "yes");
    assert_eq!(info.labels["origin"], "near", "the request's labels win");
    assert_eq!(info.labels["containerd.io/snapshot/remote"], "yes");

    // A child of the adopted layer stands on it below, too.
    world.active(&one, "top", Some("sha256:1"));
    assert_eq!(layers.stat("one/2/top").unwrap().parent, Some(name(&below)));

    // A second namespace adopts the same layer, which then lives until both are done with it.
    let two = scope("two");
    assert!(world.snapshotter(&two).prepare(&key("extract"), None, &request).is_err());
    assert!(world.has_snapshot(&two, "sha256:1"));
    world.db.containers().create(&one, metadata_support::container("c", Some("top"))).unwrap();
    world.snapshotter(&two).remove("sha256:1").unwrap();
    world.collect();
    assert!(world.has_snapshot(&one, "sha256:1") && layers.stat(&below).is_ok());
}

#[test]
fn a_layer_on_another_parent_is_not_adopted() {
    let (world, layers) = world();
    layers.know("sha256:2", Some("elsewhere"));
    let snapshotter = world.snapshotter(&scope("default"));
    let request = labels(&[(REF, "sha256:2")]);
    let error = snapshotter.prepare(&key("extract"), None, &request).unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
    assert!(!world.has_snapshot(&scope("default"), "sha256:2"));
}

/// Says that everything exists already, and never what.
struct Stubborn;

impl Snapshotter for Stubborn {
    fn stat(&self, key: &str) -> crated_snapshot::Result<crated_snapshot::Info> {
        Err(Error::NotFound(key.to_owned()))
    }
    fn update(&self, key: &str, _: &LabelUpdate) -> crated_snapshot::Result<crated_snapshot::Info> {
        Err(Error::NotFound(key.to_owned()))
    }
    fn usage(&self, key: &str) -> crated_snapshot::Result<crated_snapshot::Usage> {
        Err(Error::NotFound(key.to_owned()))
    }
    fn mounts(&self, key: &Key) -> crated_snapshot::Result<Vec<crated_snapshot::Mount>> {
        Err(Error::NotFound(key.to_string()))
    }
    fn prepare(
        &self,
        key: &Key,
        _: Option<&Name>,
        _: &Labels,
    ) -> crated_snapshot::Result<Vec<crated_snapshot::Mount>> {
        Err(Error::AlreadyExists(key.to_string()))
    }
    fn view(
        &self,
        key: &Key,
        _: Option<&Name>,
        _: &Labels,
    ) -> crated_snapshot::Result<Vec<crated_snapshot::Mount>> {
        Err(Error::AlreadyExists(key.to_string()))
    }
    fn commit(&self, name: &Name, _: &Key, _: &CommitOptions) -> crated_snapshot::Result<()> {
        Err(Error::AlreadyExists(name.to_string()))
    }
    fn remove(&self, key: &str) -> crated_snapshot::Result<()> {
        Err(Error::NotFound(key.to_owned()))
    }
    fn walk(
        &self,
        _: &mut dyn FnMut(crated_snapshot::Info) -> ControlFlow<()>,
    ) -> crated_snapshot::Result<()> {
        Ok(())
    }
    fn cleanup(&self) -> crated_snapshot::Result<()> {
        Ok(())
    }
}

#[test]
fn clients_never_hear_exists_without_anything_existing() {
    let root = tempfile::tempdir().unwrap();
    let world =
        World::over(root, Arc::new(MemoryStore::new()), Arc::new(Stubborn), Sharing::Shared);
    let snapshotter = world.snapshotter(&scope("default"));
    let error = snapshotter.prepare(&key("k"), None, &Labels::new()).unwrap_err();
    assert!(!matches!(error, Error::AlreadyExists(_)), "{error}");
    let error = snapshotter.prepare(&key("k"), None, &labels(&[(REF, "sha256:1")])).unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
}

#[test]
fn only_labels_that_concern_it_reach_the_snapshotter() {
    let (world, layers) = world();
    let snapshotter = world.snapshotter(&scope("default"));
    let all = labels(&[
        ("containerd.io/snapshot/cri.layer", "1"),
        (REF, "sha256:1"),
        ("containerd.io/gc.root", "x"),
        ("own", "2"),
        ("empty", ""),
    ]);
    snapshotter.prepare(&key("k"), None, &all).unwrap();
    let below = layers.stat("default/1/k").unwrap();
    assert_eq!(
        below.labels,
        labels(&[("containerd.io/snapshot/cri.layer", "1"), (REF, "sha256:1")])
    );
    assert_eq!(snapshotter.stat("k").unwrap().labels.len(), 4);

    let update = LabelUpdate::Replace(labels(&[("containerd.io/snapshot/other", "3"), ("x", "4")]));
    let info = snapshotter.update("k", &update).unwrap();
    assert_eq!(info.labels, labels(&[("containerd.io/snapshot/other", "3"), ("x", "4")]));
    let below = layers.stat("default/1/k").unwrap();
    assert_eq!(below.labels, labels(&[("containerd.io/snapshot/other", "3")]));
    let long = LabelUpdate::Replace(labels(&[("k", &"v".repeat(4096))]));
    assert!(matches!(snapshotter.update("k", &long), Err(Error::InvalidArgument { .. })));
}

#[test]
fn commit_can_put_a_layer_on_its_parent() {
    let (world, layers) = world();
    let scope = scope("default");
    let snapshotter = world.snapshotter(&scope);
    world.layer(&scope, "base", None, &[]);
    world.layer(&scope, "other", None, &[]);
    world.active(&scope, "loose", None);
    let on =
        |parent: &str| CommitOptions { parent: Some(name(parent)), ..CommitOptions::default() };
    let error = snapshotter.commit(&name("top"), &key("loose"), &on("missing")).unwrap_err();
    assert!(matches!(error, Error::NotFound(parent) if parent == "missing"));
    snapshotter.commit(&name("top"), &key("loose"), &on("base")).unwrap();
    assert_eq!(snapshotter.stat("top").unwrap().parent, Some(name("base")));
    assert!(matches!(snapshotter.remove("base"), Err(Error::FailedPrecondition { .. })));

    world.active(&scope, "fixed", Some("base"));
    let error = snapshotter.commit(&name("top2"), &key("fixed"), &on("other")).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    snapshotter.commit(&name("top2"), &key("fixed"), &on("base")).unwrap();
    assert_eq!(layers.names().len(), 4);
}

#[test]
fn a_chain_is_removed_children_first() {
    let (world, layers) = world();
    let scope = scope("default");
    let mut parent: Option<String> = None;
    for number in 0..50 {
        let name = format!("layer-{number:02}");
        world.layer(&scope, &name, parent.as_deref(), &[]);
        parent = Some(name);
    }
    let snapshotter = world.snapshotter(&scope);
    assert!(matches!(snapshotter.remove("layer-20"), Err(Error::FailedPrecondition { .. })));
    let report = world.collect();
    assert_eq!((report.removed.len(), report.snapshots_removed), (50, 50));
    let removed = layers.removed.lock().unwrap().clone();
    assert!(removed[0].ends_with("layer-49") && removed[49].ends_with("layer-00"));
    assert_eq!(*layers.cleanups.lock().unwrap(), 1);
}

#[test]
fn a_record_whose_snapshot_vanished_gives_way() {
    let (world, layers) = world();
    let scope = scope("default");
    world.active(&scope, "k", None);
    layers.lose("default/1/k");
    let snapshotter = world.snapshotter(&scope);
    assert!(matches!(snapshotter.stat("k"), Err(Error::NotFound(k)) if k == "k"));
    assert_eq!(walked(&snapshotter, ""), Vec::<String>::new());
    snapshotter.prepare(&key("k"), None, &Labels::new()).unwrap();
    assert!(world.has_snapshot(&scope, "k"));
}

#[test]
fn filters_see_kind_parent_and_labels() {
    let (world, _) = world();
    let scope = scope("default");
    world.layer(&scope, "base", None, &[("a.b/c", "1")]);
    world.layer(&scope, "top", Some("base"), &[]);
    world.active(&scope, "work", Some("top"));
    let snapshotter = world.snapshotter(&scope);
    snapshotter.view(&key("look"), Some(&name("top")), &Labels::new()).unwrap();
    for (filter, expected) in [
        ("kind==active", vec!["work"]),
        ("kind==view", vec!["look"]),
        ("kind==committed,parent==\"\"", vec!["base"]),
        ("parent==top", vec!["look", "work"]),
        ("labels.\"a.b/c\"==1", vec!["base"]),
        ("name~=^t", vec!["top"]),
    ] {
        assert_eq!(walked(&snapshotter, filter), expected, "{filter}");
    }
}

#[test]
fn events_tell_of_everything_but_views() {
    let (world, _) = world();
    let scope = scope("default");
    world.layer(&scope, "base", None, &[]);
    let snapshotter = world.snapshotter(&scope);
    snapshotter.view(&key("look"), Some(&name("base")), &Labels::new()).unwrap();
    snapshotter.remove("look").unwrap();
    assert_eq!(
        world.events.topics(),
        ["/snapshot/prepare", "/snapshot/commit", "/snapshot/remove"]
    );
}

#[test]
fn keys_as_long_as_the_limit_work() {
    let (world, _) = world();
    let long = "k".repeat(crated_snapshot::KEY_LENGTH_MAX);
    world.active(&scope("default"), &long, None);
    assert!(world.has_snapshot(&scope("default"), &long));
}

#[test]
fn what_a_power_cut_took_below_goes_from_the_records() {
    let (world, layers) = world();
    let (one, two) = (scope("one"), scope("two"));
    world.layer(&one, "sha256:1", None, &[]);
    world.layer(&one, "sha256:2", Some("sha256:1"), &[]);
    world.active(&one, "container", Some("sha256:2"));
    world.layer(&two, "sha256:1", None, &[]);
    assert_eq!(world.snapshots.drop_lost().unwrap(), 0);

    for name in layers.names() {
        if name.starts_with("one/") && !name.ends_with("sha256:1") {
            layers.lose_power(&name);
        }
    }
    assert_eq!(world.snapshots.drop_lost().unwrap(), 2);
    assert_eq!(walked(&world.snapshotter(&one), ""), ["sha256:1"]);
    assert!(world.has_snapshot(&two, "sha256:1"));
    assert_eq!(layers.lost().unwrap(), [""; 0], "acknowledged");
    // The way is free to unpack the layer again.
    world.layer(&one, "sha256:2", Some("sha256:1"), &[]);
    world.active(&one, "container", Some("sha256:2"));
}

#[test]
fn what_the_daemon_was_unpacking_when_it_was_killed_goes_and_what_clients_unpack_stays() {
    let (world, _) = world();
    let (one, two) = (scope("one"), scope("two"));
    let own = labels(&[(LABEL_UNPACKING, "pipeline")]);
    let none = Labels::new();
    for scope in [&one, &two] {
        world.layer(scope, "sha256:1", None, &[]);
        let snapshotter = world.snapshotter(scope);
        let parent = name("sha256:1");
        for (at, labels) in [
            ("extract-1-1-1 sha256:2", &own),
            ("extract-1-1-2 sha256:3", &own),
            ("extract-1-client sha256:2", &none),
            ("container", &own),
        ] {
            snapshotter.prepare(&key(at), Some(&parent), labels).unwrap();
        }
        let options = CommitOptions { labels: own.clone(), parent: None };
        let committed = name("extract-committed");
        snapshotter.commit(&committed, &key("extract-1-1-2 sha256:3"), &options).unwrap();
    }

    assert_eq!(world.snapshots.drop_unfinished().unwrap(), 2);

    for scope in [&one, &two] {
        let left = walked(&world.snapshotter(scope), "");
        let kept = ["container", "extract-1-client sha256:2", "extract-committed", "sha256:1"];
        assert_eq!(left, kept);
    }
    assert_eq!(world.snapshots.drop_unfinished().unwrap(), 0);
}
