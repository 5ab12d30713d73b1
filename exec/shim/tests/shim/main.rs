//! The shim under the daemon's side of this project. Needs root, runc and busybox.

mod cases;
mod endurance;
mod sandboxes;
mod storm;
mod support;

use std::{collections::BTreeMap, fs, sync::Arc};

use crated_exec::{
    Error, ExecProcess, Stdio,
    proto::{
        self,
        events::{TaskDelete, TaskExit, TaskStart},
        process::Status,
    },
    testsuite,
};
use support::{await_end, is_mounted, kill, run};

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
        world.await_empty().await;
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
        world.await_empty().await;
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
        world.await_empty().await;
        assert!(matches!(daemon.task("ns", "box"), Err(Error::NotFound(_))));
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
        fs::create_dir(world.path("state/ns/empty")).unwrap();

        // The old daemon is gone as far as the new one can tell, save that it
        // would notice the death of a shim; so it must go first.
        drop(old);
        let new = world.daemon();
        kill(pids["dies"].1);
        let found = new.recover(&|_, _| None).await;
        let names = |list: &[(String, String)]| -> Vec<String> {
            list.iter().map(|(_, id)| id.clone()).collect()
        };
        assert_eq!(names(&found.alive), ["ends", "goes-on"], "{found:?}");
        assert_eq!(names(&found.lost), ["dies"]);
        assert!(found.mute.is_empty(), "{found:?}");
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
