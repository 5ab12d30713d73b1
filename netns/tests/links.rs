//! Links of every kind: made, read back, changed, moved, deleted, and carrying
//! packets.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{Host, ifname, ns, scratch};
use crated_netns::{
    Bandwidth, BridgeOpts, DeleteOpts, Error, Fdb, IfName, IpvlanMode, KindInfo, LinkChange,
    LinkKind, LinkSpec, MacvlanMode, Neigh, Netns, NetnsSpec, OWN_PROTOCOL, Parent, PeerSpec,
    Place, PortSettings, Prefix, Rate, Route, RouteKind, Rule, TunOpts, VxlanOpts,
};

fn create(host: &Host, name: &str) -> Netns {
    host.root.create(&ns(name), &NetnsSpec::default()).unwrap()
}

fn bridge(host: &Host, name: &str) {
    let kind = LinkKind::Bridge(BridgeOpts::default());
    host.root.host().create_link(&LinkSpec::new(ifname(name), kind).up()).unwrap();
}

/// A cable from a namespace to a bridge of the host, the address given.
fn attach(netns: &Netns, peer: &str, bridge: &str, addr: &str) -> LinkSpec {
    let kind = LinkKind::Veth { peer: PeerSpec::on_host(ifname(peer)).master(ifname(bridge)) };
    let spec = LinkSpec::new(ifname("eth0"), kind).address(addr.parse().unwrap()).up();
    netns.create_link(&spec).unwrap();
    spec
}

/// Sends `bytes` from one namespace to an address of the other; answers with
/// the time between the first and the last byte received.
fn transfer(from: &Netns, to: &Netns, ip: &str, bytes: usize) -> Duration {
    let addr = SocketAddr::new(ip.parse().unwrap(), 7000);
    let listening = common::inside(to.path(), move || TcpListener::bind(addr).unwrap());
    let listener = listening.join().unwrap();
    let sender = common::inside(from.path(), move || {
        let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(30)).unwrap();
        stream.write_all(&vec![7; bytes]).unwrap();
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut received, mut buf) = (0, vec![0; 64 * 1024]);
    let mut start = None;
    while received < bytes {
        let len = stream.read(&mut buf).unwrap();
        assert!(len > 0, "ended after {received} of {bytes} bytes");
        start.get_or_insert_with(Instant::now);
        received += len;
    }
    sender.join().unwrap();
    start.unwrap().elapsed()
}

fn reaches(from: &Netns, to: &Netns, ip: &str) -> bool {
    let addr = SocketAddr::new(ip.parse().unwrap(), 7001);
    let listener = common::inside(to.path(), move || TcpListener::bind(addr).unwrap());
    let _listener = listener.join().unwrap();
    let attempt = common::inside(from.path(), move || {
        TcpStream::connect_timeout(&addr, Duration::from_secs(3)).is_ok()
    });
    attempt.join().unwrap()
}

/// Sends one echo request and waits for the answer.
fn ping(from: &Netns, ip: &str) -> bool {
    let addr = SocketAddr::new(ip.parse().unwrap(), 0);
    let thread = common::inside(from.path(), move || {
        use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};
        let socket =
            rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).unwrap();
        let timeout = Some(Duration::from_secs(5));
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, timeout).unwrap();
        // Type 8, code 0, checksum, id 0x4352, sequence 1.
        let sum = !(0x0800_u16 + 0x4352 + 1);
        let [high, low] = sum.to_be_bytes();
        let request = [8, 0, high, low, 0x43, 0x52, 0, 1];
        rustix::net::sendto(&socket, &request, SendFlags::empty(), &addr).unwrap();
        let mut buf = [0; 128];
        loop {
            match rustix::net::recv(&socket, &mut buf[..], RecvFlags::empty()) {
                // IPv4 header of 20 bytes, then type 0: an echo reply.
                Ok((len, _)) if len >= 28 && buf[20] == 0 => return buf[24..28] == request[4..],
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    });
    thread.join().unwrap()
}

#[test]
fn namespaces_on_a_bridge_ping_and_talk_tcp() {
    scratch(|host| {
        bridge(host, "br0");
        let (a, b) = (create(host, "a"), create(host, "b"));
        attach(&a, "va", "br0", "10.9.0.1/24");
        attach(&b, "vb", "br0", "10.9.0.2/24");
        assert!(ping(&a, "10.9.0.2"));
        transfer(&a, &b, "10.9.0.2", 1 << 20);
        let stats = b.stats().unwrap();
        assert!(stats.total.rx_bytes > 1 << 20, "{stats:?}");
        assert!(stats.total.tx_packets > 0);
    });
}

#[test]
fn veth_is_read_back_as_described() {
    scratch(|host| {
        bridge(host, "br0");
        let a = create(host, "a");
        let mut peer = PeerSpec::on_host(ifname("va")).master(ifname("br0"));
        peer.settings.mac = Some("02:00:00:00:00:09".parse().unwrap());
        peer.settings.port.hairpin = Some(true);
        peer.settings.alias = Some("of a".into());
        let mut spec = LinkSpec::new(ifname("eth0"), LinkKind::Veth { peer })
            .mac("02:00:00:00:00:01".parse().unwrap())
            .mtu(1400)
            .address("10.9.0.1/24".parse().unwrap())
            .address("fd00::1/64".parse().unwrap())
            .route(Route::default_via("10.9.0.254".parse().unwrap()))
            .up();
        spec.settings.alias = Some("front".into());
        spec.settings.altnames = vec!["a-much-longer-name-for-eth0".parse().unwrap()];
        spec.settings.tx_queue_len = Some(500);
        spec.settings.group = Some(7);
        spec.settings.ipv6_auto = Some(false);
        spec.settings.addrs[1].nodad = true;
        let link = a.create_link(&spec).unwrap();
        assert_eq!(link.kind, KindInfo::Veth);
        assert_eq!(link.mac.unwrap().to_string(), "02:00:00:00:00:01");
        assert_eq!((link.mtu, link.tx_queue_len, link.group), (1400, 500, 7));
        assert_eq!((link.mtu_min, link.mtu_max), (68, 65535));
        assert_eq!(link.alias.as_deref(), Some("front"));
        assert_eq!(link.altnames, spec.settings.altnames);
        assert!(link.up && link.running);
        assert_eq!(link.ipv6_auto, Some(false));
        assert!(link.lower.unwrap().nsid.is_some());
        // No link-local address, and both of ours marked as ours.
        let addrs: Vec<_> = link.addrs.iter().map(|a| (a.to_string(), a.protocol)).collect();
        let expected = [("10.9.0.1/24", OWN_PROTOCOL), ("fd00::1/64", OWN_PROTOCOL)];
        assert_eq!(addrs, expected.map(|(a, p)| (a.to_string(), p)));
        let default = link.routes.iter().find(|r| r.dst == Prefix::DEFAULT_V4).unwrap();
        assert_eq!(default.gateway, Some("10.9.0.254".parse().unwrap()));
        assert_eq!(default.protocol, OWN_PROTOCOL);

        let outer = host.root.host().link(&ifname("va")).unwrap();
        assert_eq!(outer.master, Some(ifname("br0")));
        assert_eq!(outer.mac.unwrap().to_string(), "02:00:00:00:00:09");
        assert_eq!(outer.alias.as_deref(), Some("of a"));
        assert_eq!(outer.port.unwrap().hairpin, Some(true));
        let by_altname: IfName = "eth0".parse().unwrap();
        assert_eq!(a.link(&by_altname).unwrap().ifindex, link.ifindex);
        let all = a.links().unwrap();
        let again = all.iter().find(|l| l.ifname == link.ifname).unwrap();
        assert_eq!((&again.addrs, &again.routes), (&link.addrs, &link.routes));
    });
}

#[test]
fn every_field_of_a_link_can_be_changed() {
    scratch(|host| {
        bridge(host, "br0");
        bridge(host, "br1");
        let h = host.root.host();
        let a = create(host, "a");
        attach(&a, "va", "br0", "10.9.0.1/24");
        let eth0 = ifname("eth0");
        let change = LinkChange {
            mac: Some("02:00:00:00:00:77".parse().unwrap()),
            mtu: Some(1300),
            tx_queue_len: Some(10),
            group: Some(3),
            alias: Some("x".into()),
            altnames: Some(vec!["other".parse().unwrap()]),
            gso_max_size: Some(30_000),
            gro_max_size: Some(31_000),
            addrs: Some(vec!["10.9.0.5/24".parse().unwrap(), "10.9.0.6/32".parse().unwrap()]),
            routes: Some(vec![Route::default_via("10.9.0.254".parse().unwrap())]),
            ..LinkChange::default()
        };
        a.change_link(&eth0, &change).unwrap();
        let link = a.link(&eth0).unwrap();
        assert_eq!(link.mac, change.mac);
        assert_eq!((link.mtu, link.tx_queue_len, link.group), (1300, 10, 3));
        assert_eq!(link.alias, change.alias);
        assert_eq!(Some(&link.altnames), change.altnames.as_ref());
        assert_eq!((link.gso_max_size, link.gro_max_size), (30_000, 31_000));
        let ours: Vec<_> = link.addrs.iter().filter(|a| a.protocol == OWN_PROTOCOL).collect();
        let ips: Vec<_> = ours.iter().map(|a| a.to_string()).collect();
        assert_eq!(ips.len(), 2);
        assert!(ips.contains(&"10.9.0.5/24".to_string()) && ips.contains(&"10.9.0.6/32".into()));
        assert!(link.routes.iter().any(|r| r.dst.is_default()));
        // The link-local address is the kernel's and was left alone.
        assert!(link.addrs.iter().any(|a| a.ip.is_ipv6()));

        let clear = LinkChange {
            alias: Some(String::new()),
            altnames: Some(vec![]),
            addrs: Some(vec![]),
            routes: Some(vec![]),
            ..LinkChange::default()
        };
        a.change_link(&eth0, &clear).unwrap();
        let link = a.link(&eth0).unwrap();
        assert_eq!((link.alias, link.altnames.len()), (None, 0));
        assert!(link.addrs.iter().all(|a| a.protocol != OWN_PROTOCOL));
        assert!(link.routes.iter().all(|r| r.protocol != OWN_PROTOCOL));

        let va = ifname("va");
        let port =
            PortSettings { isolated: Some(true), learning: Some(false), ..Default::default() };
        let change = LinkChange { master: Some(Some(ifname("br1"))), port, ..Default::default() };
        h.change_link(&va, &change).unwrap();
        let link = h.link(&va).unwrap();
        assert_eq!(link.master, Some(ifname("br1")));
        let port = link.port.unwrap();
        assert_eq!((port.isolated, port.learning), (Some(true), Some(false)));
        let release = LinkChange { master: Some(None), up: Some(false), ..Default::default() };
        h.change_link(&va, &release).unwrap();
        let link = h.link(&va).unwrap();
        assert!(link.master.is_none() && !link.up && link.port.is_none());
        let rename = LinkChange { rename: Some(ifname("vz")), ..Default::default() };
        h.change_link(&va, &rename).unwrap();
        assert!(h.link(&va).is_err());
        assert_eq!(h.link(&ifname("vz")).unwrap().ifindex, link.ifindex);
        a.delete_link(&eth0).unwrap();
        assert!(matches!(h.link(&ifname("vz")), Err(Error::NotFound { .. })));
    });
}

#[test]
fn failed_change_leaves_the_link_as_it_was() {
    scratch(|host| {
        bridge(host, "br0");
        let a = create(host, "a");
        attach(&a, "va", "br0", "10.9.0.1/24");
        let before = a.link(&ifname("eth0")).unwrap();
        let change = LinkChange {
            alias: Some("half".into()),
            mtu: Some(1300),
            addrs: Some(vec![]),
            rename: Some(ifname("eth7")),
            routes: Some(vec![Route::default_via("172.31.0.1".parse().unwrap())]),
            ..LinkChange::default()
        };
        let error = a.change_link(&ifname("eth0"), &change).unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        assert!(error.kernel().unwrap().message.is_some(), "{error}");
        let after = a.link(&ifname("eth0")).unwrap();
        assert_eq!(
            (after.mtu, &after.alias, &after.routes),
            (before.mtu, &before.alias, &before.routes)
        );
        let ours = |link: &crated_netns::Link| {
            let own = link.addrs.iter().filter(|a| a.protocol == OWN_PROTOCOL);
            own.map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(ours(&after), ours(&before));
    });
}

#[test]
fn failed_creation_of_a_link_leaves_nothing() {
    scratch(|host| {
        bridge(host, "br0");
        let a = create(host, "a");
        let peer = PeerSpec::on_host(ifname("va")).master(ifname("br0"));
        let spec = LinkSpec::new(ifname("eth0"), LinkKind::Veth { peer })
            .address("10.9.0.1/24".parse().unwrap())
            .route(Route::default_via("172.31.0.1".parse().unwrap()))
            .up();
        assert!(matches!(a.create_link(&spec), Err(Error::Unreachable { .. })));
        assert!(a.link(&ifname("eth0")).is_err());
        assert!(host.root.host().link(&ifname("va")).is_err());
    });
}

#[test]
fn macvlan_neighbours_talk_over_a_parent_of_the_host() {
    scratch(|host| {
        bridge(host, "up0");
        let (a, b) = (create(host, "a"), create(host, "b"));
        for (netns, ip) in [(&a, "10.8.0.1/24"), (&b, "10.8.0.2/24")] {
            let parent = Parent::on_host(ifname("up0"));
            let kind = LinkKind::Macvlan { parent, mode: MacvlanMode::Bridge };
            let spec = LinkSpec::new(ifname("eth0"), kind).address(ip.parse().unwrap()).up();
            let link = netns.create_link(&spec).unwrap();
            assert_eq!(link.kind, KindInfo::Macvlan(MacvlanMode::Bridge));
        }
        assert!(ping(&a, "10.8.0.2"));
        transfer(&a, &b, "10.8.0.2", 1 << 18);
        let opts = DeleteOpts::default();
        assert!(a.delete(&opts).unwrap().gone);
    });
}

#[test]
fn macvtap_ifb_tap_and_tun_are_made_and_deleted() {
    scratch(|host| {
        let a = create(host, "a");
        a.create_link(&LinkSpec::new(ifname("ifb9"), LinkKind::Ifb).up()).unwrap();
        let opts = TunOpts { owner: Some(1000), ..TunOpts::default() };
        let kinds = [
            ("tap0", LinkKind::Tap(opts), KindInfo::Tun),
            ("tun0", LinkKind::Tun(TunOpts::default()), KindInfo::Tun),
            (
                "mvt0",
                LinkKind::Macvtap {
                    parent: Parent::here(ifname("ifb9")),
                    mode: MacvlanMode::Private,
                },
                KindInfo::Macvtap(MacvlanMode::Private),
            ),
        ];
        for (name, kind, read) in kinds {
            let spec = LinkSpec::new(ifname(name), kind).mtu(1200).up();
            let link = a.create_link(&spec).unwrap();
            assert_eq!((link.kind, link.mtu, link.up), (read, 1200, true), "{name}");
            let error = a.create_link(&spec).unwrap_err();
            assert!(matches!(error, Error::AlreadyExists { .. }), "{name}: {error}");
            assert!(host.root.host().link(&ifname(name)).is_err());
            a.delete_link(&ifname(name)).unwrap();
            assert!(matches!(a.link(&ifname(name)), Err(Error::NotFound { .. })));
        }
    });
}

#[test]
fn kinds_the_kernel_lacks_are_reported_as_unsupported() {
    scratch(|host| {
        let a = create(host, "a");
        a.create_link(&LinkSpec::new(ifname("base"), LinkKind::Ifb)).unwrap();
        let parent = Parent::here(ifname("base"));
        let kinds = [
            LinkKind::Dummy,
            LinkKind::Vlan { parent: parent.clone(), id: 7, provider: false },
            LinkKind::Ipvlan { parent, mode: IpvlanMode::L2 },
            LinkKind::Vrf { table: 100 },
            LinkKind::Netkit { peer: PeerSpec::here(ifname("nk1")), layer3: false },
            LinkKind::Wireguard,
            LinkKind::Raw { kind: "bond".into(), data: vec![] },
            LinkKind::Raw { kind: "no-such-kind".into(), data: vec![] },
        ];
        let mut lacking = 0;
        for kind in kinds {
            let name = kind.name().unwrap().to_owned();
            match a.create_link(&LinkSpec::new(ifname("x0"), kind)) {
                Ok(_) => a.delete_link(&ifname("x0")).unwrap(),
                Err(error @ Error::Unsupported { .. }) => {
                    lacking += 1;
                    let text = error.to_string();
                    assert!(text.contains("Unknown device type"), "{name}: {text}");
                }
                Err(error) => panic!("{name}: {error}"),
            }
            assert!(a.link(&ifname("x0")).is_err(), "{name}");
        }
        assert!(lacking >= 1, "no kernel has a kind named no-such-kind");
    });
}

#[test]
fn vxlan_joins_two_scratch_hosts() {
    scratch(|host| {
        // Two namespaces play the hosts, a cable between them the underlay.
        let (one, two) = (create(host, "one"), create(host, "two"));
        let peer = PeerSpec::in_netns(ifname("under"), ns("two"));
        let mut cable = LinkSpec::new(ifname("under"), LinkKind::Veth { peer })
            .address("192.0.2.1/24".parse().unwrap())
            .up();
        if let LinkKind::Veth { peer } = &mut cable.kind {
            peer.settings.addrs.push("192.0.2.2/24".parse().unwrap());
        }
        one.create_link(&cable).unwrap();
        let ends = [
            ("a", "one", "192.0.2.1", "192.0.2.2", "10.7.0.1/24"),
            ("b", "two", "192.0.2.2", "192.0.2.1", "10.7.0.2/24"),
        ];
        let mut inner = Vec::new();
        for (name, under, local, remote, ip) in ends {
            let netns = create(host, name);
            let opts = VxlanOpts {
                underlay: Place::Named(ns(under)),
                dev: Some(ifname("under")),
                local: Some(local.parse().unwrap()),
                learning: Some(true),
                ..VxlanOpts::new(42)
            };
            let spec = LinkSpec::new(ifname("vx0"), LinkKind::Vxlan(opts))
                .address(ip.parse().unwrap())
                .up();
            let link = netns.create_link(&spec).unwrap();
            assert!(matches!(&link.kind, KindInfo::Vxlan(o) if o.id == 42 && o.port == 4789));
            let flood = Fdb {
                dev: ifname("vx0"),
                mac: [0; 6],
                dst: Some(remote.parse().unwrap()),
                vlan: None,
                own_table: true,
                permanent: true,
            };
            netns.add_fdb(&flood).unwrap();
            assert!(netns.fdb().unwrap().contains(&flood), "{:?}", netns.fdb());
            inner.push(netns);
        }
        assert!(ping(&inner[0], "10.7.0.2"));
        transfer(&inner[0], &inner[1], "10.7.0.2", 1 << 18);
        // The same network twice in one underlay.
        let again = VxlanOpts { underlay: Place::Named(ns("one")), ..VxlanOpts::new(42) };
        let spec = LinkSpec::new(ifname("vx1"), LinkKind::Vxlan(again));
        let error = two.create_link(&spec).unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    });
}

#[test]
fn egress_limit_holds_for_a_real_transfer() {
    limited_transfer(|rate| Bandwidth { egress: Some(rate), ingress: None }, true);
}

#[test]
fn ingress_limit_holds_for_a_real_transfer() {
    limited_transfer(|rate| Bandwidth { egress: None, ingress: Some(rate) }, false);
}

/// Limits one namespace to 10 Mbit/s and sends 3 MiB from or to it.
fn limited_transfer(limit: fn(Rate) -> Bandwidth, outwards: bool) {
    scratch(move |host| {
        bridge(host, "br0");
        let (a, b) = (create(host, "a"), create(host, "b"));
        attach(&a, "va", "br0", "10.9.0.1/24");
        attach(&b, "vb", "br0", "10.9.0.2/24");
        let rate = Rate {
            bits_per_second: 10_000_000,
            burst_bytes: 32 * 1024,
            latency: Duration::from_millis(50),
        };
        let wanted = limit(rate);
        let change = LinkChange { bandwidth: Some(wanted), ..LinkChange::default() };
        a.change_link(&ifname("eth0"), &change).unwrap();
        let read = a.link(&ifname("eth0")).unwrap().bandwidth;
        assert_eq!(
            read.egress.map(|r| r.bits_per_second),
            wanted.egress.map(|r| r.bits_per_second)
        );
        assert_eq!(
            read.ingress.map(|r| r.bits_per_second),
            wanted.ingress.map(|r| r.bits_per_second)
        );
        let bytes = 3 << 20;
        let took = match outwards {
            true => transfer(&a, &b, "10.9.0.2", bytes),
            false => transfer(&b, &a, "10.9.0.1", bytes),
        };
        let rate = bytes as f64 * 8.0 / took.as_secs_f64();
        // A stalled machine sends slower than the limit, never faster.
        assert!(rate < 11_500_000.0, "{rate:.0} bit/s");

        // Taken off again, nothing is left of it.
        let off = Some(Bandwidth::default());
        let change = LinkChange { bandwidth: off, ..LinkChange::default() };
        a.change_link(&ifname("eth0"), &change).unwrap();
        assert_eq!(a.link(&ifname("eth0")).unwrap().bandwidth, Bandwidth::default());
        assert_eq!(a.links().unwrap().len(), 2);
    });
}

#[test]
fn isolated_ports_cannot_talk_to_each_other() {
    scratch(|host| {
        bridge(host, "br0");
        let (a, b) = (create(host, "a"), create(host, "b"));
        attach(&a, "va", "br0", "10.9.0.1/24");
        attach(&b, "vb", "br0", "10.9.0.2/24");
        assert!(reaches(&a, &b, "10.9.0.2"));
        let port = PortSettings { isolated: Some(true), ..PortSettings::default() };
        let change = LinkChange { port, ..LinkChange::default() };
        for end in ["va", "vb"] {
            host.root.host().change_link(&ifname(end), &change).unwrap();
        }
        assert!(!reaches(&a, &b, "10.9.0.2"));
    });
}

#[test]
fn device_moves_in_under_a_new_name_and_back() {
    scratch(|host| {
        let h = host.root.host();
        let a = create(host, "a");
        let kind = LinkKind::Veth { peer: PeerSpec::here(ifname("nic1")) };
        h.create_link(&LinkSpec::new(ifname("nic0"), kind)).unwrap();
        let kind = LinkKind::Existing { name: ifname("nic0"), from: Place::Host };
        let spec =
            LinkSpec::new(ifname("eth0"), kind).mtu(1400).address("10.1.0.1/24".parse().unwrap());
        let link = a.create_link(&spec.up()).unwrap();
        assert_eq!((link.mtu, link.up), (1400, true));
        assert!(h.link(&ifname("nic0")).is_err());
        let back = LinkChange {
            rename: Some(ifname("nic0")),
            move_to: Some(Place::Host),
            ..LinkChange::default()
        };
        a.change_link(&ifname("eth0"), &back).unwrap();
        assert_eq!(h.link(&ifname("nic0")).unwrap().mtu, 1400);
        assert!(a.link(&ifname("eth0")).is_err());
    });
}

#[test]
fn links_of_the_host_made_by_others_are_left_alone_until_adopted() {
    scratch(|host| {
        host.run("ip link add foreign0 type veth peer name foreign1");
        let h = host.root.host();
        let name = ifname("foreign0");
        assert!(h.links().unwrap().iter().any(|l| l.ifname == name));
        let change = LinkChange { mtu: Some(1000), ..LinkChange::default() };
        let denied = |result: Result<(), Error>| {
            assert!(matches!(result, Err(Error::Permission { .. })), "{result:?}");
        };
        denied(h.change_link(&name, &change));
        denied(h.delete_link(&name));
        denied(h.add_addr(&name, &"10.0.0.1/8".parse().unwrap()));
        h.adopt_link(&name).unwrap();
        h.change_link(&name, &change).unwrap();
        h.delete_link(&name).unwrap();
    });
}

#[test]
fn sweep_removes_marked_links_nobody_knows() {
    scratch(|host| {
        host.run("ip link add foreign0 type veth peer name foreign1");
        for name in ["br0", "br1", "br2"] {
            bridge(host, name);
        }
        let h = host.root.host();
        let mut gone = h.sweep_links(&[ifname("br1")].into()).unwrap();
        gone.sort();
        assert_eq!(gone, [ifname("br0"), ifname("br2")]);
        let left: Vec<_> = h.links().unwrap().into_iter().map(|l| l.ifname).collect();
        assert!(left.contains(&ifname("br1")) && left.contains(&ifname("foreign0")));
        assert!(!left.contains(&ifname("br0")));
        assert!(h.sweep_links(&[ifname("br1")].into()).unwrap().is_empty());
    });
}

#[test]
fn sweep_by_name_leaves_marked_links_that_nobody_named() {
    scratch(|host| {
        let h = host.root.host();
        for name in ["known0", "half0", "other0"] {
            bridge(host, name);
            let change = LinkChange {
                bandwidth: Some(Bandwidth::both(Rate::bits_per_second(10_000_000))),
                ..LinkChange::default()
            };
            h.change_link(&ifname(name), &change).unwrap();
        }
        host.run("ip link add foreign0 type bridge");
        let before = h.links().unwrap().len();
        // A link that is not marked is not removed even when it is named.
        let doomed = [ifname("half0"), ifname("foreign0"), ifname("none0")].into();
        let (gone, left) = h.sweep_named_links(&[ifname("known0")].into(), &doomed).unwrap();
        assert!(gone.contains(&ifname("half0")), "{gone:?}");
        assert_eq!((gone.len(), left), (2, vec![ifname("other0")]), "{gone:?}");
        // What limits the rate of those that stay is there, too.
        assert_eq!(h.links().unwrap().len(), before - 2);
        for name in ["known0", "other0", "foreign0"] {
            h.link(&ifname(name)).unwrap();
        }
    });
}

#[test]
fn sweep_keeps_what_shapes_the_traffic_of_known_links() {
    scratch(|host| {
        let h = host.root.host();
        bridge(host, "br0");
        let change = LinkChange {
            bandwidth: Some(Bandwidth::both(Rate::bits_per_second(10_000_000))),
            ..LinkChange::default()
        };
        h.change_link(&ifname("br0"), &change).unwrap();
        let before = h.links().unwrap().len();
        assert!(h.sweep_links(&[ifname("br0")].into()).unwrap().is_empty());
        assert_eq!(h.links().unwrap().len(), before);
        assert_eq!(h.sweep_links(&Default::default()).unwrap().len(), 2);
    });
}

#[test]
fn routes_rules_and_neighbours_are_added_read_and_removed() {
    scratch(|host| {
        bridge(host, "br0");
        let a = create(host, "a");
        attach(&a, "va", "br0", "10.9.0.1/24");
        let gateway: IpAddr = "10.9.0.254".parse().unwrap();
        let mut route = Route::to("198.51.100.0/24".parse().unwrap()).via(gateway);
        route.table = 1000;
        route.metric = Some(50);
        route.mtu = Some(1300);
        route.source = Some("10.9.0.1".parse().unwrap());
        let hole =
            Route { kind: RouteKind::Blackhole, ..Route::to("203.0.113.0/24".parse().unwrap()) };
        for wanted in [&route, &hole] {
            a.add_route(wanted).unwrap();
            let found = a.routes().unwrap().into_iter().find(|r| r.dst == wanted.dst).unwrap();
            assert_eq!(
                (found.kind, found.table, found.mtu),
                (wanted.kind, wanted.table, wanted.mtu)
            );
            assert!(matches!(a.add_route(wanted), Err(Error::AlreadyExists { .. })));
            a.remove_route(wanted).unwrap();
            assert!(matches!(a.remove_route(wanted), Err(Error::NotFound { .. })));
        }
        let rule = Rule {
            priority: Some(100),
            from: Some("10.9.0.0/24".parse().unwrap()),
            mark: Some((1, 0xff)),
            table: 1000,
            ..Rule::default()
        };
        a.add_rule(&rule).unwrap();
        let found = a.rules().unwrap().into_iter().find(|r| r.priority == Some(100)).unwrap();
        assert_eq!(found, Rule { protocol: OWN_PROTOCOL, ..rule.clone() });
        a.remove_rule(&rule).unwrap();
        assert!(matches!(a.remove_rule(&rule), Err(Error::NotFound { .. })));

        let neigh = Neigh {
            dev: ifname("eth0"),
            ip: "10.9.0.77".parse().unwrap(),
            mac: Some("02:00:00:00:00:77".parse().unwrap()),
            permanent: true,
        };
        a.add_neighbour(&neigh).unwrap();
        assert!(a.neighbours().unwrap().contains(&neigh));
        a.remove_neighbour(&neigh).unwrap();
        assert!(matches!(a.remove_neighbour(&neigh), Err(Error::NotFound { .. })));
    });
}

#[test]
fn other_tools_links_in_a_namespace_are_shown_and_go_with_it() {
    scratch(|host| {
        let a = create(host, "a");
        let path = a.path().display().to_string();
        host.run(&format!("nsenter --net={path} ip link add f0 type veth peer name f1"));
        let links = a.links().unwrap();
        assert!(links.iter().any(|l| l.ifname == ifname("f0") && l.kind == KindInfo::Veth));
        assert!(a.delete(&DeleteOpts::default()).unwrap().gone);
    });
}
