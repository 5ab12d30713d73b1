//! Made, read, changed, watched, deleted.

use std::collections::BTreeMap;

use crated_api::network as api;
use crated_api::network::event::Type;
use crated_api::network::operation::Change;
use crated_api::services::events::v1::SubscribeRequest;
use crated_api::services::events::v1::events_client::EventsClient;
use tonic::Code;

use crate::common::{labels, mask};
use crate::scratch::*;

#[test]
fn a_namespace_is_made_read_changed_and_deleted() {
    scratch(|directory| async move {
        let (fixture, mut client) = start(directory).await;
        let mut events = EventsClient::new(fixture.channel.clone());
        let mut events = events.subscribe(SubscribeRequest::default()).await.unwrap().into_inner();

        let mut request = netns("web");
        let wanted = request.netns.as_mut().unwrap();
        wanted.labels = labels(&[("app", "shop")]);
        wanted.sysctls = labels(&[("net.ipv4.ip_forward", "1")]);
        let made = client.create_netns(call(request)).await.unwrap().into_inner();
        assert_eq!(made.state(), api::State::Ready);
        assert!(made.cookie > 0 && made.inode > 0 && made.nsid.is_some(), "{made:?}");
        let value = must(&format!("nsenter --net={} cat /proc/sys/net/ipv4/ip_forward", made.path));
        assert_eq!(value.trim(), "1");

        let get = |id: &str| call(api::GetNetnsRequest { id: id.to_owned() });
        let read = client.get_netns(get("web")).await.unwrap().into_inner();
        assert_eq!((read.cookie, &read.labels), (made.cookie, &made.labels));
        assert_eq!(client.get_netns(get("host")).await.unwrap().into_inner().id, "host");
        let list = |filter: &str| call(api::ListNetnsRequest { filters: vec![filter.to_owned()] });
        for (filter, count) in [("labels.app==shop", 1), ("state==READY", 1), ("id==other", 0)] {
            let found = client.list_netns(list(filter)).await.unwrap().into_inner().netns;
            assert_eq!(found.len(), count, "{filter}");
        }
        let mut stream = client.list_netns_stream(list("id==web")).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().id, "web");
        // Another namespace has one of that id, too.
        let other = crate::common::in_namespace("other", netns("web"));
        assert_ne!(client.create_netns(other).await.unwrap().into_inner().path, made.path);

        let changed = api::Netns {
            id: "web".into(),
            labels: labels(&[("app", "")]),
            sysctls: labels(&[("net.ipv4.ip_forward", "0")]),
            etag: read.etag.clone(),
            ..Default::default()
        };
        let update = |paths: &[&str]| {
            let netns = Some(changed.clone());
            call(api::UpdateNetnsRequest { netns, update_mask: mask(paths) })
        };
        let paths = ["labels.app", "sysctls.net.ipv4.ip_forward"];
        let updated = client.update_netns(update(&paths)).await.unwrap().into_inner();
        assert_eq!(updated.labels, BTreeMap::new());
        let value = must(&format!("nsenter --net={} cat /proc/sys/net/ipv4/ip_forward", made.path));
        assert_eq!(value.trim(), "0");
        let stale = client.update_netns(update(&["labels"])).await.unwrap_err();
        assert_eq!(stale.code(), Code::Aborted);
        let fixed = api::UpdateNetnsRequest {
            netns: Some(api::Netns { etag: String::new(), ..changed.clone() }),
            update_mask: mask(&["lo_up"]),
        };
        let fixed = client.update_netns(call(fixed)).await.unwrap_err();
        assert_eq!(fixed.code(), Code::InvalidArgument);

        let delete = || {
            let wait_timeout_ms = Some(60_000);
            call(api::DeleteNetnsRequest {
                id: "web".into(),
                wait_timeout_ms,
                ..Default::default()
            })
        };
        assert!(client.delete_netns(delete()).await.unwrap().into_inner().gone);
        assert_eq!(client.delete_netns(delete()).await.unwrap_err().code(), Code::NotFound);
        assert!(!std::path::Path::new(&made.path).exists());
        let mut topics = Vec::new();
        while topics.last().is_none_or(|topic| topic != "/netns/delete") {
            let event = events.message().await.unwrap().unwrap();
            if event.namespace == "test" && event.topic.starts_with("/netns/") {
                topics.push(event.topic);
            }
        }
        assert_eq!(topics, ["/netns/create", "/netns/update", "/netns/delete"]);
    });
}

#[test]
fn a_link_is_made_read_changed_and_removed() {
    scratch(|directory| async move {
        let (_fixture, mut client) = start(directory).await;
        client.create_link(call(bridge("br0"))).await.unwrap();
        client.create_netns(call(netns("a"))).await.unwrap();
        let request = with_address(cable("a", "eth0", "va", "br0"), "10.9.0.2/24");
        let made = client.create_link(call(request)).await.unwrap().into_inner();
        let status = made.status.unwrap();
        assert_eq!((status.kind.as_str(), status.up), ("veth", true));
        assert!(status.addrs.iter().any(|addr| addr.address == "10.9.0.2/24"));
        assert_eq!(status.drift, Vec::<String>::new());
        assert!(must("ip -d link show va").contains("master br0"));

        let spec = api::LinkSpec {
            mtu: Some(1400),
            alias: Some("door".into()),
            addrs: vec![api::Address { address: "10.9.0.3/24".into(), ..Default::default() }],
            bandwidth: Some(api::Bandwidth {
                egress: Some(api::Rate { bits_per_second: 10_000_000, ..Default::default() }),
                ingress: Some(api::Rate { bits_per_second: 20_000_000, ..Default::default() }),
            }),
            ..Default::default()
        };
        let link = api::Link {
            id: "eth0".into(),
            netns: "a".into(),
            spec: Some(spec),
            ..Default::default()
        };
        let update = |paths: &[&str]| {
            let link = Some(link.clone());
            call(api::UpdateLinkRequest { link, update_mask: mask(paths) })
        };
        let paths = ["spec.mtu", "spec.alias", "spec.addrs", "spec.bandwidth"];
        let updated = client.update_link(update(&paths)).await.unwrap().into_inner();
        let status = updated.status.unwrap();
        assert_eq!((status.mtu, status.alias.as_str()), (1400, "door"));
        let addrs: Vec<_> = status.addrs.iter().filter(|addr| addr.protocol == 201).collect();
        assert_eq!(addrs.len(), 1, "{addrs:?}");
        assert_eq!(addrs[0].address, "10.9.0.3/24");
        let bandwidth = status.bandwidth.unwrap();
        assert_eq!(bandwidth.egress.unwrap().bits_per_second, 10_000_000);
        assert_eq!(bandwidth.ingress.unwrap().bits_per_second, 20_000_000);
        for path in ["spec.kind", "id", "status.mtu", "labels."] {
            let error = client.update_link(update(&[path])).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{path}");
        }

        // Somebody else's hand shows as drift, and is not undone.
        let path = client
            .get_netns(call(api::GetNetnsRequest { id: "a".into() }))
            .await
            .unwrap()
            .into_inner()
            .path;
        must(&format!("nsenter --net={path} ip link set eth0 mtu 1300"));
        let get = call(api::GetLinkRequest { netns: "a".into(), id: "eth0".into() });
        let drift = client.get_link(get).await.unwrap().into_inner().status.unwrap().drift;
        assert_eq!(drift, ["mtu is 1300, was to be 1400"]);
        // What others made is visible, and has no record.
        must(&format!("nsenter --net={path} ip link add other type bridge"));
        let list = call(api::ListLinksRequest { netns: "a".into(), filters: vec![] });
        let links = client.list_links(list).await.unwrap().into_inner().links;
        let other = links.iter().find(|it| it.status.as_ref().unwrap().ifname == "other");
        assert_eq!(other.unwrap().id, "");
        let stats = call(api::StatsRequest { netns: "a".into(), links: vec!["eth0".into()] });
        let stats = client.stats(stats).await.unwrap().into_inner();
        assert_eq!(stats.links.len(), 1);

        let delete = || {
            let id = "eth0".to_owned();
            call(api::DeleteLinkRequest { netns: "a".into(), id, etag: String::new() })
        };
        client.delete_link(delete()).await.unwrap();
        assert_eq!(client.delete_link(delete()).await.unwrap_err().code(), Code::NotFound);
        assert!(!host_links().contains(&"va".to_owned()));
    });
}

#[test]
fn operations_take_effect_together_or_not_at_all() {
    scratch(|directory| async move {
        let (_fixture, mut client) = start(directory.clone()).await;
        client.create_link(call(bridge("br0"))).await.unwrap();
        client.apply(call(container("a", "va", "br0", "10.9.0.2/24"))).await.unwrap();

        let mut request = container("b", "vb", "br0", "10.9.0.3/24");
        let route =
            api::Route { dst: "default".into(), gateway: "192.0.2.1".into(), ..Default::default() };
        request
            .operations
            .push(api::Operation { netns: "b".into(), change: Some(Change::AddRoute(route)) });
        let error = client.apply(call(request.clone())).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().starts_with("operation 2: "), "{}", error.message());
        assert!(error.message().contains("invalid gateway"), "{}", error.message());
        assert_eq!(pins(directory.path()), ["test--a"]);
        assert!(!host_links().contains(&"vb".to_owned()));
        let get = || call(api::GetNetnsRequest { id: "b".into() });
        assert_eq!(client.get_netns(get()).await.unwrap_err().code(), Code::NotFound);

        // One by one, what can be done is done.
        request.atomic = false;
        let results = client.apply(call(request)).await.unwrap().into_inner().results;
        use api::result::Outcome;
        assert!(matches!(results[0].outcome, Some(Outcome::Netns(_))));
        assert!(matches!(results[1].outcome, Some(Outcome::Link(_))));
        let Some(Outcome::Error(error)) = &results[2].outcome else { panic!("{results:?}") };
        assert_eq!(error.code, i32::from(Code::FailedPrecondition));

        // A namespace made after its link, or a change after a removal, is a mistake.
        let late = [Change::CreateLink(bridge("br1")), Change::CreateNetns(netns("c"))];
        let operations = late.into_iter().map(operation).collect();
        let late = api::ApplyRequest { operations, atomic: true };
        let error = client.apply(call(late)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    });
}

#[test]
fn a_watcher_hears_of_its_namespaces() {
    scratch(|directory| async move {
        let (_fixture, mut client) = start(directory).await;
        client.create_netns(call(netns("a"))).await.unwrap();
        // Too long to be the name of a pin.
        let long = "x".repeat(76);
        client.create_netns(call(netns(&long))).await.unwrap();
        let watched = vec!["a".into(), "host".into(), long.clone()];
        let watch = call(api::WatchRequest { netns: watched });
        let mut events = client.watch(watch).await.unwrap().into_inner();
        assert_eq!(events.message().await.unwrap().unwrap().r#type(), Type::Snapshot);
        let watch = call(api::WatchRequest { netns: vec!["a".into(), "no".into()] });
        let refused = client.watch(watch).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        client.create_netns(call(netns("b"))).await.unwrap();
        client.create_link(call(cable("b", "eth0", "vb", ""))).await.unwrap();
        let request = with_address(cable("a", "eth0", "va", ""), "10.9.0.2/24");
        client.create_link(call(request)).await.unwrap();
        client.create_link(call(cable(&long, "eth0", "vx", ""))).await.unwrap();
        let mut seen = std::collections::BTreeSet::new();
        let wanted = [
            ("a", Type::LinkNew),
            ("a", Type::AddressAdded),
            ("host", Type::LinkNew),
            (&*long, Type::LinkNew),
        ];
        while !wanted
            .iter()
            .all(|(netns, kind)| seen.contains(&((*netns).to_owned(), *kind as i32)))
        {
            let event = tokio::time::timeout(PATIENCE, events.message()).await;
            let event = event.expect("events come").unwrap().unwrap();
            assert!(["a", "host", &long].contains(&event.netns.as_str()), "{event:?}");
            seen.insert((event.netns, event.r#type));
        }
    });
}

#[test]
fn a_device_that_is_moved_in_comes_back_under_its_name() {
    scratch(|directory| async move {
        let (_fixture, mut client) = start(directory).await;
        must("ip link add phys0 type veth peer name phys1");
        client.create_netns(call(netns("a"))).await.unwrap();
        let moved = |adopt| {
            let kind = api::link_spec::Kind::Existing(api::Existing {
                name: "phys0".into(),
                adopt,
                ..Default::default()
            });
            call(with_address(link("a", "lan0", kind, |_| ()), "10.7.0.1/24"))
        };
        let refused = client.create_link(moved(false)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{}", refused.message());
        client.create_link(moved(true)).await.unwrap();
        assert!(!host_links().contains(&"phys0".to_owned()));
        let delete = api::DeleteNetnsRequest { id: "a".into(), ..Default::default() };
        client.delete_netns(call(delete)).await.unwrap();
        assert!(host_links().contains(&"phys0".to_owned()));
        assert!(must("ip -d link show phys0").contains("group default"));
    });
}
