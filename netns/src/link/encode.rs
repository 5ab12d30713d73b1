//! Requests about links, built from their descriptions. No input or output.

use std::net::IpAddr;
use std::os::fd::RawFd;

use netlink_packet_core::DefaultNla;
use netlink_packet_route::link::{
    AfSpecBridge, AfSpecInet6, AfSpecUnspec, BridgeStpState, BridgeVlanInfo, BridgeVlanInfoFlags,
    In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoIpVlan, InfoKind, InfoMacVlan,
    InfoMacVtap, InfoNetkit, InfoPortData, InfoPortKind, InfoVeth, InfoVlan, InfoVrf, InfoVxlan,
    IpVlanMode, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
    NetkitMode, Prop, VlanProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::kinds::{BridgeOpts, IpvlanMode, LinkKind, MacvlanMode, VxlanOpts};
use super::spec::{LinkSettings, PortSettings, PortVlan};
use crate::{AltName, IfName, Mac};

/// A message about the link with this index.
pub(crate) fn by_index(ifindex: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message
}

/// Asks for the link with this name, which may be an alternative one.
pub(crate) fn lookup(name: &str, counters: bool) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(match name.len() > crate::names::IF_NAME_LEN_MAX {
        true => LinkAttribute::PropList(vec![Prop::AltIfName(name.to_owned())]),
        false => LinkAttribute::IfName(name.to_owned()),
    });
    if !counters {
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    }
    RouteNetlinkMessage::GetLink(message)
}

/// Settings that may be part of the message that makes a link.
pub(crate) struct Birth<'a> {
    pub(crate) name: &'a IfName,
    pub(crate) settings: &'a LinkSettings,
    /// Ownership mark, or the group asked for.
    pub(crate) group: Option<u32>,
    /// Index of the master, when it is in the namespace the link is born in.
    pub(crate) master: Option<u32>,
    /// Bring it up at once.
    pub(crate) up: bool,
    /// Namespace to be born in, other than the socket's.
    pub(crate) netns: Option<RawFd>,
}

impl Birth<'_> {
    /// The link without its kind.
    pub(crate) fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        if self.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        let settings = self.settings;
        let list = &mut message.attributes;
        list.push(LinkAttribute::IfName(self.name.to_string()));
        list.extend(self.netns.map(LinkAttribute::NetNsFd));
        list.extend(settings.mac.map(mac));
        list.extend(settings.mtu.map(LinkAttribute::Mtu));
        list.extend(self.group.map(LinkAttribute::Group));
        list.extend(settings.tx_queue_len.map(LinkAttribute::TxQueueLen));
        list.extend(settings.gso_max_size.map(LinkAttribute::GsoMaxSize));
        list.extend(settings.gro_max_size.map(LinkAttribute::GroMaxSize));
        list.extend(self.master.map(LinkAttribute::Controller));
        message
    }
}

/// What belongs to a kind: the index of its parent and its own attributes.
pub(crate) fn kind_attributes(
    kind: &LinkKind,
    parent: Option<u32>,
    peer: Option<LinkMessage>,
) -> Vec<LinkAttribute> {
    let mut list = Vec::new();
    let mut info = Vec::new();
    if let Some(name) = kind.name() {
        info.push(LinkInfo::Kind(info_kind(name)));
    }
    // A VXLAN device names its parent among its own attributes.
    if !matches!(kind, LinkKind::Vxlan(_)) {
        list.extend(parent.map(LinkAttribute::Link));
    }
    info.extend(data(kind, parent, peer).map(LinkInfo::Data));
    list.push(LinkAttribute::LinkInfo(info));
    list
}

fn info_kind(name: &str) -> InfoKind {
    match name {
        "veth" => InfoKind::Veth,
        "bridge" => InfoKind::Bridge,
        "macvlan" => InfoKind::MacVlan,
        "macvtap" => InfoKind::MacVtap,
        "ipvlan" => InfoKind::IpVlan,
        "vlan" => InfoKind::Vlan,
        "vxlan" => InfoKind::Vxlan,
        "tun" => InfoKind::Tun,
        "ifb" => InfoKind::Ifb,
        "dummy" => InfoKind::Dummy,
        "vrf" => InfoKind::Vrf,
        "netkit" => InfoKind::Netkit,
        "wireguard" => InfoKind::Wireguard,
        other => InfoKind::Other(other.to_owned()),
    }
}

fn data(kind: &LinkKind, parent: Option<u32>, peer: Option<LinkMessage>) -> Option<InfoData> {
    Some(match kind {
        LinkKind::Veth { .. } => InfoData::Veth(InfoVeth::Peer(peer?)),
        LinkKind::Bridge(opts) => InfoData::Bridge(bridge(opts)),
        LinkKind::Macvlan { mode, .. } => {
            InfoData::MacVlan(vec![InfoMacVlan::Mode(macvlan_mode(*mode))])
        }
        LinkKind::Macvtap { mode, .. } => {
            InfoData::MacVtap(vec![InfoMacVtap::Mode(macvlan_mode(*mode))])
        }
        LinkKind::Ipvlan { mode, .. } => InfoData::IpVlan(vec![InfoIpVlan::Mode(match mode {
            IpvlanMode::L2 => IpVlanMode::L2,
            IpvlanMode::L3 => IpVlanMode::L3,
            IpvlanMode::L3s => IpVlanMode::L3S,
        })]),
        LinkKind::Vlan { id, provider, .. } => InfoData::Vlan(vec![
            InfoVlan::Id(*id),
            InfoVlan::Protocol(match provider {
                true => VlanProtocol::Ieee8021Ad,
                false => VlanProtocol::Ieee8021Q,
            }),
        ]),
        LinkKind::Vxlan(opts) => InfoData::Vxlan(vxlan(opts, parent)),
        LinkKind::Vrf { table } => InfoData::Vrf(vec![InfoVrf::TableId(*table)]),
        LinkKind::Netkit { layer3, .. } => InfoData::Netkit(vec![
            InfoNetkit::Mode(if *layer3 { NetkitMode::L3 } else { NetkitMode::L2 }),
            InfoNetkit::Peer(peer?),
        ]),
        LinkKind::Raw { data, .. } if !data.is_empty() => InfoData::Other(data.clone()),
        _ => return None,
    })
}

fn macvlan_mode(mode: MacvlanMode) -> MacVlanMode {
    match mode {
        MacvlanMode::Bridge => MacVlanMode::Bridge,
        MacvlanMode::Private => MacVlanMode::Private,
        MacvlanMode::Vepa => MacVlanMode::Vepa,
        MacvlanMode::Passthru => MacVlanMode::Passthrough,
    }
}

fn bridge(opts: &BridgeOpts) -> Vec<InfoBridge> {
    let centiseconds = |time: std::time::Duration| (time.as_millis() / 10) as u32;
    let mut list = Vec::new();
    list.extend(opts.stp.map(|on| {
        InfoBridge::StpState(if on { BridgeStpState::KernelStp } else { BridgeStpState::Disabled })
    }));
    list.extend(opts.forward_delay.map(centiseconds).map(InfoBridge::ForwardDelay));
    list.extend(opts.ageing_time.map(centiseconds).map(InfoBridge::AgeingTime));
    list.extend(opts.priority.map(InfoBridge::Priority));
    list.extend(opts.vlan_filtering.map(InfoBridge::VlanFiltering));
    list.extend(opts.multicast_snooping.map(InfoBridge::MulticastSnooping));
    list
}

fn vxlan(opts: &VxlanOpts, dev: Option<u32>) -> Vec<InfoVxlan> {
    let mut list = vec![InfoVxlan::Id(opts.id), InfoVxlan::Port(opts.port)];
    list.extend(dev.map(InfoVxlan::Link));
    list.extend(opts.local.map(|local| match local {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    }));
    list.extend(opts.remote.map(|remote| match remote {
        IpAddr::V4(ip) => InfoVxlan::Group(ip),
        IpAddr::V6(ip) => InfoVxlan::Group6(ip),
    }));
    list.extend(opts.learning.map(InfoVxlan::Learning));
    list.extend(opts.ttl.map(InfoVxlan::Ttl));
    list
}

pub(crate) fn mac(mac: Mac) -> LinkAttribute {
    LinkAttribute::Address(mac.octets().to_vec())
}

/// Free text. Without the final NUL, which the kernel would count; but an empty
/// attribute is none, so the NUL alone takes the text away.
pub(crate) fn alias(text: &str) -> LinkAttribute {
    match text {
        "" => LinkAttribute::IfAlias(String::new()),
        text => LinkAttribute::Other(DefaultNla::new(libc::IFLA_IFALIAS, text.into())),
    }
}

/// Turns the automatic link-local address on or off.
pub(crate) fn ipv6_auto(ifindex: u32, on: bool) -> RouteNetlinkMessage {
    let mode = if on { In6AddrGenMode::Eui64 } else { In6AddrGenMode::None };
    let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
    let mut message = by_index(ifindex);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![inet6]));
    RouteNetlinkMessage::SetLink(message)
}

/// Brings a link up or down.
pub(crate) fn up(ifindex: u32, up: bool) -> RouteNetlinkMessage {
    let mut message = by_index(ifindex);
    message.header.change_mask = LinkFlags::Up;
    message.header.flags.set(LinkFlags::Up, up);
    RouteNetlinkMessage::SetLink(message)
}

/// Sets one attribute.
pub(crate) fn set(ifindex: u32, attribute: LinkAttribute) -> RouteNetlinkMessage {
    let mut message = by_index(ifindex);
    message.attributes.push(attribute);
    RouteNetlinkMessage::SetLink(message)
}

/// Adds or removes one alternative name.
pub(crate) fn altname(ifindex: u32, name: &AltName, add: bool) -> RouteNetlinkMessage {
    let mut message = by_index(ifindex);
    let list = vec![Prop::AltIfName(name.to_string())];
    message.attributes.push(LinkAttribute::PropList(list));
    match add {
        true => RouteNetlinkMessage::NewLinkProp(message),
        false => RouteNetlinkMessage::DelLinkProp(message),
    }
}

/// Settings of a bridge port but its VLANs; `None` when there are none.
pub(crate) fn port(ifindex: u32, port: &PortSettings) -> Option<RouteNetlinkMessage> {
    let mut list = Vec::new();
    list.extend(port.hairpin.map(InfoBridgePort::HairpinMode));
    list.extend(port.isolated.map(InfoBridgePort::Isolated));
    list.extend(port.learning.map(InfoBridgePort::Learning));
    list.extend(port.unicast_flood.map(InfoBridgePort::UnicastFlood));
    if list.is_empty() {
        return None;
    }
    let mut message = by_index(ifindex);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(list)),
    ]));
    Some(RouteNetlinkMessage::NewLink(message))
}

/// Adds a bridge port to a VLAN.
pub(crate) fn port_vlan(ifindex: u32, vlan: &PortVlan) -> RouteNetlinkMessage {
    let mut flags = BridgeVlanInfoFlags::empty();
    flags.set(BridgeVlanInfoFlags::Pvid, vlan.pvid);
    flags.set(BridgeVlanInfoFlags::Untagged, vlan.untagged);
    let mut message = by_index(ifindex);
    message.header.interface_family = AddressFamily::Bridge;
    let info = BridgeVlanInfo { flags, vid: vlan.id };
    message.attributes.push(LinkAttribute::AfSpecBridge(vec![AfSpecBridge::VlanInfo(info)]));
    RouteNetlinkMessage::SetLink(message)
}
