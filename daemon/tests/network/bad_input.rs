//! What must be refused, and under which code.

use crated_api::network as api;
use crated_api::network::link_spec::Kind;
use crated_api::network::network_client::NetworkClient;
use crated_api::network::operation::Change;
use tonic::Code;
use tonic::transport::Channel;

use crate::common::mask;
use crate::scratch::*;

type Client = NetworkClient<Channel>;

async fn refused(client: &mut Client, change: Change) -> (Code, String) {
    refused_in(client, "a", change).await
}

async fn refused_in(client: &mut Client, netns: &str, change: Change) -> (Code, String) {
    let operation = api::Operation { netns: netns.to_owned(), change: Some(change.clone()) };
    let request = api::ApplyRequest { operations: vec![operation], atomic: true };
    match client.apply(call(request)).await {
        Ok(_) => panic!("accepted: {change:?}"),
        Err(status) => (status.code(), status.message().to_owned()),
    }
}

async fn accepted(client: &mut Client, netns: &str, change: Change) {
    let operation = api::Operation { netns: netns.to_owned(), change: Some(change) };
    let request = api::ApplyRequest { operations: vec![operation], atomic: true };
    client.apply(call(request)).await.unwrap();
}

fn dummy_cable(name: &str, peer: &str) -> api::CreateLinkRequest {
    let peer = api::LinkSpec { name: peer.to_owned(), ..Default::default() };
    let pair = api::Pair { peer: Some(peer.into()), ..Default::default() };
    link("a", name, Kind::Veth(pair.into()), |_| ())
}

fn edited(mut request: api::CreateLinkRequest, edit: impl FnOnce(&mut api::LinkSpec)) -> Change {
    edit(request.link.as_mut().unwrap().spec.as_mut().unwrap());
    Change::CreateLink(request)
}

fn update(id: &str, path: &str, edit: impl FnOnce(&mut api::LinkSpec)) -> Change {
    let mut spec = api::LinkSpec::default();
    edit(&mut spec);
    let link = api::Link {
        id: id.to_owned(),
        netns: "a".to_owned(),
        spec: Some(spec),
        ..Default::default()
    };
    Change::UpdateLink(api::UpdateLinkRequest { link: Some(link), update_mask: mask(&[path]) })
}

fn address(link: &str, address: &str) -> api::LinkAddress {
    let address = api::Address { address: address.to_owned(), ..Default::default() };
    api::LinkAddress { link: link.to_owned(), address: Some(address) }
}

#[test]
fn names_ids_and_values_that_cannot_be() {
    scratch(|directory| async move {
        let (_fixture, mut client) = start(directory).await;
        client.create_netns(call(netns("a"))).await.unwrap();
        let client = &mut client;
        let long = "x".repeat(77);
        for id in ["", "..", "a/b", "a\0b", "host", &long] {
            let (code, text) = refused(client, Change::CreateNetns(netns(id))).await;
            assert_eq!(code, Code::InvalidArgument, "{id:?}: {text}");
        }
        for name in ["", "..", "a:b", "all", "default", "a/b", "a b", "eth%d", "0123456789abcdef"] {
            let (code, text) = refused(client, Change::CreateLink(dummy_cable(name, "y"))).await;
            assert_eq!(code, Code::InvalidArgument, "{name:?}: {text}");
        }
        for mac in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "02:03"] {
            let change = edited(dummy_cable("x0", "x1"), |spec| spec.mac = mac.to_owned());
            assert_eq!(refused(client, change).await.0, Code::InvalidArgument, "{mac}");
        }
        for addr in ["224.0.0.1/24", "0.0.0.0/0", "ff02::1/64", "10.0.0.1/33", "nonsense", ""] {
            let change = Change::CreateLink(with_address(dummy_cable("x0", "x1"), addr));
            assert_eq!(refused(client, change).await.0, Code::InvalidArgument, "{addr}");
        }
        for mtu in [67, 65_536] {
            let change = edited(dummy_cable("x0", "x1"), |spec| spec.mtu = Some(mtu));
            let (code, text) = refused(client, change).await;
            assert_eq!(code, Code::OutOfRange);
            assert!(text.contains("68..=65535"), "{text}");
        }
        let change = edited(dummy_cable("x0", "x1"), |spec| spec.alias = Some("x".repeat(256)));
        assert_eq!(refused(client, change).await.0, Code::InvalidArgument);
        for id in [None, Some(1 << 24)] {
            let kind = Kind::Vxlan(api::Vxlan { id, ..Default::default() });
            let change = Change::CreateLink(link("a", "vx0", kind, |_| ()));
            assert_eq!(refused(client, change).await.0, Code::InvalidArgument, "{id:?}");
        }
        for key in ["kernel.hostname", "net/../kernel/hostname", "vm.swappiness"] {
            let setting = api::Setting { key: key.to_owned(), value: "1".to_owned() };
            let code = refused(client, Change::SetSysctl(setting)).await.0;
            assert_eq!(code, Code::PermissionDenied, "{key}");
        }
        let nothing = api::CreateLinkRequest {
            link: Some(api::Link { netns: "a".into(), ..Default::default() }),
        };
        assert_eq!(refused(client, Change::CreateLink(nothing)).await.0, Code::InvalidArgument);
    });
}

#[test]
fn what_is_there_already_and_what_is_not() {
    scratch(|directory| async move {
        let (_fixture, mut client) = start(directory.clone()).await;
        let client = &mut client;
        accepted(client, "", Change::CreateNetns(netns("a"))).await;
        accepted(client, "", Change::CreateLink(dummy_cable("x0", "x1"))).await;
        let code = refused(client, Change::CreateNetns(netns("a"))).await.0;
        assert_eq!(code, Code::AlreadyExists);
        for (name, peer) in [("x0", "y1"), ("y0", "x1"), ("z0", "z0")] {
            let (code, text) = refused(client, Change::CreateLink(dummy_cable(name, peer))).await;
            assert_eq!(code, Code::AlreadyExists, "{name} {peer}: {text}");
        }
        let vxlan = |name: &str| {
            let kind = Kind::Vxlan(api::Vxlan { id: Some(7), ..Default::default() });
            Change::CreateLink(link("a", name, kind, |_| ()))
        };
        accepted(client, "", vxlan("vx0")).await;
        let (code, text) = refused(client, vxlan("vx1")).await;
        assert_eq!(code, Code::AlreadyExists);
        assert!(text.contains("VNI"), "the kernel's words are passed on: {text}");

        let addr = || address("x0", "10.0.0.1/24");
        accepted(client, "a", Change::AddAddress(addr())).await;
        assert_eq!(refused(client, Change::AddAddress(addr())).await.0, Code::AlreadyExists);
        accepted(client, "a", Change::RemoveAddress(addr())).await;
        let rule = api::Rule { priority: Some(5), table: 9, ..Default::default() };
        let neigh =
            api::Neighbour { dev: "x0".into(), ip: "10.0.0.9".into(), ..Default::default() };
        let route =
            api::Route { dst: "10.1.0.0/16".into(), dev: "x0".into(), ..Default::default() };
        let deleted =
            api::DeleteLinkRequest { netns: "a".into(), id: "no".into(), etag: "".into() };
        let gone = api::DeleteNetnsRequest { id: "no".into(), ..Default::default() };
        for change in [
            Change::RemoveAddress(addr()),
            Change::RemoveRule(rule),
            Change::RemoveNeighbour(neigh),
            Change::RemoveRoute(route),
            Change::DeleteLink(deleted),
            Change::DeleteNetns(gone),
            Change::AddAddress(address("none0", "10.0.0.1/24")),
            update("none0", "spec.mtu", |spec| spec.mtu = Some(1400)),
            edited(dummy_cable("q0", "q1"), |spec| spec.master = "none0".into()),
        ] {
            let (code, text) = refused(client, change).await;
            assert_eq!(code, Code::NotFound, "{text}");
        }
        let macvlan = api::Macvlan { parent: "none0".into(), ..Default::default() };
        let change = Change::CreateLink(link("a", "m0", Kind::Macvlan(macvlan), |_| ()));
        assert_eq!(refused(client, change).await.0, Code::NotFound);
        for netns in ["nobody", "host2"] {
            let change = Change::AddAddress(address("x0", "10.0.0.1/24"));
            assert_eq!(refused_in(client, netns, change).await.0, Code::NotFound);
        }
        let get = call(api::GetLinkRequest { netns: "a".into(), id: "none0".into() });
        assert_eq!(client.get_link(get).await.unwrap_err().code(), Code::NotFound);

        // Two that want one id: one gets it.
        let race = (0..8).map(|_| {
            let mut client = client.clone();
            async move { client.create_netns(call(netns("race"))).await }
        });
        let outcomes = futures_util::future::join_all(race).await;
        let (made, late): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!(made.len(), 1);
        assert!(late.into_iter().all(|it| it.unwrap_err().code() == Code::AlreadyExists));
    });
}

#[test]
fn sources_that_are_no_network_namespace() {
    scratch(|directory| async move {
        let (_fixture, mut client) = start(directory.clone()).await;
        let plain = directory.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        let from = |from| {
            let mut request = netns("s");
            request.netns.as_mut().unwrap().source = Some(api::Source { from: Some(from) });
            call(request)
        };
        use api::source::From;
        for path in [plain.to_str().unwrap(), "/proc/self/ns/uts", "/dev/null"] {
            let error = client.create_netns(from(From::Path(path.to_owned()))).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{path}: {}", error.message());
        }
        for missing in [From::Path("/none/ns".into()), From::Pid(i32::MAX)] {
            let error = client.create_netns(from(missing)).await.unwrap_err();
            assert_eq!(error.code(), Code::NotFound, "{}", error.message());
        }
        let error = client.create_netns(from(From::Pid(0))).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert_eq!(pins(directory.path()), Vec::<String>::new());
        let own = From::Pid(std::process::id().try_into().unwrap());
        let taken = client.create_netns(from(own)).await.unwrap().into_inner();
        assert_eq!(taken.state(), api::State::Ready);
    });
}

#[test]
fn states_that_forbid_it() {
    scratch(|directory| async move {
        let (_fixture, mut client) = start(directory).await;
        let client = &mut client;
        accepted(client, "", Change::CreateNetns(netns("a"))).await;
        accepted(client, "", Change::CreateLink(dummy_cable("x0", "x1"))).await;
        let bridge = |name: &str| link("a", name, Kind::Bridge(api::Bridge::default()), |_| ());
        accepted(client, "", Change::CreateLink(bridge("br0"))).await;
        let refusals = [
            edited(bridge("br1"), |spec| spec.master = "x0".into()),
            edited(bridge("br1"), |spec| spec.master = "br0".into()),
            Change::AddRoute(api::Route {
                dst: "default".into(),
                gateway: "192.0.2.1".into(),
                ..Default::default()
            }),
        ];
        for change in refusals {
            let (code, text) = refused(client, change).await;
            assert_eq!(code, Code::FailedPrecondition, "{text}");
        }
        let route = |dst: &str, gateway: &str| {
            let (dst, gateway) = (dst.to_owned(), gateway.to_owned());
            Change::AddRoute(api::Route { dst, gateway, ..Default::default() })
        };
        for change in [route("default", "fe80::1"), route("10.1.2.3/16", "10.0.0.1")] {
            assert_eq!(refused(client, change).await.0, Code::InvalidArgument);
        }
        // A port is no parent, and a parent no port.
        accepted(client, "", update("x0", "spec.master", |spec| spec.master = "br0".into())).await;
        let over = |parent: &str| {
            let parent = parent.to_owned();
            let kind = Kind::Macvlan(api::Macvlan { parent, ..Default::default() });
            Change::CreateLink(link("a", "mv0", kind, |_| ()))
        };
        assert_eq!(refused(client, over("x0")).await.0, Code::FailedPrecondition);
        // IPv6 that is off.
        let off = api::Setting { key: "net/ipv6/conf/x1/disable_ipv6".into(), value: "1".into() };
        accepted(client, "a", Change::SetSysctl(off)).await;
        let (code, text) = refused(client, Change::AddAddress(address("x1", "fd00::1/64"))).await;
        assert_eq!(code, Code::FailedPrecondition, "{text}");
        assert!(text.contains("IPv6 is disabled"), "{text}");
        // The host's links are others'.
        must("ip link add foreign type bridge");
        let change = Change::AddAddress(address("foreign", "10.0.0.1/24"));
        assert_eq!(refused_in(client, "host", change).await.0, Code::PermissionDenied);
        // A namespace somebody lives in.
        let get = call(api::GetNetnsRequest { id: "a".into() });
        let path = client.get_netns(get).await.unwrap().into_inner().path;
        let mut inside = std::process::Command::new("nsenter")
            .args([&format!("--net={path}"), "sleep", "600"])
            .spawn()
            .unwrap();
        let home = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let there = format!("/proc/{}/ns/net", inside.id());
        until("the process is inside", || std::fs::read_link(&there).is_ok_and(|net| net != home))
            .await;
        let delete =
            |force| call(api::DeleteNetnsRequest { id: "a".into(), force, ..Default::default() });
        let error = client.delete_netns(delete(false)).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains(&inside.id().to_string()), "{}", error.message());
        let get = call(api::GetNetnsRequest { id: "a".into() });
        let read = client.get_netns(get).await.unwrap().into_inner();
        assert_eq!(read.state(), api::State::Ready);
        assert!(read.holders.iter().any(|it| it.member && it.pid == inside.id() as i32));
        let wait = api::DeleteNetnsRequest {
            id: "a".into(),
            force: true,
            wait_timeout_ms: Some(0),
            ..Default::default()
        };
        let forced = client.delete_netns(call(wait)).await.unwrap().into_inner();
        assert!(!forced.gone);
        inside.kill().unwrap();
        inside.wait().unwrap();
    });
}

#[test]
fn kinds_the_kernel_lacks_are_not_implemented() {
    scratch(|directory| async move {
        let (_fixture, mut client) = start(directory).await;
        let can = client.capabilities(call(())).await.unwrap().into_inner();
        let client = &mut client;
        accepted(client, "", Change::CreateNetns(netns("a"))).await;
        accepted(client, "", Change::CreateLink(dummy_cable("base0", "base1"))).await;
        let parent = || "base0".to_owned();
        let kinds = [
            ("bridge", Kind::Bridge(api::Bridge::default())),
            (
                "macvlan",
                Kind::Macvlan(api::Macvlan { parent: "base1".into(), ..Default::default() }),
            ),
            (
                "macvtap",
                Kind::Macvtap(api::Macvlan { parent: "base1".into(), ..Default::default() }),
            ),
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
            let operation = api::Operation { netns: String::new(), change: Some(change) };
            let request = api::ApplyRequest { operations: vec![operation], atomic: true };
            match client.apply(call(request)).await {
                Ok(_) => {
                    assert!(can.kinds.contains(&name.to_owned()), "{name} works and is not listed");
                    let delete = api::DeleteLinkRequest {
                        netns: "a".into(),
                        id: "l0".into(),
                        etag: String::new(),
                    };
                    client.delete_link(call(delete)).await.unwrap();
                }
                Err(error) => {
                    assert!(!can.kinds.contains(&name.to_owned()), "{name}: {}", error.message());
                    assert_eq!(error.code(), Code::Unimplemented, "{name}: {}", error.message());
                }
            }
        }
    });
}
