//! What must be refused, and with which answer: the crate checks first where
//! the kernel is lax, and passes the kernel's own words on where it is not.

mod common;

use common::{Host, ifname, ns, scratch};
use crated_netns::{
    Addr, AltName, BridgeOpts, DeleteOpts, Error, IfName, LinkChange, LinkKind, LinkSpec, Mac,
    MacvlanMode, Neigh, Netns, NetnsName, NetnsSpec, Parent, PeerSpec, Place, Plan, Prefix, Route,
    Rule, SysctlKey, VxlanOpts,
};

fn create(host: &Host, name: &str) -> Netns {
    host.root.create(&ns(name), &NetnsSpec::default()).unwrap()
}

fn bridge(name: &str) -> LinkSpec {
    LinkSpec::new(ifname(name), LinkKind::Bridge(BridgeOpts::default())).up()
}

fn veth(name: &str, peer: &str) -> LinkSpec {
    LinkSpec::new(ifname(name), LinkKind::Veth { peer: PeerSpec::here(ifname(peer)) }).up()
}

/// The error, which must carry the kernel's words.
fn with_text(error: Error, text: &str) -> Error {
    let kernel = error.kernel().unwrap_or_else(|| panic!("{error} has no kernel answer"));
    let message = kernel.message.as_deref().unwrap_or_default();
    assert!(message.contains(text), "{error}");
    assert!(error.to_string().contains(text), "{error}");
    error
}

macro_rules! assert_is {
    ($error:expr, $pattern:pat) => {{
        let error = $error;
        assert!(matches!(error, $pattern), "{error}: {error:?}");
    }};
}

#[test]
fn interface_names_the_kernel_refuses_or_expands() {
    let long = "x".repeat(16);
    for bad in ["", ".", "..", "a:b", "all", "default", "a/b", "a b", "eth%d", "a\n", "a\0", &long]
    {
        assert_is!(IfName::try_from(bad).unwrap_err(), Error::InvalidName { .. });
    }
    for good in ["eth0", "a.7", "-", &"x".repeat(15), "é"] {
        IfName::try_from(good).unwrap();
    }
    assert_is!(AltName::try_from("x".repeat(128)).unwrap_err(), Error::InvalidName { .. });
    AltName::try_from("x".repeat(127)).unwrap();
}

#[test]
fn namespace_names_that_are_paths_or_too_long() {
    let long = "x".repeat(77);
    for bad in ["", ".", "..", "a/b", "/a", "a\0b", "-a", ".hidden", "a b", "é", &long] {
        assert_is!(NetnsName::try_from(bad).unwrap_err(), Error::InvalidName { .. });
    }
    NetnsName::try_from("x".repeat(76)).unwrap();
}

#[test]
fn hardware_addresses_that_are_no_host() {
    let bad =
        ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "02:03", "", "2:3:4:5:6:7"];
    for bad in bad {
        assert_is!(bad.parse::<Mac>().unwrap_err(), Error::InvalidValue { field: "mac", .. });
    }
    assert!("02:00:00:00:00:01:02".parse::<Mac>().is_err());
    assert!("+2:00:00:00:00:01".parse::<Mac>().is_err());
}

#[test]
fn addresses_and_prefixes_the_kernel_would_take() {
    let bad =
        ["224.0.0.1/24", "0.0.0.0/0", "255.255.255.255/32", "ff02::1/64", "::/0", "10.0.0.1/33"];
    for bad in bad {
        assert!(bad.parse::<Addr>().is_err(), "{bad}");
    }
    for bad in ["10.0.0.1/8", "10.0.0.0/+8", "10.0.0.0/", "10.0.0/8", "fd00::1/64", "x"] {
        assert!(bad.parse::<Prefix>().is_err(), "{bad}");
    }
}

#[test]
fn sysctls_outside_net() {
    for bad in ["kernel.hostname", "net/../kernel/hostname", "vm.swappiness", "netx.a", ""] {
        assert_is!(SysctlKey::try_from(bad).unwrap_err(), Error::Permission { .. });
    }
    for bad in ["net", "net.", "net..a", "net.a b", "net.a\nb"] {
        assert_is!(SysctlKey::try_from(bad).unwrap_err(), Error::InvalidName { .. });
    }
    scratch(|host| {
        let a = create(host, "a");
        let key = "net.ipv4.ip_forward".parse().unwrap();
        let bad = a.set_sysctl(&key, "not a number").unwrap_err();
        assert_is!(bad, Error::InvalidValue { field: "sysctl", .. });
    });
}

#[test]
fn names_that_are_taken() {
    scratch(|host| {
        let a = create(host, "a");
        a.create_link(&veth("x0", "x1")).unwrap();
        for (name, peer) in [("x0", "y1"), ("y0", "x1"), ("z0", "z0")] {
            let error = a.create_link(&veth(name, peer)).unwrap_err();
            assert_is!(error, Error::AlreadyExists { .. });
        }
        let again = host.root.create(&ns("a"), &NetnsSpec::default()).unwrap_err();
        assert_is!(again, Error::AlreadyExists { .. });
    });
}

#[test]
fn move_to_where_the_name_is_taken_hints_at_renaming() {
    scratch(|host| {
        let (a, b) = (create(host, "a"), create(host, "b"));
        a.create_link(&veth("x0", "x1")).unwrap();
        b.create_link(&veth("x0", "x1")).unwrap();
        let mut change =
            LinkChange { move_to: Some(Place::Named(ns("b"))), ..LinkChange::default() };
        let error = a.change_link(&ifname("x0"), &change).unwrap_err();
        assert!(error.to_string().contains("rename"), "{error}");
        assert_is!(&error, Error::AlreadyExists { .. });
        change.rename = Some(ifname("x7"));
        a.change_link(&ifname("x0"), &change).unwrap();
        assert!(b.link(&ifname("x7")).is_ok());
    });
}

#[test]
fn things_that_do_not_exist() {
    scratch(|host| {
        let a = create(host, "a");
        let none = ifname("none0");
        assert_is!(a.link(&none).unwrap_err(), Error::NotFound { .. });
        assert_is!(a.delete_link(&none).unwrap_err(), Error::NotFound { .. });
        let change = LinkChange::default();
        assert_is!(a.change_link(&none, &change).unwrap_err(), Error::NotFound { .. });
        let missing_master = bridge("br0").master(ifname("none0"));
        assert_is!(a.create_link(&missing_master).unwrap_err(), Error::NotFound { .. });
        let parent = Parent::on_host(ifname("none0"));
        let kind = LinkKind::Macvlan { parent, mode: MacvlanMode::Bridge };
        let spec = LinkSpec::new(ifname("m0"), kind);
        assert_is!(a.create_link(&spec).unwrap_err(), Error::NotFound { .. });
        let peer = PeerSpec::in_netns(ifname("p0"), ns("nobody"));
        let spec = LinkSpec::new(ifname("q0"), LinkKind::Veth { peer });
        assert_is!(a.create_link(&spec).unwrap_err(), Error::NotFound { .. });
        assert_is!(host.root.get(&ns("nobody")).unwrap_err(), Error::NotFound { .. });
        let gone = host.root.delete_all(&[ns("nobody")], &DeleteOpts::default());
        assert_is!(gone[0].as_ref().unwrap_err(), Error::NotFound { .. });
    });
}

#[test]
fn mtu_outside_the_device_bounds() {
    scratch(|host| {
        let a = create(host, "a");
        for mtu in [67, 65_536] {
            let spec = veth("x0", "x1").mtu(mtu);
            let error = a.create_link(&spec).unwrap_err();
            assert_is!(
                error,
                Error::OutOfRange { field: "mtu", min: Some(68), max: Some(65_535), .. }
            );
        }
        a.create_link(&veth("x0", "x1")).unwrap();
        let change = LinkChange { mtu: Some(65_536), ..LinkChange::default() };
        let error = a.change_link(&ifname("x0"), &change).unwrap_err();
        assert_is!(error, Error::OutOfRange { min: Some(68), max: Some(65_535), .. });
        // What else was to change is as it was.
        let change = LinkChange { alias: Some("door".to_owned()), ..change };
        assert_is!(a.change_link(&ifname("x0"), &change).unwrap_err(), Error::OutOfRange { .. });
        assert_eq!(a.link(&ifname("x0")).unwrap().alias, None);
    });
}

#[test]
fn loopback_stays_where_it_is() {
    scratch(|host| {
        let (a, _b) = (create(host, "a"), create(host, "b"));
        let lo = ifname("lo");
        let change = LinkChange { move_to: Some(Place::Named(ns("b"))), ..LinkChange::default() };
        let error = a.change_link(&lo, &change).unwrap_err();
        assert_is!(with_text(error, "immutable"), Error::Refused { .. });
        assert_is!(a.delete_link(&lo).unwrap_err(), Error::Refused { .. });
        a.create_link(&bridge("br0")).unwrap();
        let change = LinkChange { master: Some(Some(ifname("br0"))), ..LinkChange::default() };
        assert_is!(a.change_link(&lo, &change).unwrap_err(), Error::Refused { .. });
    });
}

#[test]
fn masters_that_take_no_ports_and_ports_that_fit_no_master() {
    scratch(|host| {
        let a = create(host, "a");
        a.create_link(&veth("x0", "x1")).unwrap();
        a.create_link(&bridge("br0")).unwrap();
        let error = a.create_link(&bridge("br1").master(ifname("x0"))).unwrap_err();
        assert_is!(error, Error::Refused { .. });
        let error = a.create_link(&bridge("br1").master(ifname("br0"))).unwrap_err();
        assert_is!(with_text(error, "bridge"), Error::Refused { .. });
        assert!(a.link(&ifname("br1")).is_err());
        // One device cannot be both a port and a macvlan's parent.
        let port = LinkChange { master: Some(Some(ifname("br0"))), ..LinkChange::default() };
        a.change_link(&ifname("x0"), &port).unwrap();
        let over = |parent: &str| {
            let parent = Parent::here(ifname(parent));
            LinkSpec::new(ifname("mv0"), LinkKind::Macvlan { parent, mode: MacvlanMode::Bridge })
        };
        let error = a.create_link(&over("x0")).unwrap_err();
        assert!(error.to_string().contains("x0 is a port of br0"), "{error}");
        assert_is!(error, Error::Busy { .. });
        a.create_link(&over("x1")).unwrap();
        let error = a.change_link(&ifname("x1"), &port).unwrap_err();
        assert!(error.to_string().contains("the parent of mv0"), "{error}");
        assert_is!(error, Error::Busy { .. });
    });
}

#[test]
fn more_ports_than_a_bridge_takes() {
    scratch(|host| {
        let a = create(host, "a");
        a.create_link(&bridge("br0")).unwrap();
        let mut plan = Plan::new();
        for i in 0..511 {
            // Both ends are ports.
            let mut peer = PeerSpec::here(ifname(&format!("p{i}"))).master(ifname("br0"));
            peer.settings.up = false;
            let spec = LinkSpec::new(ifname(&format!("q{i}")), LinkKind::Veth { peer });
            plan = plan.create_link(&a, spec.master(ifname("br0")));
        }
        plan.execute().unwrap();
        a.create_link(&veth("last0", "last1").master(ifname("br0"))).unwrap();
        let error = a.create_link(&veth("more0", "more1").master(ifname("br0"))).unwrap_err();
        assert_is!(error, Error::Limit { .. });
        assert!(a.link(&ifname("more0")).is_err());
        a.delete(&DeleteOpts { wait: std::time::Duration::from_secs(30), force: false }).unwrap();
    });
}

#[test]
fn vxlan_ids_out_of_range_or_taken() {
    scratch(|host| {
        let a = create(host, "a");
        let vxlan = |name, id| LinkSpec::new(ifname(name), LinkKind::Vxlan(VxlanOpts::new(id)));
        let error = a.create_link(&vxlan("vx0", 1 << 24)).unwrap_err();
        assert_is!(error, Error::InvalidValue { field: "vxlan id", .. });
        let raw = LinkKind::Raw { kind: "vxlan".to_owned(), data: Vec::new() };
        let error = a.create_link(&LinkSpec::new(ifname("vx0"), raw)).unwrap_err();
        assert_is!(with_text(error, "Required attributes"), Error::InvalidValue { .. });
        a.create_link(&vxlan("vx0", 7)).unwrap();
        let error = a.create_link(&vxlan("vx1", 7)).unwrap_err();
        assert_is!(with_text(error, "VNI"), Error::AlreadyExists { .. });
    });
}

#[test]
fn addresses_twice_and_not_at_all() {
    scratch(|host| {
        let a = create(host, "a");
        a.create_link(&veth("x0", "x1")).unwrap();
        let (x0, addr) = (ifname("x0"), "10.0.0.1/24".parse::<Addr>().unwrap());
        a.add_addr(&x0, &addr).unwrap();
        assert_is!(a.add_addr(&x0, &addr).unwrap_err(), Error::AlreadyExists { .. });
        a.remove_addr(&x0, &addr).unwrap();
        assert_is!(a.remove_addr(&x0, &addr).unwrap_err(), Error::NotFound { .. });
        // Fields changed by hand are checked as well.
        let sneaky = Addr { ip: "224.0.0.1".parse().unwrap(), ..addr.clone() };
        assert_is!(a.add_addr(&x0, &sneaky).unwrap_err(), Error::InvalidValue { .. });
        let spec = bridge("br0").address(sneaky);
        assert_is!(a.create_link(&spec).unwrap_err(), Error::InvalidValue { .. });
        assert!(a.link(&ifname("br0")).is_err());
    });
}

#[test]
fn ipv6_address_where_ipv6_is_off() {
    scratch(|host| {
        let a = create(host, "a");
        a.create_link(&veth("x0", "x1")).unwrap();
        a.set_sysctl(&"net/ipv6/conf/x0/disable_ipv6".parse().unwrap(), "1").unwrap();
        let error = a.add_addr(&ifname("x0"), &"fd00::1/64".parse().unwrap()).unwrap_err();
        assert_is!(with_text(error, "IPv6 is disabled"), Error::Refused { .. });
    });
}

#[test]
fn routes_that_lead_nowhere() {
    scratch(|host| {
        let a = create(host, "a");
        a.create_link(&veth("x0", "x1").address("10.0.0.1/24".parse().unwrap())).unwrap();
        let via = |gateway: &str| Route::default_via(gateway.parse().unwrap());
        let error = a.add_route(&via("192.0.2.1")).unwrap_err();
        assert_is!(with_text(error, "invalid gateway"), Error::Unreachable { .. });
        let error = a.add_route(&via("fe80::1")).unwrap_err();
        assert_is!(error, Error::InvalidValue { field: "gateway", .. });
        let none = Route::to("10.1.0.0/16".parse().unwrap());
        assert_is!(a.add_route(&none).unwrap_err(), Error::InvalidValue { field: "route", .. });
        let error = a.add_route(&none.clone().dev(ifname("none0"))).unwrap_err();
        assert_is!(error, Error::NotFound { .. });
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        a.change_link(&ifname("x0"), &down).unwrap();
        let error = a.add_route(&via("10.0.0.254")).unwrap_err();
        assert_is!(error, Error::Unreachable { .. });
    });
}

#[test]
fn rules_and_neighbours_that_are_not_there() {
    scratch(|host| {
        let a = create(host, "a");
        a.create_link(&veth("x0", "x1")).unwrap();
        let rule = Rule { priority: Some(5), table: 9, ..Rule::default() };
        assert_is!(a.remove_rule(&rule).unwrap_err(), Error::NotFound { .. });
        assert_is!(a.add_rule(&Rule::default()).unwrap_err(), Error::InvalidValue { .. });
        let neigh = Neigh {
            dev: ifname("x0"),
            ip: "10.0.0.9".parse().unwrap(),
            mac: None,
            permanent: true,
        };
        assert_is!(a.remove_neighbour(&neigh).unwrap_err(), Error::NotFound { .. });
        assert_is!(a.add_neighbour(&neigh).unwrap_err(), Error::InvalidValue { .. });
        let route = Route::to("10.1.0.0/16".parse().unwrap()).dev(ifname("x0"));
        assert_is!(a.remove_route(&route).unwrap_err(), Error::NotFound { .. });
    });
}

#[test]
fn alias_longer_than_the_kernel_keeps() {
    scratch(|host| {
        let a = create(host, "a");
        let mut spec = veth("x0", "x1");
        spec.settings.alias = Some("x".repeat(256));
        let error = a.create_link(&spec).unwrap_err();
        assert_is!(error, Error::InvalidValue { field: "alias", .. });
        spec.settings.alias = Some("x".repeat(255));
        assert_eq!(a.create_link(&spec).unwrap().alias, spec.settings.alias);
    });
}

#[test]
fn vlan_filtering_without_kernel_support_is_said_so() {
    scratch(|host| {
        let can = host.root.capabilities().unwrap();
        for kind in ["veth", "bridge", "macvlan", "vxlan", "ifb", "tun"] {
            assert!(can.kinds.contains(kind), "{can:?}");
        }
        assert!(can.egress_limit && can.ingress_limit, "{can:?}");
        let opts = BridgeOpts { vlan_filtering: Some(true), ..BridgeOpts::default() };
        let spec = LinkSpec::new(ifname("br0"), LinkKind::Bridge(opts));
        match create(host, "a").create_link(&spec) {
            Ok(_) => assert!(can.bridge_vlan_filtering),
            Err(error) => {
                assert!(!can.bridge_vlan_filtering);
                assert_is!(error, Error::Unsupported { .. });
            }
        }
        let mut dummies = LinkSpec::new(ifname("d0"), LinkKind::Dummy);
        dummies.settings.up = true;
        let made = host.root.host().create_link(&dummies).is_ok();
        assert_eq!(made, can.kinds.contains("dummy"));
    });
}

#[test]
fn work_without_privileges_names_the_capability() {
    scratch(|host| {
        let (root, dir) = (host.root.clone(), host.dir().join("other"));
        // Capabilities are a thread's own; this one keeps none.
        let thread = std::thread::spawn(move || {
            common::drop_capabilities();
            crated_netns::NetnsRoot::open(dir, crated_netns::Propagation::Private).err().unwrap()
        });
        let error = thread.join().unwrap();
        assert_is!(&error, Error::Permission { .. });
        assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
        // The threads that do the work have what the one had that opened the root.
        let dir = root.dir().to_owned();
        let thread = std::thread::spawn(move || {
            common::drop_capability(rustix::thread::CapabilitySet::NET_ADMIN);
            let root = crated_netns::NetnsRoot::open(dir, crated_netns::Propagation::Private);
            root.unwrap().host().create_link(&bridge("br0")).unwrap_err()
        });
        let error = thread.join().unwrap();
        assert_is!(&error, Error::Permission { .. });
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        assert!(root.host().link(&ifname("br0")).is_err());
    });
}
