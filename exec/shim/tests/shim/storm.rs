//! Daemons, shims and runtimes are killed at random moments. In the end nothing may be left.
//!
//! `CRATED_EXEC_STORM=200` asks for that many rounds instead of a few.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use crated_exec::{
    ExecProcess,
    shim::{SOCKET_DIR, ShimRuntime, ShimTask, socket_path},
    testsuite,
};
use tokio::time::timeout;

use crate::support::{World, config_in, is_mounted, processes, request_in, run};

/// Names the folder, and makes a test process the daemon of a storm.
const DIR: &str = "CRATED_EXEC_STORM_DIR";
const ROUNDS: u64 = 20;
const CONTAINERS: usize = 3;

/// Does nothing when run as a test: it is what the storm starts and kills.
#[test]
fn daemon_of_the_storm() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let daemon = ShimRuntime::new(config_in(&dir), Arc::new(|_| {})).unwrap();
        daemon.recover(&|_, _| None).await;
        let lives = (0..CONTAINERS).map(|n| tokio::spawn(live(daemon.clone(), dir.clone(), n)));
        for life in lives.collect::<Vec<_>>() {
            life.await.unwrap();
        }
    });
}

fn id(n: usize, dir: &Path) -> String {
    let name: String = dir.file_name().unwrap().to_string_lossy().chars().collect();
    format!("storm{}n{n}", name.replace(['.', '-', '_'], ""))
}

/// Makes and removes one container again and again. Anything may fail at any time.
async fn live(daemon: Arc<ShimRuntime>, dir: PathBuf, n: usize) {
    let id = id(n, &dir);
    loop {
        if let Ok(task) = daemon.task("ns", &id) {
            remove(&task).await;
        }
        if let Ok(task) = daemon.create(request_in(&dir, &id, "sleep 60")).await {
            let _ = task.start("").await;
            let spec = testsuite::process("exit 0").to_string().into_bytes();
            let exec = ExecProcess { id: "e".into(), spec, stdio: Default::default() };
            if task.exec(exec).await.is_ok() && task.start("e").await.is_ok() {
                let _ = task.wait("e").await;
            }
            remove(&task).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn remove(task: &Arc<ShimTask>) {
    let _ = task.kill("", 9, true).await;
    let _ = timeout(Duration::from_secs(10), task.wait("")).await;
    let _ = task.delete().await;
}

fn start_daemon(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "storm::daemon_of_the_storm", "--nocapture"])
        .env(DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Small and good enough to pick victims.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn kill_one(dir: &Path, dice: &mut Dice, is_victim: impl Fn(&str) -> bool) {
    let victims: Vec<_> = processes(dir).into_iter().filter(|(_, line)| is_victim(line)).collect();
    if victims.is_empty() {
        return;
    }
    let (pid, _) = victims[dice.below(victims.len() as u64) as usize];
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    // It may be gone by now; the next round finds another.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Everything that is left, in words.
fn leftovers(world: &World) -> Vec<String> {
    let dir = world.dir.path();
    let mut left: Vec<String> =
        processes(dir).into_iter().map(|(pid, line)| format!("process {pid}: {line}")).collect();
    for folder in ["state", "root", "runc"] {
        let entries = fs::read_dir(world.path(folder).join("ns")).into_iter().flatten().flatten();
        left.extend(entries.map(|entry| format!("{folder}: {:?}", entry.file_name())));
    }
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let mut groups: Vec<PathBuf> = hierarchies.map(|entry| entry.path()).collect();
    groups.push("/sys/fs/cgroup".into());
    let address = world.config().grpc_address;
    for n in 0..CONTAINERS {
        let id = id(n, dir);
        let folders = groups.iter().map(|group| group.join("crated-exec-test").join(&id));
        left.extend(folders.filter(|path| path.exists()).map(|path| path.display().to_string()));
        let socket = socket_path(Path::new(SOCKET_DIR), &address, "ns", &id).unwrap();
        left.extend(socket.exists().then(|| format!("socket {}", socket.display())));
    }
    if is_mounted(dir) {
        left.push("a mount".to_owned());
    }
    left
}

#[test]
fn after_a_storm_nothing_is_left() {
    run(|world| async move {
        let rounds = std::env::var("CRATED_EXEC_STORM").ok().and_then(|text| text.parse().ok());
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ u64::from(std::process::id()));
        for _ in 0..rounds.unwrap_or(ROUNDS) {
            let mut daemon = start_daemon(world.dir.path());
            tokio::time::sleep(Duration::from_millis(30 + dice.below(400))).await;
            match dice.below(3) {
                0 => {}
                1 => kill_one(world.dir.path(), &mut dice, |line| {
                    line.contains("containerd-shim-crated-v2")
                }),
                _ => kill_one(world.dir.path(), &mut dice, |line| line.starts_with("runc ")),
            }
            tokio::time::sleep(Duration::from_millis(dice.below(150))).await;
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
        let daemon = world.daemon();
        daemon.recover(&|_, _| None).await;
        let until = Instant::now() + Duration::from_secs(150);
        loop {
            for task in daemon.tasks(None) {
                remove(&task).await;
            }
            let left = leftovers(&world);
            if left.is_empty() && daemon.tasks(None).is_empty() && daemon.leftovers().is_empty() {
                break;
            }
            let tasks = (daemon.tasks(None), daemon.leftovers());
            assert!(Instant::now() < until, "left: {left:#?} {tasks:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}
