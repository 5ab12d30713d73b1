//! What became of containers is told by whichever daemon is asked. Needs root, runc, busybox and
//! the shim beside the daemon.
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::Path;

use common::{in_namespace, until};
use crated_api::Any;
use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{Container, CreateContainerRequest, container::Runtime};
use crated_api::services::tasks::v1::tasks_client::TasksClient;
use crated_api::services::tasks::v1::{
    CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, StartRequest, WaitRequest,
};
use crated_api::tasks::{Process as Task, Status};
use crated_api::types::Mount;
use process::Process;
use rustix::process::Signal;
use tempfile::TempDir;
use tonic::Request;
use tonic::transport::Channel;

/// A client, and the namespace of its own that it works in: runc has one table for all daemons.
struct Client {
    channel: Channel,
    namespace: String,
}

impl Client {
    fn call<T>(&self, message: T) -> Request<T> {
        in_namespace(&self.namespace, message)
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }
}

/// Whether containers can run here; they must in CI.
fn can_run() -> bool {
    let shim = Path::new(env!("CARGO_BIN_EXE_crated")).with_file_name("containerd-shim-crated-v2");
    let can = rustix::process::geteuid().is_root() && shim.exists();
    if !can {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root and {}", shim.display());
        println!("skipped: needs root and {}", shim.display());
    }
    can
}

fn rootfs(directory: &Path) -> String {
    let root = directory.join("rootfs");
    for name in ["bin", "proc"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|it| Path::new(it).exists());
    std::fs::copy(busybox.expect("busybox is installed"), root.join("bin/busybox")).unwrap();
    root.display().to_string()
}

fn spec(client: &Client, id: &str, script: &str) -> Any {
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/busybox", "sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "mount" }],
            "cgroupsPath": format!("/crated-{}-{id}", client.namespace),
        },
    });
    let type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned();
    Any { type_url, value: serde_json::to_vec(&spec).unwrap() }
}

/// Runs `script` as the container `id`; answers with its pid.
async fn run(client: &Client, root: &str, id: &str, script: &str) -> u32 {
    let record = Container {
        id: id.to_owned(),
        runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: None }),
        spec: Some(spec(client, id, script)),
        ..Container::default()
    };
    let request = CreateContainerRequest { container: Some(record) };
    ContainersClient::new(client.channel.clone()).create(client.call(request)).await.unwrap();
    let bind = Mount {
        r#type: "bind".into(),
        source: root.to_owned(),
        options: vec!["rbind".into(), "rw".into()],
        ..Mount::default()
    };
    let mut tasks = client.tasks();
    let container_id = id.to_owned();
    let request = CreateTaskRequest { container_id, rootfs: vec![bind], ..Default::default() };
    tasks.create(client.call(request)).await.unwrap();
    let request = StartRequest { container_id: id.to_owned(), ..Default::default() };
    tasks.start(client.call(request)).await.unwrap().into_inner().pid
}

async fn task(client: &Client, id: &str) -> Task {
    let request = GetRequest { container_id: id.to_owned(), ..Default::default() };
    let answer = client.tasks().get(client.call(request)).await.unwrap();
    answer.into_inner().process.unwrap()
}

async fn tasks_and_their_codes_survive(signal: Signal) {
    if !can_run() {
        return;
    }
    let directory = TempDir::new().unwrap();
    common::write_config(directory.path());
    let root = rootfs(directory.path());
    let waits = "until [ -e /go ]; do busybox sleep 1; done; exit 9";

    let name = format!("restarted-{signal:?}-{}", std::process::id()).to_lowercase();
    let name: String = name.chars().filter(|it| it.is_alphanumeric() || *it == '-').collect();
    let of = |daemon: &Process| Client { channel: daemon.channel.clone(), namespace: name.clone() };

    let mut first = Process::start(directory.path()).await;
    let client = of(&first);
    run(&client, &root, "ended", "exit 7").await;
    let wait = WaitRequest { container_id: "ended".into(), ..Default::default() };
    let ended = client.tasks().wait(client.call(wait)).await.unwrap();
    assert_eq!(ended.into_inner().exit_status, 7);
    let pid = run(&client, &root, "ends", waits).await;
    run(&client, &root, "goes-on", "while true; do busybox sleep 1; done").await;
    let exited_at = task(&client, "ended").await.exited_at;
    first.end(signal);

    // One ends while nobody is there to see it.
    std::fs::write(Path::new(&root).join("go"), "").unwrap();
    let gone = format!("/proc/{pid}");
    until("the container has ended", async || !Path::new(&gone).exists()).await;

    // Whichever daemon asks gets the same answer, however often.
    for _ in 0..2 {
        let mut next = Process::start(directory.path()).await;
        let client = of(&next);
        let stopped = task(&client, "ended").await;
        assert_eq!((stopped.status(), stopped.exit_status), (Status::Stopped, 7));
        assert_eq!(stopped.exited_at, exited_at);
        let stopped = task(&client, "ends").await;
        assert_eq!((stopped.status(), stopped.exit_status), (Status::Stopped, 9));
        assert_eq!(task(&client, "goes-on").await.status(), Status::Running);
        next.end(signal);
    }

    let last = Process::start(directory.path()).await;
    let client = of(&last);
    let mut tasks = client.tasks();
    let kill = KillRequest { container_id: "goes-on".into(), signal: 9, ..Default::default() };
    tasks.kill(client.call(kill)).await.unwrap();
    for (id, code) in [("ended", 7), ("ends", 9), ("goes-on", 137)] {
        let wait = WaitRequest { container_id: id.into(), ..Default::default() };
        assert_eq!(
            tasks.wait(client.call(wait)).await.unwrap().into_inner().exit_status,
            code,
            "{id}"
        );
        let delete = DeleteTaskRequest { container_id: id.into() };
        let deleted = tasks.delete(client.call(delete)).await.unwrap().into_inner();
        assert_eq!(deleted.exit_status, code, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_and_their_exit_codes_survive_a_daemon_that_is_stopped() {
    tasks_and_their_codes_survive(Signal::TERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_and_their_exit_codes_survive_a_daemon_that_is_killed() {
    tasks_and_their_codes_survive(Signal::KILL).await;
}
