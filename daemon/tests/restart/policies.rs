//! What should run is started again.

use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{
    Container, DeleteContainerRequest, GetContainerRequest, UpdateContainerRequest,
};
use crated_api::services::introspection::v1::PluginsRequest;
use crated_api::services::introspection::v1::introspection_client::IntrospectionClient;
use crated_api::services::snapshots::v1::PrepareSnapshotRequest;
use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_api::services::tasks::v1::{DeleteTaskRequest, GetRequest};
use crated_api::tasks::{Process as Task, Status};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::common::{self, mask, until};
use crate::process::Process;
use crate::support::{Client, bind, can_run, named, record, rootfs, spec, start};

const LOOKS: &str = "
[plugins.\"io.containerd.monitor.container.v1.restart\"]
interval = \"50ms\"
";

/// A daemon that looks at containers often.
struct World {
    directory: TempDir,
    daemon: Process,
    client: Client,
}

impl World {
    /// Nothing where containers cannot run.
    async fn of_containers(name: &str) -> Option<Self> {
        if can_run() { Some(Self::start(name).await) } else { None }
    }

    async fn start(name: &str) -> Self {
        let directory = TempDir::new().unwrap();
        common::write_config(directory.path());
        let path = directory.path().join("config.toml");
        let text = std::fs::read_to_string(&path).unwrap() + LOOKS;
        std::fs::write(&path, text).unwrap();
        let daemon = Process::start(directory.path()).await;
        let namespace = format!("{name}-{}", std::process::id());
        let client = Client { channel: daemon.channel.clone(), namespace };
        Self { directory, daemon, client }
    }

    fn log(&self) -> std::path::PathBuf {
        self.directory.path().join("log")
    }

    /// How often the container told that it was there.
    fn told(&self) -> usize {
        std::fs::read_to_string(self.log()).unwrap_or_default().matches("here").count()
    }

    /// A record whose first words are told to a log, with a policy.
    fn container(&self, id: &str, script: &str, policy: &str) -> Container {
        let script = format!("echo here; {script}");
        let mut container = Container { spec: Some(spec(&self.client, id, &script)), ..named(id) };
        let uri = format!("file://{}", self.log().display());
        for (name, value) in [("status", "running"), ("policy", policy), ("loguri", &uri)] {
            container.labels.insert(format!("containerd.io/restart.{name}"), value.to_owned());
        }
        container
    }

    fn containers(&self) -> ContainersClient<tonic::transport::Channel> {
        ContainersClient::new(self.client.channel.clone())
    }

    async fn count(&self, id: &str) -> u64 {
        let request = self.client.call(GetContainerRequest { id: id.to_owned() });
        let found = self.containers().get(request).await.unwrap().into_inner().container.unwrap();
        let count = found.labels.get("containerd.io/restart.count");
        count.map_or(0, |count| count.parse().unwrap())
    }

    async fn label(&self, id: &str, name: &str, value: &str) {
        let key = format!("containerd.io/restart.{name}");
        let path = format!("labels.{key}");
        let labels = [(key, value.to_owned())].into();
        let container = Some(Container { id: id.to_owned(), labels, ..Container::default() });
        let request = UpdateContainerRequest { container, update_mask: mask(&[&path]) };
        self.containers().update(self.client.call(request)).await.unwrap();
    }

    async fn task(&self, id: &str) -> Option<Task> {
        let request = GetRequest { container_id: id.to_owned(), ..Default::default() };
        let found = self.client.tasks().get(self.client.call(request)).await.ok()?;
        found.into_inner().process
    }

    async fn stop(&self, id: &str) {
        self.label(id, "status", "stopped").await;
        until("the task is gone", async || {
            let delete = DeleteTaskRequest { container_id: id.to_owned() };
            // What has ended by itself is left for whoever wants its exit code.
            let _ = self.client.tasks().delete(self.client.call(delete)).await;
            self.task(id).await.is_none()
        })
        .await;
        let delete = self.client.call(DeleteContainerRequest { id: id.to_owned() });
        self.containers().delete(delete).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_kept_running_from_its_snapshot_until_it_should_stop() {
    let Some(world) = World::of_containers("kept-running").await else { return };
    let prepare = PrepareSnapshotRequest {
        snapshotter: "native".to_owned(),
        key: "root".to_owned(),
        ..PrepareSnapshotRequest::default()
    };
    let mut snapshots = SnapshotsClient::new(world.client.channel.clone());
    let prepared = snapshots.prepare(world.client.call(prepare)).await.unwrap().into_inner();
    let made = rootfs(world.directory.path());
    let copied = std::process::Command::new("cp")
        .args(["-a", &format!("{made}/."), &prepared.mounts[0].source])
        .status();
    assert!(copied.unwrap().success());

    // Nobody makes a task: the daemon does, once the client had its time.
    record(
        &world.client,
        Container {
            snapshotter: "native".to_owned(),
            snapshot_key: "root".to_owned(),
            ..world.container("again", "exit 0", "always")
        },
    )
    .await;
    until("it has run four times", async || world.told() >= 4).await;
    assert!(world.count("again").await >= 3);

    // A start may be under way meanwhile. It is taken back, and many looks later there is no other.
    world.stop("again").await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    until("nothing is left of it", async || world.task("again").await.is_none()).await;
    let told = world.told();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(world.told(), told);
    assert!(world.task("again").await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_killed_when_it_should_stop() {
    let Some(world) = World::of_containers("should-stop").await else { return };
    let root = rootfs(world.directory.path());
    let script = "while true; do busybox sleep 1; done";
    record(&world.client, world.container("busy", script, "unless-stopped")).await;
    start(&world.client, "busy", vec![bind(&root)]).await;
    world.label("busy", "explicitly-stopped", "true").await;
    assert_eq!(world.task("busy").await.unwrap().status(), Status::Running);
    world.stop("busy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_and_the_last_one_stays() {
    let Some(world) = World::of_containers("counted").await else { return };
    let root = rootfs(world.directory.path());
    let mut container = world.container("fails", "exit 3", "on-failure:2");
    container.spec = Some(with_root(container.spec.unwrap(), &root));
    record(&world.client, container).await;
    start(&world.client, "fails", Vec::new()).await;
    until("it has been started twice again", async || {
        let ended = world.task("fails").await.is_some_and(|it| it.status() == Status::Stopped);
        world.told() == 2 && ended
    })
    .await;
    assert_eq!(world.count("fails").await, 2);
    // Many looks later it is still the same task.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!((world.told(), world.count("fails").await), (2, 2));
    assert_eq!(world.task("fails").await.unwrap().exit_status, 3);
    world.stop("fails").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_while_no_daemon_ran_is_started_by_the_next() {
    let Some(mut world) = World::of_containers("next-daemon").await else { return };
    let root = rootfs(world.directory.path());
    let script = "while true; do busybox sleep 1; done";
    let mut container = world.container("up", script, "always");
    container.spec = Some(with_root(container.spec.unwrap(), &root));
    record(&world.client, container).await;
    let pid = start(&world.client, "up", Vec::new()).await;
    world.daemon.end(Signal::KILL);
    let process = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(process, Signal::KILL).unwrap();

    world.daemon = Process::start(world.directory.path()).await;
    world.client.channel = world.daemon.channel.clone();
    until("it runs again", async || {
        let task = world.task("up").await;
        task.is_some_and(|it| it.status() == Status::Running && it.pid != pid)
    })
    .await;
    assert_eq!(world.count("up").await, 1);
    world.stop("up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_find_the_policies_among_the_capabilities() {
    let world = World::start("listed").await;
    let request = PluginsRequest { filters: vec!["id==restart".to_owned()] };
    let mut introspection = IntrospectionClient::new(world.client.channel.clone());
    let found = introspection.plugins(request).await.unwrap().into_inner().plugins;
    assert!(!found.is_empty());
    for plugin in found {
        assert!(plugin.init_err.is_none(), "{plugin:?}");
        assert_eq!(plugin.capabilities, ["no", "always", "on-failure", "unless-stopped"]);
    }
}

/// The same specification with a root that needs no mount.
fn with_root(mut spec: crated_api::Any, root: &str) -> crated_api::Any {
    let mut value: serde_json::Value = serde_json::from_slice(&spec.value).unwrap();
    value["root"]["path"] = root.into();
    spec.value = serde_json::to_vec(&value).unwrap();
    spec
}
