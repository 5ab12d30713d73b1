//! Two real containers on one bridge. Needs runc, busybox and the shim beside the daemon.

use std::path::Path;

use crated_api::Any;
use crated_api::network as api;
use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{Container, CreateContainerRequest, container::Runtime};
use crated_api::services::tasks::v1::tasks_client::TasksClient;
use crated_api::services::tasks::v1::{
    CreateTaskRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest,
};
use crated_api::types::Mount;

use crate::scratch::*;

/// The shim, which tests of the daemon do not build by themselves.
fn shim_is_there() -> bool {
    let shim = Path::new(env!("CARGO_BIN_EXE_crated")).with_file_name("containerd-shim-crated-v2");
    let found = shim.exists();
    if !found {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is missing", shim.display());
    }
    found
}

fn rootfs(directory: &Path) -> String {
    let root = directory.join("rootfs");
    for name in ["bin", "proc", "dev", "www"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|it| Path::new(it).exists());
    std::fs::copy(busybox.expect("busybox is installed"), root.join("bin/busybox")).unwrap();
    std::fs::write(root.join("www/index.html"), "hello from the other side").unwrap();
    root.display().to_string()
}

fn spec(id: &str, netns: &str, script: &str) -> Any {
    let args = serde_json::json!(["/bin/busybox", "sh", "-c", script]);
    let raw = serde_json::json!(["CAP_NET_RAW", "CAP_NET_BIND_SERVICE", "CAP_KILL"]);
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": { "bounding": raw, "effective": raw, "permitted": raw },
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
        ],
        "linux": { "namespaces": [
            { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
            { "type": "network", "path": netns },
        ], "cgroupsPath": format!("/crated-network-test/{id}") },
    });
    let type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned();
    Any { type_url, value: serde_json::to_vec(&spec).unwrap() }
}

#[test]
fn two_containers_ping_each_other_and_talk_over_tcp() {
    if !shim_is_there() {
        return;
    }
    scratch(|directory| async move {
        let daemon = Process::start(directory.path(), "", &[]).await;
        let mut networks = client(&daemon.channel);
        let mut containers = ContainersClient::new(daemon.channel.clone());
        let mut tasks = TasksClient::new(daemon.channel.clone());
        networks.create_link(call(bridge("br0"))).await.unwrap();
        let root = rootfs(directory.path());
        let unique = format!("crated-net-{}", std::process::id());
        let server = format!("{unique}-server");
        let reader = format!("{unique}-client");
        let serve = "busybox nc -ll -p 80 -e busybox cat /www/index.html";
        let talk = "n=0; until busybox ping -c 1 -W 20 10.9.0.2; do \
                    n=$((n+1)); [ $n -lt 20 ] || exit 8; done; \
                    i=0; until busybox nc 10.9.0.2 80 </dev/null; do \
                    i=$((i+1)); [ $i -lt 50 ] || exit 7; busybox sleep 1; done";
        let mut netns = Vec::new();
        for (n, (id, script)) in [(&server, serve), (&reader, talk)].into_iter().enumerate() {
            let address = format!("10.9.0.{}/24", n + 2);
            let request = container(&format!("n{n}"), &format!("v{n}"), "br0", &address);
            let made = networks.apply(call(request)).await.unwrap().into_inner();
            let Some(api::result::Outcome::Netns(made)) = &made.results[0].outcome else {
                panic!("no namespace")
            };
            netns.push(made.id.clone());
            let record = Container {
                id: id.clone(),
                runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: None }),
                spec: Some(spec(id, &made.path, script)),
                ..Container::default()
            };
            let request = CreateContainerRequest { container: Some(record) };
            containers.create(call(request)).await.unwrap();
            let bind = Mount {
                r#type: "bind".into(),
                source: root.clone(),
                options: vec!["rbind".into(), "rw".into()],
                ..Mount::default()
            };
            let log = directory.path().join(format!("{n}.log"));
            let request = CreateTaskRequest {
                container_id: id.clone(),
                rootfs: vec![bind],
                stdout: format!("file://{}", log.display()),
                stderr: format!("file://{}", log.display()),
                ..CreateTaskRequest::default()
            };
            tasks.create(call(request)).await.unwrap();
            let request = StartRequest { container_id: id.clone(), ..Default::default() };
            tasks.start(call(request)).await.unwrap();
        }
        // Who is in it is known, and keeps it.
        let get = api::GetNetnsRequest { id: netns[0].clone() };
        let read = networks.get_netns(call(get)).await.unwrap().into_inner();
        assert_eq!(read.containers, std::slice::from_ref(&server));
        let wait = WaitRequest { container_id: reader.clone(), ..Default::default() };
        let ended = tasks.wait(call(wait)).await.unwrap().into_inner();
        let log = std::fs::read_to_string(directory.path().join("1.log")).unwrap_or_default();
        let kill = KillRequest { container_id: server.clone(), signal: 9, ..Default::default() };
        tasks.kill(call(kill)).await.unwrap();
        let wait = WaitRequest { container_id: server.clone(), ..Default::default() };
        tasks.wait(call(wait)).await.unwrap();
        for id in [&server, &reader] {
            let delete = DeleteTaskRequest { container_id: id.clone() };
            tasks.delete(call(delete)).await.unwrap();
        }
        assert_eq!(ended.exit_status, 0, "{log}");
        assert!(log.contains("1 packets received"), "{log}");
        assert!(log.contains("hello from the other side"), "{log}");
    });
}
