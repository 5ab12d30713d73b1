//! Records of sandboxes, and sandboxes that run.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::common::{Fixture, in_namespace, labels};
use async_trait::async_trait;
use crated_api::events::{SandboxCreate, SandboxExit, SandboxStart};
use crated_api::services::events::v1::SubscribeRequest;
use crated_api::services::events::v1::events_client::EventsClient;
use crated_api::services::sandbox::v1::controller_client::ControllerClient;
use crated_api::services::sandbox::v1::store_client::StoreClient;
use crated_api::services::sandbox::v1::{
    ControllerCreateRequest, ControllerMetricsRequest, ControllerPlatformRequest,
    ControllerShutdownRequest, ControllerStartRequest, ControllerStatusRequest,
    ControllerStopRequest, ControllerUpdateRequest, ControllerWaitRequest, StoreCreateRequest,
    StoreDeleteRequest, StoreGetRequest, StoreListRequest, StoreUpdateRequest,
};
use crated_api::types::sandbox::Runtime;
use crated_api::types::{Envelope, Sandbox};
use crated_api::{Any, any};
use crated_exec::proto::{self, SANDBOX, sandbox as shim_api};
use crated_exec::ttrpc::{Context, Server, Service};
use prost::Message;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

fn record(id: &str) -> Sandbox {
    Sandbox {
        sandbox_id: id.into(),
        runtime: Some(Runtime { name: shim_binary(), options: None }),
        spec: Some(Any { type_url: "spec".into(), value: b"{}".to_vec() }),
        labels: labels(&[("tier", "web"), ("empty", "")]),
        extensions: [("x".to_owned(), Any { type_url: "t".into(), value: vec![1, 2] })].into(),
        sandboxer: "shim".into(),
        ..Sandbox::default()
    }
}

fn shim_binary() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/shim.sh").to_owned()
}

async fn create(store: &mut StoreClient<Channel>, sandbox: Sandbox) -> Result<Sandbox, Code> {
    let request = in_namespace("n", StoreCreateRequest { sandbox: Some(sandbox) });
    let created = store.create(request).await.map_err(|error| error.code())?;
    Ok(created.into_inner().sandbox.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_kept_as_they_were_sent() {
    let daemon = Fixture::start().await;
    let mut store = StoreClient::new(daemon.channel.clone());
    let created = create(&mut store, record("s1")).await.unwrap();
    assert_eq!(created.labels, labels(&[("tier", "web")]), "no value, no label");
    assert_eq!(created.created_at, created.updated_at);
    assert_eq!(create(&mut store, record("s1")).await, Err(Code::AlreadyExists));
    for id in ["", "-s", "a/b", "../x"] {
        assert_eq!(create(&mut store, record(id)).await, Err(Code::InvalidArgument), "{id}");
    }
    let nameless = Sandbox { extensions: [(String::new(), Any::default())].into(), ..record("s2") };
    assert_eq!(create(&mut store, nameless).await, Err(Code::InvalidArgument));

    drop(store);
    let daemon = daemon.restart().await;
    let mut store = StoreClient::new(daemon.channel.clone());
    let get = StoreGetRequest { sandbox_id: "s1".into() };
    let found = store.get(in_namespace("n", get.clone())).await.unwrap().into_inner();
    assert_eq!(found.sandbox.unwrap(), created);
    let elsewhere = store.get(in_namespace("other", get)).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::NotFound);
    let delete = StoreDeleteRequest { sandbox_id: "s1".into() };
    store.delete(in_namespace("n", delete.clone())).await.unwrap();
    assert_eq!(store.delete(in_namespace("n", delete)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_what_its_fields_say() {
    let daemon = Fixture::start().await;
    let mut store = StoreClient::new(daemon.channel.clone());
    let created = create(&mut store, record("s")).await.unwrap();
    let mut update = async |fields: &[&str], change: Sandbox| {
        let fields = fields.iter().map(|field| (*field).to_owned()).collect();
        let request = StoreUpdateRequest { sandbox: Some(change), fields };
        let answer = store.update(in_namespace("n", request)).await;
        answer.map(|answer| answer.into_inner().sandbox.unwrap()).map_err(|error| error.code())
    };
    let change = Sandbox {
        labels: labels(&[("io.example/zone", "b"), ("tier", "")]),
        extensions: [("y".to_owned(), Any { type_url: "u".into(), value: vec![3] })].into(),
        spec: None,
        ..record("s")
    };
    let one = update(&["labels.io.example/zone"], change.clone()).await.unwrap();
    assert_eq!(one.labels, labels(&[("io.example/zone", "b"), ("tier", "web")]));
    assert_eq!((one.spec, one.created_at), (created.spec, created.created_at));
    let gone = update(&["labels.tier"], change.clone()).await.unwrap();
    assert_eq!(gone.labels, labels(&[("io.example/zone", "b")]));
    let both = update(&["extensions.y"], change.clone()).await.unwrap();
    assert_eq!(both.extensions.len(), 2, "others stay");
    let all = update(&[], change.clone()).await.unwrap();
    assert_eq!((all.extensions.len(), all.spec), (1, None), "no field stands for all");

    for path in ["sandbox_id", "created_at", "labels.", "sandboxer"] {
        assert_eq!(update(&[path], change.clone()).await, Err(Code::InvalidArgument), "{path}");
    }
    let renamed = Sandbox {
        runtime: Some(Runtime { name: "other".into(), options: None }),
        ..change.clone()
    };
    assert_eq!(update(&["runtime"], renamed.clone()).await, Err(Code::InvalidArgument));
    assert_eq!(update(&[], renamed).await, Err(Code::InvalidArgument));
    assert_eq!(update(&[], record("none")).await, Err(Code::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_by_id_and_label() {
    let daemon = Fixture::start().await;
    let mut store = StoreClient::new(daemon.channel.clone());
    for id in ["a", "b"] {
        create(&mut store, Sandbox { labels: labels(&[("name", id)]), ..record(id) })
            .await
            .unwrap();
    }
    let mut list = async |filter: &str| {
        let request = StoreListRequest { filters: vec![filter.to_owned()] };
        let answer = store.list(in_namespace("n", request)).await.map_err(|error| error.code())?;
        let ids = answer.into_inner().list.into_iter().map(|sandbox| sandbox.sandbox_id);
        Ok(ids.collect::<Vec<_>>().join(" "))
    };
    assert_eq!(list("").await.as_deref(), Ok("a b"));
    assert_eq!(list("id==a").await.as_deref(), Ok("a"));
    assert_eq!(list("labels.name~=^b$").await.as_deref(), Ok("b"));
    assert_eq!(list("sandboxer==shim").await.as_deref(), Ok(""), "no such field");
    assert_eq!(list("id==").await, Err(Code::InvalidArgument));
}

/// What answers on the socket of a shim: it outlives daemons, like a shim does.
#[derive(Clone)]
struct Shim {
    ended: watch::Sender<bool>,
}

impl Shim {
    fn serve(directory: &Path, id: &str) -> Self {
        let listener = directory.join(format!("shim-{id}.sock"));
        let listener = tokio::net::UnixListener::bind(listener).unwrap();
        let shim = Self { ended: watch::Sender::new(false) };
        let server = Server::new().service(SANDBOX, Arc::new(shim.clone()));
        tokio::spawn(server.serve(listener, std::future::pending()));
        shim
    }
}

#[async_trait]
impl Service for Shim {
    async fn call(
        &self,
        context: Context,
        method: &str,
        payload: &[u8],
    ) -> crated_exec::Result<Vec<u8>> {
        assert_eq!(context.namespace(), Some("n"));
        let now = || Some(proto::timestamp(Some(SystemTime::now())));
        Ok(match method {
            "CreateSandbox" => {
                let request = shim_api::CreateSandboxRequest::decode(payload).unwrap();
                assert!(Path::new(&request.bundle_path).join("config.json").exists());
                assert_eq!(request.netns_path, "/run/netns/x");
                Vec::new()
            }
            "StartSandbox" => {
                shim_api::StartSandboxResponse { pid: 7, created_at: now() }.encode_to_vec()
            }
            "Platform" => shim_api::PlatformResponse {
                platform: Some(proto::types::Platform { os: "linux".into(), ..Default::default() }),
            }
            .encode_to_vec(),
            "StopSandbox" => {
                self.ended.send_replace(true);
                Vec::new()
            }
            "WaitSandbox" => {
                let mut ended = self.ended.subscribe();
                ended.wait_for(|ended| *ended).await.unwrap();
                let response = shim_api::WaitSandboxResponse { exit_status: 3, exited_at: now() };
                response.encode_to_vec()
            }
            "SandboxStatus" => shim_api::SandboxStatusResponse {
                pid: if *self.ended.borrow() { 0 } else { 7 },
                state: "SANDBOX_READY".into(),
                ..Default::default()
            }
            .encode_to_vec(),
            "SandboxMetrics" => shim_api::SandboxMetricsResponse {
                metrics: Some(proto::types::Metric { id: "s".into(), ..Default::default() }),
            }
            .encode_to_vec(),
            "ShutdownSandbox" => Vec::new(),
            method => return Err(crated_exec::Error::Unimplemented(method.to_owned())),
        })
    }
}

struct Controlled {
    daemon: Fixture,
    controller: ControllerClient<Channel>,
    events: Streaming<Envelope>,
}

impl Controlled {
    async fn new(daemon: Fixture) -> Self {
        let controller = ControllerClient::new(daemon.channel.clone());
        let filters = vec!["topic~=|^/sandboxes/|".to_owned()];
        let events = EventsClient::new(daemon.channel.clone())
            .subscribe(SubscribeRequest { filters })
            .await
            .unwrap()
            .into_inner();
        Self { daemon, controller, events }
    }

    async fn create(&mut self, id: &str) -> Result<(), Code> {
        let request = ControllerCreateRequest {
            sandbox_id: id.into(),
            sandboxer: "shim".into(),
            netns_path: "/run/netns/x".into(),
            ..Default::default()
        };
        let created = self.controller.create(in_namespace("n", request)).await;
        created.map(drop).map_err(|error| error.code())
    }

    async fn start(&mut self, id: &str) {
        let request = ControllerStartRequest { sandbox_id: id.into(), sandboxer: "shim".into() };
        let started = self.controller.start(in_namespace("n", request)).await.unwrap();
        let started = started.into_inner();
        assert_eq!((started.pid, started.version), (7, 2));
        assert!(started.address.starts_with("unix:///"));
    }

    async fn stop(&mut self, id: &str) {
        let request = ControllerStopRequest {
            sandbox_id: id.into(),
            timeout_secs: 1,
            sandboxer: "shim".into(),
        };
        self.controller.stop(in_namespace("n", request)).await.unwrap();
    }

    async fn state(&mut self, id: &str) -> Result<String, Code> {
        let request = ControllerStatusRequest {
            sandbox_id: id.into(),
            verbose: true,
            sandboxer: "shim".into(),
        };
        let status = self.controller.status(in_namespace("n", request)).await;
        status.map(|status| status.into_inner().state).map_err(|error| error.code())
    }

    async fn event<M: Message + prost::Name + Default>(&mut self) -> M {
        let next = self.events.message();
        let next = tokio::time::timeout(std::time::Duration::from_secs(60), next).await;
        let envelope = next.expect("an event comes").unwrap().unwrap();
        assert_eq!(envelope.namespace, "n");
        any::unpack(&envelope.event.unwrap()).unwrap()
    }

    fn bundle(&self, id: &str) -> std::path::PathBuf {
        let state = self.daemon.directory.path().join("state");
        state.join("io.containerd.sandbox.controller.v1.shim/n").join(id)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_lives_under_its_shim() {
    let daemon = Fixture::start().await;
    Shim::serve(daemon.directory.path(), "s");
    let mut store = StoreClient::new(daemon.channel.clone());
    create(&mut store, record("s")).await.unwrap();
    let mut world = Controlled::new(daemon).await;
    world.create("s").await.unwrap();
    assert_eq!(world.create("s").await, Err(Code::AlreadyExists));
    assert_eq!(world.event::<SandboxCreate>().await.sandbox_id, "s");
    assert!(world.bundle("s").join("bootstrap.json").exists());
    world.start("s").await;
    assert_eq!(world.event::<SandboxStart>().await.sandbox_id, "s");
    assert_eq!(world.state("s").await.as_deref(), Ok("SANDBOX_READY"));

    let platform = ControllerPlatformRequest { sandbox_id: "s".into(), sandboxer: "shim".into() };
    let platform = world.controller.platform(in_namespace("n", platform)).await.unwrap();
    assert_eq!(platform.into_inner().platform.unwrap().os, "linux");
    let metrics = ControllerMetricsRequest { sandbox_id: "s".into(), sandboxer: "shim".into() };
    let metrics = world.controller.metrics(in_namespace("n", metrics)).await.unwrap();
    assert_eq!(metrics.into_inner().metrics.unwrap().id, "s");

    let wait = ControllerWaitRequest { sandbox_id: "s".into(), sandboxer: "shim".into() };
    let mut waiting = world.controller.clone();
    let waiting = tokio::spawn(async move { waiting.wait(in_namespace("n", wait)).await });
    world.stop("s").await;
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().exit_status, 3);
    let exit: SandboxExit = world.event().await;
    assert_eq!((exit.sandbox_id.as_str(), exit.exit_status), ("s", 3));

    let shutdown = ControllerShutdownRequest { sandbox_id: "s".into(), sandboxer: "shim".into() };
    world.controller.shutdown(in_namespace("n", shutdown)).await.unwrap();
    assert!(!world.bundle("s").exists());
    assert_eq!(world.state("s").await.as_deref(), Ok("exited"), "its record is still there");
    world.stop("s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_reports_the_end_of_a_sandbox() {
    let daemon = Fixture::start().await;
    Shim::serve(daemon.directory.path(), "s");
    create(&mut StoreClient::new(daemon.channel.clone()), record("s")).await.unwrap();
    let mut world = Controlled::new(daemon).await;
    world.create("s").await.unwrap();
    world.start("s").await;
    let Controlled { daemon, controller, events } = world;
    drop((controller, events));
    let mut world = Controlled::new(daemon.restart().await).await;
    assert_eq!(world.state("s").await.as_deref(), Ok("SANDBOX_READY"));
    world.stop("s").await;
    assert_eq!(world.event::<SandboxExit>().await.exit_status, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_controlled_is_told_apart() {
    let daemon = Fixture::start().await;
    create(&mut StoreClient::new(daemon.channel.clone()), record("s")).await.unwrap();
    let mut world = Controlled::new(daemon).await;
    for (sandboxer, code) in [("", Code::InvalidArgument), ("far", Code::NotFound)] {
        let request =
            ControllerStartRequest { sandbox_id: "s".into(), sandboxer: sandboxer.into() };
        let error = world.controller.start(in_namespace("n", request)).await.unwrap_err();
        assert_eq!(error.code(), code, "{sandboxer}");
    }
    assert_eq!(world.create("unrecorded").await, Err(Code::NotFound));
    assert_eq!(world.state("unrecorded").await, Err(Code::NotFound));
    let update = ControllerUpdateRequest { sandboxer: "shim".into(), ..Default::default() };
    let error = world.controller.update(in_namespace("n", update)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);

    // A shim that keeps tasks only.
    let path = world.daemon.directory.path().join("shim-s.sock");
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    tokio::spawn(Server::new().serve(listener, std::future::pending()));
    assert_eq!(world.create("s").await, Err(Code::Unimplemented));
    assert!(!world.bundle("s").exists(), "nothing is left");
}
