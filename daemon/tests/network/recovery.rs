//! What a start makes of what it finds.

use std::sync::Arc;

use crated_api::network as api;
use crated_api::network::network_client::NetworkClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::common::labels;
use crate::scratch::*;

async fn state(client: &mut NetworkClient<Channel>, id: &str) -> Option<api::State> {
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
            assert_eq!(state(&mut client, id).await, Some(api::State::Ready), "{id}");
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
            assert_eq!(state(&mut client, id).await, Some(wanted), "{id}");
        }
        let fixture = fixture.restart().await;
        client = crate::scratch::client(&fixture.channel);
        for (id, wanted) in expected {
            assert_eq!(state(&mut client, id).await, Some(wanted), "{id} after a restart");
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
            assert_eq!(state(&mut client, id).await, None);
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
        assert_eq!(state(&mut client, "again").await, Some(api::State::Ready));
        assert_eq!(state(&mut client, "lost").await, Some(api::State::Lost));
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

#[test]
fn orphans_are_removed_after_the_grace_period_and_nothing_else_is() {
    scratch(|directory| async move {
        let settings = "[crated]\nnetns_orphan_grace = \"1s\"\n";
        let daemon = Process::start(directory.path(), settings, &[]).await;
        let mut client = client(&daemon.channel);
        client.create_link(call(bridge("br0"))).await.unwrap();
        client.apply(call(container("kept", "v0", "br0", "10.9.0.2/24"))).await.unwrap();
        let group = must("ip -o -d link show br0");
        let group = group.split("group ").nth(1).unwrap().split_whitespace().next().unwrap();
        drop(client);
        daemon.kill();
        // A pin, a plain file and a link with the daemon's mark that no record knows.
        let orphan = directory.path().join("state/netns/test--orphan");
        std::fs::write(&orphan, "").unwrap();
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &orphan).unwrap();
        std::fs::write(directory.path().join("state/netns/test--file"), "").unwrap();
        must("ip link add half0 type bridge");
        must(&format!("ip link set half0 group {group}"));
        must("ip link add foreign0 type bridge");

        let daemon = Process::start(directory.path(), settings, &[]).await;
        until("orphans go", || {
            pins(directory.path()) == ["test--kept"] && !host_links().contains(&"half0".into())
        })
        .await;
        let mut links = host_links();
        links.sort();
        assert_eq!(links, ["br0", "foreign0", "v0"]);
        let mut client = crate::scratch::client(&daemon.channel);
        assert_eq!(state(&mut client, "kept").await, Some(api::State::Ready));
    });
}
