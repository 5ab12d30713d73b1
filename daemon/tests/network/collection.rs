//! What leases and containers keep, and what goes without them.

use crated_api::Any;
use crated_api::network as api;
use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, container::Runtime,
};
use crated_api::services::leases::v1::leases_client::LeasesClient;
use crated_api::services::leases::v1::{CreateRequest, DeleteRequest, ListResourcesRequest};
use tonic::Code;

use crate::common::with_lease;
use crate::scratch::*;

fn joining(id: &str, path: &str) -> CreateContainerRequest {
    let spec = format!(
        r#"{{"ociVersion":"1.0.2","linux":{{"namespaces":[{{"type":"pid"}},
           {{"type":"network","path":{path:?}}}]}}}}"#
    );
    let type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned();
    CreateContainerRequest {
        container: Some(Container {
            id: id.to_owned(),
            runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: None }),
            spec: Some(Any { type_url, value: spec.into_bytes() }),
            ..Container::default()
        }),
    }
}

#[test]
fn the_end_of_a_lease_collects_what_no_container_joins() {
    scratch(|directory| async move {
        let (fixture, mut client) = start(directory.clone()).await;
        let mut leases = LeasesClient::new(fixture.channel.clone());
        let mut containers = ContainersClient::new(fixture.channel.clone());
        let lease = CreateRequest { id: "l".into(), ..Default::default() };
        leases.create(call(lease)).await.unwrap();
        client.create_link(with_lease("test", "l", bridge("br0"))).await.unwrap();
        let mut paths = Vec::new();
        for id in ["idle", "joined"] {
            let request = container(id, &format!("v{id}"), "br0", "10.9.0.2/24");
            let answer = client.apply(with_lease("test", "l", request)).await.unwrap();
            let Some(api::result::Outcome::Netns(netns)) = &answer.into_inner().results[0].outcome
            else {
                panic!("no namespace")
            };
            paths.push(netns.path.clone());
        }
        client.create_netns(call(netns("rooted"))).await.unwrap();
        let held = leases.list_resources(call(ListResourcesRequest { id: "l".into() })).await;
        let held: Vec<String> = held
            .unwrap()
            .into_inner()
            .resources
            .into_iter()
            .map(|it| format!("{} {}", it.r#type, it.id))
            .collect();
        assert!(held.contains(&"netns idle".into()) && held.contains(&"link host/br0".into()));

        containers.create(call(joining("c", &paths[1]))).await.unwrap();
        let get = |id: &str| call(api::GetNetnsRequest { id: id.to_owned() });
        let joined = client.get_netns(get("joined")).await.unwrap().into_inner();
        assert_eq!(joined.containers, ["c"]);
        let delete =
            |id: &str| call(api::DeleteNetnsRequest { id: id.to_owned(), ..Default::default() });
        let refused = client.delete_netns(delete("joined")).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("container c"), "{}", refused.message());

        let end = || call(DeleteRequest { id: "l".into(), sync: true });
        leases.delete(end()).await.unwrap();
        let error = client.get_netns(get("idle")).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        let mut kept = pins(directory.path());
        kept.sort();
        assert_eq!(kept, ["test--joined", "test--rooted"]);
        until("the cable goes", || !host_links().contains(&"vidle".into())).await;
        // The bridge is held by the cable of the one that is joined.
        assert!(host_links().contains(&"br0".to_owned()));

        let delete = DeleteContainerRequest { id: "c".into() };
        containers.delete(call(delete)).await.unwrap();
        fixture.running.daemon().collect().await.unwrap();
        assert_eq!(pins(directory.path()), ["test--rooted"]);
        until("all links go", || host_links().is_empty()).await;
    });
}

#[test]
fn a_container_joins_only_what_is_there() {
    scratch(|directory| async move {
        let (fixture, mut client) = start(directory.clone()).await;
        let mut containers = ContainersClient::new(fixture.channel.clone());
        client.create_netns(call(netns("a"))).await.unwrap();
        let unknown = directory.path().join("state/netns/test--no");
        let error = containers.create(call(joining("c", unknown.to_str().unwrap()))).await;
        assert_eq!(error.unwrap_err().code(), Code::FailedPrecondition);
        let foreign = crate::common::in_namespace("other", netns("b"));
        let path = client.create_netns(foreign).await.unwrap().into_inner().path;
        let error = containers.create(call(joining("c", &path))).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        // A path of somebody else's is the runtime's business, until a task is made.
        let plain = directory.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        containers.create(call(joining("p", plain.to_str().unwrap()))).await.unwrap();
        use crated_api::services::tasks::v1::CreateTaskRequest;
        use crated_api::services::tasks::v1::tasks_client::TasksClient;
        let task = CreateTaskRequest { container_id: "p".into(), ..Default::default() };
        let mut tasks = TasksClient::new(fixture.channel.clone());
        let error = tasks.create(call(task)).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("not mounted"), "{}", error.message());
    });
}
