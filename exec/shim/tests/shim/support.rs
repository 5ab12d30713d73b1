//! A daemon's side of shims, without a daemon.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use crated_exec::{
    Result, Stdio,
    proto::{self, EVENTS, forward::ForwardRequest, types::Envelope},
    shim::{CreateShimTask, ShimConfig, ShimRuntime, Timeouts},
    testsuite,
    ttrpc::{Context, Server, Service},
};
use prost::Message;

/// A daemon's surroundings: folders, and a socket that takes events.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) events: Arc<Mutex<Vec<Envelope>>>,
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
    pub(crate) fn new() -> Self {
        let world = World { dir: tempfile::tempdir().unwrap(), events: Arc::default() };
        let rootfs = world.path("rootfs");
        fs::create_dir(&rootfs).unwrap();
        testsuite::fill_rootfs(&rootfs);
        let listener = tokio::net::UnixListener::bind(world.path("ttrpc")).unwrap();
        let server = Server::new().service(EVENTS, Arc::new(Sink(Arc::clone(&world.events))));
        tokio::spawn(server.serve(listener, std::future::pending()));
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A daemon; the one before it, if any, is as good as dead.
    pub(crate) fn daemon(&self) -> Arc<ShimRuntime> {
        let events = Arc::clone(&self.events);
        let config = self.config();
        ShimRuntime::new(config, Arc::new(move |event| events.lock().unwrap().push(event))).unwrap()
    }

    pub(crate) fn config(&self) -> ShimConfig {
        config_in(self.dir.path())
    }

    /// Waits until no bundle and no work folder is left.
    pub(crate) async fn await_empty(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while !(self.is_empty("state") && self.is_empty("root")) {
            assert!(Instant::now() < until, "folders stay");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn request(&self, id: &str, script: &str) -> CreateShimTask {
        let mut request = request_in(self.dir.path(), id, script);
        // Tests run side by side, and several call their container the same.
        let world = mark(self.dir.path());
        let spec = String::from_utf8(request.spec).unwrap();
        let spec = spec.replace("/crated-exec-test/", &format!("/crated-exec-test/{world}-"));
        request.spec = spec.into_bytes();
        request
    }

    pub(crate) fn log(&self, id: &str) -> String {
        log_in(self.dir.path(), id)
    }

    pub(crate) fn topics(&self) -> Vec<String> {
        self.events.lock().unwrap().iter().map(|event| event.topic.clone()).collect()
    }

    pub(crate) async fn await_topics(&self, count: usize) -> Vec<String> {
        let until = Instant::now() + Duration::from_secs(60);
        while self.topics().len() < count {
            assert!(Instant::now() < until, "only {:?}", self.topics());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.topics()
    }

    pub(crate) fn is_empty(&self, folder: &str) -> bool {
        fs::read_dir(self.path(folder).join("ns")).unwrap().next().is_none()
    }
}

/// Also after a test that failed, or whose daemon had removals under way.
impl Drop for World {
    fn drop(&mut self) {
        let dir = self.dir.path();
        let until = Instant::now() + Duration::from_secs(30);
        // Daemons, shims and runtimes have the folder in their environment or arguments.
        while Instant::now() < until {
            let mut left = processes_with(dir, "cmdline");
            left.extend(processes_with(dir, "environ"));
            let killed = left.iter().filter(|(pid, _)| {
                let pid = rustix::process::Pid::from_raw(*pid).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok()
            });
            if killed.count() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // What stays now nobody here can remove, and a failure has been told by then.
        for name in own_cgroups(dir) {
            let _ = crated_exec::cgroup::remove(&format!("/crated-exec-test/{name}"), &name);
        }
        let _ = crated_mount::detach_recursive(dir);
    }
}

/// A part of names that only this folder's tests give.
fn mark(dir: &Path) -> String {
    dir.file_name().unwrap().to_string_lossy().replace(['.', '-', '_'], "")
}

fn own_cgroups(dir: &Path) -> std::collections::BTreeSet<String> {
    let mut groups: Vec<PathBuf> = vec!["/sys/fs/cgroup".into()];
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    groups.extend(hierarchies.map(|entry| entry.path()));
    let entries = groups.iter().flat_map(|group| fs::read_dir(group.join("crated-exec-test")));
    let names = entries.flatten().flatten().map(|entry| entry.file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.contains(&mark(dir))).collect()
}

/// Processes with the folder on their command line, with that line.
pub(crate) fn processes(dir: &Path) -> Vec<(i32, String)> {
    processes_with(dir, "cmdline")
}

fn processes_with(dir: &Path, file: &str) -> Vec<(i32, String)> {
    let dir = dir.display().to_string();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join(file)).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(&dir).then_some((pid, line))
    });
    found.collect()
}

/// The configuration of a daemon whose folders are in `dir`.
pub(crate) fn config_in(dir: &Path) -> ShimConfig {
    let text = |name: &str| dir.join(name).display().to_string();
    let shim = PathBuf::from(env!("CARGO_BIN_EXE_containerd-shim-crated-v2"));
    ShimConfig {
        state_dir: dir.join("state"),
        root_dir: dir.join("root"),
        grpc_address: text("grpc"),
        ttrpc_address: text("ttrpc"),
        publish_binary: "/bin/false".into(),
        debug: true,
        // A machine that stands still for a while must not make a shim look dead.
        timeouts: Timeouts {
            load: Duration::from_secs(30),
            state: Duration::from_secs(30),
            cleanup: Duration::from_secs(60),
            shutdown: Duration::from_secs(30),
            ..Timeouts::default()
        },
        runtimes: BTreeMap::from([("io.containerd.runc.v2".to_owned(), shim)]),
    }
}

/// A container on the busybox in `dir`.
pub(crate) fn request_in(dir: &Path, id: &str, script: &str) -> CreateShimTask {
    let root = dir.join("runc").display().to_string();
    let options = proto::runc::Options { root, ..Default::default() };
    let rootfs = crated_mount::Mount {
        kind: "bind".into(),
        source: dir.join("rootfs").display().to_string(),
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
        stdio: Stdio { stdout: log_in(dir, id), ..Stdio::default() },
        checkpoint: String::new(),
    }
}

fn log_in(dir: &Path, id: &str) -> String {
    format!("file://{}", dir.join(format!("{id}.log")).display())
}

pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    if !testsuite::can_run() {
        return;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new();
        let by_hand = ["CRATED_EXEC_STORM", "CRATED_EXEC_ENDURANCE"];
        let by_hand = by_hand.iter().any(|name| std::env::var_os(name).is_some());
        let limit = Duration::from_secs(if by_hand { 6 * 3600 } else { 240 });
        tokio::time::timeout(limit, test(world)).await.expect("took too long");
    });
}

pub(crate) fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.contains(&path.display().to_string())
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

pub(crate) async fn await_end(pid: u32) {
    let until = Instant::now() + Duration::from_secs(60);
    while is_alive(pid) {
        assert!(Instant::now() < until, "process {pid} does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
