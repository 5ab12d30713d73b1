//! What the kernel tells about links. No input or output.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoBridgePort,
    InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoMacVtap, InfoPortData, InfoVlan, InfoVrf,
    InfoVxlan, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode, Prop,
    State, VlanProtocol,
};
use serde::{Deserialize, Serialize};

use super::kinds::{BridgeOpts, IpvlanMode, MacvlanMode, VxlanOpts};
use super::spec::PortSettings;
use crate::{Addr, AltName, Bandwidth, IfName, Mac, Route, Stats};

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name.
    pub ifname: IfName,
    /// Its number within the namespace.
    pub ifindex: u32,
    /// Its kind, with settings read back.
    pub kind: KindInfo,
    /// Hardware address, where it has a unicast Ethernet one.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Smallest `mtu` the device takes.
    pub mtu_min: u32,
    /// Largest `mtu` the device takes; 0 for no limit.
    pub mtu_max: u32,
    /// Master it is a port of.
    pub master: Option<IfName>,
    /// The link it is made on or paired with.
    pub lower: Option<Lower>,
    /// Brought up.
    pub up: bool,
    /// Up and with a carrier.
    pub running: bool,
    /// The loopback device.
    pub loopback: bool,
    /// State of operation.
    pub oper_state: OperState,
    /// Length of the send queue in packets.
    pub tx_queue_len: u32,
    /// Device group.
    pub group: u32,
    /// Free text.
    pub alias: Option<String>,
    /// Further names.
    pub altnames: Vec<AltName>,
    /// Largest segment handed to the device in one piece, in bytes.
    pub gso_max_size: u32,
    /// Largest segment received packets are joined to, in bytes.
    pub gro_max_size: u32,
    /// Whether an IPv6 link-local address is made by itself; `None` where IPv6
    /// is missing.
    pub ipv6_auto: Option<bool>,
    /// Settings as a bridge port, if it is one.
    pub port: Option<PortSettings>,
    /// Limits of rate set by this crate, as the kernel rounded them.
    pub bandwidth: Bandwidth,
    /// Addresses, the kernel's own included.
    pub addrs: Vec<Addr>,
    /// Routes through it in all tables but the local one, the kernel's own
    /// included.
    pub routes: Vec<Route>,
    /// Counters.
    pub stats: Stats,
}

/// The link another is made on, or the other end of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lower {
    /// Its number in its namespace.
    pub ifindex: u32,
    /// Id of its namespace as seen from here; `None` for the same one.
    pub nsid: Option<i32>,
}

/// A link's kind as read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each variant is described by its kind's settings")]
pub enum KindInfo {
    /// No virtual kind: hardware, or loopback.
    Device,
    /// One end of a virtual cable.
    Veth,
    /// A switch.
    Bridge(BridgeOpts),
    /// A macvlan.
    Macvlan(MacvlanMode),
    /// A macvtap.
    Macvtap(MacvlanMode),
    /// An ipvlan.
    Ipvlan(IpvlanMode),
    /// A VLAN.
    Vlan { id: u16, provider: bool },
    /// A VXLAN device; place and device of the underlay are not read back.
    Vxlan(VxlanOpts),
    /// A tun or tap device.
    Tun,
    /// A device for shaping.
    Ifb,
    /// A device that drops.
    Dummy,
    /// A routing domain.
    Vrf { table: u32 },
    /// One end of a netkit pair.
    Netkit,
    /// A WireGuard tunnel.
    Wireguard,
    /// Any other kind, by the kernel's name.
    Other(String),
}

/// State of operation, from RFC 2863.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are the RFC's")]
pub enum OperState {
    Unknown,
    NotPresent,
    Down,
    LowerLayerDown,
    Testing,
    Dormant,
    Up,
}

/// A link with the indexes that still have to become names.
pub(crate) struct RawLink {
    pub(crate) link: Link,
    pub(crate) master: Option<u32>,
}

/// Reads a link; `None` when it has no name.
pub(crate) fn link(message: &LinkMessage) -> Option<RawLink> {
    let flags = message.header.flags;
    let mut raw = RawLink { link: empty(message.header.index), master: None };
    let link = &mut raw.link;
    link.up = flags.contains(LinkFlags::Up);
    link.running = flags.contains(LinkFlags::Running);
    link.loopback = flags.contains(LinkFlags::Loopback);
    let (mut named, mut nsid) = (false, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => {
                link.ifname = IfName::from_kernel(name);
                named = true;
            }
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.as_slice().try_into().ok().and_then(|mac| Mac::new(mac).ok());
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::MinMtu(mtu) => link.mtu_min = *mtu,
            LinkAttribute::MaxMtu(mtu) => link.mtu_max = *mtu,
            LinkAttribute::Controller(index) => raw.master = Some(*index),
            LinkAttribute::Link(ifindex) => {
                link.lower = Some(Lower { ifindex: *ifindex, nsid: None })
            }
            LinkAttribute::LinkNetNsId(id) => nsid = Some(*id),
            LinkAttribute::TxQueueLen(len) => link.tx_queue_len = *len,
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::PropList(list) => link.altnames = altnames(list),
            LinkAttribute::GsoMaxSize(size) => link.gso_max_size = *size,
            LinkAttribute::GroMaxSize(size) => link.gro_max_size = *size,
            LinkAttribute::OperState(state) => link.oper_state = oper_state(*state),
            LinkAttribute::AfSpecUnspec(list) => link.ipv6_auto = ipv6_auto(list),
            LinkAttribute::Stats64(stats) => link.stats = Stats::read(stats),
            LinkAttribute::LinkInfo(info) => (link.kind, link.port) = kind(info),
            _ => {}
        }
    }
    if let Some(lower) = &mut link.lower {
        lower.nsid = nsid;
    }
    named.then_some(raw)
}

fn empty(ifindex: u32) -> Link {
    Link {
        ifname: IfName::from_kernel(""),
        ifindex,
        kind: KindInfo::Device,
        mac: None,
        mtu: 0,
        mtu_min: 0,
        mtu_max: 0,
        master: None,
        lower: None,
        up: false,
        running: false,
        loopback: false,
        oper_state: OperState::Unknown,
        tx_queue_len: 0,
        group: 0,
        alias: None,
        altnames: Vec::new(),
        gso_max_size: 0,
        gro_max_size: 0,
        ipv6_auto: None,
        port: None,
        bandwidth: Bandwidth::default(),
        addrs: Vec::new(),
        routes: Vec::new(),
        stats: Stats::default(),
    }
}

fn altnames(list: &[Prop]) -> Vec<AltName> {
    let name = |prop: &Prop| match prop {
        Prop::AltIfName(name) => name.parse().ok(),
        _ => None,
    };
    list.iter().filter_map(name).collect()
}

fn oper_state(state: State) -> OperState {
    match state {
        State::NotPresent => OperState::NotPresent,
        State::Down => OperState::Down,
        State::LowerLayerDown => OperState::LowerLayerDown,
        State::Testing => OperState::Testing,
        State::Dormant => OperState::Dormant,
        State::Up => OperState::Up,
        _ => OperState::Unknown,
    }
}

fn ipv6_auto(list: &[AfSpecUnspec]) -> Option<bool> {
    let inet6 = list.iter().find_map(|spec| match spec {
        AfSpecUnspec::Inet6(list) => Some(list),
        _ => None,
    })?;
    inet6.iter().find_map(|attribute| match attribute {
        AfSpecInet6::AddrGenMode(mode) => Some(*mode != In6AddrGenMode::None),
        _ => None,
    })
}

fn kind(info: &[LinkInfo]) -> (KindInfo, Option<PortSettings>) {
    let (mut name, mut data, mut port) = (None, None, None);
    for part in info {
        match part {
            LinkInfo::Kind(kind) => name = Some(kind),
            LinkInfo::Data(found) => data = Some(found),
            LinkInfo::PortData(InfoPortData::BridgePort(list)) => port = Some(port_of(list)),
            _ => {}
        }
    }
    (name.map_or(KindInfo::Device, |name| kind_of(name, data)), port)
}

fn kind_of(name: &InfoKind, data: Option<&InfoData>) -> KindInfo {
    match (name, data) {
        (InfoKind::Veth, _) => KindInfo::Veth,
        (InfoKind::Bridge, Some(InfoData::Bridge(list))) => KindInfo::Bridge(bridge(list)),
        (InfoKind::MacVlan, Some(InfoData::MacVlan(list))) => {
            KindInfo::Macvlan(macvlan_mode(list.iter().find_map(|attribute| match attribute {
                InfoMacVlan::Mode(mode) => Some(*mode),
                _ => None,
            })))
        }
        (InfoKind::MacVtap, Some(InfoData::MacVtap(list))) => {
            KindInfo::Macvtap(macvlan_mode(list.iter().find_map(|attribute| match attribute {
                InfoMacVtap::Mode(mode) => Some(*mode),
                _ => None,
            })))
        }
        (InfoKind::IpVlan, Some(InfoData::IpVlan(list))) => KindInfo::Ipvlan(ipvlan_mode(list)),
        (InfoKind::Vlan, Some(InfoData::Vlan(list))) => vlan(list),
        (InfoKind::Vxlan, Some(InfoData::Vxlan(list))) => KindInfo::Vxlan(vxlan(list)),
        (InfoKind::Tun, _) => KindInfo::Tun,
        (InfoKind::Ifb, _) => KindInfo::Ifb,
        (InfoKind::Dummy, _) => KindInfo::Dummy,
        (InfoKind::Vrf, Some(InfoData::Vrf(list))) => KindInfo::Vrf {
            table: list
                .iter()
                .find_map(|attribute| match attribute {
                    InfoVrf::TableId(table) => Some(*table),
                    _ => None,
                })
                .unwrap_or(0),
        },
        (InfoKind::Netkit, _) => KindInfo::Netkit,
        (InfoKind::Wireguard, _) => KindInfo::Wireguard,
        (other, _) => KindInfo::Other(other.to_string()),
    }
}

fn macvlan_mode(mode: Option<MacVlanMode>) -> MacvlanMode {
    match mode {
        Some(MacVlanMode::Private) => MacvlanMode::Private,
        Some(MacVlanMode::Vepa) => MacvlanMode::Vepa,
        Some(MacVlanMode::Passthrough) => MacvlanMode::Passthru,
        _ => MacvlanMode::Bridge,
    }
}

fn ipvlan_mode(list: &[InfoIpVlan]) -> IpvlanMode {
    let mode = list.iter().find_map(|attribute| match attribute {
        InfoIpVlan::Mode(mode) => Some(*mode),
        _ => None,
    });
    match mode {
        Some(IpVlanMode::L3) => IpvlanMode::L3,
        Some(IpVlanMode::L3S) => IpvlanMode::L3s,
        _ => IpvlanMode::L2,
    }
}

fn bridge(list: &[InfoBridge]) -> BridgeOpts {
    let time = |centiseconds: u32| Some(Duration::from_millis(u64::from(centiseconds) * 10));
    let mut opts = BridgeOpts::default();
    for attribute in list {
        match attribute {
            InfoBridge::StpState(state) => opts.stp = Some(*state != BridgeStpState::Disabled),
            InfoBridge::ForwardDelay(delay) => opts.forward_delay = time(*delay),
            InfoBridge::AgeingTime(age) => opts.ageing_time = time(*age),
            InfoBridge::Priority(priority) => opts.priority = Some(*priority),
            InfoBridge::VlanFiltering(on) => opts.vlan_filtering = Some(*on),
            InfoBridge::MulticastSnooping(on) => opts.multicast_snooping = Some(*on),
            _ => {}
        }
    }
    opts
}

fn vlan(list: &[InfoVlan]) -> KindInfo {
    let (mut vid, mut qinq) = (0, false);
    for attribute in list {
        match attribute {
            InfoVlan::Id(id) => vid = *id,
            InfoVlan::Protocol(protocol) => qinq = *protocol == VlanProtocol::Ieee8021Ad,
            _ => {}
        }
    }
    KindInfo::Vlan { id: vid, provider: qinq }
}

fn vxlan(list: &[InfoVxlan]) -> VxlanOpts {
    let mut opts = VxlanOpts::new(0);
    for attribute in list {
        match attribute {
            InfoVxlan::Id(id) => opts.id = *id,
            InfoVxlan::Port(port) => opts.port = *port,
            InfoVxlan::Local(ip) => opts.local = Some(IpAddr::V4(*ip)),
            InfoVxlan::Local6(ip) => opts.local = Some(IpAddr::V6(*ip)),
            InfoVxlan::Group(ip) => opts.remote = Some(IpAddr::V4(*ip)),
            InfoVxlan::Group6(ip) => opts.remote = Some(IpAddr::V6(*ip)),
            InfoVxlan::Learning(on) => opts.learning = Some(*on),
            InfoVxlan::Ttl(ttl) => opts.ttl = Some(*ttl),
            _ => {}
        }
    }
    opts
}

fn port_of(list: &[InfoBridgePort]) -> PortSettings {
    let mut port = PortSettings::default();
    for attribute in list {
        match attribute {
            InfoBridgePort::HairpinMode(on) => port.hairpin = Some(*on),
            InfoBridgePort::Isolated(on) => port.isolated = Some(*on),
            InfoBridgePort::Learning(on) => port.learning = Some(*on),
            InfoBridgePort::UnicastFlood(on) => port.unicast_flood = Some(*on),
            _ => {}
        }
    }
    port
}
