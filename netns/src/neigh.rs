//! Neighbours (ARP and neighbour discovery) and forwarding entries.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use crate::addr::family;
use crate::{IfName, Mac};

/// A permanent neighbour: who answers for an address on a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Neigh {
    /// The link.
    pub dev: IfName,
    /// The neighbour's address.
    pub ip: IpAddr,
    /// Its hardware address. Absent for entries the kernel has not resolved.
    pub mac: Option<Mac>,
    /// Permanent entries never expire and are the only ones made here.
    pub permanent: bool,
}

/// A forwarding entry: where a bridge or a VXLAN device sends a hardware
/// address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fdb {
    /// The bridge port or the VXLAN device.
    pub dev: IfName,
    /// The hardware address; all zero on a VXLAN device for "anything else".
    pub mac: [u8; 6],
    /// VXLAN: the other end's address in the underlay.
    pub dst: Option<IpAddr>,
    /// VLAN of a bridge with VLAN filtering.
    pub vlan: Option<u16>,
    /// The entry is in the device's own table (VXLAN), not in its bridge's.
    pub own_table: bool,
    /// Permanent, or static for bridges: never learned over nor expired.
    pub permanent: bool,
}

impl Neigh {
    pub(crate) fn message(&self, ifindex: u32) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(self.ip);
        message.header.ifindex = ifindex;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(wire(self.ip)));
        if let Some(mac) = self.mac {
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
        }
        message
    }

    pub(crate) fn read(
        message: &NeighbourMessage,
        name: impl Fn(u32) -> Option<IfName>,
    ) -> Option<Self> {
        let (mut ip, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(address) => ip = host(address),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_of(bytes),
                _ => {}
            }
        }
        Some(Self {
            dev: name(message.header.ifindex)?,
            ip: ip?,
            mac: mac.and_then(|mac| Mac::new(mac).ok()),
            permanent: message.header.state == NeighbourState::Permanent,
        })
    }

    pub(crate) fn dump(ipv6: bool) -> RouteNetlinkMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        RouteNetlinkMessage::GetNeighbour(message)
    }
}

impl Fdb {
    pub(crate) fn message(&self, ifindex: u32) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = ifindex;
        // Bridges keep "static" as NOARP; VXLAN wants permanent.
        message.header.state = match self.own_table {
            true => NeighbourState::Permanent,
            false => NeighbourState::Noarp,
        };
        let table = if self.own_table { NeighbourFlags::Own } else { NeighbourFlags::Controller };
        message.header.flags = table;
        let list = &mut message.attributes;
        list.push(NeighbourAttribute::LinkLayerAddress(self.mac.to_vec()));
        list.extend(self.dst.map(|dst| NeighbourAttribute::Destination(wire(dst))));
        list.extend(self.vlan.map(NeighbourAttribute::Vlan));
        message
    }

    pub(crate) fn read(
        message: &NeighbourMessage,
        name: impl Fn(u32) -> Option<IfName>,
    ) -> Option<Self> {
        let mut fdb = Self {
            dev: name(message.header.ifindex)?,
            mac: [0; 6],
            dst: None,
            vlan: None,
            own_table: message.header.flags.contains(NeighbourFlags::Own),
            permanent: matches!(
                message.header.state,
                NeighbourState::Permanent | NeighbourState::Noarp
            ),
        };
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => fdb.mac = mac_of(bytes)?,
                NeighbourAttribute::Destination(address) => fdb.dst = destination(address),
                NeighbourAttribute::Vlan(vlan) => fdb.vlan = Some(*vlan),
                _ => {}
            }
        }
        Some(fdb)
    }

    pub(crate) fn dump() -> RouteNetlinkMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        RouteNetlinkMessage::GetNeighbour(message)
    }
}

fn wire(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }
}

fn host(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        NeighbourAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// A forwarding entry's destination, whose family its header does not tell.
fn destination(address: &NeighbourAddress) -> Option<IpAddr> {
    let NeighbourAddress::Other(bytes) = address else { return host(address) };
    if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from)
}

fn mac_of(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok()
}
