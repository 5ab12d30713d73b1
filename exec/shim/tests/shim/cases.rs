//! Unlucky daemons and shims, by number where the case has one.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration, time::Instant};

use crated_exec::{
    Error,
    proto::{self, events::TaskExit, process::Status},
    shim::{SOCKET_DIR, Step, socket_path},
};

use crate::support::{World, await_end, is_alive, kill, run};

/// Waits for something to become true.
async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_true() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn exit_of(world: &World, id: &str) -> Option<TaskExit> {
    let events = world.events.lock().unwrap();
    let exits = events.iter().filter(|event| event.topic == "/tasks/exit");
    let mut exits = exits.map(|event| proto::unpack::<TaskExit>(event.event.as_ref().unwrap()));
    exits.find_map(|exit| exit.ok().filter(|exit| exit.id == id))
}

/// 93: lack of memory is reported, before the end it causes.
#[test]
fn case_093_lack_of_memory_is_reported_before_the_end() {
    run(|world| async move {
        let limits = ["/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/cgroup.kill"];
        if !limits.iter().any(|path| Path::new(path).exists()) {
            return;
        }
        let daemon = world.daemon();
        let script = "x=$(busybox head -c 300000000 /dev/zero | busybox tr '\\0' x); exit 0";
        let mut request = world.request("hungry", script);
        let mut spec: serde_json::Value = serde_json::from_slice(&request.spec).unwrap();
        spec["linux"]["resources"] = serde_json::json!({ "memory": { "limit": 20 << 20 } });
        request.spec = spec.to_string().into_bytes();
        let task = daemon.create(request).await.unwrap();
        task.start("").await.unwrap();
        task.wait("").await.unwrap();
        task.delete().await.unwrap();
        until("no end is reported", || exit_of(&world, "hungry").is_some()).await;
        let topics = world.topics();
        let at = |topic: &str| topics.iter().position(|found| found == topic);
        let oom = at("/tasks/oom").expect("lack of memory is reported");
        assert!(oom < at("/tasks/exit").unwrap(), "{topics:?}");
    });
}

/// 102: without a daemon output flows on and is complete.
#[test]
fn case_102_a_chatty_container_goes_on_without_a_daemon() {
    run(|world| async move {
        let daemon = world.daemon();
        let script = "i=0; while true; do echo line $i; i=$((i+1)); done";
        let task = daemon.create(world.request("chatty", script)).await.unwrap();
        task.start("").await.unwrap();
        drop((task, daemon));
        let log = world.path("chatty.log");
        let size = || fs::metadata(&log).map_or(0, |meta| meta.len());
        until("output stands still", || size() > 1 << 20).await;
        let daemon = world.daemon();
        assert_eq!(daemon.recover(&|_, _| None).await.alive.len(), 1);
        let task = daemon.task("ns", "chatty").unwrap();
        task.kill("", 9, true).await.unwrap();
        task.wait("").await.unwrap();
        task.delete().await.unwrap();
        let text = fs::read_to_string(log).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let (_, whole) = lines.split_last().unwrap();
        assert!(whole.iter().enumerate().all(|(n, line)| *line == format!("line {n}")));
    });
}

/// 103: mute shims hold up nobody and keep their containers. Takes as long as one may stay mute.
#[test]
fn case_103_many_mute_shims_cost_one_pause() {
    run(|world| async move {
        let daemon = world.daemon();
        let task = daemon.create(world.request("fine", "sleep 60")).await.unwrap();
        task.start("").await.unwrap();
        let shim = task.connect().await.unwrap().shim_pid;
        drop((task, daemon));
        let mut listeners = Vec::new();
        for n in 0..50 {
            let bundle = world.path("state/ns").join(format!("mute{n}"));
            fs::create_dir(&bundle).unwrap();
            let socket = world.path(&format!("mute{n}.sock"));
            listeners.push(std::os::unix::net::UnixListener::bind(&socket).unwrap());
            fs::write(bundle.join("address"), format!("unix://{}", socket.display())).unwrap();
        }
        let daemon = world.daemon();
        let found = daemon.recover(&|_, _| None).await;
        assert_eq!((found.mute.len(), found.lost.len()), (50, 0), "{found:?}");
        assert!(is_alive(shim));
        for n in 0..50 {
            assert!(world.path("state/ns").join(format!("mute{n}")).exists());
        }
        let task = daemon.task("ns", "fine").unwrap();
        task.kill("", 9, true).await.unwrap();
        task.wait("").await.unwrap();
        task.delete().await.unwrap();
    });
}

/// 105: the file of a socket nobody listens on is replaced.
#[test]
fn case_105_a_stale_socket_is_replaced() {
    run(|world| async move {
        let daemon = world.daemon();
        let address = world.config().grpc_address;
        let socket = socket_path(Path::new(SOCKET_DIR), &address, "ns", "stale").unwrap();
        fs::create_dir_all(SOCKET_DIR).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let task = daemon.create(world.request("stale", "true")).await.unwrap();
        let mode = fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        task.delete().await.unwrap();
        until("the socket stays", || !socket.exists()).await;
    });
}

/// 107: an end that the shim saw is told truly, though shim and daemon are gone since.
#[test]
fn case_107_an_end_outlives_shim_and_daemon() {
    run(|world| async move {
        let daemon = world.daemon();
        let task = daemon.create(world.request("ended", "exit 9")).await.unwrap();
        let pid = task.start("").await.unwrap();
        task.wait("").await.unwrap();
        let record = world.path("state/ns/ended/exit.json");
        until("the end is not recorded", || record.exists()).await;
        let shim = task.connect().await.unwrap().shim_pid;
        drop((task, daemon));
        kill(shim);
        await_end(shim).await;
        world.events.lock().unwrap().clear();
        let daemon = world.daemon();
        let found = daemon.recover(&|_, _| None).await;
        assert_eq!(found.lost.len(), 1, "{found:?}");
        let exit = exit_of(&world, "ended").expect("the end is reported");
        assert_eq!((exit.exit_status, exit.pid), (9, pid));
        world.await_empty().await;
    });
}

/// 109: a shim that was replaced on disk goes on, and so does its container.
#[test]
fn case_109_a_shim_replaced_on_disk_goes_on() {
    run(|world| async move {
        let mut config = world.config();
        let copy = world.path("containerd-shim-crated-v2");
        // By another process: what another test starts must not inherit a descriptor to it.
        let copied = std::process::Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_containerd-shim-crated-v2"))
            .arg(&copy)
            .status();
        assert!(copied.unwrap().success());
        config.runtimes.insert("io.containerd.runc.v2".to_owned(), copy.clone());
        let daemon = crated_exec::shim::ShimRuntime::new(config.clone(), Arc::new(|_| {})).unwrap();
        let task = daemon.create(world.request("old", "sleep 60")).await.unwrap();
        let pid = task.start("").await.unwrap();
        drop((task, daemon));
        fs::remove_file(&copy).unwrap();
        fs::write(&copy, "#!/bin/sh\necho nonsense\nexit 1\n").unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        let daemon = crated_exec::shim::ShimRuntime::new(config, Arc::new(|_| {})).unwrap();
        let found = daemon.recover(&|_, _| None).await;
        assert_eq!(found.alive.len(), 1, "{found:?}");
        assert!(is_alive(pid));
        let task = daemon.task("ns", "old").unwrap();
        assert_eq!(task.state("").await.unwrap().status(), Status::Running);
        task.kill("", 9, true).await.unwrap();
        task.wait("").await.unwrap();
        assert_eq!(task.delete().await.unwrap().exit_status, 137);
        world.await_empty().await;
    });
}

/// What blocks a removal is told, and when it is gone the removal is done.
#[test]
fn a_blocked_removal_is_listed_and_done_later() {
    run(|world| async move {
        let daemon = world.daemon();
        let task = daemon.create(world.request("stuck", "true")).await.unwrap();
        let inside = world.path("state/ns/stuck/held");
        fs::create_dir(&inside).unwrap();
        let tmpfs = crated_mount::Mount {
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            target: String::new(),
            options: Vec::new(),
        };
        crated_mount::attach_all(&[tmpfs], &inside).unwrap();
        task.delete().await.unwrap();
        assert!(matches!(daemon.task("ns", "stuck"), Err(Error::NotFound(_))));
        until("the removal is not listed", || !daemon.leftovers().is_empty()).await;
        let left = daemon.leftovers().remove(0);
        assert_eq!((left.id.as_str(), left.step), ("stuck", Step::Folders));
        assert!(left.blocker.contains("remove"), "{left:?}");
        // The bundle has its hidden name by now.
        let hidden = world.path("state/ns/.stuck/held");
        let held = if hidden.exists() { hidden } else { inside };
        crated_mount::detach_recursive(&held).unwrap();
        until("the removal is not done", || daemon.leftovers().is_empty()).await;
        world.await_empty().await;
        let task = daemon.create(world.request("stuck", "true")).await.unwrap();
        task.delete().await.unwrap();
    });
}

/// Containers of a group share a shim, and each ends on its own.
#[test]
fn containers_of_a_group_share_a_shim() {
    run(|world| async move {
        let daemon = world.daemon();
        let request = |id: &str| {
            let mut request = world.request(id, "sleep 60");
            let mut spec: serde_json::Value = serde_json::from_slice(&request.spec).unwrap();
            spec["annotations"] = serde_json::json!({ "io.containerd.runc.v2.group": "pod" });
            request.spec = spec.to_string().into_bytes();
            request
        };
        let one = daemon.create(request("one")).await.unwrap();
        let two = daemon.create(request("two")).await.unwrap();
        let shim = one.connect().await.unwrap().shim_pid;
        assert_eq!(two.connect().await.unwrap().shim_pid, shim);
        one.start("").await.unwrap();
        two.start("").await.unwrap();
        for task in [one, two] {
            assert!(is_alive(shim));
            task.kill("", 9, true).await.unwrap();
            task.wait("").await.unwrap();
            task.delete().await.unwrap();
        }
        await_end(shim).await;
        world.await_empty().await;
    });
}

/// A new container may have the id of one that is still being removed.
#[test]
fn an_id_can_be_used_again_at_once() {
    run(|world| async move {
        let daemon = world.daemon();
        for n in 0..5 {
            let task = daemon.create(world.request("again", &format!("exit {n}"))).await.unwrap();
            task.start("").await.unwrap();
            task.wait("").await.unwrap();
            assert_eq!(task.delete().await.unwrap().exit_status, n);
        }
        world.await_empty().await;
    });
}

/// A shim whose daemon died before it connected ends by itself.
#[test]
fn a_shim_nobody_talks_to_ends() {
    run(|world| async move {
        let bundle = world.path("half");
        fs::create_dir(&bundle).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_containerd-shim-crated-v2"))
            .args(["-namespace", "ns", "-id", "half", "-address"])
            .arg(world.path("grpc"))
            .args(["-publish-binary", "/bin/false", "start"])
            .env("TTRPC_ADDRESS", world.path("ttrpc"))
            .current_dir(&bundle)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty());
        let answer = String::from_utf8(output.stdout).unwrap();
        let socket = answer.strip_prefix("unix://").unwrap().to_owned();
        let pid = fs::read_to_string(bundle.join("shim.pid")).unwrap().parse().unwrap();
        assert!(is_alive(pid) && Path::new(&socket).exists());
        await_end(pid).await;
        assert!(!Path::new(&socket).exists());
    });
}
