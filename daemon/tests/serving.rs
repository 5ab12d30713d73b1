//! The daemon as a process of this host: sockets, locks, health, version, plugins and events.

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Fixture, config, connect, in_namespace};
use crated::error::{Error, chain};
use crated_api::any;
use crated_api::events::TaskExit;
use crated_api::health::HealthCheckRequest;
use crated_api::health::health_client::HealthClient;
use crated_api::services::events::ttrpc::v1::ForwardRequest as TtrpcForwardRequest;
use crated_api::services::events::v1::events_client::EventsClient;
use crated_api::services::events::v1::{ForwardRequest, PublishRequest, SubscribeRequest};
use crated_api::services::introspection::v1::introspection_client::IntrospectionClient;
use crated_api::services::introspection::v1::{PluginInfoRequest, PluginsRequest};
use crated_api::services::version::v1::version_client::VersionClient;
use crated_api::types::Envelope;
use crated_exec::ttrpc::{Call, Client};
use tempfile::TempDir;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_root_is_told_who_has_it() {
    let daemon = Fixture::start().await;
    let mut second = config(daemon.directory.path());
    second.grpc.address = daemon.directory.path().join("other.sock");
    let error = crated::start(second).await.err().unwrap();
    assert!(matches!(error, Error::RootBusy { .. }), "{error}");
    let line = chain(&error);
    assert!(line.contains(&format!("held by process {}", std::process::id())), "{line}");
    assert!(!daemon.directory.path().join("other.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_answers_is_left_alone() {
    let daemon = Fixture::start().await;
    let elsewhere = TempDir::new().unwrap();
    let mut second = config(elsewhere.path());
    second.grpc.address = daemon.directory.path().join("c.sock");
    let error = crated::start(second).await.err().unwrap();
    assert!(matches!(error, Error::SocketBusy { .. }), "{error}");
    VersionClient::new(daemon.channel.clone()).version(()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_have_their_mode_and_go_with_the_daemon() {
    let daemon = Fixture::start().await;
    let directory = daemon.directory.clone();
    for name in ["c.sock", "c.sock.ttrpc"] {
        let mode = std::fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{name}");
    }
    let mode = |name: &str| {
        let found = std::fs::metadata(directory.path().join(name)).unwrap();
        found.permissions().mode() & 0o777
    };
    assert_eq!((mode("root"), mode("state")), (0o700, 0o711));
    let Fixture { running, channel, .. } = daemon;
    drop(channel);
    running.stop().await.unwrap();
    assert!(!directory.path().join("c.sock").exists());
    assert!(!directory.path().join("c.sock.ttrpc").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_version_and_identity_are_told() {
    let daemon = Fixture::start().await;
    let mut health = HealthClient::new(daemon.channel.clone());
    let serving = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(serving.status, 1);
    let unknown = HealthCheckRequest { service: "nobody".into() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);

    let version = VersionClient::new(daemon.channel.clone()).version(()).await.unwrap();
    let version = version.into_inner();
    assert!(version.version.starts_with('v') && !version.revision.is_empty());
    let major: u32 = version.version[1..].split('.').next().unwrap().parse().unwrap();
    assert!(major >= 1, "clients parse it");

    let mut introspection = IntrospectionClient::new(daemon.channel.clone());
    let server = introspection.server(()).await.unwrap().into_inner();
    assert_eq!(server.pid, u64::from(std::process::id()));
    assert_eq!(server.uuid.len(), 36);
    assert!(server.pidns > 0);
    drop((introspection, health));
    let daemon = daemon.restart().await;
    let again = IntrospectionClient::new(daemon.channel.clone()).server(()).await.unwrap();
    assert_eq!(again.into_inner().uuid, server.uuid, "the root keeps its identity");
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_found_by_the_filters_clients_send() {
    let daemon = Fixture::start().await;
    let mut introspection = IntrospectionClient::new(daemon.channel.clone());
    let mut plugins = async |filters: &[&str]| {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let answer = introspection.plugins(PluginsRequest { filters }).await.unwrap();
        answer.into_inner().plugins
    };
    let all = plugins(&[]).await;
    assert!(all.len() > 30);
    let runtimes =
        plugins(&["type==io.containerd.runtime.v1", "type==io.containerd.runtime.v2"]).await;
    assert_eq!(runtimes.len(), 1);
    assert_eq!(runtimes[0].platforms[0].os, "linux");
    let native = plugins(&["type==io.containerd.snapshotter.v1, id==native"]).await;
    assert_eq!(native.len(), 1);
    assert!(native[0].init_err.is_none() && native[0].exports.contains_key("root"));
    let quoted = plugins(&[r#"type=="io.containerd.snapshotter.v1""#]).await;
    let failed = quoted.iter().find(|plugin| plugin.id == "devmapper").unwrap();
    assert!(failed.init_err.as_ref().unwrap().message.contains("skip plugin"));

    let missing = PluginInfoRequest { r#type: "x".into(), ..Default::default() };
    let missing = introspection.plugin_info(missing).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let mute = PluginInfoRequest {
        r#type: "io.containerd.gc.v1".into(),
        id: "scheduler".into(),
        options: None,
    };
    let mute = introspection.plugin_info(mute).await.unwrap_err();
    assert_eq!(mute.code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_answers_unimplemented() {
    let daemon = Fixture::start().await;
    for path in [
        "/containerd.services.version.v1.Version/Nothing",
        "/containerd.runtime.sandbox.v1.Sandbox/SandboxStatus",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ] {
        let mut client = tonic::client::Grpc::new(daemon.channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let call = client.unary(in_namespace("n", ()), path.parse().unwrap(), codec);
        assert_eq!(call.await.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
}

fn exit(id: &str) -> crated_api::Any {
    any::pack(&TaskExit { container_id: id.into(), id: id.into(), ..TaskExit::default() })
}

fn envelope(topic: &str, id: &str) -> Envelope {
    Envelope {
        timestamp: Some(std::time::SystemTime::now().into()),
        namespace: "moby".into(),
        topic: topic.into(),
        event: Some(exit(id)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_those_who_filter_for_them_in_order() {
    let daemon = Fixture::start().await;
    let mut events = EventsClient::new(daemon.channel.clone());
    let filters = vec!["namespace==moby,topic~=|^/tasks/|".to_owned()];
    let mut moby = events.subscribe(SubscribeRequest { filters }).await.unwrap().into_inner();
    let one = vec!["event.container_id==c2".to_owned()];
    let mut one = events.subscribe(SubscribeRequest { filters: one }).await.unwrap().into_inner();

    let mut shim = Client::connect(daemon.directory.path().join("c.sock.ttrpc")).await.unwrap();
    forward(&mut shim, envelope("/tasks/exit", "c1")).await.unwrap();
    let publish = PublishRequest { topic: "/tasks/exit".into(), event: Some(exit("c2")) };
    events.publish(in_namespace("moby", publish)).await.unwrap();
    events.forward(ForwardRequest { envelope: Some(envelope("/images/x", "c3")) }).await.unwrap();
    events.forward(ForwardRequest { envelope: Some(envelope("/tasks/exit", "c4")) }).await.unwrap();

    for id in ["c1", "c2", "c4"] {
        let next = moby.message().await.unwrap().unwrap();
        assert_eq!(next.event.unwrap(), exit(id), "{id}");
    }
    assert_eq!(one.message().await.unwrap().unwrap().event.unwrap(), exit("c2"));
}

async fn forward(shim: &mut Client, envelope: Envelope) -> crated_exec::Result<()> {
    let request = TtrpcForwardRequest { envelope: Some(envelope) };
    let service = "containerd.services.events.ttrpc.v1.Events";
    shim.call::<_, ()>(service, "Forward", &request, Call::in_namespace("moby")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_events_and_filters_are_refused() {
    let daemon = Fixture::start().await;
    let mut events = EventsClient::new(daemon.channel.clone());
    let mut untimed = envelope("/tasks/exit", "c");
    untimed.timestamp = None;
    for broken in [untimed, envelope("tasks/exit", "c"), envelope("/", "c")] {
        let request = ForwardRequest { envelope: Some(broken.clone()) };
        let error = events.forward(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        let mut shim = Client::connect(daemon.directory.path().join("c.sock.ttrpc")).await.unwrap();
        let error = forward(&mut shim, broken).await.unwrap_err();
        assert_eq!(error.class().code(), 3, "{error}");
    }
    let filters = vec!["topic==".to_owned(), "(".to_owned()];
    let error = events.subscribe(SubscribeRequest { filters }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let publish = PublishRequest { topic: "/x".into(), event: Some(exit("c")) };
    let nowhere = events.publish(publish).await.unwrap_err();
    assert_eq!(nowhere.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_publish_command_delivers_an_event() {
    let daemon = Fixture::start().await;
    let mut events = EventsClient::new(daemon.channel.clone());
    let mut all = events.subscribe(SubscribeRequest::default()).await.unwrap().into_inner();
    let packed = prost::Message::encode_to_vec(&exit("c"));
    let address = daemon.directory.path().join("c.sock");
    crated::publish::publish(&address, "moby", "/tasks/exit", packed.as_slice()).await.unwrap();
    let next = all.message().await.unwrap().unwrap();
    assert_eq!((next.topic.as_str(), next.namespace.as_str()), ("/tasks/exit", "moby"));
    assert_eq!(next.event.unwrap(), exit("c"));
    let refused = crated::publish::publish(&address, "moby", "nonsense", packed.as_slice()).await;
    assert!(chain(&refused.unwrap_err()).contains("topic"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_subscriptions_at_once() {
    let daemon = Fixture::start().await;
    let mut events = EventsClient::new(daemon.channel.clone());
    let mut all = events.subscribe(SubscribeRequest::default()).await.unwrap().into_inner();
    let begin = std::time::Instant::now();
    let stopping = tokio::spawn(daemon.running.stop());
    let end = tokio::time::timeout(Duration::from_secs(30), all.message()).await;
    assert!(matches!(end, Ok(Ok(None) | Err(_))), "the stream ends");
    drop((all, events, daemon.channel));
    stopping.await.unwrap().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(30), "nothing waits for the client");
}

/// What grpc-go before 1.34 sends: the dialled target as the host of the call.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_names_the_socket_as_host_is_served() {
    let daemon = Fixture::start().await;
    let path = daemon.directory.path().join("c.sock");
    let hosts = [
        format!("unix://{}", path.display()),
        path.display().to_string().replace('/', "%2F"),
        "localhost".to_owned(),
    ];
    for host in hosts {
        let (path, name) = (path.clone(), host.clone());
        let frames = tokio::task::spawn_blocking(move || call_version(&path, &name)).await.unwrap();
        assert!(frames.contains(&HEADERS), "{host}: {frames:?}");
        assert!(frames.contains(&DATA), "{host}: {frames:?}");
        assert!(!frames.contains(&RST_STREAM), "{host}: {frames:?}");
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;

/// Calls Version twice by hand, the second time with the host out of the header table, and returns
/// the types of the frames that came back.
fn call_version(path: &std::path::Path, host: &str) -> Vec<u8> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    let mut frames = Vec::new();
    for (call, host) in [(1, Some(host)), (3, None)] {
        stream.write_all(&frame(HEADERS, 0x4, call, &block(host))).unwrap();
        stream.write_all(&frame(DATA, 0x1, call, &[0; 5])).unwrap();
        read_until_end(&mut stream, call, &mut frames);
    }
    frames
}

/// The headers of a call of Version. Literals enter the table in the order sent, so that the host
/// of the first block is entry 62 + the four that follow it.
fn block(host: Option<&str>) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    let mut literal = |name: &[u8], value: &str| {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend_from_slice(value.as_bytes());
    };
    match host {
        Some(host) => {
            literal(&[0x41], host);
            literal(&[0x44], "/containerd.services.version.v1.Version/Version");
            literal(&[0x5f], "application/grpc");
            literal(&[0x40, 2, b't', b'e'], "trailers");
        }
        None => block.extend_from_slice(&[0xc1, 0xc0, 0xbf, 0xbe]),
    }
    block
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![0, length[0], length[1], kind, flags, 0, 0, 0, stream];
    frame.extend_from_slice(payload);
    frame
}

fn read_until_end(stream: &mut UnixStream, call: u8, frames: &mut Vec<u8>) {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).unwrap();
        frames.push(head[3]);
        let (ours, ends) = (head[8] == call, head[4] & 1 == 1);
        if ours && (head[3] == RST_STREAM || ends && head[3] != SETTINGS) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_daemons_socket_is_replaced() {
    let directory = TempDir::new().unwrap();
    let address = config(directory.path()).grpc.address;
    // Bound and closed without being removed: what a killed daemon leaves.
    drop(std::os::unix::net::UnixListener::bind(&address).unwrap());
    let running = crated::start(config(directory.path())).await.unwrap();
    let channel = connect(address).await;
    VersionClient::new(channel.clone()).version(()).await.unwrap();
    drop(channel);
    running.stop().await.unwrap();
}

/// The program itself: ready is told, a second one refuses, a signal ends it.
#[allow(clippy::print_stdout, reason = "says that it was skipped")]
#[test]
fn the_program_tells_when_it_is_ready_and_stops_on_a_signal() {
    if !rustix::process::getuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root");
        println!("skipped: the socket's default owner is root");
        return;
    }
    let directory = TempDir::new().unwrap();
    let notify = directory.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let told = || {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let command = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_crated"));
        for (flag, name) in [("--root", "r"), ("--state", "s"), ("--address", "c.sock")] {
            command.arg(flag).arg(directory.path().join(name));
        }
        command.env("NOTIFY_SOCKET", &notify);
        command
    };
    let mut first = command().spawn().unwrap();
    assert!(told().contains("READY=1"));

    let second = command().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    let line = text.lines().last().unwrap();
    let expected = format!("lock: held by process {}", first.id());
    assert!(line.starts_with("crated: root ") && line.ends_with(&expected), "{text}");

    let pid = rustix::process::Pid::from_child(&first);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(told().contains("STOPPING=1"));
    assert!(first.wait().unwrap().success());
    assert!(!directory.path().join("c.sock").exists());
}
