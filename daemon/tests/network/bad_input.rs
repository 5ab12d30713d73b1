//! What must be refused: under which code, with which words, and with nothing left behind. One test
//! for each row of a table; `netns/tests/bad_input.rs` has the same rows below the daemon.

use std::sync::Arc;

use crated_api::network as api;
use crated_api::network::link_spec::Kind;
use crated_api::network::network_client::NetworkClient;
use crated_api::network::operation::Change;
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Channel;

use crate::common::{Fixture, mask};
use crate::scratch::*;

/// A daemon with a network namespace `a`, in which the cable `x0` and `x1` is, and a bridge `br0`.
struct World {
    client: NetworkClient<Channel>,
    directory: Arc<TempDir>,
    _fixture: Fixture,
}

impl World {
    async fn new(directory: Arc<TempDir>) -> Self {
        let (fixture, client) = start(directory.clone()).await;
        let mut world = Self { client, directory, _fixture: fixture };
        world.accept("", Change::CreateNetns(netns("a"))).await;
        world.accept("", Change::CreateLink(pair("x0", "x1"))).await;
        world.accept("", Change::CreateLink(switch("br0"))).await;
        world
    }

    async fn apply(&mut self, netns: &str, change: Change) -> Result<(), tonic::Status> {
        let operation = api::Operation { netns: netns.to_owned(), change: Some(change) };
        let request = api::ApplyRequest { operations: vec![operation], atomic: true };
        self.client.apply(call(request)).await.map(drop)
    }

    async fn accept(&mut self, netns: &str, change: Change) {
        self.apply(netns, change).await.unwrap();
    }

    /// That it is refused under `code`, and leaves nothing behind. Answers with the words.
    async fn refuse_in(&mut self, netns: &str, change: Change, code: Code) -> String {
        let before = self.state().await;
        let Err(status) = self.apply(netns, change.clone()).await else {
            panic!("accepted: {change:?}");
        };
        assert_eq!(status.code(), code, "{}: {change:?}", status.message());
        self.is_again(&before).await;
        status.message().to_owned()
    }

    async fn refuse(&mut self, change: Change, code: Code) -> String {
        self.refuse_in("a", change, code).await
    }

    /// The kernel may take a moment to remove what was taken back.
    async fn is_again(&mut self, before: &str) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let now = self.state().await;
            if now == before {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "left behind: {now}\nbefore: {before}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// All that a call may change.
    async fn state(&mut self) -> String {
        let state = self.directory.path().join("state");
        let mut all = vec![format!("pins {:?}", pins(self.directory.path()))];
        for notes in ["network", "network/.links"] {
            let names = std::fs::read_dir(state.join(notes)).unwrap();
            let names = names.map(|it| it.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            all.push(format!("{notes} {names:?}"));
        }
        let list = call(api::ListNetnsRequest::default());
        for netns in self.client.list_netns(list).await.unwrap().into_inner().netns {
            all.push(format!("netns {} {} {:?}", netns.id, netns.etag, netns.state()));
        }
        for netns in ["host", "a"] {
            let list = call(api::ListLinksRequest { netns: netns.into(), filters: vec![] });
            for link in self.client.list_links(list).await.unwrap().into_inner().links {
                let status = link.status.unwrap_or_default();
                let ours = status.addrs.iter().filter(|it| it.protocol == 201);
                let ours: Vec<&str> = ours.map(|it| it.address.as_str()).collect();
                all.push(format!(
                    "link {netns}/{} {} {} {} {:?} {} {} {ours:?}",
                    link.id,
                    link.etag,
                    status.ifname,
                    status.mtu,
                    status.alias,
                    status.master,
                    status.up,
                ));
            }
            let list = call(api::ListRulesRequest { netns: netns.into() });
            let rules = self.client.list_rules(list).await.unwrap().into_inner().rules;
            all.push(format!("{} rules in {netns}", rules.len()));
        }
        all.join("\n")
    }

    fn path(&self, id: &str) -> std::path::PathBuf {
        self.directory.path().join(format!("state/netns/test--{id}"))
    }
}

/// Runs a row.
fn row<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send + 'static) {
    scratch(|directory| async move { test(World::new(directory).await).await });
}

/// A cable in `a`.
fn pair(name: &str, peer: &str) -> api::CreateLinkRequest {
    let peer = api::LinkSpec { name: peer.to_owned(), ..Default::default() };
    let pair = api::Pair { peer: Some(peer.into()), ..Default::default() };
    link("a", name, Kind::Veth(pair.into()), |_| ())
}

/// A bridge in `a`.
fn switch(name: &str) -> api::CreateLinkRequest {
    link("a", name, Kind::Bridge(api::Bridge::default()), |_| ())
}

/// A cable in `a` that is not as usual.
fn edited(edit: impl FnOnce(&mut api::LinkSpec)) -> Change {
    with(pair("y0", "y1"), edit)
}

fn with(mut request: api::CreateLinkRequest, edit: impl FnOnce(&mut api::LinkSpec)) -> Change {
    edit(request.link.as_mut().unwrap().spec.as_mut().unwrap());
    Change::CreateLink(request)
}

fn update_in(netns: &str, id: &str, paths: &[&str], spec: api::LinkSpec) -> Change {
    let (id, netns) = (id.to_owned(), netns.to_owned());
    let link = api::Link { id, netns, spec: Some(spec), ..Default::default() };
    Change::UpdateLink(api::UpdateLinkRequest { link: Some(link), update_mask: mask(paths) })
}

/// A link of `a` becomes a port of `br0`.
fn port(id: &str) -> Change {
    let spec = api::LinkSpec { master: "br0".into(), ..Default::default() };
    update_in("a", id, &["spec.master"], spec)
}

fn delete(netns: &str, id: &str) -> Change {
    let (netns, id) = (netns.to_owned(), id.to_owned());
    Change::DeleteLink(api::DeleteLinkRequest { netns, id, etag: String::new() })
}

/// A device of `from` that is moved to `to`.
fn moved(to: &str, from: &str, name: &str, new_name: &str) -> Change {
    let existing = api::Existing { name: name.into(), netns: from.into(), adopt: true };
    Change::CreateLink(link(to, new_name, Kind::Existing(existing), |_| ()))
}

fn macvlan(name: &str, parent: &str) -> Change {
    let parent = parent.to_owned();
    let kind = Kind::Macvlan(api::Macvlan { parent, ..Default::default() });
    Change::CreateLink(link("a", name, kind, |_| ()))
}

fn vxlan(name: &str, id: Option<u32>) -> Change {
    let kind = Kind::Vxlan(api::Vxlan { id, ..Default::default() });
    Change::CreateLink(link("a", name, kind, |_| ()))
}

fn address(link: &str, address: &str) -> api::LinkAddress {
    let address = api::Address { address: address.to_owned(), ..Default::default() };
    api::LinkAddress { link: link.to_owned(), address: Some(address) }
}

fn route(dst: &str, gateway: &str, dev: &str) -> api::Route {
    let (dst, gateway, dev) = (dst.to_owned(), gateway.to_owned(), dev.to_owned());
    api::Route { dst, gateway, dev, ..Default::default() }
}

fn from(source: api::source::From) -> Change {
    let mut request = netns("s");
    request.netns.as_mut().unwrap().source = Some(api::Source { from: Some(source) });
    Change::CreateNetns(request)
}

#[test]
fn row_interface_names_that_are_reserved_too_long_or_no_names() {
    row(|mut it| async move {
        let bad = [
            "",
            ".",
            "..",
            "a:b",
            "all",
            "default",
            "a/b",
            "a b",
            "a\n",
            "a\0",
            "0123456789abcdef",
        ];
        for name in bad {
            it.refuse(Change::CreateLink(pair(name, "y1")), Code::InvalidArgument).await;
            if !name.is_empty() {
                it.refuse(Change::CreateLink(pair("y0", name)), Code::InvalidArgument).await;
            }
        }
    });
}

#[test]
fn row_interface_names_that_the_kernel_would_expand() {
    row(|mut it| async move {
        it.refuse(Change::CreateLink(pair("eth%d", "y1")), Code::InvalidArgument).await;
        it.refuse(Change::CreateLink(pair("y0", "eth%d")), Code::InvalidArgument).await;
        it.refuse(edited(|spec| spec.altnames.push("eth%d".into())), Code::InvalidArgument).await;
    });
}

#[test]
fn row_namespace_ids_that_are_paths_or_too_long() {
    row(|mut it| async move {
        let long = "x".repeat(77);
        for id in ["", ".", "..", "a/b", "/a", "a\0b", "a b", "-a", "host", &long] {
            it.refuse(Change::CreateNetns(netns(id)), Code::InvalidArgument).await;
        }
    });
}

#[test]
fn row_link_and_peer_names_that_are_taken() {
    row(|mut it| async move {
        for (name, peer) in [("x0", "y1"), ("y0", "x1"), ("z0", "z0")] {
            it.refuse(Change::CreateLink(pair(name, peer)), Code::AlreadyExists).await;
        }
        // Taken by a link that others made.
        must(&format!("nsenter --net={} ip link add o0 type bridge", it.path("a").display()));
        it.refuse(Change::CreateLink(pair("o0", "y1")), Code::AlreadyExists).await;
        must("ip link add o1 type bridge");
        it.refuse(Change::CreateLink(cable("a", "y0", "o1", "")), Code::AlreadyExists).await;
    });
}

#[test]
fn row_of_creators_that_race_one_wins() {
    row(|it| async move {
        let race = (0..8).map(|_| {
            let mut client = it.client.clone();
            async move { client.create_netns(call(netns("race"))).await.map(drop) }
        });
        let mut outcomes = futures_util::future::join_all(race).await;
        let race = (0..8).map(|n| {
            let mut client = it.client.clone();
            // Other ids, so that it is the kernel that decides.
            let request = cable("a", &format!("r{n}"), "race0", "");
            async move { client.create_link(call(request)).await.map(drop) }
        });
        outcomes.extend(futures_util::future::join_all(race).await);
        for outcomes in outcomes.chunks(8) {
            let late: Vec<_> = outcomes.iter().filter_map(|it| it.as_ref().err()).collect();
            assert_eq!(late.len(), 7);
            assert!(late.iter().all(|it| it.code() == Code::AlreadyExists), "{late:?}");
        }
        let left = std::fs::read_dir(it.directory.path().join("state/network/.links")).unwrap();
        assert_eq!(left.count(), 0);
    });
}

#[test]
fn row_namespace_ids_that_are_taken() {
    row(|mut it| async move {
        it.refuse(Change::CreateNetns(netns("a")), Code::AlreadyExists).await;
        // By a file that nobody has a record of.
        std::fs::write(it.path("file"), "").unwrap();
        let text = it.refuse(Change::CreateNetns(netns("file")), Code::AlreadyExists).await;
        assert!(text.contains("file"), "{text}");
    });
}

#[test]
fn row_namespaces_and_links_that_are_not_known() {
    row(|mut it| async move {
        let gone = api::DeleteNetnsRequest { id: "no".into(), ..Default::default() };
        let mtu = || api::LinkSpec { mtu: Some(1400), ..Default::default() };
        for change in [
            delete("a", "no"),
            delete("no", "x0"),
            Change::DeleteNetns(gone),
            Change::AddAddress(address("none0", "10.0.0.1/24")),
            Change::AddRoute(route("10.1.0.0/16", "", "none0")),
            update_in("a", "none0", &["spec.mtu"], mtu()),
            update_in("no", "x0", &["spec.mtu"], mtu()),
            edited(|spec| spec.master = "none0".into()),
            macvlan("m0", "none0"),
            moved("a", "host", "none0", "y0"),
            Change::CreateLink(cable("no", "y0", "y1", "")),
            Change::CreateLink(cable("a", "y0", "y1", "none0")),
        ] {
            it.refuse(change, Code::NotFound).await;
        }
        for netns in ["nobody", "host2"] {
            let change = Change::AddAddress(address("x0", "10.0.0.1/24"));
            it.refuse_in(netns, change, Code::NotFound).await;
        }
        let get = call(api::GetLinkRequest { netns: "a".into(), id: "none0".into() });
        assert_eq!(it.client.get_link(get).await.unwrap_err().code(), Code::NotFound);
        let get = call(api::GetNetnsRequest { id: "no".into() });
        assert_eq!(it.client.get_netns(get).await.unwrap_err().code(), Code::NotFound);
        let stats = api::StatsRequest { netns: "a".into(), links: vec!["none0".into()] };
        assert_eq!(it.client.stats(call(stats)).await.unwrap_err().code(), Code::NotFound);
    });
}

#[test]
fn row_sources_that_are_no_network_namespace_or_gone() {
    use api::source::From;
    row(|mut it| async move {
        let plain = it.directory.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        for path in [plain.to_str().unwrap(), "/proc/self/ns/uts", "/dev/null"] {
            it.refuse(from(From::Path(path.to_owned())), Code::InvalidArgument).await;
        }
        it.refuse(from(From::Pid(0)), Code::InvalidArgument).await;
        it.refuse(from(From::Path("/none/ns".into())), Code::NotFound).await;
        it.refuse(from(From::Pid(i32::MAX)), Code::NotFound).await;
        it.accept("", from(From::Pid(std::process::id().try_into().unwrap()))).await;
    });
}

#[test]
fn row_mtu_outside_the_bounds_of_the_device() {
    row(|mut it| async move {
        for mtu in [67, 65_536] {
            let text = it.refuse(edited(|spec| spec.mtu = Some(mtu)), Code::OutOfRange).await;
            assert!(text.contains("68..=65535"), "{text}");
            let spec = api::LinkSpec { mtu: Some(mtu), ..Default::default() };
            let change = update_in("a", "x0", &["spec.mtu"], spec);
            let text = it.refuse(change, Code::OutOfRange).await;
            assert!(text.contains("68..=65535"), "{text}");
        }
    });
}

#[test]
fn row_hardware_addresses_that_are_no_host_or_too_short() {
    row(|mut it| async move {
        for mac in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "02:03", "nonsense"] {
            it.refuse(edited(|spec| spec.mac = mac.to_owned()), Code::InvalidArgument).await;
        }
    });
}

#[test]
fn row_loopback_is_neither_moved_nor_deleted() {
    row(|mut it| async move {
        it.accept("", Change::CreateNetns(netns("b"))).await;
        for from in ["a", "host"] {
            let text = it.refuse(moved("b", from, "lo", "lo7"), Code::FailedPrecondition).await;
            assert!(text.contains("immutable"), "the kernel's words are passed on: {text}");
            let text = it.refuse(delete(from, "lo"), Code::FailedPrecondition).await;
            assert!(text.contains("loopback"), "{text}");
        }
        // Nor is a mark left on the host's.
        assert!(must("ip -d link show lo").contains("group default"));
    });
}

#[test]
fn row_move_to_where_the_name_is_taken_hints_at_renaming() {
    row(|mut it| async move {
        must("ip link add x0 type bridge");
        let text = it.refuse(moved("a", "host", "x0", "x0"), Code::AlreadyExists).await;
        assert!(text.contains("x0"), "{text}");
        // Held by a link that others made, so that it is the kernel that refuses.
        must(&format!("nsenter --net={} ip link add o0 type bridge", it.path("a").display()));
        must("ip link add o0 type veth peer name o1");
        let text = it.refuse(moved("a", "host", "o0", "o0"), Code::AlreadyExists).await;
        assert!(text.contains("rename"), "{text}");
        assert!(must("ip -d link show o0").contains("group default"));
        it.accept("", moved("a", "host", "o0", "o7")).await;
    });
}

#[test]
fn row_masters_that_take_no_ports_and_devices_that_are_none() {
    row(|mut it| async move {
        let under = |master: &str| with(switch("br1"), |spec| spec.master = master.to_owned());
        it.refuse(under("x0"), Code::FailedPrecondition).await;
        let text = it.refuse(under("br0"), Code::FailedPrecondition).await;
        assert!(text.contains("enslave a bridge to a bridge"), "{text}");
        it.refuse(port("lo"), Code::FailedPrecondition).await;
        let existing = api::Existing { name: "lo".into(), netns: "a".into(), adopt: true };
        let kind = Kind::Existing(existing);
        let lo = link("a", "lo", kind, |spec| spec.master = "br0".into());
        it.refuse(Change::CreateLink(lo), Code::FailedPrecondition).await;
    });
}

#[test]
fn row_one_device_is_not_both_port_and_parent() {
    row(|mut it| async move {
        it.accept("", port("x0")).await;
        let text = it.refuse(macvlan("m0", "x0"), Code::FailedPrecondition).await;
        assert!(text.contains("port of br0"), "the other use is named: {text}");
        it.accept("", Change::CreateLink(pair("p0", "p1"))).await;
        it.accept("", macvlan("m0", "p0")).await;
        let text = it.refuse(port("p0"), Code::FailedPrecondition).await;
        assert!(text.contains("parent of m0"), "the other use is named: {text}");
    });
}

#[test]
fn row_more_ports_than_a_bridge_takes() {
    row(|mut it| async move {
        // Both ends of each cable are ports, and down: ports that are up all tell each other so.
        let cable = |n: u32| {
            let mut request = pair(&format!("q{n}"), &format!("p{n}"));
            let spec = request.link.as_mut().unwrap().spec.as_mut().unwrap();
            spec.master = "br0".into();
            spec.up = Some(false);
            let Some(Kind::Veth(pair)) = &mut spec.kind else { unreachable!() };
            let peer = pair.peer.as_mut().unwrap();
            peer.master = "br0".into();
            peer.up = Some(false);
            api::Operation { netns: String::new(), change: Some(Change::CreateLink(request)) }
        };
        let operations = (0..511).map(cable).collect();
        let all = api::ApplyRequest { operations, atomic: true };
        it.client.apply(call(all)).await.unwrap();
        it.accept("", port("x0")).await;
        let text =
            it.refuse(edited(|spec| spec.master = "br0".into()), Code::ResourceExhausted).await;
        assert!(text.contains("limit"), "{text}");
    });
}

#[test]
fn row_vxlan_ids_that_are_missing_too_large_or_taken() {
    row(|mut it| async move {
        it.refuse(vxlan("vx0", None), Code::InvalidArgument).await;
        it.refuse(vxlan("vx0", Some(1 << 24)), Code::InvalidArgument).await;
        it.accept("", vxlan("vx0", Some(7))).await;
        let text = it.refuse(vxlan("vx1", Some(7)), Code::AlreadyExists).await;
        assert!(text.contains("VNI"), "the kernel's words are passed on: {text}");
    });
}

#[test]
fn row_kinds_that_the_kernel_lacks() {
    row(|mut it| async move {
        let can = it.client.capabilities(call(())).await.unwrap().into_inner();
        let parent = || "x0".to_owned();
        let over = || api::Macvlan { parent: "x1".into(), ..Default::default() };
        let kinds = [
            ("bridge", Kind::Bridge(api::Bridge::default())),
            ("macvlan", Kind::Macvlan(over())),
            ("macvtap", Kind::Macvtap(over())),
            ("ipvlan", Kind::Ipvlan(api::Ipvlan { parent: parent(), ..Default::default() })),
            ("vlan", Kind::Vlan(api::Vlan { parent: parent(), id: 7, ..Default::default() })),
            ("vxlan", Kind::Vxlan(api::Vxlan { id: Some(9), ..Default::default() })),
            ("tun", Kind::Tap(api::Tun::default())),
            ("ifb", Kind::Ifb(api::Plain {})),
            ("dummy", Kind::Dummy(api::Plain {})),
            ("vrf", Kind::Vrf(api::Vrf { table: 10 })),
            ("netkit", Kind::Netkit(Box::default())),
            ("wireguard", Kind::Wireguard(api::Plain {})),
            ("nosuchkind", Kind::Raw(api::Raw { kind: "nosuchkind".into(), data: vec![] })),
        ];
        for (name, kind) in kinds {
            let change = Change::CreateLink(link("a", "l0", kind, |_| ()));
            if can.kinds.contains(&name.to_owned()) {
                it.accept("", change).await;
                it.accept("", delete("a", "l0")).await;
            } else {
                it.refuse(change, Code::Unimplemented).await;
            }
        }
        assert!(!can.kinds.contains(&"nosuchkind".to_owned()));
    });
}

#[test]
fn row_an_address_twice_and_one_that_is_absent() {
    row(|mut it| async move {
        let addr = || address("x0", "10.0.0.1/24");
        it.accept("a", Change::AddAddress(addr())).await;
        it.refuse(Change::AddAddress(addr()), Code::AlreadyExists).await;
        it.accept("a", Change::RemoveAddress(addr())).await;
        it.refuse(Change::RemoveAddress(addr()), Code::NotFound).await;
    });
}

#[test]
fn row_addresses_that_the_kernel_would_take() {
    row(|mut it| async move {
        for bad in ["224.0.0.1/24", "0.0.0.0/0", "255.255.255.255/32", "10.0.0.1/33", "x", ""] {
            let change = Change::CreateLink(with_address(pair("y0", "y1"), bad));
            it.refuse(change, Code::InvalidArgument).await;
            it.refuse(Change::AddAddress(address("x0", bad)), Code::InvalidArgument).await;
        }
    });
}

#[test]
fn row_ipv6_addresses_where_it_is_off_and_multicast() {
    row(|mut it| async move {
        it.refuse(Change::AddAddress(address("x1", "ff02::1/64")), Code::InvalidArgument).await;
        let off = api::Setting { key: "net/ipv6/conf/x1/disable_ipv6".into(), value: "1".into() };
        it.accept("a", Change::SetSysctl(off)).await;
        let change = Change::AddAddress(address("x1", "fd00::1/64"));
        let text = it.refuse(change, Code::FailedPrecondition).await;
        assert!(text.contains("IPv6 is disabled"), "{text}");
    });
}

#[test]
fn row_routes_that_lead_nowhere_or_cannot_be() {
    row(|mut it| async move {
        it.accept("a", Change::AddAddress(address("x0", "10.0.0.1/24"))).await;
        let via = |gateway: &str| Change::AddRoute(route("default", gateway, ""));
        let text = it.refuse(via("192.0.2.1"), Code::FailedPrecondition).await;
        assert!(text.contains("invalid gateway"), "{text}");
        it.refuse(via("fe80::1"), Code::InvalidArgument).await;
        let bits = Change::AddRoute(route("10.1.2.3/16", "10.0.0.2", ""));
        it.refuse(bits, Code::InvalidArgument).await;
        let nowhere = Change::AddRoute(route("10.1.0.0/16", "", ""));
        it.refuse(nowhere, Code::InvalidArgument).await;
        let down = api::LinkSpec { up: Some(false), ..Default::default() };
        it.accept("", update_in("a", "x0", &["spec.up"], down)).await;
        it.refuse(via("10.0.0.254"), Code::FailedPrecondition).await;
    });
}

#[test]
fn row_routes_rules_and_neighbours_that_are_absent() {
    row(|mut it| async move {
        let rule = api::Rule { priority: Some(5), table: 9, ..Default::default() };
        let neigh =
            api::Neighbour { dev: "x0".into(), ip: "10.0.0.9".into(), ..Default::default() };
        let forwarding = api::Forwarding {
            dev: "x0".into(),
            mac: "02:00:00:00:00:09".into(),
            own_table: true,
            ..Default::default()
        };
        for change in [
            Change::RemoveRoute(route("10.1.0.0/16", "", "x0")),
            Change::RemoveRule(rule),
            Change::RemoveNeighbour(neigh),
            Change::RemoveForwarding(forwarding),
        ] {
            it.refuse(change, Code::NotFound).await;
        }
    });
}

#[test]
fn row_aliases_longer_than_the_kernel_keeps() {
    row(|mut it| async move {
        let alias = |len| edited(move |spec| spec.alias = Some("x".repeat(len)));
        it.refuse(alias(256), Code::InvalidArgument).await;
        it.accept("", alias(255)).await;
    });
}

#[test]
fn row_sysctls_outside_of_networks() {
    row(|mut it| async move {
        for key in ["kernel.hostname", "net/../kernel/hostname", "vm.swappiness", "netx.a"] {
            let setting = api::Setting { key: key.to_owned(), value: "1".to_owned() };
            it.refuse(Change::SetSysctl(setting), Code::PermissionDenied).await;
            let mut request = netns("s");
            request.netns.as_mut().unwrap().sysctls.insert(key.to_owned(), "1".to_owned());
            it.refuse(Change::CreateNetns(request), Code::PermissionDenied).await;
        }
        let key = "net.ipv4.ip_forward".to_owned();
        let value = "not a number".to_owned();
        let setting = api::Setting { key: key.clone(), value: value.clone() };
        it.refuse(Change::SetSysctl(setting), Code::InvalidArgument).await;
        let mut request = netns("s");
        request.netns.as_mut().unwrap().sysctls.insert(key, value);
        it.refuse(Change::CreateNetns(request), Code::InvalidArgument).await;
    });
}

#[test]
fn row_a_change_of_which_one_field_is_bad_changes_nothing() {
    row(|mut it| async move {
        let spec = api::LinkSpec {
            alias: Some("door".into()),
            mtu: Some(65_536),
            master: "br0".into(),
            ..Default::default()
        };
        let paths = ["spec.alias", "spec.mtu", "spec.master"];
        it.refuse(update_in("a", "x0", &paths, spec), Code::OutOfRange).await;
        // What only the kernel can know fails late, and is undone.
        let spec = api::LinkSpec {
            alias: Some("door".into()),
            mtu: Some(1400),
            master: "x1".into(),
            ..Default::default()
        };
        it.refuse(update_in("a", "x0", &paths, spec), Code::FailedPrecondition).await;
    });
}

#[test]
fn row_links_that_others_made_are_not_touched() {
    row(|mut it| async move {
        must("ip link add foreign0 type veth peer name foreign1");
        must(&format!("nsenter --net={} ip link add o0 type bridge", it.path("a").display()));
        let mtu = || api::LinkSpec { mtu: Some(1400), ..Default::default() };
        for change in [
            Change::AddAddress(address("foreign0", "10.0.0.1/24")),
            update_in("host", "foreign0", &["spec.mtu"], mtu()),
            update_in("a", "o0", &["spec.mtu"], mtu()),
            delete("host", "foreign0"),
            delete("a", "o0"),
        ] {
            let text = it.refuse_in("host", change, Code::PermissionDenied).await;
            assert!(text.contains("adopted first"), "{text}");
        }
        let existing = api::Existing { name: "foreign0".into(), ..Default::default() };
        let take = Change::CreateLink(link("a", "y0", Kind::Existing(existing), |_| ()));
        it.refuse(take, Code::PermissionDenied).await;
        it.accept("", moved("a", "host", "foreign0", "y0")).await;
    });
}

#[test]
fn row_a_namespace_with_processes_in_it_is_not_deleted() {
    row(|mut it| async move {
        let mut inside = std::process::Command::new("nsenter")
            .args([&format!("--net={}", it.path("a").display()), "sleep", "600"])
            .spawn()
            .unwrap();
        let home = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let there = format!("/proc/{}/ns/net", inside.id());
        until("the process is inside", || std::fs::read_link(&there).is_ok_and(|net| net != home))
            .await;
        let request = api::DeleteNetnsRequest { id: "a".into(), ..Default::default() };
        let text = it.refuse(Change::DeleteNetns(request), Code::FailedPrecondition).await;
        assert!(text.contains(&inside.id().to_string()), "{text}");
        let get = call(api::GetNetnsRequest { id: "a".into() });
        let read = it.client.get_netns(get).await.unwrap().into_inner();
        assert_eq!(read.state(), api::State::Ready);
        assert!(read.holders.iter().any(|it| it.member && it.pid == inside.id() as i32));
        let wait = api::DeleteNetnsRequest {
            id: "a".into(),
            force: true,
            wait_timeout_ms: Some(0),
            ..Default::default()
        };
        let forced = it.client.delete_netns(call(wait)).await.unwrap().into_inner();
        assert!(!forced.gone);
        inside.kill().unwrap();
        inside.wait().unwrap();
    });
}

#[test]
fn row_capabilities_that_the_daemon_lacks_are_named() {
    scratch(|directory| async move {
        for (lacking, named) in [("sys_admin", "CAP_SYS_ADMIN"), ("net_admin", "CAP_NET_ADMIN")] {
            let daemon = Process::start_without(directory.path(), lacking).await;
            let mut client = client(&daemon.channel);
            let error = match lacking {
                "sys_admin" => client.create_netns(call(netns("a"))).await.unwrap_err(),
                _ => client.create_link(call(bridge("br0"))).await.unwrap_err(),
            };
            assert_eq!(error.code(), Code::PermissionDenied, "{}", error.message());
            assert!(error.message().contains(named), "{}", error.message());
            let all = client.list_netns(call(api::ListNetnsRequest::default())).await;
            assert!(all.is_err() || all.unwrap().into_inner().netns.is_empty());
            assert_eq!(pins(directory.path()), Vec::<String>::new());
            assert_eq!(host_links(), Vec::<String>::new());
            drop(client);
            daemon.kill();
        }
    });
}

#[test]
fn row_operations_that_name_nothing() {
    row(|mut it| async move {
        let link = Some(api::Link { netns: "a".into(), ..Default::default() });
        let nothing = Change::CreateLink(api::CreateLinkRequest { link });
        it.refuse(nothing, Code::InvalidArgument).await;
        let request =
            api::ApplyRequest { operations: vec![api::Operation::default()], atomic: true };
        let error = it.client.apply(call(request)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    });
}
