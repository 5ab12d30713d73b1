//! Records of images, containers, leases and namespaces.

mod metadata_support;

use crated::filters::Filters;
use crated::metadata::{
    ContainerUpdate, Error, ImageUpdate, LabelUpdate, Labels, Object, Resource, Target,
};
use crated_content::Digest;
use metadata_support::{World, any, container, image, labels, scope};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

fn filters(filter: &str) -> Filters {
    Filters::parse(&[filter]).unwrap()
}

fn merge(pairs: &[(&str, Option<&str>)]) -> LabelUpdate {
    let changes = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)));
    LabelUpdate::Merge(changes.collect())
}

#[test]
fn an_image_is_created_found_changed_and_removed() {
    let world = World::new();
    let (images, scope) = (world.db.images(), scope("default"));
    let target = Digest::of(b"manifest");
    let name = "docker.io/library/alpine:3 @weird";

    let before = SystemTime::now();
    let made = images.create(&scope, image(name, &target, &[("a", "1"), ("e", "")]), None).unwrap();
    assert!(made.created_at >= before && made.created_at == made.updated_at);
    assert_eq!(made.labels, labels(&[("a", "1")]), "labels without value do not exist");
    assert_eq!(images.image(&scope, name).unwrap(), made);
    assert!(matches!(
        images.create(&scope, image(name, &target, &[]), None),
        Err(Error::AlreadyExists { object: Object::Image, .. })
    ));

    let update = ImageUpdate {
        labels: Some(merge(&[("b", Some("2")), ("a", None)])),
        ..ImageUpdate::default()
    };
    let changed = images.update(&scope, name, update, None).unwrap();
    assert_eq!(changed.labels, labels(&[("b", "2")]));
    assert_eq!((changed.created_at, &changed.target), (made.created_at, &made.target));

    let other = Digest::of(b"other");
    assert!(matches!(
        images.delete(&scope, name, Some(&other)),
        Err(Error::NotFound { object: Object::Image, .. })
    ));
    images.delete(&scope, name, Some(&target)).unwrap();
    assert!(matches!(images.image(&scope, name), Err(Error::NotFound { .. })));
    assert!(matches!(images.delete(&scope, name, None), Err(Error::NotFound { .. })));
    assert_eq!(world.events.topics(), ["/images/create", "/images/update", "/images/delete"]);
}

#[test]
fn an_image_update_without_mask_replaces_labels_and_target() {
    let world = World::new();
    let (images, scope) = (world.db.images(), scope("default"));
    images.create(&scope, image("i", &Digest::of(b"1"), &[("a", "1")]), None).unwrap();
    let mut new = image("i", &Digest::of(b"2"), &[("b", "2")]);
    new.target.annotations = labels(&[("note", "x")]);
    let epoch = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123);
    let changed = images.update(&scope, "i", ImageUpdate::replace(new), Some(epoch)).unwrap();
    assert_eq!(changed.labels, labels(&[("b", "2")]));
    assert_eq!(changed.target.digest, Digest::of(b"2"));
    assert_eq!(changed.updated_at, epoch);

    let annotate =
        ImageUpdate { annotations: Some(merge(&[("more", Some("y"))])), ..ImageUpdate::default() };
    let changed = images.update(&scope, "i", annotate, None).unwrap();
    assert_eq!(changed.target.annotations, labels(&[("more", "y"), ("note", "x")]));
    assert!(matches!(
        images.update(&scope, "missing", ImageUpdate::default(), None),
        Err(Error::NotFound { .. })
    ));
}

#[test]
fn an_epoch_before_1970_and_nanoseconds_are_kept() {
    let world = World::new();
    let scope = scope("default");
    let epoch = SystemTime::UNIX_EPOCH - Duration::from_nanos(1_500_000_001);
    let target = Digest::of(b"x");
    world.db.images().create(&scope, image("i", &target, &[]), Some(epoch)).unwrap();
    let kept = world.db.images().image(&scope, "i").unwrap();
    assert_eq!((kept.created_at, kept.updated_at), (epoch, epoch));
}

#[test]
fn malformed_images_are_refused() {
    let world = World::new();
    let (images, scope) = (world.db.images(), scope("default"));
    let good = image("i", &Digest::of(b"x"), &[]);
    let target = |change: fn(&mut Target)| {
        let mut image = good.clone();
        change(&mut image.target);
        image
    };
    let mut nameless = good.clone();
    nameless.name.clear();
    let mut labelled = good.clone();
    labelled.labels.insert("k".to_owned(), "v".repeat(4096));
    for bad in [
        nameless,
        labelled,
        target(|target| target.size_bytes = 0),
        target(|target| target.media_type.clear()),
    ] {
        let error = images.create(&scope, bad, None).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
    assert!(images.list(&scope, &Filters::all()).unwrap().is_empty());
    assert!(matches!(images.image(&scope, ""), Err(Error::InvalidArgument { .. })));
}

#[test]
fn images_are_listed_by_filter_in_name_order() {
    let world = World::new();
    let (images, scope) = (world.db.images(), scope("default"));
    let target = Digest::of(b"shared");
    for name in ["c", "a", "b"] {
        let target = if name == "c" { Digest::of(b"own") } else { target.clone() };
        images.create(&scope, image(name, &target, &[("n", name)]), None).unwrap();
    }
    let names = |filter: &str| -> Vec<String> {
        let found = images.list(&scope, &filters(filter)).unwrap();
        found.into_iter().map(|image| image.name).collect()
    };
    assert_eq!(names(""), ["a", "b", "c"]);
    assert_eq!(names(&format!("target.digest=={target}")), ["a", "b"]);
    assert_eq!(names("labels.n==b"), ["b"]);
    assert_eq!(names("name~=[ac]"), ["a", "c"]);
    assert_eq!(names("target.mediatype~=manifest,name!=a"), ["b", "c"]);
}

#[test]
fn containers_come_back_byte_for_byte() {
    let world = World::new();
    let (containers, scope) = (world.db.containers(), scope("moby"));
    let mut made = container("c1", Some("k"));
    made.runtime.options = Some(any("containerd.runc.v1.Options", &[0xff, 0, 1]));
    made.spec = any("some/unknown/type", b"{ \"a\":  1 }\n");
    made.extensions = BTreeMap::from([("x.y/z".to_owned(), any("", &[1, 2, 3]))]);
    made.image = Some("not/there:yet".to_owned());
    made.sandbox = Some("s".to_owned());
    let made = containers.create(&scope, made).unwrap();
    assert_eq!(containers.container(&scope, "c1").unwrap(), made);
    assert_eq!(containers.list(&scope, &filters("runtime.name~=runc,image~=yet")).unwrap(), [made]);
    assert!(matches!(
        containers.create(&scope, container("c1", None)),
        Err(Error::AlreadyExists { object: Object::Container, .. })
    ));
}

#[test]
fn a_container_update_changes_what_it_names() {
    let world = World::new();
    let (containers, scope) = (world.db.containers(), scope("moby"));
    let mut made = container("c1", Some("k"));
    made.labels = labels(&[("keep", "1"), ("drop", "2")]);
    made.extensions = BTreeMap::from([("a".to_owned(), any("t", b"1"))]);
    let made = containers.create(&scope, made).unwrap();

    let update = ContainerUpdate {
        labels: Some(merge(&[("drop", Some("")), ("new", Some("3"))])),
        extensions: BTreeMap::from([("b".to_owned(), any("t", b"2"))]),
        ..ContainerUpdate::default()
    };
    let changed = containers.update(&scope, "c1", update).unwrap();
    assert_eq!(changed.labels, labels(&[("keep", "1"), ("new", "3")]));
    assert_eq!(changed.extensions.len(), 2, "extensions not named stay");
    assert_eq!((&changed.spec, changed.created_at), (&made.spec, made.created_at));

    let mut whole = changed.clone();
    whole.snapshot_key = Some("other".to_owned());
    whole.labels = Labels::new();
    let changed = containers.update(&scope, "c1", ContainerUpdate::replace(whole.clone())).unwrap();
    assert_eq!(changed.snapshot_key.as_deref(), Some("other"));
    assert!(changed.labels.is_empty());

    for change in [
        |it: &mut crated::metadata::Container| it.runtime.name = "other".to_owned(),
        |it: &mut crated::metadata::Container| it.snapshotter = Some("other".to_owned()),
    ] {
        let mut bad = whole.clone();
        change(&mut bad);
        let error = containers.update(&scope, "c1", ContainerUpdate::replace(bad)).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
    assert_eq!(
        world.events.topics(),
        ["/containers/create", "/containers/update", "/containers/update"]
    );
}

#[test]
fn malformed_containers_are_refused() {
    let world = World::new();
    let (containers, scope) = (world.db.containers(), scope("moby"));
    let mut bad = vec![container("", None), container("a/b", None), container("a..b", None)];
    let mut nameless = container("c", None);
    nameless.runtime.name.clear();
    let mut keyed = container("c", Some("k"));
    keyed.snapshotter = None;
    let mut extended = container("c", None);
    extended.extensions.insert(String::new(), any("t", b""));
    bad.extend([nameless, keyed, extended]);
    for bad in bad {
        let error = containers.create(&scope, bad).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
    assert!(matches!(containers.container(&scope, "none"), Err(Error::NotFound { .. })));
    assert!(matches!(containers.delete(&scope, "none"), Err(Error::NotFound { .. })));
}

#[test]
fn leases_hold_resources_that_need_not_exist() {
    let world = World::new();
    let (leases, namespace) = (world.db.leases(), scope("buildkit").namespace);
    let generated = leases.create(&namespace, None, &Labels::new()).unwrap();
    let again = leases.create(&namespace, None, &Labels::new()).unwrap();
    assert_ne!(generated.id, again.id);
    leases.create(&namespace, Some("mine"), &labels(&[("k", "v")])).unwrap();
    assert!(matches!(
        leases.create(&namespace, Some("mine"), &Labels::new()),
        Err(Error::AlreadyExists { object: Object::Lease, .. })
    ));

    let resource = |kind: &str, id: &str| Resource { kind: kind.to_owned(), id: id.to_owned() };
    let digest = Digest::of(b"x").to_string();
    for resource in [
        resource("content", &digest),
        resource("ingests", "ref"),
        resource("images", "name"),
        resource("snapshots/overlayfs", "key with / and spaces"),
    ] {
        leases.add_resource(&namespace, "mine", &resource).unwrap();
        leases.add_resource(&namespace, "mine", &resource).unwrap();
        assert!(leases.resources(&namespace, "mine").unwrap().contains(&resource));
    }
    assert_eq!(leases.resources(&namespace, "mine").unwrap().len(), 4);
    leases.delete_resource(&namespace, "mine", &resource("images", "name")).unwrap();
    leases.delete_resource(&namespace, "mine", &resource("images", "name")).unwrap();
    assert_eq!(leases.resources(&namespace, "mine").unwrap().len(), 3);

    for (bad, unknown) in [
        (resource("content", "nodigest"), false),
        (resource("snapshots", "k"), false),
        (resource("snapshots/", "k"), false),
        (resource("volumes", "k"), true),
    ] {
        let error = leases.add_resource(&namespace, "mine", &bad).unwrap_err();
        if unknown {
            assert!(matches!(error, Error::Unimplemented { .. }), "{error}");
        } else {
            let invalid = matches!(
                error,
                Error::InvalidArgument { .. }
                    | Error::Content(crated_content::Error::InvalidDigest { .. })
            );
            assert!(invalid, "{error}");
        }
    }
    assert!(matches!(
        leases.add_resource(&namespace, "none", &resource("ingests", "r")),
        Err(Error::NotFound { object: Object::Lease, .. })
    ));
    assert!(matches!(leases.resources(&namespace, "none"), Err(Error::NotFound { .. })));

    assert_eq!(leases.list(&namespace, &filters("labels.k==v")).unwrap().len(), 1);
    assert_eq!(leases.list(&namespace, &filters("id==mine")).unwrap()[0].id, "mine");
    leases.delete(&namespace, "mine").unwrap();
    assert!(matches!(leases.delete(&namespace, "mine"), Err(Error::NotFound { .. })));
    leases.create(&namespace, Some("mine"), &Labels::new()).unwrap();
    assert!(leases.resources(&namespace, "mine").unwrap().is_empty(), "a new lease holds nothing");
}

#[test]
fn names_with_nul_and_newlines_stay_apart() {
    let world = World::new();
    let (leases, namespace) = (world.db.leases(), scope("default").namespace);
    let ids = ["a", "a\0", "a\0\u{1}b", "a\nb", "../../x", "a\0\u{1}"];
    for id in ids {
        leases.create(&namespace, Some(id), &Labels::new()).unwrap();
        let resource = Resource { kind: "ingests".to_owned(), id: format!("of {id}") };
        leases.add_resource(&namespace, id, &resource).unwrap();
    }
    for id in ids {
        let held = leases.resources(&namespace, id).unwrap();
        assert_eq!(held.len(), 1, "{id:?}");
        assert_eq!(held[0].id, format!("of {id}"));
    }
    assert_eq!(leases.list(&namespace, &Filters::all()).unwrap().len(), ids.len());
}

#[test]
fn a_lease_that_does_not_exist_is_not_found() {
    let world = World::new();
    let scope = scope("default").with_lease("none");
    let expiring =
        image("i", &Digest::of(b"x"), &[("containerd.io/gc.expire", "2100-01-01T00:00:00Z")]);
    assert!(matches!(
        world.db.images().create(&scope, expiring, None),
        Err(Error::LeaseNotFound { .. })
    ));
    // Images that do not expire are not leased, so the lease does not matter.
    world.db.images().create(&scope, image("i", &Digest::of(b"x"), &[]), None).unwrap();
}

#[test]
fn only_images_that_expire_are_leased() {
    let world = World::new();
    let namespace = scope("default").namespace;
    world.db.leases().create(&namespace, Some("l"), &Labels::new()).unwrap();
    let scope = scope("default").with_lease("l");
    let target = Digest::of(b"x");
    world.image(&scope, "stays", &target, &[]);
    world.image(&scope, "goes", &target, &[("containerd.io/gc.expire", "2001-01-01T00:00:00Z")]);
    let held = world.db.leases().resources(&namespace, "l").unwrap();
    assert_eq!(held, [Resource { kind: "images".to_owned(), id: "goes".to_owned() }]);
}

#[test]
fn namespaces_appear_with_their_first_object() {
    let world = World::new();
    let namespaces = world.db.namespaces();
    let name = scope("fresh").namespace;
    assert_eq!(namespaces.labels(&name).unwrap(), None);
    world.db.leases().create(&name, Some("l"), &Labels::new()).unwrap();
    assert_eq!(namespaces.labels(&name).unwrap(), Some(Labels::new()));
    assert_eq!(namespaces.list().unwrap().len(), 1);
    assert!(matches!(
        namespaces.create(&name, &Labels::new()),
        Err(Error::AlreadyExists { object: Object::Namespace, .. })
    ));
    assert!(world.events.take().is_empty(), "implicit creation is not announced");
}

#[test]
fn namespace_labels_are_created_merged_and_replaced() {
    let world = World::new();
    let namespaces = world.db.namespaces();
    let name = scope("n").namespace;
    namespaces.create(&name, &labels(&[("a", "1"), ("b", "")])).unwrap();
    assert_eq!(namespaces.labels(&name).unwrap(), Some(labels(&[("a", "1")])));
    namespaces.update(&name, &merge(&[("c", Some("3"))])).unwrap();
    assert_eq!(namespaces.labels(&name).unwrap(), Some(labels(&[("a", "1"), ("c", "3")])));
    namespaces.update(&name, &LabelUpdate::Replace(labels(&[("d", "4")]))).unwrap();
    assert_eq!(namespaces.labels(&name).unwrap(), Some(labels(&[("d", "4")])));
    let missing = scope("missing").namespace;
    assert!(matches!(namespaces.update(&missing, &merge(&[])), Err(Error::NotFound { .. })));
    let long = labels(&[("k", &"v".repeat(4096))]);
    assert!(matches!(
        namespaces.update(&name, &LabelUpdate::Replace(long)),
        Err(Error::InvalidArgument { .. })
    ));
    assert_eq!(
        world.events.topics(),
        ["/namespaces/create", "/namespaces/update", "/namespaces/update"]
    );
}

#[test]
fn only_empty_namespaces_are_removed_and_leases_do_not_count() {
    let world = World::new();
    let (namespaces, scope) = (world.db.namespaces(), scope("n"));
    let digest = world.blob(&scope, b"bytes", &[]);
    world.image(&scope, "i", &digest, &[]);
    world.db.containers().create(&scope, container("c", None)).unwrap();
    world.active(&scope, "k", None);
    world.db.leases().create(&scope.namespace, Some("l"), &Labels::new()).unwrap();

    let error = namespaces.delete(&scope.namespace).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::FailedPrecondition { .. }), "{text}");
    for what in ["images", "blobs", "containers", "snapshots on native snapshotter"] {
        assert!(text.contains(what), "{text} does not mention {what}");
    }
    assert!(!text.contains("lease"), "{text}");

    world.db.images().delete(&scope, "i", None).unwrap();
    world.db.containers().delete(&scope, "c").unwrap();
    world.collect();
    namespaces.delete(&scope.namespace).unwrap();
    assert!(matches!(namespaces.delete(&scope.namespace), Err(Error::NotFound { .. })));
    assert_eq!(world.db.leases().list(&scope.namespace, &Filters::all()).unwrap(), []);
}

#[test]
fn namespaces_do_not_see_each_other() {
    let world = World::new();
    let (one, two) = (scope("one"), scope("two"));
    world.image(&one, "i", &Digest::of(b"1"), &[]);
    world.image(&two, "i", &Digest::of(b"2"), &[]);
    world.image(&scope("one-more"), "j", &Digest::of(b"3"), &[]);
    assert_eq!(world.db.images().list(&one, &Filters::all()).unwrap().len(), 1);
    world.db.images().delete(&one, "i", None).unwrap();
    assert!(world.has_image(&two, "i"));
}
