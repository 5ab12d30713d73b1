//! The daemon through the published crate `containerd-client`: bindings that nobody here wrote,
//! made from containerd's own protocol files.

mod common;

use std::collections::HashMap;

use common::Fixture;
use containerd_client::Client;
use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::{
    AbortRequest, AddResourceRequest, ApplyRequest, Container, CreateContainerRequest,
    CreateImageRequest, CreateNamespaceRequest, CreateRequest, CreateTaskRequest,
    DeleteContainerRequest, DeleteContentRequest, DeleteImageRequest, DeleteNamespaceRequest,
    DeleteRequest, DeleteResourceRequest, DiffRequest, ForwardRequest, GetContainerRequest,
    GetImageRequest, GetNamespaceRequest, GetRequest, Image, Info, InfoRequest,
    ListContainersRequest, ListContentRequest, ListImagesRequest, ListNamespacesRequest,
    ListRequest, ListResourcesRequest, ListStatusesRequest, ListTasksRequest, MetricsRequest,
    Namespace, PluginInfoRequest, PluginsRequest, PublishRequest, ReadContentRequest, Resource,
    StatusRequest, StreamInit, SubscribeRequest, TransferRequest, UpdateContainerRequest,
    UpdateImageRequest, UpdateNamespaceRequest, UpdateRequest, WriteAction, WriteContentRequest,
};
use containerd_client::services::v1::{sandbox, snapshots};
use containerd_client::types::transfer::{ImageImportStream, ImageStore};
use containerd_client::types::{Descriptor, Envelope, Sandbox};
use containerd_client::{to_any, with_namespace};
use prost_types::{Any, FieldMask};
use tonic::{Code, Request};

/// A daemon and the foreign client of it.
async fn world() -> (Fixture, Client) {
    let daemon = Fixture::start().await;
    let client = Client::from_path(daemon.directory.path().join("c.sock")).await.unwrap();
    (daemon, client)
}

fn mask(path: &str) -> Option<FieldMask> {
    Some(FieldMask { paths: vec![path.to_owned()] })
}

fn labels(key: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_owned())])
}

async fn store(client: &Client, data: &[u8]) -> String {
    let message = WriteContentRequest {
        action: WriteAction::Commit as i32,
        r#ref: format!("store {}", data.len()),
        total: i64::try_from(data.len()).unwrap(),
        data: data.to_vec(),
        labels: labels("made.by", "test"),
        ..Default::default()
    };
    let request = with_namespace!(tokio_stream::iter([message]), "n");
    let mut answers = client.content().write(request).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!(answer.offset, i64::try_from(data.len()).unwrap());
    assert!(answers.message().await.unwrap().is_none());
    answer.digest
}

#[tokio::test(flavor = "multi_thread")]
async fn version_and_introspection() {
    let (_daemon, client) = world().await;
    let version = client.version().version(()).await.unwrap().into_inner();
    assert!(!version.version.is_empty() && !version.revision.is_empty());
    let mut introspection = client.introspection();
    let filters = vec!["type==io.containerd.runtime.v2".to_owned()];
    let plugins = introspection.plugins(PluginsRequest { filters }).await.unwrap().into_inner();
    assert_eq!(plugins.plugins[0].platforms[0].os, "linux");
    let server = introspection.server(()).await.unwrap().into_inner();
    assert_eq!((server.uuid.len(), server.pid), (36, u64::from(std::process::id())));
    let unknown = PluginInfoRequest { r#type: "x".into(), id: "y".into(), options: None };
    let unknown = introspection.plugin_info(unknown).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_and_leases() {
    let (_daemon, client) = world().await;
    let mut namespaces = client.namespaces();
    let named = |labels| Some(Namespace { name: "mine".into(), labels });
    let create = CreateNamespaceRequest { namespace: named(labels("a", "1")) };
    namespaces.create(create.clone()).await.unwrap();
    assert_eq!(namespaces.create(create).await.unwrap_err().code(), Code::AlreadyExists);
    let update = UpdateNamespaceRequest {
        namespace: named(labels("b", "2")),
        update_mask: mask("labels.b"),
    };
    namespaces.update(update).await.unwrap();
    let get = GetNamespaceRequest { name: "mine".into() };
    let found = namespaces.get(get).await.unwrap().into_inner().namespace.unwrap();
    assert_eq!(found.labels.len(), 2);
    let all = namespaces.list(ListNamespacesRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.namespaces.len(), 1);
    namespaces.delete(DeleteNamespaceRequest { name: "mine".into() }).await.unwrap();

    let mut leases = client.leases();
    let create = CreateRequest { id: "hold".into(), labels: labels("l", "v") };
    leases.create(with_namespace!(create, "n")).await.unwrap();
    let resource = Some(Resource { id: "k".into(), r#type: "snapshots/native".into() });
    let add = AddResourceRequest { id: "hold".into(), resource: resource.clone() };
    leases.add_resource(with_namespace!(add, "n")).await.unwrap();
    let held = ListResourcesRequest { id: "hold".into() };
    let held = leases.list_resources(with_namespace!(held, "n")).await.unwrap().into_inner();
    assert_eq!(held.resources, [resource.clone().unwrap()]);
    let drop = DeleteResourceRequest { id: "hold".into(), resource };
    leases.delete_resource(with_namespace!(drop, "n")).await.unwrap();
    let list = ListRequest { filters: vec!["id==hold".into()] };
    let list = leases.list(with_namespace!(list, "n")).await.unwrap().into_inner();
    assert_eq!(list.leases.len(), 1);
    let end = DeleteRequest { id: "hold".into(), sync: true };
    leases.delete(with_namespace!(end.clone(), "n")).await.unwrap();
    assert_eq!(leases.delete(with_namespace!(end, "n")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn content() {
    let (_daemon, client) = world().await;
    let digest = store(&client, b"hello").await;
    let mut content = client.content();
    let info = InfoRequest { digest: digest.clone() };
    let info = content.info(with_namespace!(info, "n")).await.unwrap().into_inner().info.unwrap();
    assert_eq!((info.size, &info.labels), (5, &labels("made.by", "test")));
    let update = UpdateRequest {
        info: Some(Info {
            digest: digest.clone(),
            labels: labels("containerd.io/gc.root", "now"),
            ..Default::default()
        }),
        update_mask: mask("labels.containerd.io/gc.root"),
    };
    let updated = content.update(with_namespace!(update, "n")).await.unwrap().into_inner();
    assert_eq!(updated.info.unwrap().labels.len(), 2);
    let list = ListContentRequest { filters: vec![r#"labels."containerd.io/gc.root""#.into()] };
    let mut list = content.list(with_namespace!(list, "n")).await.unwrap().into_inner();
    assert_eq!(list.message().await.unwrap().unwrap().info[0].digest, digest);
    let read = ReadContentRequest { digest: digest.clone(), offset: 1, size: 3 };
    let mut read = content.read(with_namespace!(read, "n")).await.unwrap().into_inner();
    assert_eq!(read.message().await.unwrap().unwrap().data, b"ell");

    let partial = WriteContentRequest {
        action: WriteAction::Write as i32,
        r#ref: "half".into(),
        data: b"half".to_vec(),
        ..Default::default()
    };
    let request = with_namespace!(tokio_stream::iter([partial]), "n");
    let mut answers = content.write(request).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    let status = StatusRequest { r#ref: "half".into() };
    let status = content.status(with_namespace!(status, "n")).await.unwrap().into_inner();
    assert_eq!(status.status.unwrap().offset, 4);
    let statuses = ListStatusesRequest { filters: vec![String::new()] };
    let statuses = content.list_statuses(with_namespace!(statuses, "n")).await.unwrap();
    assert_eq!(statuses.into_inner().statuses.len(), 1);
    content.abort(with_namespace!(AbortRequest { r#ref: "half".into() }, "n")).await.unwrap();
    let delete = DeleteContentRequest { digest };
    content.delete(with_namespace!(delete.clone(), "n")).await.unwrap();
    let gone = content.delete(with_namespace!(delete, "n")).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn images() {
    let (_daemon, client) = world().await;
    let mut images = client.images();
    let target = Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: store(&client, b"{}").await,
        size: 2,
        ..Default::default()
    };
    let image = |labels| {
        let name = "docker.io/library/x:1".into();
        Some(Image { name, target: Some(target.clone()), labels, ..Default::default() })
    };
    let create = CreateImageRequest { image: image(labels("a", "1")), ..Default::default() };
    images.create(with_namespace!(create.clone(), "n")).await.unwrap();
    let again = images.create(with_namespace!(create, "n")).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    let update = UpdateImageRequest {
        image: image(labels("b", "2")),
        update_mask: mask("labels"),
        ..Default::default()
    };
    let updated = images.update(with_namespace!(update, "n")).await.unwrap().into_inner();
    assert_eq!(updated.image.unwrap().labels, labels("b", "2"));
    let get = GetImageRequest { name: "docker.io/library/x:1".into() };
    let found = images.get(with_namespace!(get, "n")).await.unwrap().into_inner().image.unwrap();
    assert_eq!(found.target, Some(target.clone()));
    let list = ListImagesRequest { filters: vec!["target.digest~=^sha256:".into()] };
    let list = images.list(with_namespace!(list, "n")).await.unwrap().into_inner();
    assert_eq!(list.images.len(), 1);

    let (from, to) = (store_named("docker.io/library/x:1"), store_named("copy"));
    let tag = TransferRequest { source: Some(from), destination: Some(to), options: None };
    client.transfer().transfer(with_namespace!(tag, "n")).await.unwrap();
    let delete = DeleteImageRequest { name: "copy".into(), sync: true, ..Default::default() };
    images.delete(with_namespace!(delete, "n")).await.unwrap();
}

fn store_named(name: &str) -> Any {
    to_any(&ImageStore { name: name.into(), ..Default::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_and_streaming() {
    let (_daemon, client) = world().await;
    let nothing = ImageImportStream { stream: "missing".into(), ..Default::default() };
    let request = TransferRequest {
        source: Some(to_any(&nothing)),
        destination: Some(store_named("x")),
        options: None,
    };
    let refused = client.transfer().transfer(with_namespace!(request, "n")).await.unwrap_err();
    assert!([Code::NotFound, Code::Unimplemented].contains(&refused.code()), "{refused}");

    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(to_any(&StreamInit { id: "s".into() })).await.unwrap();
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let answer = client.streaming().stream(with_namespace!(outgoing, "n")).await.unwrap();
    let ack = answer.into_inner().message().await.unwrap().unwrap();
    assert!(ack.type_url.ends_with("google.protobuf.Empty"));
}

/// An empty layer: the two blocks of zeros that end an archive.
const LAYER: &[u8] = &[0; 1024];

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_and_diff() {
    let (_daemon, client) = world().await;
    let mut service = client.snapshots();
    let snapshotter = || "native".to_owned();
    let prepare = snapshots::PrepareSnapshotRequest {
        snapshotter: snapshotter(),
        key: "a key".into(),
        ..Default::default()
    };
    let mounts = service.prepare(with_namespace!(prepare, "n")).await.unwrap().into_inner().mounts;
    let again = snapshots::MountsRequest { snapshotter: snapshotter(), key: "a key".into() };
    let again = service.mounts(with_namespace!(again, "n")).await.unwrap().into_inner();
    assert_eq!(again.mounts, mounts);

    let digest = store(&client, LAYER).await;
    let diff = Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        digest: digest.clone(),
        size: 1024,
        ..Default::default()
    };
    let apply = ApplyRequest { diff: Some(diff), mounts: mounts.clone(), ..Default::default() };
    if crated_snapshot::testsuite::may_run(crated_snapshot::testsuite::is_root(), "needs root") {
        let applied = client.diff().apply(with_namespace!(apply, "n")).await.unwrap();
        assert_eq!(applied.into_inner().applied.unwrap().digest, digest);
        let made = DiffRequest { right: mounts, ..Default::default() };
        let made = client.diff().diff(with_namespace!(made, "n")).await.unwrap().into_inner();
        assert!(made.diff.unwrap().media_type.ends_with("+gzip"));
    }

    let commit = snapshots::CommitSnapshotRequest {
        snapshotter: snapshotter(),
        name: "base".into(),
        key: "a key".into(),
        labels: labels("x", "y"),
    };
    service.commit(with_namespace!(commit, "n")).await.unwrap();
    let stat = snapshots::StatSnapshotRequest { snapshotter: snapshotter(), key: "base".into() };
    let info = service.stat(with_namespace!(stat, "n")).await.unwrap().into_inner().info.unwrap();
    assert_eq!((info.kind, &info.labels), (snapshots::Kind::Committed as i32, &labels("x", "y")));
    let update = snapshots::UpdateSnapshotRequest {
        snapshotter: snapshotter(),
        info: Some(snapshots::Info { labels: labels("z", "w"), ..info }),
        update_mask: mask("labels"),
    };
    service.update(with_namespace!(update, "n")).await.unwrap();
    let view = snapshots::ViewSnapshotRequest {
        snapshotter: snapshotter(),
        key: "look".into(),
        parent: "base".into(),
        ..Default::default()
    };
    service.view(with_namespace!(view, "n")).await.unwrap();
    let list = snapshots::ListSnapshotsRequest {
        snapshotter: snapshotter(),
        filters: vec!["kind==view,parent==base".into()],
    };
    let mut list = service.list(with_namespace!(list, "n")).await.unwrap().into_inner();
    assert_eq!(list.message().await.unwrap().unwrap().info[0].name, "look");
    let usage = snapshots::UsageRequest { snapshotter: snapshotter(), key: "base".into() };
    service.usage(with_namespace!(usage, "n")).await.unwrap();
    for key in ["look", "base"] {
        let remove =
            snapshots::RemoveSnapshotRequest { snapshotter: snapshotter(), key: key.into() };
        service.remove(with_namespace!(remove, "n")).await.unwrap();
    }
    let cleanup = snapshots::CleanupRequest { snapshotter: snapshotter() };
    service.cleanup(with_namespace!(cleanup, "n")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_and_tasks() {
    let (_daemon, client) = world().await;
    let mut containers = client.containers();
    let container = Container {
        id: "web".into(),
        image: "docker.io/library/x:1".into(),
        runtime: Some(Runtime { name: "io.example.missing.v1".into(), options: None }),
        spec: Some(Any { type_url: "any".into(), value: b"{}".to_vec() }),
        labels: labels("a", "1"),
        ..Default::default()
    };
    let create = CreateContainerRequest { container: Some(container.clone()) };
    let made = containers.create(with_namespace!(create, "n")).await.unwrap().into_inner();
    assert_eq!(made.container.unwrap().spec, container.spec);
    let update = UpdateContainerRequest {
        container: Some(Container { labels: labels("b", "2"), ..container }),
        update_mask: mask("labels.b"),
    };
    let updated = containers.update(with_namespace!(update, "n")).await.unwrap().into_inner();
    assert_eq!(updated.container.unwrap().labels.len(), 2);
    let get = GetContainerRequest { id: "web".into() };
    containers.get(with_namespace!(get, "n")).await.unwrap();
    let list = ListContainersRequest { filters: vec!["labels.b==2".into()] };
    let found = containers.list(with_namespace!(list.clone(), "n")).await.unwrap().into_inner();
    assert_eq!(found.containers.len(), 1);
    let mut stream = containers.list_stream(with_namespace!(list, "n")).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().container.unwrap().id, "web");

    let mut tasks = client.tasks();
    let create = CreateTaskRequest { container_id: "web".into(), ..Default::default() };
    let missing = tasks.create(with_namespace!(create, "n")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "no such runtime: {missing}");
    let get = GetRequest { container_id: "web".into(), ..Default::default() };
    let missing = tasks.get(with_namespace!(get, "n")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let list = tasks.list(with_namespace!(ListTasksRequest::default(), "n")).await.unwrap();
    assert!(list.into_inner().tasks.is_empty());
    let metrics = MetricsRequest { filters: vec!["id==web".into()] };
    let metrics = tasks.metrics(with_namespace!(metrics, "n")).await.unwrap();
    assert!(metrics.into_inner().metrics.is_empty());
    let delete = DeleteContainerRequest { id: "web".into() };
    containers.delete(with_namespace!(delete, "n")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events() {
    let (_daemon, client) = world().await;
    let mut events = client.events();
    let filters = vec!["topic~=|^/mine/|".to_owned()];
    let mut mine = events.subscribe(SubscribeRequest { filters }).await.unwrap().into_inner();
    let event = Some(Any { type_url: "some.Type".into(), value: vec![1, 2, 3] });
    let publish = PublishRequest { topic: "/mine/one".into(), event: event.clone() };
    events.publish(with_namespace!(publish, "n")).await.unwrap();
    let envelope = Envelope {
        timestamp: Some(prost_types::Timestamp { seconds: 1, nanos: 2 }),
        namespace: "other".into(),
        topic: "/mine/two".into(),
        event: event.clone(),
    };
    events.forward(ForwardRequest { envelope: Some(envelope.clone()) }).await.unwrap();
    let first = mine.message().await.unwrap().unwrap();
    assert_eq!((first.namespace.as_str(), first.event), ("n", event));
    assert_eq!(mine.message().await.unwrap().unwrap(), envelope);
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes() {
    let (_daemon, client) = world().await;
    let mut store = client.sandbox_store();
    let sandbox =
        Sandbox { sandbox_id: "s".into(), labels: labels("a", "1"), ..Default::default() };
    let create = sandbox::StoreCreateRequest { sandbox: Some(sandbox.clone()) };
    store.create(with_namespace!(create, "n")).await.unwrap();
    let update = sandbox::StoreUpdateRequest {
        sandbox: Some(Sandbox { labels: labels("b", "2"), ..sandbox }),
        fields: vec!["labels.b".into()],
    };
    let updated = store.update(with_namespace!(update, "n")).await.unwrap().into_inner();
    assert_eq!(updated.sandbox.unwrap().labels.len(), 2);
    let list = sandbox::StoreListRequest { filters: vec!["id==s".into()] };
    let list = store.list(with_namespace!(list, "n")).await.unwrap().into_inner();
    assert_eq!(list.list.len(), 1);
    let get = sandbox::StoreGetRequest { sandbox_id: "s".into() };
    store.get(with_namespace!(get, "n")).await.unwrap();

    let status = sandbox::ControllerStatusRequest {
        sandbox_id: "s".into(),
        sandboxer: "shim".into(),
        ..Default::default()
    };
    let status = client.sandbox_controller().status(with_namespace!(status, "n")).await.unwrap();
    assert_eq!(status.into_inner().state, "exited", "it never ran");
    let delete = sandbox::StoreDeleteRequest { sandbox_id: "s".into() };
    store.delete(with_namespace!(delete, "n")).await.unwrap();
}
