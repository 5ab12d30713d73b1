//! Routes.

use std::net::IpAddr;

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use crate::addr::family;
use crate::{Error, IfName, OWN_PROTOCOL, Prefix, Result, Scope};

/// The main routing table.
pub const MAIN_TABLE: u32 = 254;
/// Most next hops of one route; one message must hold them all.
const NEXT_HOPS_MAX: usize = 256;

/// What happens to packets that take a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RouteKind {
    /// Delivered to the gateway or the link.
    #[default]
    Unicast,
    /// Delivered here.
    Local,
    /// Sent as broadcast.
    Broadcast,
    /// Dropped in silence.
    Blackhole,
    /// Answered with "host unreachable".
    Unreachable,
    /// Answered with "administratively prohibited".
    Prohibit,
    /// Looked up in the next table.
    Throw,
    /// Any other value.
    Other(u8),
}

/// One of several ways of a route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NextHop {
    /// Gateway.
    pub gateway: Option<IpAddr>,
    /// Link; the one the route belongs to when absent.
    pub dev: Option<IfName>,
    /// Share of the traffic, 1 to 256.
    pub weight: u16,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: Prefix,
    /// Gateway, of either family for an IPv4 destination.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Link. May be left out inside a link's list, and with a gateway.
    #[serde(default)]
    pub dev: Option<IfName>,
    /// Routing table.
    #[serde(default = "main_table")]
    pub table: u32,
    /// Priority, lower wins. Absent is 0 for IPv4 and 1024 for IPv6.
    #[serde(default)]
    pub metric: Option<u32>,
    /// Who made it; [`OWN_PROTOCOL`] unless the caller chooses another. Only
    /// routes of that number are removed when a link's list is replaced.
    #[serde(default = "own_protocol")]
    pub protocol: u8,
    /// Scope; chosen from the gateway when absent.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// Preferred source address.
    #[serde(default)]
    pub source: Option<IpAddr>,
    /// Path MTU in bytes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Take the gateway as reachable on the link whatever its addresses.
    #[serde(default)]
    pub onlink: bool,
    /// What happens to the packets.
    #[serde(default)]
    pub kind: RouteKind,
    /// Several ways instead of `gateway` and `dev`.
    #[serde(default)]
    pub multipath: Vec<NextHop>,
}

fn main_table() -> u32 {
    MAIN_TABLE
}

fn own_protocol() -> u8 {
    OWN_PROTOCOL
}

impl Route {
    /// A route to `dst` in the main table.
    pub fn to(dst: Prefix) -> Self {
        Self {
            dst,
            gateway: None,
            dev: None,
            table: MAIN_TABLE,
            metric: None,
            protocol: OWN_PROTOCOL,
            scope: None,
            source: None,
            mtu: None,
            onlink: false,
            kind: RouteKind::Unicast,
            multipath: Vec::new(),
        }
    }

    /// The default route of the gateway's family.
    pub fn default_via(gateway: IpAddr) -> Self {
        let dst = if gateway.is_ipv4() { Prefix::DEFAULT_V4 } else { Prefix::DEFAULT_V6 };
        Self::to(dst).via(gateway)
    }

    /// The same through a gateway.
    #[must_use]
    pub fn via(mut self, gateway: IpAddr) -> Self {
        self.gateway = Some(gateway);
        self
    }

    /// The same through a link.
    #[must_use]
    pub fn dev(mut self, dev: IfName) -> Self {
        self.dev = Some(dev);
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        let v4 = self.dst.ip().is_ipv4();
        let gateways = self.multipath.iter().filter_map(|hop| hop.gateway);
        for gateway in self.gateway.into_iter().chain(gateways) {
            if gateway.is_unspecified() || gateway.is_multicast() {
                return Err(Error::value("gateway", format!("{gateway} is not a host")));
            }
            if gateway.is_ipv4() && !v4 {
                return Err(Error::value("gateway", "an IPv4 gateway for IPv6"));
            }
        }
        let link_local =
            matches!(self.gateway, Some(IpAddr::V6(gateway)) if gateway.is_unicast_link_local());
        if link_local && self.dev.is_none() {
            return Err(Error::value("gateway", "a link-local gateway needs a device"));
        }
        if self.source.is_some_and(|source| source.is_ipv4() != v4) {
            return Err(Error::value("source", "another family than the destination"));
        }
        if self.multipath.len() > NEXT_HOPS_MAX {
            return Err(Error::value("multipath", "more than 256 next hops"));
        }
        if self.multipath.iter().any(|hop| hop.weight == 0 || hop.weight > 256) {
            return Err(Error::value("weight", "must be 1 to 256"));
        }
        let path = self.gateway.is_some() || self.dev.is_some();
        if !self.multipath.is_empty() && path {
            return Err(Error::value("multipath", "excludes gateway and device"));
        }
        if self.kind == RouteKind::Unicast && !path && self.multipath.is_empty() {
            return Err(Error::value("route", "needs a gateway or a device"));
        }
        if self.table == 0 {
            return Err(Error::value("table", "0 names no table"));
        }
        Ok(())
    }

    /// What makes two routes the same to the kernel.
    pub(crate) fn key(&self) -> (Prefix, u32, u32, Option<IpAddr>, Option<IfName>) {
        let metric = self.metric.unwrap_or(if self.dst.ip().is_ipv4() { 0 } else { 1024 });
        (self.dst, self.table, metric, self.gateway, self.dev.clone())
    }

    /// The message, with link names looked up by `index`.
    pub(crate) fn message(
        &self,
        mut index: impl FnMut(&IfName) -> Result<u32>,
    ) -> Result<RouteMessage> {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(self.dst.ip());
        header.destination_prefix_length = self.dst.bits();
        header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        header.protocol = RouteProtocol::from(self.protocol);
        header.kind = RouteType::from(u8::from(self.kind));
        header.scope = RouteScope::from(u8::from(self.scope.unwrap_or(self.natural_scope())));
        if self.onlink {
            header.flags |= RouteFlags::Onlink;
        }
        let list = &mut message.attributes;
        if self.table > u32::from(u8::MAX) {
            list.push(RouteAttribute::Table(self.table));
        }
        if !self.dst.is_default() {
            list.push(RouteAttribute::Destination(wire(self.dst.ip())));
        }
        list.extend(self.gateway.map(|gateway| self.gateway_attribute(gateway)));
        if let Some(dev) = &self.dev {
            list.push(RouteAttribute::Oif(index(dev)?));
        }
        list.extend(self.metric.map(RouteAttribute::Priority));
        list.extend(self.source.map(|source| RouteAttribute::PrefSource(wire(source))));
        list.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        let mut hops = Vec::with_capacity(self.multipath.len());
        for hop in &self.multipath {
            let mut next = RouteNextHop::default();
            next.hops = hop.weight.saturating_sub(1).min(255) as u8;
            if let Some(dev) = &hop.dev {
                next.interface_index = index(dev)?;
            }
            next.flags.set(RouteNextHopFlags::Onlink, self.onlink);
            next.attributes.extend(hop.gateway.map(|gateway| self.gateway_attribute(gateway)));
            hops.push(next);
        }
        if !hops.is_empty() {
            list.push(RouteAttribute::MultiPath(hops));
        }
        Ok(message)
    }

    /// Reads a route of the kernel's, with link indexes looked up by `name`.
    pub(crate) fn read(
        message: &RouteMessage,
        name: impl Fn(u32) -> Option<IfName>,
    ) -> Option<Self> {
        let default = match message.header.address_family {
            AddressFamily::Inet => Prefix::DEFAULT_V4,
            AddressFamily::Inet6 => Prefix::DEFAULT_V6,
            _ => return None,
        };
        if message.header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let mut route = Self::to(default);
        route.table = message.header.table.into();
        route.protocol = message.header.protocol.into();
        route.scope = Some(Scope::from(u8::from(message.header.scope)));
        route.kind = RouteKind::from(u8::from(message.header.kind));
        route.onlink = message.header.flags.contains(RouteFlags::Onlink);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => {
                    let len = message.header.destination_prefix_length;
                    route.dst = Prefix::new(host(to)?, len).ok()?;
                }
                RouteAttribute::Gateway(gateway) => route.gateway = host(gateway),
                RouteAttribute::Via(RouteVia::Inet6(gateway)) => {
                    route.gateway = Some(IpAddr::V6(*gateway));
                }
                RouteAttribute::Oif(index) => route.dev = name(*index),
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Priority(metric) => route.metric = Some(*metric),
                RouteAttribute::PrefSource(source) => route.source = host(source),
                RouteAttribute::Metrics(list) => {
                    route.mtu = list.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                RouteAttribute::MultiPath(hops) => {
                    route.multipath = hops.iter().map(|hop| read_hop(hop, &name)).collect();
                }
                _ => {}
            }
        }
        Some(route)
    }

    pub(crate) fn dump() -> RouteNetlinkMessage {
        RouteNetlinkMessage::GetRoute(RouteMessage::default())
    }

    fn gateway_attribute(&self, gateway: IpAddr) -> RouteAttribute {
        match (self.dst.ip(), gateway) {
            (IpAddr::V4(_), IpAddr::V6(via)) => RouteAttribute::Via(RouteVia::Inet6(via)),
            _ => RouteAttribute::Gateway(wire(gateway)),
        }
    }

    /// The scope the kernel wants for a route of this shape.
    fn natural_scope(&self) -> Scope {
        let direct = self.gateway.is_none() && self.multipath.iter().all(|h| h.gateway.is_none());
        match self.kind {
            RouteKind::Local => Scope::Host,
            RouteKind::Unicast | RouteKind::Broadcast if direct && self.dst.ip().is_ipv4() => {
                Scope::Link
            }
            _ => Scope::Global,
        }
    }
}

fn read_hop(hop: &RouteNextHop, name: impl Fn(u32) -> Option<IfName>) -> NextHop {
    let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(gateway) => host(gateway),
        RouteAttribute::Via(RouteVia::Inet6(gateway)) => Some(IpAddr::V6(*gateway)),
        _ => None,
    });
    NextHop { gateway, dev: name(hop.interface_index), weight: u16::from(hop.hops) + 1 }
}

fn wire(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn host(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

const ROUTE_KINDS: [(RouteKind, u8); 7] = [
    (RouteKind::Unicast, 1),
    (RouteKind::Local, 2),
    (RouteKind::Broadcast, 3),
    (RouteKind::Blackhole, 6),
    (RouteKind::Unreachable, 7),
    (RouteKind::Prohibit, 8),
    (RouteKind::Throw, 9),
];

impl From<RouteKind> for u8 {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Other(value) => value,
            kind => ROUTE_KINDS.iter().find(|(k, _)| *k == kind).map_or(0, |(_, value)| *value),
        }
    }
}

impl From<u8> for RouteKind {
    fn from(value: u8) -> Self {
        let known = ROUTE_KINDS.iter().find(|(_, v)| *v == value);
        known.map_or(Self::Other(value), |(kind, _)| *kind)
    }
}
