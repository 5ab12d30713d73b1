//! Long lives cost nothing: neither memory, nor threads, nor descriptors grow.
//!
//! `CRATED_EXEC_ENDURANCE=1` asks for the full length instead of a few rounds.

use std::{fs, sync::Arc};

use crated_exec::{ExecProcess, shim::ShimTask, testsuite};

use crate::support::run;

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Holds {
    fds: usize,
    threads: usize,
    rss_kib: u64,
}

fn holds(pid: u32) -> Holds {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    Holds {
        fds: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        threads: field("Threads:") as usize,
        rss_kib: field("VmRSS:"),
    }
}

/// Waits until the process holds no more than `before`, and a little more memory.
async fn await_no_more(pid: u32, before: Holds) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let now = holds(pid);
        let grown = now.rss_kib > before.rss_kib + RSS_SLACK_KIB;
        if now.fds <= before.fds && now.threads <= before.threads && !grown {
            return;
        }
        assert!(std::time::Instant::now() < until, "before {before:?}, now {now:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn rounds(few: usize, full: usize) -> usize {
    if std::env::var_os("CRATED_EXEC_ENDURANCE").is_some() { full } else { few }
}

async fn join(task: Arc<ShimTask>, id: String) {
    let spec = testsuite::process("exit 3").to_string().into_bytes();
    task.exec(ExecProcess { id: id.clone(), spec, stdio: Default::default() }).await.unwrap();
    task.start(&id).await.unwrap();
    assert_eq!(task.wait(&id).await.unwrap().exit_status, 3);
    task.delete_process(&id).await.unwrap();
}

async fn join_many(task: &Arc<ShimTask>, name: &str, count: usize) {
    for begin in (0..count).step_by(AT_ONCE) {
        let end = count.min(begin + AT_ONCE);
        let joining =
            (begin..end).map(|n| tokio::spawn(join(Arc::clone(task), format!("{name}{n}"))));
        for joined in joining.collect::<Vec<_>>() {
            joined.await.unwrap();
        }
    }
}

#[test]
fn joined_processes_leave_nothing_in_the_shim() {
    run(|world| async move {
        let daemon = world.daemon();
        let task = daemon.create(world.request("long", "sleep 100000")).await.unwrap();
        task.start("").await.unwrap();
        let shim = task.connect().await.unwrap().shim_pid;
        join_many(&task, "warm", rounds(16, 200)).await;
        let before = holds(shim);
        join_many(&task, "e", rounds(24, 20_000)).await;
        await_no_more(shim, before).await;
        task.kill("", 9, true).await.unwrap();
        task.wait("").await.unwrap();
        task.delete().await.unwrap();
        world.await_empty().await;
    });
}

#[test]
fn failed_creations_leave_nothing_in_the_daemon() {
    run(|world| async move {
        let daemon = world.daemon();
        let fail = async |count: usize| {
            for n in 0..count {
                let mut request = world.request(&format!("bad{n}"), "true");
                let spec = String::from_utf8(request.spec).unwrap().replace("/bin/sh", "/no/such");
                request.spec = spec.into_bytes();
                assert!(daemon.create(request).await.is_err());
            }
        };
        fail(rounds(4, 50)).await;
        let before = holds(std::process::id());
        fail(rounds(6, 2_000)).await;
        world.await_empty().await;
        if std::env::var_os("CRATED_EXEC_ENDURANCE").is_some() {
            // Other tests in this process hold things too, so only a run by hand can tell.
            await_no_more(std::process::id(), before).await;
        }
        assert!(daemon.tasks(None).is_empty() && daemon.leftovers().is_empty());
    });
}

/// Allocators keep some of what they had.
const RSS_SLACK_KIB: u64 = 1024;

const AT_ONCE: usize = 4;
