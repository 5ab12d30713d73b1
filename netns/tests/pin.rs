//! Pins: made once, told apart, and gone without a trace.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{Host, ns, scratch};
use crated_netns::{
    DeleteOpts, Error, HolderKind, NetnsRoot, NetnsSpec, PinState, Propagation, RootOptions, Source,
};

fn waiting() -> DeleteOpts {
    DeleteOpts::default()
}

fn files(host: &Host) -> usize {
    std::fs::read_dir(host.root.dir()).unwrap().count()
}

#[test]
fn created_namespace_is_listed_verified_and_deleted() {
    scratch(|host| {
        let web = host.root.create(&ns("web"), &NetnsSpec::default()).unwrap();
        let id = web.id().unwrap().clone();
        assert_eq!(web.verify().unwrap(), PinState::Live(id.clone()));
        let pins = host.root.list().unwrap();
        assert_eq!(pins.len(), 1);
        assert_eq!(pins[0].state, PinState::Live(id.clone()));
        assert_eq!(host.root.get(&ns("web")).unwrap().id(), Some(&id));
        assert!(web.nsid().unwrap().is_some());

        let deleted = web.delete(&waiting()).unwrap();
        assert!(deleted.gone);
        assert_eq!(files(host), 0);
        assert_eq!(web.verify().unwrap(), PinState::Missing);
        assert!(matches!(web.delete(&waiting()), Err(Error::NotFound { .. })));
        assert!(matches!(host.root.get(&ns("web")), Err(Error::NotFound { .. })));
    });
}

#[test]
fn namespace_starts_with_loopback_and_settings_as_asked() {
    scratch(|host| {
        let key = "net.ipv4.ip_forward".parse().unwrap();
        let mut spec = NetnsSpec::default();
        let before = host.root.host().sysctl(&key).unwrap();
        spec.sysctls.insert("net.ipv4.ip_forward".parse().unwrap(), "1".into());
        let ns = host.root.create(&ns("a"), &spec).unwrap();
        assert_eq!(ns.sysctl(&key).unwrap(), "1");
        ns.set_sysctl(&key, "0").unwrap();
        assert_eq!(ns.sysctl(&key).unwrap(), "0");
        assert_eq!(host.root.host().sysctl(&key).unwrap(), before);
        let missing = "net.ipv4.no_such_thing".parse().unwrap();
        assert!(matches!(ns.sysctl(&missing), Err(Error::NotFound { .. })));
        let out = common::inside(ns.path(), || {
            std::process::Command::new("ip").args(["link", "show", "lo"]).output().unwrap()
        });
        let out = out.join().unwrap();
        assert!(String::from_utf8_lossy(&out.stdout).contains("LOOPBACK,UP"));
    });
}

#[test]
fn failed_creation_leaves_nothing_behind() {
    scratch(|host| {
        let mut spec = NetnsSpec::default();
        spec.sysctls.insert("net.ipv4.no_such_thing".parse().unwrap(), "1".into());
        assert!(matches!(host.root.create(&ns("a"), &spec), Err(Error::NotFound { .. })));
        assert_eq!(files(host), 0);
        assert!(host.root.create(&ns("a"), &NetnsSpec::default()).is_ok());
    });
}

#[test]
fn of_many_creators_of_one_name_one_wins() {
    scratch(|host| {
        let racers: Vec<_> = (0..8)
            .map(|_| {
                let root = host.root.clone();
                std::thread::spawn(move || root.create(&ns("one"), &NetnsSpec::default()))
            })
            .collect();
        let results: Vec<_> = racers.into_iter().map(|r| r.join().unwrap()).collect();
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
        let losers = results.iter().filter_map(|r| r.as_ref().err());
        for error in losers {
            assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
        }
    });
}

#[test]
fn five_hundred_concurrent_namespaces_are_distinct_and_go_at_once() {
    scratch(|host| {
        let makers: Vec<_> = (0..16)
            .map(|maker| {
                let root = host.root.clone();
                std::thread::spawn(move || {
                    for i in 0..32 {
                        let name = ns(&format!("n{maker}-{i}"));
                        root.create(&name, &NetnsSpec::default()).unwrap();
                    }
                })
            })
            .collect();
        makers.into_iter().for_each(|maker| maker.join().unwrap());
        let pins = host.root.list().unwrap();
        let cookies: BTreeSet<u64> = pins
            .iter()
            .map(|pin| match &pin.state {
                PinState::Live(id) => id.cookie,
                state => panic!("{}: {state}", pin.name),
            })
            .collect();
        assert_eq!(cookies.len(), 512);
        let names: Vec<_> = pins.into_iter().map(|pin| pin.name).collect();
        let opts = DeleteOpts { wait: Duration::from_secs(30), force: true };
        for result in host.root.delete_all(&names, &opts) {
            assert!(result.unwrap().gone);
        }
        assert_eq!(files(host), 0);
    });
}

#[test]
fn adopted_namespace_is_the_one_given() {
    scratch(|host| {
        let a = host.root.create(&ns("a"), &NetnsSpec::default()).unwrap();
        let by_path = host.root.adopt(&ns("path"), Source::Path(a.path())).unwrap();
        assert_eq!(by_path.id(), a.id());
        let file = std::fs::File::open(a.path()).unwrap();
        let by_fd = host.root.adopt(&ns("fd"), Source::Fd(file.into())).unwrap();
        assert_eq!(by_fd.id(), a.id());
        let mut child = std::process::Command::new("unshare");
        let mut child = child.args(["-n", "sleep", "60"]).spawn().unwrap();
        let pid = child.id() as i32;
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = format!("/proc/{pid}/ns/net");
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while std::fs::read_link(&theirs).unwrap() == own {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        let by_pid = host.root.adopt(&ns("pid"), Source::Pid(pid)).unwrap();
        let holders = by_pid.holders().unwrap();
        assert!(holders.iter().any(|h| h.pid == pid && h.kind == HolderKind::Member));
        match by_pid.delete(&waiting()) {
            Err(Error::InUse { pids, .. }) => assert_eq!(pids, [pid]),
            other => panic!("{other:?}"),
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(by_pid.delete(&waiting()).unwrap().gone);
        let gone = host.root.adopt(&ns("x"), Source::Pid(pid));
        assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
    });
}

#[test]
fn forced_deletion_names_who_keeps_the_namespace() {
    scratch(|host| {
        let a = host.root.create(&ns("a"), &NetnsSpec::default()).unwrap();
        let arg = format!("--net={}", a.path().display());
        let mut child =
            std::process::Command::new("nsenter").args([&arg, "sleep", "60"]).spawn().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while a.holders().unwrap().iter().all(|h| h.kind != HolderKind::Member) {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        let opts = DeleteOpts { wait: Duration::from_millis(200), force: true };
        let deleted = a.delete(&opts).unwrap();
        assert!(!deleted.gone);
        assert_eq!(deleted.holders[0].pid, child.id() as i32);
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn anything_but_a_network_namespace_is_refused_and_told_apart() {
    scratch(|host| {
        let uts = host.root.adopt(&ns("uts"), Source::Path("/proc/self/ns/uts".into()));
        assert!(matches!(uts, Err(Error::InvalidValue { field: "source", .. })), "{uts:?}");
        let plain = host.root.adopt(&ns("plain"), Source::Path("/etc/hostname".into()));
        assert!(matches!(plain, Err(Error::InvalidValue { .. })), "{plain:?}");
        let missing = host.root.adopt(&ns("m"), Source::Path("/nonexistent/ns".into()));
        assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
        let pid = host.root.adopt(&ns("p"), Source::Pid(-1));
        assert!(matches!(pid, Err(Error::InvalidValue { field: "pid", .. })), "{pid:?}");

        std::fs::write(host.root.dir().join("file"), "").unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/net", host.root.dir().join("link")).unwrap();
        std::fs::write(host.root.dir().join("mounted"), "").unwrap();
        rustix::mount::mount_bind("/proc/self/ns/uts", host.root.dir().join("mounted")).unwrap();
        host.run(&format!("mkfifo {}", host.root.dir().join("pipe").display()));
        let states: Vec<_> = host.root.list().unwrap().into_iter().map(|p| p.state).collect();
        use PinState::{NotMounted, WrongType};
        assert_eq!(states, [NotMounted, WrongType, WrongType, WrongType]);
        for name in ["file", "link", "mounted", "pipe"] {
            let error = host.root.get(&ns(name)).unwrap_err();
            assert!(matches!(error, Error::Stale { .. }), "{error}");
            host.root.delete_all(&[ns(name)], &waiting()).pop().unwrap().unwrap();
        }
        assert_eq!(files(host), 0);
    });
}

#[test]
fn stacked_mounts_on_a_pin_do_not_stop_deletion() {
    scratch(|host| {
        let a = host.root.create(&ns("a"), &NetnsSpec::default()).unwrap();
        for _ in 0..3 {
            rustix::mount::mount_bind(a.path(), a.path()).unwrap();
        }
        assert!(a.delete(&waiting()).unwrap().gone);
        assert_eq!(files(host), 0);
    });
}

#[test]
fn replaced_namespace_is_noticed_and_left_alone() {
    scratch(|host| {
        let old = host.root.create(&ns("a"), &NetnsSpec::default()).unwrap();
        host.root.get(&ns("a")).unwrap().delete(&waiting()).unwrap();
        let new = host.root.create(&ns("a"), &NetnsSpec::default()).unwrap();
        assert_eq!(old.verify().unwrap(), PinState::Replaced);
        let key = "net.ipv4.ip_forward".parse().unwrap();
        assert!(matches!(old.sysctl(&key), Err(Error::Stale { .. })));
        assert!(matches!(old.delete(&waiting()), Err(Error::Stale { .. })));
        assert!(matches!(new.verify().unwrap(), PinState::Live(_)));
        let mut other_boot = new.id().unwrap().clone();
        other_boot.boot_id = "00000000-0000-0000-0000-000000000000".into();
        let recorded = host.root.recorded(&ns("a"), other_boot);
        assert_eq!(recorded.verify().unwrap(), PinState::Replaced);
    });
}

#[test]
fn pins_and_paths_are_judged_from_outside() {
    scratch(|host| {
        let a = host.root.create(&ns("a"), &NetnsSpec::default()).unwrap();
        let id = a.id().unwrap().clone();
        assert_eq!(host.root.peek(&ns("a"), &id).unwrap(), PinState::Live(id.clone()));
        assert_eq!(host.root.peek(&ns("b"), &id).unwrap(), PinState::Missing);
        let b = host.root.create(&ns("b"), &NetnsSpec::default()).unwrap();
        assert_eq!(host.root.peek(&ns("b"), &id).unwrap(), PinState::Replaced);
        std::fs::write(host.root.dir().join("file"), "").unwrap();
        assert_eq!(host.root.peek(&ns("file"), &id).unwrap(), PinState::NotMounted);

        let inspect = |path: &std::path::Path| crated_netns::inspect(path);
        let PinState::Live(found) = inspect(&b.path()).unwrap() else { panic!("it is live") };
        assert_eq!(found.inode, b.id().unwrap().inode);
        let uts = std::path::Path::new("/proc/self/ns/uts");
        assert_eq!(inspect(uts).unwrap(), PinState::WrongType);
        assert_eq!(inspect(&host.root.dir().join("file")).unwrap(), PinState::NotMounted);
        let missing = inspect(&host.root.dir().join("none")).unwrap_err();
        assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    });
}

#[test]
fn sweep_removes_old_unknown_entries_only() {
    scratch(|host| {
        for name in ["known", "orphan"] {
            host.root.create(&ns(name), &NetnsSpec::default()).unwrap();
        }
        std::fs::write(host.root.dir().join("half"), "").unwrap();
        let known = BTreeSet::from([ns("known")]);
        let young = host.root.sweep(&known, Duration::from_secs(60)).unwrap();
        assert_eq!(young.spared, [ns("half"), ns("orphan")]);
        assert!(young.removed.is_empty());
        let report = host.root.sweep(&known, Duration::ZERO).unwrap();
        assert_eq!(report.removed, [ns("half"), ns("orphan")]);
        assert!(report.failed.is_empty());
        assert_eq!(host.root.list().unwrap().len(), 1);
    });
}

#[test]
fn iproute2_works_through_the_exposed_link() {
    scratch(|host| {
        let expose = host.dir().join("run-netns");
        std::fs::create_dir(&expose).unwrap();
        std::fs::create_dir_all("/run/netns").unwrap();
        rustix::mount::mount_bind(&expose, "/run/netns").unwrap();
        let options =
            RootOptions { expose_in: Some("/run/netns".into()), ..RootOptions::default() };
        let root = NetnsRoot::open_with(host.dir().join("exposed"), options).unwrap();
        let a = root.create(&ns("crated-test"), &NetnsSpec::default()).unwrap();
        assert!(host.run("ip netns list").contains("crated-test"));
        host.run("ip -n crated-test link add vx type veth peer name vy");
        a.delete(&waiting()).unwrap();
        assert!(!host.run("ip netns list").contains("crated-test"));

        // Their removal takes our mount away; we notice and clean up.
        let b = root.create(&ns("crated-test"), &NetnsSpec::default()).unwrap();
        host.run("ip netns del crated-test");
        assert_eq!(b.verify().unwrap(), PinState::NotMounted);
        b.delete(&waiting()).unwrap();
        assert_eq!(b.verify().unwrap(), PinState::Missing);
    });
}

#[test]
fn second_root_on_one_directory_shares_its_mount() {
    scratch(|host| {
        let a = host.root.create(&ns("a"), &NetnsSpec::default()).unwrap();
        let again = NetnsRoot::open(host.root.dir(), Propagation::Private).unwrap();
        assert_eq!(again.get(&ns("a")).unwrap().id(), a.id());
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let dir = host.root.dir().display().to_string();
        assert_eq!(mounts.lines().filter(|l| l.contains(&format!("{dir} "))).count(), 1);
    });
}

#[test]
fn directory_of_somebody_else_is_refused() {
    scratch(|host| {
        let dir = host.dir().join("open");
        std::fs::create_dir(&dir).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&dir, open).unwrap();
        let error = NetnsRoot::open(&dir, Propagation::Private).err().unwrap();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        let link = host.dir().join("link");
        std::os::unix::fs::symlink(host.dir(), &link).unwrap();
        assert!(NetnsRoot::open(&link, Propagation::Private).is_err());
    });
}
