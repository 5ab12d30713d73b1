//! What a client can send, and what it gets for too much of it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::{Fixture, in_namespace, labels, mask};
use crated_api::Any;
use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, ListContainersRequest,
    UpdateContainerRequest, container,
};
use crated_api::services::content::v1::ListContentRequest;
use crated_api::services::events::v1::events_client::EventsClient;
use crated_api::services::events::v1::{PublishRequest, SubscribeRequest};
use crated_api::services::images::v1::images_client::ImagesClient;
use crated_api::services::images::v1::{CreateImageRequest, GetImageRequest, Image};
use crated_api::services::leases::v1::leases_client::LeasesClient;
use crated_api::services::leases::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, Resource,
};
use crated_api::services::namespaces::v1::namespaces_client::NamespacesClient;
use crated_api::services::namespaces::v1::{
    CreateNamespaceRequest, GetNamespaceRequest, ListNamespacesRequest, Namespace,
};
use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_api::services::snapshots::v1::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, ViewSnapshotRequest,
};
use crated_api::services::tasks::v1::ListTasksRequest;
use crated_api::services::tasks::v1::tasks_client::TasksClient;
use crated_api::types::Descriptor;
use crated_content::Digest;
use tonic::Code;

fn web(id: &str) -> Container {
    Container {
        id: id.into(),
        runtime: Some(container::Runtime { name: "io.containerd.runc.v2".into(), options: None }),
        spec: Some(Any { type_url: "spec".into(), value: b"{}".to_vec() }),
        ..Container::default()
    }
}

async fn create(
    containers: &mut ContainersClient<tonic::transport::Channel>,
    container: Container,
) -> Result<Container, Code> {
    let request = CreateContainerRequest { container: Some(container) };
    let created = containers.create(in_namespace("n", request)).await;
    created.map(|created| created.into_inner().container.unwrap()).map_err(|error| error.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_fill_the_limit_but_not_exceed_it() {
    let daemon = Fixture::start().await;
    let mut containers =
        ContainersClient::new(daemon.channel.clone()).max_decoding_message_size(usize::MAX);
    let spec = |size: usize| Container {
        spec: Some(Any { type_url: "spec".into(), value: vec![b' '; size] }),
        ..web("big")
    };
    let limit = 16 << 20;
    let refused = create(&mut containers, spec(limit + 1)).await.unwrap_err();
    assert!([Code::OutOfRange, Code::ResourceExhausted].contains(&refused), "{refused:?}");
    // The connection is still good, and a message below the limit passes both ways.
    create(&mut containers, spec(limit - 4096)).await.unwrap();
    let list = ListContainersRequest::default();
    let listed = containers.list(in_namespace("n", list)).await.unwrap().into_inner();
    assert_eq!(listed.containers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn evil_namespaces_and_ids_become_no_paths() {
    let daemon = Fixture::start().await;
    let long = "x".repeat(300);
    let mut images = ImagesClient::new(daemon.channel.clone());
    let mut tasks = TasksClient::new(daemon.channel.clone());
    let mut namespaces = NamespacesClient::new(daemon.channel.clone());
    for evil in ["..", ".", "a/b", "a..b", "-", "a b", &long] {
        let get = GetImageRequest { name: "x".into() };
        let error = images.get(in_namespace(evil, get)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{evil:?}: {error}");
        let list = tasks.list(in_namespace(evil, ListTasksRequest::default())).await.unwrap_err();
        assert_eq!(list.code(), Code::InvalidArgument, "{evil:?}: {list}");
        let get = GetNamespaceRequest { name: evil.into() };
        let error = namespaces.get(get).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{evil:?}: {error}");
        let mut containers = ContainersClient::new(daemon.channel.clone());
        let error = create(&mut containers, web(evil)).await.unwrap_err();
        assert_eq!(error, Code::InvalidArgument, "{evil:?}");
    }
    let none = images.get(GetImageRequest { name: "x".into() }).await.unwrap_err();
    assert_eq!(none.code(), Code::FailedPrecondition);
    assert!(none.message().contains("namespace is required"), "{none}");
    let all = namespaces.list(ListNamespacesRequest::default()).await.unwrap().into_inner();
    assert!(all.namespaces.is_empty(), "refused calls create nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_is_too_long_is_refused_by_every_store_but_that_of_leases() {
    let daemon = Fixture::start().await;
    let long = "v".repeat(4096);
    let fits = "v".repeat(4096 - "key".len());
    let store = |value: &str| labels(&[("key", value)]);
    let target = Descriptor {
        media_type: "application/x".into(),
        digest: Digest::of(b"x").to_string(),
        size: 1,
        ..Descriptor::default()
    };
    for (value, accepted) in [(&fits, true), (&long, false)] {
        let expected = if accepted { None } else { Some(Code::InvalidArgument) };
        let name = format!("n{}", value.len());
        let image = Image {
            name: name.clone(),
            labels: store(value),
            target: Some(target.clone()),
            ..Image::default()
        };
        let request = CreateImageRequest { image: Some(image), ..Default::default() };
        let mut images = ImagesClient::new(daemon.channel.clone());
        let answer = images.create(in_namespace("n", request)).await;
        assert_eq!(answer.err().map(|error| error.code()), expected, "image");
        let container = Container { labels: store(value), ..web(&name) };
        let mut containers = ContainersClient::new(daemon.channel.clone());
        assert_eq!(create(&mut containers, container).await.err(), expected, "container");
        let namespace = Namespace { name: name.clone(), labels: store(value) };
        let request = CreateNamespaceRequest { namespace: Some(namespace) };
        let answer = NamespacesClient::new(daemon.channel.clone()).create(request).await;
        assert_eq!(answer.err().map(|error| error.code()), expected, "namespace");
        let request = PrepareSnapshotRequest {
            snapshotter: "native".into(),
            key: name.clone(),
            labels: store(value),
            ..Default::default()
        };
        let mut snapshots = SnapshotsClient::new(daemon.channel.clone());
        let answer = snapshots.prepare(in_namespace("n", request)).await;
        assert_eq!(answer.err().map(|error| error.code()), expected, "snapshot");
        let request = CreateRequest { id: name, labels: store(value) };
        let mut leases = LeasesClient::new(daemon.channel.clone());
        leases.create(in_namespace("n", request)).await.expect("leases are not held to it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_hold_any_text_and_come_back_as_they_were() {
    let daemon = Fixture::start().await;
    let mut leases = LeasesClient::new(daemon.channel.clone());
    let mut snapshots = SnapshotsClient::new(daemon.channel.clone());
    for name in ["../../etc", "/", "a\nb", "nul\0byte", "ключ", " ", "extract-1 sha256:x"] {
        let create = CreateRequest { id: name.into(), ..Default::default() };
        leases.create(in_namespace("n", create)).await.unwrap();
        let resource = Resource { id: name.into(), r#type: "snapshots/native".into() };
        let add = AddResourceRequest { id: name.into(), resource: Some(resource) };
        leases.add_resource(in_namespace("n", add)).await.unwrap();
        let prepare = PrepareSnapshotRequest {
            snapshotter: "native".into(),
            key: name.into(),
            ..Default::default()
        };
        snapshots.prepare(in_namespace("n", prepare)).await.unwrap();
        let stat = StatSnapshotRequest { snapshotter: "native".into(), key: name.into() };
        let found = snapshots.stat(in_namespace("n", stat)).await.unwrap().into_inner();
        assert_eq!(found.info.unwrap().name, name);
    }
    let listed = leases.list(in_namespace("n", ListRequest::default())).await.unwrap();
    assert_eq!(listed.into_inner().leases.len(), 7);
    let huge = CreateRequest { id: "x".repeat(1 << 20), ..Default::default() };
    let error = leases.create(in_namespace("n", huge)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().len() < 1000, "an error does not repeat it all");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_have_bounds_in_every_service() {
    let daemon = Fixture::start().await;
    let evil = [
        vec![format!("id=={}", "x".repeat(1 << 17))],
        vec!["id~=x".to_owned(); 1000],
        vec!["id==\"".to_owned()],
        vec!["id=".to_owned()],
    ];
    for filters in evil {
        let shown = filters[0].chars().take(20).collect::<String>();
        let list = ListContainersRequest { filters: filters.clone() };
        let mut containers = ContainersClient::new(daemon.channel.clone());
        let error = containers.list(in_namespace("n", list.clone())).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{shown}");
        let error = containers.list_stream(in_namespace("n", list)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{shown}");
        let list = ListContentRequest { filters: filters.clone() };
        let error = daemon.content().list(in_namespace("n", list)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{shown}");
        let list = ListRequest { filters: filters.clone() };
        let mut leases = LeasesClient::new(daemon.channel.clone());
        let error = leases.list(in_namespace("n", list)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{shown}");
        let mut events = EventsClient::new(daemon.channel.clone());
        let error = events.subscribe(SubscribeRequest { filters }).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{shown}");
    }
    // A pattern that is no pattern matches nothing, and is no error.
    let list = ListContainersRequest { filters: vec!["id~=((((".to_owned()] };
    let mut containers = ContainersClient::new(daemon.channel.clone());
    let listed = containers.list(in_namespace("n", list)).await.unwrap().into_inner();
    assert!(listed.containers.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_change_is_not_changed_by_any_mask() {
    let daemon = Fixture::start().await;
    let mut containers = ContainersClient::new(daemon.channel.clone());
    let created = create(&mut containers, web("c")).await.unwrap();
    let mut update = async |paths: &[&str], container: Container| {
        let request =
            UpdateContainerRequest { container: Some(container), update_mask: mask(paths) };
        containers.update(in_namespace("n", request)).await.map_err(|error| error.code())
    };
    for path in ["id", "runtime", "runtime.name", "snapshotter", "created_at", "labels.", "x.y"] {
        assert_eq!(update(&[path], web("c")).await.err(), Some(Code::InvalidArgument), "{path}");
    }
    let other = container::Runtime { name: "other".into(), options: None };
    let renamed = Container { runtime: Some(other), ..web("c") };
    assert_eq!(update(&[], renamed).await.err(), Some(Code::InvalidArgument));
    let moved = Container { snapshotter: "native".into(), ..web("c") };
    assert_eq!(update(&[], moved).await.err(), Some(Code::InvalidArgument));
    let same = update(&[], web("c")).await.unwrap().into_inner().container.unwrap();
    assert_eq!(same.created_at, created.created_at);
    assert_eq!(update(&[], web("none")).await.err(), Some(Code::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshotters_that_are_not_there_are_invalid_and_parents_missing() {
    let daemon = Fixture::start().await;
    let mut snapshots = SnapshotsClient::new(daemon.channel.clone());
    for (snapshotter, parent, code) in [
        ("", "", Code::InvalidArgument),
        ("nowhere", "", Code::InvalidArgument),
        ("native", "missing", Code::NotFound),
    ] {
        let prepare = PrepareSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: "k".into(),
            parent: parent.into(),
            ..Default::default()
        };
        let error = snapshots.prepare(in_namespace("n", prepare)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        let view = ViewSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: "k".into(),
            parent: parent.into(),
            ..Default::default()
        };
        let error = snapshots.view(in_namespace("n", view)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_streams_end_with_their_client() {
    const STREAMS: usize = 500;
    let daemon = Fixture::start().await;
    let exchange = daemon.running.daemon().events.clone();
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let filters = vec![format!("topic==\"/number/n{number}\"")];
        let mut events = EventsClient::new(daemon.channel.clone());
        streams.push(events.subscribe(SubscribeRequest { filters }).await.unwrap().into_inner());
    }
    assert_eq!(exchange.subscriptions(), STREAMS);
    let publish = PublishRequest {
        topic: format!("/number/n{}", STREAMS - 1),
        event: Some(Any { type_url: "t".into(), value: vec![] }),
    };
    EventsClient::new(daemon.channel.clone()).publish(in_namespace("n", publish)).await.unwrap();
    let event = streams.last_mut().unwrap().message().await.unwrap().unwrap();
    assert_eq!(event.namespace, "n");
    drop(streams);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while exchange.subscriptions() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} are left", exchange.subscriptions());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Counts of answers, by code.
async fn all_at_once<F>(calls: impl Iterator<Item = F>) -> BTreeMap<i32, usize>
where
    F: Future<Output = Result<(), Code>> + Send + 'static,
{
    let calls: Vec<_> = calls.map(tokio::spawn).collect();
    let mut counts = BTreeMap::new();
    for call in calls {
        let code = call.await.unwrap().err().unwrap_or(Code::Ok);
        *counts.entry(i32::from(code)).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_equal_calls_one_does_it_and_the_others_are_told() {
    const CALLS: usize = 16;
    let daemon = Fixture::start().await;
    let ok_and = |code: Code| BTreeMap::from([(0, 1), (i32::from(code), CALLS - 1)]);
    let channel = || daemon.channel.clone();

    let creates = (0..CALLS).map(|_| {
        let mut containers = ContainersClient::new(channel());
        async move { create(&mut containers, web("same")).await.map(drop) }
    });
    assert_eq!(all_at_once(creates).await, ok_and(Code::AlreadyExists), "containers");
    let deletes = (0..CALLS).map(|_| {
        let mut containers = ContainersClient::new(channel());
        let request = in_namespace("n", DeleteContainerRequest { id: "same".into() });
        async move { containers.delete(request).await.map(drop).map_err(|error| error.code()) }
    });
    assert_eq!(all_at_once(deletes).await, ok_and(Code::NotFound), "containers");

    let creates = (0..CALLS).map(|_| {
        let mut leases = LeasesClient::new(channel());
        let request = CreateRequest { id: "same".into(), ..Default::default() };
        let request = in_namespace("n", request);
        async move { leases.create(request).await.map(drop).map_err(|error| error.code()) }
    });
    assert_eq!(all_at_once(creates).await, ok_and(Code::AlreadyExists), "leases");
    let deletes = (0..CALLS).map(|_| {
        let mut leases = LeasesClient::new(channel());
        let request = in_namespace("n", DeleteRequest { id: "same".into(), sync: false });
        async move { leases.delete(request).await.map(drop).map_err(|error| error.code()) }
    });
    assert_eq!(all_at_once(deletes).await, ok_and(Code::NotFound), "leases");

    let prepares = (0..CALLS).map(|_| {
        let mut snapshots = SnapshotsClient::new(channel());
        let request = PrepareSnapshotRequest {
            snapshotter: "native".into(),
            key: "same".into(),
            ..Default::default()
        };
        let request = in_namespace("n", request);
        async move { snapshots.prepare(request).await.map(drop).map_err(|error| error.code()) }
    });
    assert_eq!(all_at_once(prepares).await, ok_and(Code::AlreadyExists), "snapshots");
    let removes = (0..CALLS).map(|_| {
        let mut snapshots = SnapshotsClient::new(channel());
        let request = RemoveSnapshotRequest { snapshotter: "native".into(), key: "same".into() };
        let request = in_namespace("n", request);
        async move { snapshots.remove(request).await.map(drop).map_err(|error| error.code()) }
    });
    assert_eq!(all_at_once(removes).await, ok_and(Code::NotFound), "snapshots");
}
