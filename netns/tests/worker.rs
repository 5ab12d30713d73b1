//! The threads that hop, and what they must never leave behind. One test at a
//! time looks at the whole process, hence a binary of its own.

#![allow(clippy::print_stdout, reason = "the victim tells its parent that it began")]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Host, ifname, ns, scratch};
use crated_netns::{
    BridgeOpts, DeleteOpts, LinkKind, LinkSpec, NetnsRoot, NetnsSpec, PeerSpec, PinState,
    Propagation,
};

/// Tests here count threads and descriptors of the process.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Namespaces of all threads with the names of the threads.
fn threads() -> Vec<(String, PathBuf)> {
    let mut list = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let name = std::fs::read_to_string(task.path().join("comm"));
        let net = std::fs::read_link(task.path().join("ns/net"));
        if let (Ok(name), Ok(net)) = (name, net) {
            list.push((name.trim().to_owned(), net));
        }
    }
    list
}

fn fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Makes and deletes one attached namespace, under a name never used twice:
/// the host's end goes a little later than the pin.
fn cycle(host: &Host) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = &format!("c{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let netns = host.root.create(&ns(name), &NetnsSpec::default()).unwrap();
    let peer = PeerSpec::on_host(ifname(&format!("v{name}")));
    let spec = LinkSpec::new(ifname("eth0"), LinkKind::Veth { peer })
        .address("10.0.0.1/24".parse().unwrap())
        .up();
    netns.create_link(&spec).unwrap();
    netns.links().unwrap();
    netns.delete(&DeleteOpts { wait: Duration::ZERO, force: true }).unwrap();
}

#[test]
fn after_a_storm_every_thread_is_home_and_no_descriptor_is_kept() {
    let _alone = alone();
    scratch(|host| {
        let home = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        cycle(host);
        let before = fds();
        let stormers: Vec<_> = (0..8)
            .map(|_| {
                let root = host.root.clone();
                let dir = host.dir().to_owned();
                std::thread::spawn(move || {
                    let host = Host::with(dir, root);
                    for _ in 0..25 {
                        cycle(&host);
                    }
                })
            })
            .collect();
        stormers.into_iter().for_each(|stormer| stormer.join().unwrap());
        assert_eq!(fds(), before);
        for (name, net) in threads().into_iter().filter(|(name, _)| name.starts_with("netns-")) {
            assert_eq!(net, home, "thread {name}");
        }
        // The caller's thread never moved.
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), home);
    });
}

#[test]
fn child_started_in_a_storm_holds_no_namespace() {
    let _alone = alone();
    scratch(|host| {
        let root = host.root.clone();
        let dir = host.dir().to_owned();
        let storm = std::thread::spawn(move || {
            let host = Host::with(dir, root);
            for _ in 0..60 {
                cycle(&host);
            }
        });
        let mut children = Vec::new();
        while !storm.is_finished() {
            children.push(Command::new("sleep").arg("30").spawn().unwrap());
            std::thread::sleep(Duration::from_millis(3));
        }
        storm.join().unwrap();
        let home = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        for child in &children {
            let process = PathBuf::from(format!("/proc/{}", child.id()));
            assert_eq!(std::fs::read_link(process.join("ns/net")).unwrap(), home);
            for fd in std::fs::read_dir(process.join("fd")).unwrap().flatten() {
                let target = std::fs::read_link(fd.path()).unwrap();
                let target = target.to_string_lossy();
                assert!(!target.starts_with("net:") && !target.contains("/ns/"), "{target}");
            }
        }
        for mut child in children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        // Nothing keeps a namespace alive: it dies when deleted.
        let last = host.root.create(&ns("last"), &NetnsSpec::default()).unwrap();
        let opts = DeleteOpts { wait: Duration::from_secs(30), force: false };
        assert!(last.delete(&opts).unwrap().gone);
    });
}

#[test]
fn threads_end_with_their_root() {
    let _alone = alone();
    scratch(|host| {
        let root = NetnsRoot::open(host.dir().join("other"), Propagation::Private).unwrap();
        let count = || threads().iter().filter(|(name, _)| name.starts_with("netns-")).count();
        // Handles keep the threads, the root alone does not matter.
        let handle = root.host();
        drop(root);
        handle.links().unwrap();
        // A keeper and two workers each, for the scratch host's root and this one.
        let until = |wanted| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while count() != wanted {
                assert!(Instant::now() < deadline, "not {wanted}: {:?}", threads());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        until(6);
        drop(handle);
        until(3);
    });
}

#[test]
fn kept_socket_of_ours_does_not_exist_between_calls() {
    let _alone = alone();
    scratch(|host| {
        let _netns = host.root.create(&ns("a"), &NetnsSpec::default()).unwrap();
        for fd in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
            let Ok(target) = std::fs::read_link(fd.path()) else { continue };
            assert!(!target.to_string_lossy().starts_with("net:"), "{target:?}");
        }
        let netlink = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
        let ours = format!(" {} ", std::process::id());
        assert!(!netlink.lines().any(|line| line.contains(&ours)), "{netlink}");
    });
}

/// Run as a child: creates and deletes for ever in a directory of the parent.
#[test]
fn victim_of_the_kill_test() {
    let Ok(dir) = std::env::var("NETNS_VICTIM_DIR") else { return };
    let root = NetnsRoot::open(&dir, Propagation::Private).unwrap();
    println!("ready");
    for round in 0_u64.. {
        let netns = root.create(&ns(&format!("r{}", round % 7)), &NetnsSpec::default()).unwrap();
        let spec = LinkSpec::new(ifname("br0"), LinkKind::Bridge(BridgeOpts::default()));
        netns.create_link(&spec).unwrap();
        let host_end = format!("h{}", round % 7);
        let peer = PeerSpec::on_host(ifname(&host_end));
        netns.create_link(&LinkSpec::new(ifname("eth0"), LinkKind::Veth { peer })).unwrap();
        netns.delete(&DeleteOpts { wait: Duration::from_secs(5), force: true }).unwrap();
    }
}

#[test]
fn killed_at_any_moment_nothing_is_left_after_a_sweep() {
    let _alone = alone();
    scratch(|host| {
        let dir = host.root.dir().to_owned();
        for round in 0..25_u64 {
            // A process of its own: it shares the scratch host's namespaces.
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["victim_of_the_kill_test", "--exact", "--nocapture"])
                .env("NETNS_VICTIM_DIR", &dir)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().contains("ready")));
            std::thread::sleep(Duration::from_micros(1300 * round));
            child.kill().unwrap();
            child.wait().unwrap();
            for pin in host.root.list().unwrap() {
                assert!(matches!(pin.state, PinState::Live(_) | PinState::NotMounted), "{pin:?}");
            }
            let report = host.root.sweep(&BTreeSet::new(), Duration::ZERO).unwrap();
            assert!(report.failed.is_empty(), "{report:?}");
            host.root.host().sweep_links(&BTreeSet::new()).unwrap();
            assert_clean(&dir);
        }
        // Host ends whose namespaces are still being taken apart go with them.
        let deadline = Instant::now() + Duration::from_secs(60);
        while host.root.host().links().unwrap().len() > 1 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

fn assert_clean(dir: &Path) {
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let below = format!(" {}/", dir.display());
    assert!(!mounts.contains(&below), "{mounts}");
}
