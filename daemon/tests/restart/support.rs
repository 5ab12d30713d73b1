//! Containers of a daemon, with no client's help beyond the API.

use std::path::Path;

use crated_api::Any;
use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{Container, CreateContainerRequest, container::Runtime};
use crated_api::services::tasks::v1::tasks_client::TasksClient;
use crated_api::services::tasks::v1::{CreateTaskRequest, GetRequest, StartRequest};
use crated_api::tasks::Process as Task;
use crated_api::types::Mount;
use tonic::Request;
use tonic::transport::Channel;

use crate::common::in_namespace;

/// A client, and the namespace of its own that it works in: runc has one table for all daemons.
pub(crate) struct Client {
    pub(crate) channel: Channel,
    pub(crate) namespace: String,
}

impl Client {
    pub(crate) fn call<T>(&self, message: T) -> Request<T> {
        in_namespace(&self.namespace, message)
    }

    pub(crate) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }
}

/// Whether containers can run here; they must in CI.
pub(crate) fn can_run() -> bool {
    let shim = Path::new(env!("CARGO_BIN_EXE_crated")).with_file_name("containerd-shim-crated-v2");
    let can = rustix::process::geteuid().is_root() && shim.exists();
    if !can {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root and {}", shim.display());
        println!("skipped: needs root and {}", shim.display());
    }
    can
}

/// Makes a root file system with busybox below `directory`.
pub(crate) fn rootfs(directory: &Path) -> String {
    let root = directory.join("rootfs");
    for name in ["bin", "proc"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|it| Path::new(it).exists());
    std::fs::copy(busybox.expect("busybox is installed"), root.join("bin/busybox")).unwrap();
    root.display().to_string()
}

pub(crate) fn spec(client: &Client, id: &str, script: &str) -> Any {
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

/// The record of a container without anything to run.
pub(crate) fn named(id: &str) -> Container {
    let runtime = Some(Runtime { name: "io.containerd.runc.v2".into(), options: None });
    Container { id: id.to_owned(), runtime, ..Container::default() }
}

pub(crate) async fn record(client: &Client, container: Container) {
    let request = CreateContainerRequest { container: Some(container) };
    ContainersClient::new(client.channel.clone()).create(client.call(request)).await.unwrap();
}

/// Runs `script` as the container `id`; answers with its pid.
pub(crate) async fn run(client: &Client, root: &str, id: &str, script: &str) -> u32 {
    record(client, Container { spec: Some(spec(client, id, script)), ..named(id) }).await;
    start(client, id, vec![bind(root)]).await
}

/// What shows the directory `root` as a root file system.
pub(crate) fn bind(root: &str) -> Mount {
    Mount {
        r#type: "bind".into(),
        source: root.to_owned(),
        options: vec!["rbind".into(), "rw".into()],
        ..Mount::default()
    }
}

/// Makes and starts a task; answers with its pid.
pub(crate) async fn start(client: &Client, id: &str, rootfs: Vec<Mount>) -> u32 {
    let mut tasks = client.tasks();
    let container_id = id.to_owned();
    let request = CreateTaskRequest { container_id, rootfs, ..Default::default() };
    tasks.create(client.call(request)).await.unwrap();
    let request = StartRequest { container_id: id.to_owned(), ..Default::default() };
    tasks.start(client.call(request)).await.unwrap().into_inner().pid
}

pub(crate) async fn task(client: &Client, id: &str) -> Task {
    let request = GetRequest { container_id: id.to_owned(), ..Default::default() };
    let answer = client.tasks().get(client.call(request)).await.unwrap();
    answer.into_inner().process.unwrap()
}
