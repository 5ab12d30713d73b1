//! Events of all namespaces through one socket.

mod common;

use std::time::{Duration, Instant};

use common::{Host, ifname, ns, scratch};
use crated_netns::{
    BridgeOpts, DeleteOpts, Event, EventKind, LinkChange, LinkKind, LinkSpec, Monitor, NetnsSpec,
    Origin, PeerSpec, Route,
};

/// Events until `last` answers yes, or panics after a while.
fn until(monitor: &mut Monitor, mut last: impl FnMut(&Event) -> bool) -> Vec<Event> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut events = Vec::new();
    while Instant::now() < deadline {
        if let Some(event) = monitor.wait(Some(Duration::from_millis(200))).unwrap() {
            let done = last(&event);
            events.push(event);
            if done {
                return events;
            }
        }
    }
    panic!("still waiting after {events:#?}");
}

fn attach(host: &Host, name: &str) -> crated_netns::Netns {
    let netns = host.root.create(&ns(name), &NetnsSpec::default()).unwrap();
    let kind = LinkKind::Veth { peer: PeerSpec::on_host(ifname(&format!("v{name}"))) };
    let spec = LinkSpec::new(ifname("eth0"), kind)
        .address("10.9.0.1/24".parse().unwrap())
        .route(Route::default_via("10.9.0.254".parse().unwrap()))
        .up();
    netns.create_link(&spec).unwrap();
    netns
}

#[test]
fn life_of_a_link_in_a_namespace_is_told_in_order() {
    scratch(|host| {
        let mut monitor = host.root.monitor().unwrap();
        let a = attach(host, "a");
        let inside = Origin::Pinned(ns("a"));
        let change = LinkChange { mtu: Some(1300), addrs: Some(vec![]), ..Default::default() };
        a.change_link(&ifname("eth0"), &change).unwrap();
        let mut events = until(
            &mut monitor,
            |event| matches!(&event.kind, EventKind::AddrRemoved { addr, .. } if addr.ip.is_ipv4()),
        );
        assert!(a.delete(&DeleteOpts::default()).unwrap().gone);
        events.extend(until(&mut monitor, |event| event.kind == EventKind::NetnsGone));
        let mut story = Vec::new();
        for event in events.iter().filter(|event| event.origin == inside) {
            story.push(match &event.kind {
                EventKind::NetnsNew => "netns",
                EventKind::LinkNew(link) if link.ifname == ifname("eth0") => "link",
                EventKind::AddrAdded { addr, .. } if addr.ip.is_ipv4() => "address",
                EventKind::RouteAdded { route, .. }
                    if route.dst.is_default() && route.dst.ip().is_ipv4() =>
                {
                    "route"
                }
                EventKind::LinkChanged(link) if link.mtu == 1300 => "mtu",
                EventKind::AddrRemoved { addr, .. } if addr.to_string() == "10.9.0.1/24" => {
                    "removed"
                }
                EventKind::NetnsGone => "gone",
                _ => continue,
            });
        }
        let mut seen = Vec::new();
        story.into_iter().for_each(|step| {
            if !seen.contains(&step) {
                seen.push(step);
            }
        });
        let all = ["netns", "link", "address", "route", "mtu", "removed", "gone"];
        assert_eq!(seen, all, "{events:#?}");
        // The host's end of the cable is the host's event.
        assert!(events.iter().any(|event| event.origin == Origin::Host
            && matches!(&event.kind, EventKind::LinkNew(l) if l.ifname == ifname("va"))));
    });
}

#[test]
fn events_of_many_namespaces_carry_their_names() {
    scratch(|host| {
        let names: Vec<String> = (0..20).map(|i| format!("n{i}")).collect();
        let mut monitor = host.root.monitor().unwrap();
        for name in &names {
            let netns = host.root.create(&ns(name), &NetnsSpec::default()).unwrap();
            let kind = LinkKind::Bridge(BridgeOpts::default());
            netns.create_link(&LinkSpec::new(ifname(name), kind)).unwrap();
        }
        let mut left = names.len();
        until(&mut monitor, |event| {
            match &event.kind {
                EventKind::LinkNew(link) if link.ifname.as_str() != "lo" => {
                    assert_eq!(event.origin, Origin::Pinned(ns(link.ifname.as_str())));
                    left -= 1;
                }
                _ => {}
            }
            left == 0
        });
    });
}

#[test]
fn lost_events_are_reported_and_listing_again_is_complete() {
    scratch(|host| {
        let mut monitor = Monitor::with_buffer(&host.root, 32 * 1024).unwrap();
        for i in 0..50 {
            let kind = LinkKind::Bridge(BridgeOpts::default());
            let spec = LinkSpec::new(ifname(&format!("b{i}")), kind).up();
            host.root.host().create_link(&spec).unwrap();
        }
        until(&mut monitor, |event| event.kind == EventKind::Overrun);
        let bridges = host.root.host().links().unwrap();
        assert_eq!(bridges.iter().filter(|l| l.ifname.as_str().starts_with('b')).count(), 50);
        while monitor.wait(Some(Duration::from_millis(50))).unwrap().is_some() {}
        // It goes on afterwards.
        host.root.host().delete_link(&ifname("b7")).unwrap();
        until(
            &mut monitor,
            |event| matches!(&event.kind, EventKind::LinkGone { link, .. } if link.ifname == ifname("b7")),
        );
    });
}

#[test]
fn monitor_keeps_no_namespace_alive_and_waits_no_longer_than_told() {
    scratch(|host| {
        let mut monitor = host.root.monitor().unwrap();
        let start = Instant::now();
        assert!(monitor.wait(Some(Duration::from_millis(30))).unwrap().is_none());
        assert!(start.elapsed() < Duration::from_secs(30));
        let a = attach(host, "a");
        until(&mut monitor, |event| event.origin == Origin::Pinned(ns("a")));
        assert!(a.delete(&DeleteOpts::default()).unwrap().gone);
    });
}
