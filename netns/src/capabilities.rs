//! What the running kernel can do.

use std::collections::BTreeSet;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use serde::{Deserialize, Serialize};

use crate::error::{Step, Subject};
use crate::link::{Birth, kind_attributes, read};
use crate::netlink::{Hopper, Request, Socket};
use crate::{
    BridgeOpts, IfName, IpvlanMode, LinkKind, LinkSettings, MacvlanMode, Parent, PeerSpec, Rate,
    Result, VxlanOpts, bandwidth,
};

/// Kinds of links and features that work here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// Kinds that can be made, by the kernel's names.
    pub kinds: BTreeSet<String>,
    /// Bridges can tell VLANs apart.
    pub bridge_vlan_filtering: bool,
    /// What a link sends can be limited.
    pub egress_limit: bool,
    /// What a link receives can be limited.
    pub ingress_limit: bool,
    /// IPv6 is there.
    pub ipv6: bool,
}

/// Tries everything in a new namespace that nobody pins.
pub(crate) fn probe(hopper: &mut Hopper) -> Result<Capabilities> {
    let (socket, ipv6, tun) = hopper.create(|| {
        let ipv6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
        (Socket::open(), ipv6, std::path::Path::new("/dev/net/tun").exists())
    })?;
    let mut socket = socket?;
    let mut found = Capabilities { ipv6, ..Capabilities::default() };
    if tun {
        found.kinds.insert("tun".into());
    }
    let base = IfName::derived(&["base"]);
    let base_works = make(&mut socket, &base, &LinkKind::Ifb, None).is_ok();
    let parent = if base_works { read::index(&mut socket, &base).ok() } else { None };
    if parent.is_some() {
        found.kinds.insert("ifb".into());
    }
    for kind in candidates(&base) {
        let needs_parent = matches!(
            kind,
            LinkKind::Macvlan { .. }
                | LinkKind::Macvtap { .. }
                | LinkKind::Ipvlan { .. }
                | LinkKind::Vlan { .. }
        );
        let parent = if needs_parent { parent } else { None };
        let name = IfName::derived(&["probe"]);
        if make(&mut socket, &name, &kind, parent).is_ok() {
            found.kinds.extend(kind.name().map(str::to_owned));
            let index = read::index(&mut socket, &name)?;
            remove(&mut socket, &name, index)?;
        }
    }
    let vlans = BridgeOpts { vlan_filtering: Some(true), ..BridgeOpts::default() };
    let name = IfName::derived(&["vlans"]);
    found.bridge_vlan_filtering = make(&mut socket, &name, &LinkKind::Bridge(vlans), None).is_ok();
    if let Some(index) = parent {
        let rate = Rate::bits_per_second(1_000_000);
        found.egress_limit = queue(&mut socket, bandwidth::limit(index, &rate)).is_ok();
        found.ingress_limit = found.egress_limit
            && queue(&mut socket, bandwidth::ingress(index)).is_ok()
            && queue(&mut socket, bandwidth::redirect(index, index)).is_ok();
    }
    Ok(found)
}

fn candidates(base: &IfName) -> Vec<LinkKind> {
    let (parent, peer) = (Parent::here(base.clone()), IfName::derived(&["peer"]));
    let (mode, peer) = (MacvlanMode::Bridge, PeerSpec::here(peer));
    vec![
        LinkKind::Veth { peer: peer.clone() },
        LinkKind::Bridge(BridgeOpts::default()),
        LinkKind::Macvlan { parent: parent.clone(), mode },
        LinkKind::Macvtap { parent: parent.clone(), mode },
        LinkKind::Ipvlan { parent: parent.clone(), mode: IpvlanMode::L2 },
        LinkKind::Vlan { parent, id: 1, provider: false },
        LinkKind::Vxlan(VxlanOpts::new(1)),
        LinkKind::Dummy,
        LinkKind::Vrf { table: 100 },
        LinkKind::Netkit { peer, layer3: false },
        LinkKind::Wireguard,
    ]
}

fn make(socket: &mut Socket, name: &IfName, kind: &LinkKind, parent: Option<u32>) -> Result<()> {
    let settings = LinkSettings::default();
    let birth = |name| Birth {
        name,
        settings: &settings,
        group: None,
        master: None,
        up: false,
        netns: None,
    };
    let mut message: LinkMessage = birth(name).message();
    let peer = match kind {
        LinkKind::Veth { peer } | LinkKind::Netkit { peer, .. } => {
            Some(birth(&peer.name).message())
        }
        _ => None,
    };
    message.attributes.extend(kind_attributes(kind, parent, peer));
    socket.change(Request {
        message: RouteNetlinkMessage::NewLink(message),
        flags: (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16,
        step: Step::new(Subject::Link, "probe", format!("link of kind {:?}", kind.name())),
    })
}

fn remove(socket: &mut Socket, name: &IfName, index: u32) -> Result<()> {
    socket.change(Request {
        message: RouteNetlinkMessage::DelLink(crate::link::by_index(index)),
        flags: 0,
        step: Step::new(Subject::Link, "delete", format!("link {name}")),
    })
}

fn queue(socket: &mut Socket, message: RouteNetlinkMessage) -> Result<()> {
    socket.change(Request {
        message,
        flags: (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16,
        step: Step::new(Subject::Qdisc, "probe", "queue"),
    })
}
