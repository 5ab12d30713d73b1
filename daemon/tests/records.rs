//! Namespaces, images, containers and leases through the sockets, as clients use them.

mod common;

use common::{Fixture, in_namespace, labels, mask, with_lease};
use crated_api::Any;
use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest,
    ListContainersRequest, UpdateContainerRequest, container::Runtime,
};
use crated_api::services::images::v1::images_client::ImagesClient;
use crated_api::services::images::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
    UpdateImageRequest,
};
use crated_api::services::leases::v1::leases_client::LeasesClient;
use crated_api::services::leases::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, ListResourcesRequest, Resource,
};
use crated_api::services::namespaces::v1::namespaces_client::NamespacesClient;
use crated_api::services::namespaces::v1::{
    CreateNamespaceRequest, DeleteNamespaceRequest, GetNamespaceRequest, ListNamespacesRequest,
    Namespace, UpdateNamespaceRequest,
};
use crated_api::types::Descriptor;
use tonic::Code;

fn image(name: &str, pairs: &[(&str, &str)]) -> Image {
    Image {
        name: name.into(),
        labels: labels(pairs),
        target: Some(Descriptor {
            media_type: "application/vnd.oci.image.index.v1+json".into(),
            digest: format!("sha256:{}", "a".repeat(64)),
            size: 7,
            annotations: labels(&[("note", "kept")]),
        }),
        ..Image::default()
    }
}

fn container(id: &str) -> Container {
    Container {
        id: id.into(),
        labels: labels(&[("a", "1"), ("b", "2")]),
        image: "docker.io/library/x:1".into(),
        runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: None }),
        spec: Some(Any { type_url: "types.example/Odd".into(), value: vec![0, 255, 7] }),
        snapshotter: "overlayfs".into(),
        snapshot_key: id.into(),
        extensions: [("one".to_owned(), Any { type_url: "t".into(), value: vec![1] })].into(),
        ..Container::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_exists_from_its_first_write_on() {
    let daemon = Fixture::start().await;
    let mut namespaces = NamespacesClient::new(daemon.channel.clone());
    let unknown = namespaces.get(GetNamespaceRequest { name: "fresh".into() }).await.unwrap();
    assert_eq!(
        unknown.into_inner().namespace.unwrap(),
        Namespace { name: "fresh".into(), ..Namespace::default() }
    );
    assert!(list_namespaces(&mut namespaces).await.is_empty(), "a look creates nothing");

    daemon.store("fresh", b"x").await;
    assert_eq!(list_namespaces(&mut namespaces).await, ["fresh"]);

    let busy =
        namespaces.delete(DeleteNamespaceRequest { name: "fresh".into() }).await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition, "{busy}");
    let invalid = namespaces.get(GetNamespaceRequest { name: "no/slash".into() }).await;
    assert_eq!(invalid.unwrap_err().code(), Code::InvalidArgument);
}

async fn list_namespaces(client: &mut NamespacesClient<tonic::transport::Channel>) -> Vec<String> {
    let answer = client.list(ListNamespacesRequest::default()).await.unwrap().into_inner();
    answer.namespaces.into_iter().map(|namespace| namespace.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn namespace_labels_change_one_by_one_or_all_at_once() {
    let daemon = Fixture::start().await;
    let mut namespaces = NamespacesClient::new(daemon.channel.clone());
    let record = Namespace { name: "n".into(), labels: labels(&[("a", "1"), ("b", "2")]) };
    let create = CreateNamespaceRequest { namespace: Some(record.clone()) };
    namespaces.create(create.clone()).await.unwrap();
    assert_eq!(namespaces.create(create).await.unwrap_err().code(), Code::AlreadyExists);

    let update = |labels_of: &[(&str, &str)], paths: Option<&[&str]>| UpdateNamespaceRequest {
        namespace: Some(Namespace { name: "n".into(), labels: labels(labels_of) }),
        update_mask: paths.and_then(mask),
    };
    namespaces.update(update(&[("a", "9")], Some(&["labels.a"]))).await.unwrap();
    let found = namespaces.get(GetNamespaceRequest { name: "n".into() }).await.unwrap();
    assert_eq!(found.into_inner().namespace.unwrap().labels, labels(&[("a", "9"), ("b", "2")]));
    let bare = namespaces.update(update(&[], Some(&["labels"]))).await.unwrap_err();
    assert_eq!(bare.code(), Code::InvalidArgument);
    namespaces.update(update(&[("c", "3")], None)).await.unwrap();
    let found = namespaces.get(GetNamespaceRequest { name: "n".into() }).await.unwrap();
    assert_eq!(found.into_inner().namespace.unwrap().labels, labels(&[("c", "3")]));
    namespaces.delete(DeleteNamespaceRequest { name: "n".into() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn image_masks_change_what_they_name_and_nothing_else() {
    let daemon = Fixture::start().await;
    let mut images = ImagesClient::new(daemon.channel.clone());
    let create = CreateImageRequest {
        image: Some(image("docker.io/library/x:1", &[("a", "1"), ("b", "2")])),
        ..Default::default()
    };
    let created =
        images.create(in_namespace("n", create.clone())).await.unwrap().into_inner().image.unwrap();
    assert_eq!(created.target.as_ref().unwrap().annotations, labels(&[("note", "kept")]));
    let again = images.create(in_namespace("n", create)).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    assert!(again.message().ends_with(": already exists"), "{}", again.message());

    let mut changed = image("docker.io/library/x:1", &[("a", "9"), ("containerd.io/x.y", "z")]);
    changed.target.as_mut().unwrap().digest = format!("sha256:{}", "b".repeat(64));
    let request = |paths: &[&str]| {
        let image = Some(changed.clone());
        let update_mask = mask(paths);
        in_namespace("n", UpdateImageRequest { image, update_mask, ..Default::default() })
    };
    let one = images.update(request(&["labels.containerd.io/x.y"])).await.unwrap();
    let one = one.into_inner().image.unwrap();
    assert_eq!(one.labels, labels(&[("a", "1"), ("b", "2"), ("containerd.io/x.y", "z")]));
    assert_eq!(one.target, created.target);
    assert_eq!(one.created_at, created.created_at);
    let target = images.update(request(&["target"])).await.unwrap().into_inner().image.unwrap();
    assert_eq!(target.target, changed.target);
    assert_eq!(target.labels, one.labels);
    let unknown = images.update(request(&["name"])).await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);

    let replace = UpdateImageRequest {
        image: Some(image("docker.io/library/x:1", &[("only", "this")])),
        ..Default::default()
    };
    let all = images.update(in_namespace("n", replace)).await.unwrap().into_inner().image.unwrap();
    assert_eq!(all.labels, labels(&[("only", "this")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_found_by_filter_and_deleted_by_target() {
    let daemon = Fixture::start().await;
    let mut images = ImagesClient::new(daemon.channel.clone());
    for name in ["docker.io/library/x:1", "docker.io/library/y:1", "moby-dangling@sha256:1"] {
        let image = Some(image(name, &[]));
        let create = CreateImageRequest { image, ..Default::default() };
        images.create(in_namespace("n", create)).await.unwrap();
    }
    let filters =
        vec!["name==docker.io/library/x:1".to_owned(), r#"name~="^moby-dangling@""#.to_owned()];
    let list = images.list(in_namespace("n", ListImagesRequest { filters })).await.unwrap();
    let names: Vec<_> = list.into_inner().images.into_iter().map(|image| image.name).collect();
    assert_eq!(names, ["docker.io/library/x:1", "moby-dangling@sha256:1"]);
    let bad = ListImagesRequest { filters: vec!["name==\"open".into()] };
    let bad = images.list(in_namespace("n", bad)).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);

    let delete = |digit: &str| DeleteImageRequest {
        name: "docker.io/library/x:1".into(),
        sync: true,
        target: Some(Descriptor {
            digest: format!("sha256:{}", digit.repeat(64)),
            ..Descriptor::default()
        }),
    };
    let other = images.delete(in_namespace("n", delete("b"))).await.unwrap_err();
    assert_eq!(other.code(), Code::NotFound);
    images.delete(in_namespace("n", delete("a"))).await.unwrap();
    let get = GetImageRequest { name: "docker.io/library/x:1".into() };
    let gone = images.get(in_namespace("n", get)).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert!(gone.message().ends_with(": not found"), "{}", gone.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_image_is_refused() {
    let daemon = Fixture::start().await;
    let mut images = ImagesClient::new(daemon.channel.clone());
    let mut broken = [image("", &[]), image("x", &[]), image("x", &[]), image("x", &[])];
    broken[1].target.as_mut().unwrap().digest = "sha256:short".into();
    broken[2].target.as_mut().unwrap().size = 0;
    broken[3].target = None;
    for image in broken {
        let create = CreateImageRequest { image: Some(image), ..Default::default() };
        let error = images.create(in_namespace("n", create)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    let image = Some(image("x", &[]));
    let nowhere = CreateImageRequest { image, ..Default::default() };
    let error = images.create(tonic::Request::new(nowhere)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("namespace is required"), "{}", error.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn container_masks_change_what_they_name_and_keep_opaque_bytes() {
    let daemon = Fixture::start().await;
    let mut containers = ContainersClient::new(daemon.channel.clone());
    let create = CreateContainerRequest { container: Some(container("web")) };
    let created = containers.create(in_namespace("n", create)).await.unwrap();
    let created = created.into_inner().container.unwrap();
    assert_eq!(created.spec, container("web").spec);

    let mut changed = container("web");
    changed.labels = labels(&[("a", "9")]);
    changed.snapshot_key = "other".into();
    changed.extensions = [("two".to_owned(), Any { type_url: "t".into(), value: vec![2] })].into();
    let request = |paths: &[&str]| {
        let container = Some(changed.clone());
        in_namespace("n", UpdateContainerRequest { container, update_mask: mask(paths) })
    };
    let updated = containers.update(request(&["labels.a", "extensions.two"])).await.unwrap();
    let updated = updated.into_inner().container.unwrap();
    assert_eq!(updated.labels, labels(&[("a", "9"), ("b", "2")]));
    assert_eq!(updated.extensions.keys().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(updated.snapshot_key, "web");
    let moved = containers.update(request(&["snapshotkey"])).await.unwrap();
    assert_eq!(moved.into_inner().container.unwrap().snapshot_key, "other");
    for path in ["snapshot_key", "runtime", "id"] {
        let error = containers.update(request(&[path])).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{path}");
    }

    let mut other_runtime = changed.clone();
    other_runtime.runtime.as_mut().unwrap().name = "io.containerd.kata.v2".into();
    let update = UpdateContainerRequest { container: Some(other_runtime), update_mask: None };
    let error = containers.update(in_namespace("n", update)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "a runtime is for life");
    let missing = Container { id: "none".into(), ..changed };
    let update = UpdateContainerRequest { container: Some(missing), update_mask: None };
    let error = containers.update(in_namespace("n", update)).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_survive_a_restart_byte_for_byte() {
    let daemon = Fixture::start().await;
    let mut containers = ContainersClient::new(daemon.channel.clone());
    for id in ["one", "two", "three"] {
        let create = CreateContainerRequest { container: Some(container(id)) };
        containers.create(in_namespace("moby", create)).await.unwrap();
    }
    let before = list_stream(&daemon).await;
    drop(containers);
    let daemon = daemon.restart().await;
    assert_eq!(list_stream(&daemon).await, before);

    let mut containers = ContainersClient::new(daemon.channel.clone());
    let delete = DeleteContainerRequest { id: "two".into() };
    containers.delete(in_namespace("moby", delete.clone())).await.unwrap();
    let again = containers.delete(in_namespace("moby", delete)).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    let elsewhere = GetContainerRequest { id: "one".into() };
    let elsewhere = containers.get(in_namespace("other", elsewhere)).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::NotFound, "namespaces are apart");
}

async fn list_stream(daemon: &Fixture) -> Vec<Container> {
    let mut containers = ContainersClient::new(daemon.channel.clone());
    let filters = vec!["runtime.name==io.containerd.runc.v2".to_owned()];
    let request = in_namespace("moby", ListContainersRequest { filters });
    let mut stream = containers.list_stream(request).await.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        found.push(message.container.unwrap());
    }
    assert_eq!(found.len(), 3);
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_holds_resources_until_it_is_deleted() {
    let daemon = Fixture::start().await;
    let mut leases = LeasesClient::new(daemon.channel.clone());
    let create = CreateRequest { id: "l1".into(), labels: labels(&[("k", "v")]) };
    leases.create(in_namespace("n", create.clone())).await.unwrap();
    let again = leases.create(in_namespace("n", create)).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    let unnamed = leases.create(in_namespace("n", CreateRequest::default())).await.unwrap();
    assert!(!unnamed.into_inner().lease.unwrap().id.is_empty());

    let add = |kind: &str, id: &str| AddResourceRequest {
        id: "l1".into(),
        resource: Some(Resource { r#type: kind.into(), id: id.into() }),
    };
    leases.add_resource(in_namespace("n", add("snapshots/overlayfs", "k 1"))).await.unwrap();
    leases.add_resource(in_namespace("n", add("snapshots/overlayfs", "k 1"))).await.unwrap();
    for (kind, id, code) in [
        ("content", "no digest", Code::InvalidArgument),
        ("snapshots", "k", Code::InvalidArgument),
        ("dreams", "x", Code::Unimplemented),
    ] {
        let error = leases.add_resource(in_namespace("n", add(kind, id))).await.unwrap_err();
        assert_eq!(error.code(), code, "{kind}");
    }
    let held = ListResourcesRequest { id: "l1".into() };
    let held = leases.list_resources(in_namespace("n", held)).await.unwrap().into_inner();
    assert_eq!(held.resources.len(), 1);

    let list = ListRequest { filters: vec!["id==l1".into()] };
    assert_eq!(leases.list(in_namespace("n", list)).await.unwrap().into_inner().leases.len(), 1);
    let delete = DeleteRequest { id: "l1".into(), sync: true };
    leases.delete(in_namespace("n", delete.clone())).await.unwrap();
    let gone = leases.delete(in_namespace("n", delete)).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_lease_is_refused_before_anything_is_made() {
    let daemon = Fixture::start().await;
    let mut images = ImagesClient::new(daemon.channel.clone());
    let expiring = image("x", &[("containerd.io/gc.expire", "2030-01-01T00:00:00Z")]);
    let create = CreateImageRequest { image: Some(expiring), ..Default::default() };
    let error = images.create(with_lease("n", "nope", create)).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("lease does not exist"), "{}", error.message());
    let list = images.list(in_namespace("n", ListImagesRequest::default())).await.unwrap();
    assert!(list.into_inner().images.is_empty());
}
