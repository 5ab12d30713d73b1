//! What a start makes of what it finds.

use std::sync::Arc;

use crated_api::network as api;
use crated_api::network::network_client::NetworkClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::common::labels;
use crate::scratch::*;

async fn state_of(client: &mut NetworkClient<Channel>, id: &str) -> Option<api::State> {
    match client.get_netns(call(api::GetNetnsRequest { id: id.to_owned() })).await {
        Ok(found) => Some(found.into_inner().state()),
        Err(error) => {
            assert_eq!(error.code(), Code::NotFound, "{}", error.message());
            None
        }
    }
}

#[test]
fn networks_outlive_the_daemon_and_what_became_of_them_is_told() {
    scratch(|directory| async move {
        let (fixture, mut client) = start(directory.clone()).await;
        client.create_link(call(bridge("br0"))).await.unwrap();
        for (n, id) in ["kept", "plain", "gone", "other", "uts", "stacked"].iter().enumerate() {
            let peer = format!("v{n}");
            let address = format!("10.9.0.{}/24", n + 2);
            client.apply(call(container(id, &peer, "br0", &address))).await.unwrap();
        }
        let before = host_links();
        let pin = |id: &str| directory.path().join(format!("state/netns/test--{id}"));
        let fixture = {
            let next = fixture.restart().await;
            client = crate::scratch::client(&next.channel);
            next
        };
        assert_eq!(host_links(), before);
        for id in ["kept", "plain", "gone", "other"] {
            assert_eq!(state_of(&mut client, id).await, Some(api::State::Ready), "{id}");
        }
        let links = call(api::ListLinksRequest { netns: "kept".into(), filters: vec![] });
        let links = client.list_links(links).await.unwrap().into_inner().links;
        let eth0 = links.iter().find(|link| link.id == "eth0").unwrap();
        assert_eq!(eth0.status.as_ref().unwrap().drift, Vec::<String>::new());

        // As `ip netns del` leaves it, a removed pin, another one, another type, a mount on top.
        let umount = |path: &std::path::Path| {
            rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
        };
        umount(&pin("plain"));
        umount(&pin("gone"));
        std::fs::remove_file(pin("gone")).unwrap();
        umount(&pin("other"));
        rustix::mount::mount_bind("/proc/thread-self/ns/net", pin("other")).unwrap();
        umount(&pin("uts"));
        rustix::mount::mount_bind("/proc/thread-self/ns/uts", pin("uts")).unwrap();
        rustix::mount::mount_bind(pin("stacked"), pin("stacked")).unwrap();
        let expected = [
            ("kept", api::State::Ready),
            ("plain", api::State::Lost),
            ("gone", api::State::Lost),
            ("other", api::State::Replaced),
            ("uts", api::State::Lost),
            ("stacked", api::State::Ready),
        ];
        for (id, wanted) in expected {
            assert_eq!(state_of(&mut client, id).await, Some(wanted), "{id}");
        }
        let fixture = fixture.restart().await;
        client = crate::scratch::client(&fixture.channel);
        for (id, wanted) in expected {
            assert_eq!(state_of(&mut client, id).await, Some(wanted), "{id} after a restart");
        }
        let all = call(api::ListNetnsRequest::default());
        for netns in client.list_netns(all).await.unwrap().into_inner().netns {
            let wanted = expected.iter().find(|(id, _)| *id == netns.id).unwrap().1;
            assert_eq!(netns.state(), wanted, "{} in the list", netns.id);
        }
        // Deletion clears each, and touches nothing that is another's.
        for (id, _) in expected {
            let delete = api::DeleteNetnsRequest { id: id.into(), ..Default::default() };
            client.delete_netns(call(delete)).await.unwrap();
            assert_eq!(state_of(&mut client, id).await, None);
        }
        assert_eq!(pins(directory.path()), ["test--other"]);
        until("the cables are gone", || host_links() == ["br0"]).await;
        umount(&pin("other"));
    });
}

#[test]
fn another_boot_loses_networks_and_makes_those_again_that_are_to_be() {
    scratch(|directory| async move {
        let (fixture, mut client) = start(directory.clone()).await;
        let recreate = labels(&[("restart", "recreate")]);
        let mut br0 = bridge("br0");
        br0.link.as_mut().unwrap().labels = recreate.clone();
        client.create_link(call(br0)).await.unwrap();
        client.create_link(call(bridge("br1"))).await.unwrap();
        for id in ["again", "lost"] {
            let address = "10.9.0.2/24";
            let mut request = container(id, &format!("v{id}"), "br0", address);
            if id == "again"
                && let Some(api::operation::Change::CreateNetns(it)) =
                    &mut request.operations[0].change
            {
                it.netns.as_mut().unwrap().labels = recreate.clone();
            }
            client.apply(call(request)).await.unwrap();
        }
        let crate::common::Fixture { running, channel, directory: held } = fixture;
        drop((channel, held));
        running.stop().await.unwrap();
        // A boot leaves neither pins nor links nor notes, and has another id.
        for pin in pins(directory.path()) {
            let pin = directory.path().join("state/netns").join(pin);
            rustix::mount::unmount(&pin, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        let all = directory.path().join("state/netns");
        rustix::mount::unmount(&all, rustix::mount::UnmountFlags::DETACH).unwrap();
        must(&format!("rm -r --one-file-system {}", directory.path().join("state").display()));
        until("the cables are gone", || host_links().len() == 2).await;
        must("ip link del br0");
        must("ip link del br1");
        let boot = directory.path().join("boot_id");
        std::fs::write(&boot, "00000000-0000-4000-8000-000000000001\n").unwrap();
        rustix::mount::mount_bind(&boot, "/proc/sys/kernel/random/boot_id").unwrap();

        let (_fixture, mut client) = start(Arc::clone(&directory)).await;
        assert_eq!(state_of(&mut client, "again").await, Some(api::State::Ready));
        assert_eq!(state_of(&mut client, "lost").await, Some(api::State::Lost));
        let mut links = host_links();
        links.sort();
        assert_eq!(links, ["br0", "vagain"]);
        let get = call(api::GetLinkRequest { netns: "again".into(), id: "eth0".into() });
        let eth0 = client.get_link(get).await.unwrap().into_inner().status.unwrap();
        assert!(eth0.addrs.iter().any(|addr| addr.address == "10.9.0.2/24"), "{eth0:?}");
        let get = call(api::GetLinkRequest { netns: "host".into(), id: "br1".into() });
        assert_eq!(client.get_link(get).await.unwrap_err().code(), Code::NotFound);
        let delete = api::DeleteNetnsRequest { id: "lost".into(), ..Default::default() };
        client.delete_netns(call(delete)).await.unwrap();
    });
}

/// The group that marks links of the daemon.
fn mark(link: &str) -> String {
    let text = must(&format!("ip -o -d link show {link}"));
    text.split("group ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
fn what_a_creation_left_behind_is_removed_and_nothing_else_is() {
    scratch(|directory| async move {
        let settings = "[crated]\nnetns_orphan_grace = \"1s\"\n";
        let daemon = Process::start(directory.path(), settings, &[]).await;
        let mut client = client(&daemon.channel);
        client.create_link(call(bridge("br0"))).await.unwrap();
        client.apply(call(container("kept", "v0", "br0", "10.9.0.2/24"))).await.unwrap();
        let group = mark("br0");
        drop(client);
        daemon.kill();
        // A pin and a link with a note that they were being made, and a file that was to be a pin.
        let state = directory.path().join("state");
        let pin = |name: &str, what: &str| {
            let pin = state.join("netns").join(name);
            std::fs::write(&pin, "").unwrap();
            rustix::mount::mount_bind(what, &pin).unwrap();
        };
        let network = "/proc/thread-self/ns/net";
        pin("test--half", network);
        std::fs::write(state.join("network/test--half"), "").unwrap();
        std::fs::write(state.join("network/.links/half0"), "").unwrap();
        std::fs::write(state.join("netns/test--file"), "").unwrap();
        // And what nobody knows anything of.
        pin("test--unknown", network);
        pin("unknown", network);
        pin("test--uts", "/proc/thread-self/ns/uts");
        for name in ["half0", "unknown0"] {
            must(&format!("ip link add {name} type bridge"));
            must(&format!("ip link set {name} group {group}"));
        }
        must("ip link add foreign0 type bridge");

        for _ in 0..2 {
            let daemon = Process::start(directory.path(), settings, &[]).await;
            until("what was being made goes", || {
                let mut pins = pins(directory.path());
                pins.sort();
                pins == ["test--kept", "test--unknown", "test--uts", "unknown"]
                    && !host_links().contains(&"half0".into())
            })
            .await;
            let mut links = host_links();
            links.sort();
            assert_eq!(links, ["br0", "foreign0", "unknown0", "v0"]);
            let mut client = crate::scratch::client(&daemon.channel);
            assert_eq!(state_of(&mut client, "kept").await, Some(api::State::Ready));
            // What can be told whose it is is listed, and can be deleted.
            assert_eq!(state_of(&mut client, "unknown").await, Some(api::State::Ready));
            assert_eq!(state_of(&mut client, "half").await, None);
            drop(client);
            daemon.kill();
        }
        let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
        for named in ["unknown0", "test--uts", "id=\"unknown\""] {
            assert!(log.contains(named), "{named} is not told of: {log}");
        }
        for name in ["test--unknown", "unknown", "test--uts"] {
            let pin = state.join("netns").join(name);
            rustix::mount::unmount(&pin, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    });
}

/// Runs `crated fsck` on the directories of a daemon that does not run.
fn fsck(directory: &std::path::Path, arguments: &[&str]) -> (Option<i32>, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_crated"))
        .arg("--config")
        .arg(directory.join("config.toml"))
        .arg("fsck")
        .args(arguments)
        .output()
        .unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.code(), String::from_utf8(text).unwrap())
}

/// Two networks in use, whose daemon is killed and whose database is lost by `lose`.
async fn lost(directory: &std::path::Path, lose: impl FnOnce(&std::path::Path)) -> Process {
    let daemon = Process::start(directory, "", &[]).await;
    let mut networks = client(&daemon.channel);
    networks.create_link(call(bridge("br0"))).await.unwrap();
    networks.apply(call(container("web", "v0", "br0", "10.9.0.2/24"))).await.unwrap();
    networks.apply(call(container("db", "v1", "br0", "10.9.0.3/24"))).await.unwrap();
    // And one that was being made.
    std::fs::write(directory.join("state/network/test--half"), "").unwrap();
    let half = directory.join("state/netns/test--half");
    std::fs::write(&half, "").unwrap();
    rustix::mount::mount_bind("/proc/thread-self/ns/net", &half).unwrap();
    drop(networks);
    daemon.kill();
    lose(&directory.join("root/io.containerd.metadata.v1.bolt"));
    Process::start(directory, "[crated]\nnetns_orphan_grace = \"0s\"\n", &[]).await
}

/// That the two still work, are listed, and can be deleted.
async fn assert_kept(daemon: &Process, directory: &std::path::Path) {
    let mut client = client(&daemon.channel);
    for id in ["web", "db"] {
        assert_eq!(state_of(&mut client, id).await, Some(api::State::Ready), "{id}");
    }
    let list = call(api::ListNetnsRequest { filters: vec![] });
    let listed = client.list_netns(list).await.unwrap().into_inner().netns;
    let ids: Vec<_> = listed.iter().map(|netns| netns.id.as_str()).collect();
    assert_eq!(ids, ["db", "web"]);
    assert!(listed[0].labels.contains_key("containerd.io/gc.root.fsck"), "{listed:?}");
    until("what was being made goes", || pins(directory).len() == 2).await;
    let mut links = host_links();
    links.sort();
    assert_eq!(links, ["br0", "v0", "v1"]);
    let web = listed[1].path.as_str();
    must(&format!("nsenter --net={web} ping -c 1 -W 20 10.9.0.3"));
    let list = call(api::ListLinksRequest { netns: "web".into(), filters: vec![] });
    let links = client.list_links(list).await.unwrap().into_inner().links;
    assert!(links.iter().any(|link| link.status.as_ref().unwrap().ifname == "eth0"));
    // The id is taken, and a call that fails for it takes nothing away.
    let again = client.create_netns(call(crate::scratch::netns("web"))).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    let delete = api::DeleteNetnsRequest { id: "web".into(), ..Default::default() };
    client.delete_netns(call(delete)).await.unwrap();
    until("its cable goes", || host_links() == ["br0", "v1"]).await;
    assert_eq!(pins(directory), ["test--db"]);
}

#[test]
fn networks_in_use_outlive_the_loss_of_the_database_and_its_repair() {
    scratch(|directory| async move {
        let daemon = lost(directory.path(), |database| {
            std::fs::write(database.join("meta.redb"), "no database").unwrap();
            let (code, text) = fsck(directory.path(), &[]);
            assert_eq!(code, Some(4), "{text}");
            assert!(text.contains("test network namespace web: it is alive"), "{text}");
            assert_eq!(pins(directory.path()).len(), 3);
            let (code, text) = fsck(directory.path(), &["--repair"]);
            assert_eq!(code, Some(0), "{text}");
            assert!(!text.contains("half"), "{text}");
            let (code, text) = fsck(directory.path(), &[]);
            assert_eq!((code, text.as_str()), (Some(0), "records, content and snapshots agree\n"));
        });
        assert_kept(&daemon.await, directory.path()).await;
    });
}

#[test]
fn networks_in_use_outlive_a_root_that_begins_anew() {
    scratch(|directory| async move {
        // Without content and snapshots an empty database is no reason to refuse the start.
        let daemon = lost(directory.path(), |database| {
            for entry in std::fs::read_dir(database).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
            std::fs::remove_dir(database).unwrap();
        });
        assert_kept(&daemon.await, directory.path()).await;
    });
}
