//! The shim under the daemon's side of this project. Needs root, runc and busybox.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use crated_exec::{
    Error, ExecProcess, Result, Stdio,
    proto::{
        self, EVENTS,
        events::{TaskDelete, TaskExit, TaskStart},
        forward::ForwardRequest,
        process::Status,
        types::Envelope,
    },
    shim::{CreateShimTask, ShimConfig, ShimRuntime, Timeouts},
    testsuite,
    ttrpc::{Context, Server, Service},
};
use prost::Message;

/// A daemon's surroundings: folders, and a socket that takes events.
struct World {
    dir: tempfile::TempDir,
    events: Arc<Mutex<Vec<Envelope>>>,
}

struct Sink(Arc<Mutex<Vec<Envelope>>>);

#[async_trait]
impl Service for Sink {
    async fn call(&self, context: Context, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        assert_eq!(method, "Forward");
        assert_eq!(context.namespace(), Some("ns"));
        let request = ForwardRequest::decode(payload).unwrap();
        self.0.lock().unwrap().push(request.envelope.unwrap());
        Ok(Vec::new())
    }
}

impl World {
    fn new() -> Self {
        let world = World { dir: tempfile::tempdir().unwrap(), events: Arc::default() };
        let rootfs = world.path("rootfs");
        fs::create_dir(&rootfs).unwrap();
        testsuite::fill_rootfs(&rootfs);
        let listener = tokio::net::UnixListener::bind(world.path("ttrpc")).unwrap();
        let server = Server::new().service(EVENTS, Arc::new(Sink(Arc::clone(&world.events))));
        tokio::spawn(server.serve(listener, std::future::pending()));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A daemon; the one before it, if any, is as good as dead.
    fn daemon(&self) -> Arc<ShimRuntime> {
        let text = |name: &str| self.path(name).display().to_string();
        let shim = PathBuf::from(env!("CARGO_BIN_EXE_containerd-shim-crated-v2"));
        let config = ShimConfig {
            state_dir: self.path("state"),
            root_dir: self.path("root"),
            grpc_address: text("grpc"),
            ttrpc_address: text("ttrpc"),
            publish_binary: "/bin/false".into(),
            debug: true,
            timeouts: Timeouts { load: Duration::from_secs(1), ..Timeouts::default() },
            runtimes: BTreeMap::from([("io.containerd.runc.v2".to_owned(), shim)]),
        };
        let events = Arc::clone(&self.events);
        ShimRuntime::new(config, Arc::new(move |event| events.lock().unwrap().push(event))).unwrap()
    }

    fn request(&self, id: &str, script: &str) -> CreateShimTask {
        let options = proto::runc::Options {
            root: self.path("runc").display().to_string(),
            ..Default::default()
        };
        let rootfs = crated_mount::Mount {
            kind: "bind".into(),
            source: self.path("rootfs").display().to_string(),
            target: String::new(),
            options: vec!["rbind".into(), "ro".into()],
        };
        CreateShimTask {
            namespace: "ns".into(),
            id: id.into(),
            runtime: "io.containerd.runc.v2".into(),
            options: Some(proto::pack(&options)),
            spec: testsuite::shell_spec(id, script),
            rootfs: vec![rootfs],
            stdio: Stdio { stdout: self.log(id), ..Stdio::default() },
            checkpoint: String::new(),
        }
    }

    fn log(&self, id: &str) -> String {
        format!("file://{}", self.path(&format!("{id}.log")).display())
    }

    fn topics(&self) -> Vec<String> {
        self.events.lock().unwrap().iter().map(|event| event.topic.clone()).collect()
    }

    async fn await_topics(&self, count: usize) -> Vec<String> {
        let until = Instant::now() + Duration::from_secs(20);
        while self.topics().len() < count {
            assert!(Instant::now() < until, "only {:?}", self.topics());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.topics()
    }

    fn is_empty(&self, folder: &str) -> bool {
        fs::read_dir(self.path(folder).join("ns")).unwrap().next().is_none()
    }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    if !testsuite::can_run() {
        return;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new();
        tokio::time::timeout(Duration::from_secs(50), test(world)).await.expect("took too long");
    });
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.contains(&path.display().to_string())
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

async fn await_end(pid: u32) {
    let until = Instant::now() + Duration::from_secs(10);
    while is_alive(pid) {
        assert!(Instant::now() < until, "process {pid} does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_container_lives_from_creation_to_deletion() {
    run(|world| async move {
        let daemon = world.daemon();
        let task = daemon.create(world.request("box", "echo hello; sleep 60")).await.unwrap();
        assert!(matches!(
            daemon.create(world.request("box", "")).await,
            Err(Error::AlreadyExists(_))
        ));
        let waiting = tokio::spawn({
            let task = Arc::clone(&task);
            async move { task.wait("").await }
        });
        let pid = task.start("").await.unwrap();
        assert_eq!(pid, task.pid());
        let shim = task.connect().await.unwrap().shim_pid;

        let spec = testsuite::process("echo joined; exit 7").to_string().into_bytes();
        let stdio = Stdio { stdout: world.log("exec"), ..Stdio::default() };
        task.exec(ExecProcess { id: "e".into(), spec, stdio }).await.unwrap();
        task.start("e").await.unwrap();
        assert_eq!(task.wait("e").await.unwrap().exit_status, 7);
        assert_eq!(task.state("e").await.unwrap().status(), Status::Stopped);
        assert_eq!(task.delete_process("e").await.unwrap().exit_status, 7);
        assert_eq!(fs::read_to_string(world.path("exec.log")).unwrap(), "joined\n");

        task.pause().await.unwrap();
        assert_eq!(task.state("").await.unwrap().status(), Status::Paused);
        task.resume().await.unwrap();
        assert!(task.stats().await.unwrap().type_url.starts_with("io.containerd.cgroups.v"));
        assert!(task.pids().await.unwrap().iter().any(|p| p.pid == pid));
        assert!(matches!(task.delete().await, Err(Error::Unknown(_))));

        task.kill("", 9, false).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
        assert!(matches!(task.kill("", 9, false).await, Err(Error::NotFound(_))));
        assert_eq!(task.delete().await.unwrap().exit_status, 137);
        assert!(matches!(daemon.task("ns", "box"), Err(Error::NotFound(_))));
        assert_eq!(fs::read_to_string(world.path("box.log")).unwrap(), "hello\n");
        assert!(world.is_empty("state") && world.is_empty("root"));
        await_end(shim).await;

        let topics = world.await_topics(9).await;
        let expected = [
            "create",
            "start",
            "exec-added",
            "exec-started",
            "exit",
            "paused",
            "resumed",
            "exit",
            "delete",
        ];
        assert_eq!(topics, expected.map(|topic| format!("/tasks/{topic}")));
    });
}

#[test]
fn short_lives_have_one_exit_each_in_order() {
    run(|world| async move {
        let daemon = world.daemon();
        for n in 0..10 {
            let id = format!("short{n}");
            let task = daemon.create(world.request(&id, &format!("exit {n}"))).await.unwrap();
            task.start("").await.unwrap();
            assert_eq!(task.wait("").await.unwrap().exit_status, n);
            assert_eq!(task.delete().await.unwrap().exit_status, n);
        }
        world.await_topics(40).await;
        let events = world.events.lock().unwrap();
        for (n, life) in events.chunks(4).enumerate() {
            let topics: Vec<_> =
                life.iter().map(|e| e.topic.trim_start_matches("/tasks/")).collect();
            assert_eq!(topics, ["create", "start", "exit", "delete"]);
            let started: TaskStart = proto::unpack(life[1].event.as_ref().unwrap()).unwrap();
            let exit: TaskExit = proto::unpack(life[2].event.as_ref().unwrap()).unwrap();
            assert_eq!((exit.exit_status, exit.pid), (n as u32, started.pid));
            assert_eq!(exit.id, exit.container_id);
        }
    });
}

#[test]
fn a_failed_creation_leaves_nothing() {
    run(|world| async move {
        let daemon = world.daemon();
        let mut request = world.request("bad", "true");
        let spec = String::from_utf8(request.spec).unwrap().replace("/bin/sh", "/no/such");
        request.spec = spec.into_bytes();
        let error = daemon.create(request).await.unwrap_err();
        assert!(matches!(error, Error::Unknown(_)), "{error}");
        assert!(error.to_string().contains("OCI runtime create failed: "), "{error}");
        assert!(error.to_string().contains("/no/such"), "{error}");
        assert!(world.is_empty("state") && world.is_empty("root"));
        assert!(!is_mounted(world.dir.path()));
        assert!(daemon.tasks(None).is_empty());
        assert!(world.topics().is_empty());
    });
}

#[test]
fn a_killed_shim_is_reported_and_cleaned_up_after() {
    run(|world| async move {
        let daemon = world.daemon();
        let task = daemon.create(world.request("box", "sleep 60")).await.unwrap();
        let pid = task.start("").await.unwrap();
        world.await_topics(2).await;
        let waiting = tokio::spawn({
            let task = Arc::clone(&task);
            async move { task.wait("").await }
        });
        kill(task.connect().await.unwrap().shim_pid);
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
        let topics = world.await_topics(4).await;
        assert_eq!(topics[2..], ["/tasks/exit", "/tasks/delete"]);
        let event = world.events.lock().unwrap()[3].event.clone().unwrap();
        let deleted: TaskDelete = proto::unpack(&event).unwrap();
        assert_eq!((deleted.pid, deleted.id.as_str()), (pid, ""));
        await_end(pid).await;
        let until = Instant::now() + Duration::from_secs(5);
        while daemon.task("ns", "box").is_ok() {
            assert!(Instant::now() < until, "still registered");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(world.is_empty("state"));
        assert!(!is_mounted(world.dir.path()));
    });
}

#[test]
fn a_new_daemon_finds_everything_again() {
    run(|world| async move {
        let old = world.daemon();
        let mut pids = BTreeMap::new();
        for (id, script) in [("goes-on", "sleep 60"), ("ends", "exit 9"), ("dies", "sleep 60")] {
            let task = old.create(world.request(id, script)).await.unwrap();
            task.start("").await.unwrap();
            pids.insert(id, (task.pid(), task.connect().await.unwrap().shim_pid));
        }
        old.task("ns", "ends").unwrap().wait("").await.unwrap();
        // A shim that takes connections and says nothing.
        let mute = world.path("state/ns/mute");
        fs::create_dir(&mute).unwrap();
        let socket = world.path("mute.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        fs::write(mute.join("address"), format!("unix://{}", socket.display())).unwrap();
        fs::create_dir(world.path("state/ns/empty")).unwrap();

        // The old daemon is gone as far as the new one can tell, save that it
        // would notice the death of a shim; so it must go first.
        drop(old);
        let new = world.daemon();
        kill(pids["dies"].1);
        let begun = Instant::now();
        let found = new.recover(&|_, _| None).await;
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        let names = |list: &[(String, String)]| -> Vec<String> {
            list.iter().map(|(_, id)| id.clone()).collect()
        };
        assert_eq!(names(&found.alive), ["ends", "goes-on"], "{found:?}");
        assert_eq!(names(&found.lost), ["dies"]);
        assert_eq!(found.mute.len(), 1, "{found:?}");
        assert!(!world.path("state/ns/empty").exists());
        await_end(pids["dies"].0).await;

        let ended = new.task("ns", "ends").unwrap();
        assert_eq!(ended.state("").await.unwrap().status(), Status::Stopped);
        assert_eq!(ended.wait("").await.unwrap().exit_status, 9);
        assert_eq!(ended.delete().await.unwrap().exit_status, 9);
        let task = new.task("ns", "goes-on").unwrap();
        assert_eq!(task.pid(), pids["goes-on"].0);
        task.kill("", 15, true).await.unwrap();
        task.kill("", 9, true).await.unwrap();
        task.wait("").await.unwrap();
        task.delete().await.unwrap();
    });
}
