//! Tasks and exit codes outlive daemons.

use std::path::Path;

use crated_api::services::tasks::v1::{DeleteTaskRequest, KillRequest, WaitRequest};
use crated_api::tasks::Status;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::common::{self, until};
use crate::process::Process;
use crate::support::{Client, can_run, rootfs, run, task};

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
