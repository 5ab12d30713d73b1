//! What clients ask for, parsed once into the words of the network crate.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use crated_api::network as api;
use crated_api::network::link_spec::Kind;
use crated_netns::{
    Addr, Bandwidth, BridgeOpts, Fdb, IfName, IpvlanMode, LinkKind, LinkSettings, LinkSpec, Mac,
    MacvlanMode, Neigh, NextHop, Parent, PeerSpec, Place, PortSettings, PortVlan, Prefix, Rate,
    Route, RouteKind, Rule, Scope, TunOpts, VxlanOpts,
};

use super::names::{self, Names};
use super::{Error, Result};
use crate::metadata::network::HOST;

/// A parsed link, and what its record has to know.
pub(super) struct Parsed {
    pub(super) spec: LinkSpec,
    /// The host's end of a pair made in a namespace.
    pub(super) host_peer: Option<IfName>,
    /// Links of the host that it needs.
    pub(super) uses: Vec<String>,
    /// Where an existing device came from: its name and an id or `host`.
    pub(super) origin: Option<(String, String)>,
    /// The host's device may be taken although it is not ours.
    pub(super) adopt: bool,
}

/// Parses a link for the namespace with the id `netns`.
pub(super) fn link(
    names: &Names<'_>,
    netns: &str,
    id: &str,
    spec: &api::LinkSpec,
) -> Result<Parsed> {
    let kind = spec.kind.as_ref().ok_or_else(|| invalid("spec.kind", "is missing"))?;
    let name: IfName = spec.name.parse()?;
    let mut parsed = Parsed {
        spec: LinkSpec { name, kind: LinkKind::Dummy, settings: settings(spec)? },
        host_peer: None,
        uses: Vec::new(),
        origin: None,
        adopt: false,
    };
    let here = if netns == HOST { HOST } else { "" };
    let mut on_host = |place: &str, name: &str| {
        let place = if place.is_empty() { here } else { place };
        if place == HOST && !name.is_empty() {
            parsed.uses.push(name.to_owned());
        }
    };
    on_host("", &spec.master);
    let parent = |place: &str, name: &str| -> Result<Parent> {
        Ok(Parent { name: name.parse()?, place: names.place(place)? })
    };
    let kind = match kind {
        Kind::Veth(pair) | Kind::Netkit(pair) => {
            let other = pair.peer.clone().unwrap_or_default();
            if other.kind.is_some() {
                return Err(invalid("spec.kind.peer.kind", "a peer has none of its own"));
            }
            on_host(&pair.peer_netns, &other.master);
            let name = match other.name.as_str() {
                "" => IfName::derived(&[names.namespace(), netns, id]),
                name => name.parse()?,
            };
            let place = names.place(&pair.peer_netns)?;
            if place == Place::Host && netns != HOST {
                parsed.host_peer = Some(name.clone());
            }
            let peer = PeerSpec { name, place, settings: settings(&other)? };
            match spec.kind {
                Some(Kind::Netkit(_)) => LinkKind::Netkit { peer, layer3: pair.layer3 },
                _ => LinkKind::Veth { peer },
            }
        }
        Kind::Bridge(bridge) => LinkKind::Bridge(bridge_opts(bridge)?),
        Kind::Macvlan(m) | Kind::Macvtap(m) => {
            on_host(&m.parent_netns, &m.parent);
            let (parent, mode) = (parent(&m.parent_netns, &m.parent)?, macvlan_mode(&m.mode)?);
            match spec.kind {
                Some(Kind::Macvtap(_)) => LinkKind::Macvtap { parent, mode },
                _ => LinkKind::Macvlan { parent, mode },
            }
        }
        Kind::Ipvlan(i) => {
            on_host(&i.parent_netns, &i.parent);
            let mode = match i.mode.as_str() {
                "" | "l2" => IpvlanMode::L2,
                "l3" => IpvlanMode::L3,
                "l3s" => IpvlanMode::L3s,
                other => return Err(choice("ipvlan mode", other, "l2, l3 or l3s")),
            };
            LinkKind::Ipvlan { parent: parent(&i.parent_netns, &i.parent)?, mode }
        }
        Kind::Vlan(vlan) => {
            on_host(&vlan.parent_netns, &vlan.parent);
            let parent = parent(&vlan.parent_netns, &vlan.parent)?;
            LinkKind::Vlan { parent, id: narrow("vlan id", vlan.id)?, provider: vlan.provider }
        }
        Kind::Vxlan(vxlan) => {
            on_host(&vxlan.underlay_netns, &vxlan.dev);
            LinkKind::Vxlan(vxlan_opts(names, vxlan)?)
        }
        Kind::Tap(opts) => LinkKind::Tap(tun_opts(opts)),
        Kind::Tun(opts) => LinkKind::Tun(tun_opts(opts)),
        Kind::Ifb(_) => LinkKind::Ifb,
        Kind::Dummy(_) => LinkKind::Dummy,
        Kind::Vrf(vrf) => LinkKind::Vrf { table: vrf.table },
        Kind::Wireguard(_) => LinkKind::Wireguard,
        Kind::Existing(existing) => {
            let from = if existing.netns.is_empty() { HOST } else { existing.netns.as_str() };
            parsed.origin = Some((existing.name.clone(), from.to_owned()));
            parsed.adopt = existing.adopt;
            LinkKind::Existing { name: existing.name.parse()?, from: names.place(from)? }
        }
        Kind::Raw(raw) => LinkKind::Raw { kind: raw.kind.clone(), data: raw.data.clone() },
    };
    parsed.spec.kind = kind;
    parsed.spec.check()?;
    Ok(parsed)
}

/// The settings of a link, or of the other end of a pair.
pub(super) fn settings(spec: &api::LinkSpec) -> Result<LinkSettings> {
    Ok(LinkSettings {
        mac: optional(&spec.mac)?,
        mtu: spec.mtu,
        master: optional(&spec.master)?,
        up: spec.up.unwrap_or(true),
        tx_queue_len: spec.tx_queue_len,
        group: spec.group,
        alias: spec.alias.clone(),
        altnames: spec.altnames.iter().map(|name| Ok(name.parse()?)).collect::<Result<_>>()?,
        gso_max_size: spec.gso_max_size,
        gro_max_size: spec.gro_max_size,
        ipv6_auto: spec.ipv6_auto,
        port: port(spec.port.as_ref())?,
        addrs: spec.addrs.iter().map(address).collect::<Result<_>>()?,
        routes: spec.routes.iter().map(route).collect::<Result<_>>()?,
        bandwidth: bandwidth(spec.bandwidth.as_ref())?,
    })
}

pub(super) fn port(port: Option<&api::Port>) -> Result<PortSettings> {
    let Some(port) = port else { return Ok(PortSettings::default()) };
    let vlan = |vlan: &api::PortVlan| -> Result<PortVlan> {
        Ok(PortVlan { id: narrow("vlan", vlan.id)?, pvid: vlan.pvid, untagged: vlan.untagged })
    };
    Ok(PortSettings {
        hairpin: port.hairpin,
        isolated: port.isolated,
        learning: port.learning,
        unicast_flood: port.unicast_flood,
        vlans: port.vlans.iter().map(vlan).collect::<Result<_>>()?,
    })
}

pub(super) fn bandwidth(limits: Option<&api::Bandwidth>) -> Result<Bandwidth> {
    let rate = |rate: &Option<api::Rate>| {
        rate.as_ref().map(|rate| {
            let usual = Rate::bits_per_second(rate.bits_per_second);
            Rate {
                bits_per_second: rate.bits_per_second,
                burst_bytes: match rate.burst_bytes {
                    0 => usual.burst_bytes,
                    bytes => bytes,
                },
                latency: match rate.latency_ms {
                    0 => usual.latency,
                    ms => Duration::from_millis(ms),
                },
            }
        })
    };
    Ok(limits.map_or_else(Bandwidth::default, |limits| Bandwidth {
        egress: rate(&limits.egress),
        ingress: rate(&limits.ingress),
    }))
}

/// An address such as `10.9.0.2/24`.
pub(super) fn address(address: &api::Address) -> Result<Addr> {
    let mut addr: Addr = address.address.parse()?;
    addr.peer = optional_ip("peer", &address.peer)?;
    addr.nodad = address.nodad;
    addr.noprefixroute = address.noprefixroute;
    addr.preferred_for = address.preferred_for_s.map(Duration::from_secs);
    addr.valid_for = address.valid_for_s.map(Duration::from_secs);
    addr.label = names::optional(&address.label);
    addr.scope = scope(&address.scope)?;
    Ok(addr)
}

/// A route such as `default` or `10.0.0.0/8`.
pub(super) fn route(route: &api::Route) -> Result<Route> {
    let gateway = optional_ip("gateway", &route.gateway)?;
    let hop = |hop: &api::NextHop| -> Result<NextHop> {
        Ok(NextHop {
            gateway: optional_ip("gateway", &hop.gateway)?,
            dev: optional(&hop.dev)?,
            weight: narrow("weight", hop.weight.max(1))?,
        })
    };
    let multipath = route.multipath.iter().map(hop).collect::<Result<Vec<_>>>()?;
    let ipv6 = gateway.into_iter().chain(multipath.iter().filter_map(|hop| hop.gateway));
    let ipv6 = ipv6.map(|gateway| gateway.is_ipv6()).next().unwrap_or(false);
    let dst = match route.dst.as_str() {
        "default" if ipv6 => Prefix::DEFAULT_V6,
        "default" => Prefix::DEFAULT_V4,
        dst => dst.parse()?,
    };
    let mut parsed = Route::to(dst);
    parsed.gateway = gateway;
    parsed.dev = optional(&route.dev)?;
    if route.table != 0 {
        parsed.table = route.table;
    }
    parsed.metric = route.metric;
    if let Some(protocol) = route.protocol {
        parsed.protocol = narrow("protocol", protocol)?;
    }
    parsed.scope = scope(&route.scope)?;
    parsed.source = optional_ip("source", &route.source)?;
    parsed.mtu = route.mtu;
    parsed.onlink = route.onlink;
    parsed.kind = route_kind(&route.kind)?;
    parsed.multipath = multipath;
    Ok(parsed)
}

pub(super) fn rule(rule: &api::Rule) -> Result<Rule> {
    let prefix = |text: &str| -> Result<Option<Prefix>> {
        names::optional(text).map(|text| Ok(text.parse()?)).transpose()
    };
    let (from, to) = (prefix(&rule.from)?, prefix(&rule.to)?);
    let ipv6 = from.iter().chain(&to).any(|prefix| prefix.ip().is_ipv6());
    Ok(Rule {
        ipv6: rule.ipv6 || ipv6,
        priority: rule.priority,
        from,
        to,
        iif: optional(&rule.iif)?,
        oif: optional(&rule.oif)?,
        mark: rule.mark.map(|mark| (mark, rule.mark_mask.unwrap_or(u32::MAX))),
        table: rule.table,
        protocol: 0,
    })
}

pub(super) fn neighbour(neigh: &api::Neighbour) -> Result<Neigh> {
    Ok(Neigh {
        dev: neigh.dev.parse()?,
        ip: ip("ip", &neigh.ip)?,
        mac: optional(&neigh.mac)?,
        permanent: true,
    })
}

pub(super) fn forwarding(entry: &api::Forwarding) -> Result<Fdb> {
    // The zero address stands for "anything else", which no hardware address may be.
    let mac = match entry.mac.as_str() {
        "00:00:00:00:00:00" => [0; 6],
        mac => Mac::from_str(mac)?.octets(),
    };
    Ok(Fdb {
        dev: entry.dev.parse()?,
        mac,
        dst: optional_ip("dst", &entry.dst)?,
        vlan: entry.vlan.map(|vlan| narrow("vlan", vlan)).transpose()?,
        own_table: entry.own_table || !entry.dst.is_empty(),
        permanent: true,
    })
}

fn bridge_opts(bridge: &api::Bridge) -> Result<BridgeOpts> {
    Ok(BridgeOpts {
        stp: bridge.stp,
        forward_delay: bridge.forward_delay_ms.map(Duration::from_millis),
        ageing_time: bridge.ageing_time_ms.map(Duration::from_millis),
        priority: bridge.priority.map(|priority| narrow("priority", priority)).transpose()?,
        vlan_filtering: bridge.vlan_filtering,
        multicast_snooping: bridge.multicast_snooping,
    })
}

fn vxlan_opts(names: &Names<'_>, vxlan: &api::Vxlan) -> Result<VxlanOpts> {
    let id = vxlan.id.ok_or_else(|| invalid("vxlan id", "is missing"))?;
    let mut opts = VxlanOpts::new(id);
    opts.underlay = names.place(&vxlan.underlay_netns)?;
    opts.dev = optional(&vxlan.dev)?;
    opts.local = optional_ip("local", &vxlan.local)?;
    opts.remote = optional_ip("remote", &vxlan.remote)?;
    if let Some(port) = vxlan.port {
        opts.port = narrow("port", port)?;
    }
    opts.learning = vxlan.learning;
    opts.ttl = vxlan.ttl.map(|ttl| narrow("ttl", ttl)).transpose()?;
    Ok(opts)
}

fn tun_opts(opts: &api::Tun) -> TunOpts {
    TunOpts {
        owner: opts.owner,
        group: opts.group,
        multi_queue: opts.multi_queue,
        vnet_header: opts.vnet_header,
        packet_info: opts.packet_info,
    }
}

fn macvlan_mode(mode: &str) -> Result<MacvlanMode> {
    Ok(match mode {
        "" | "bridge" => MacvlanMode::Bridge,
        "private" => MacvlanMode::Private,
        "vepa" => MacvlanMode::Vepa,
        "passthru" => MacvlanMode::Passthru,
        other => return Err(choice("macvlan mode", other, "bridge, private, vepa or passthru")),
    })
}

fn scope(scope: &str) -> Result<Option<Scope>> {
    Ok(Some(match scope {
        "" => return Ok(None),
        "global" => Scope::Global,
        "site" => Scope::Site,
        "link" => Scope::Link,
        "host" => Scope::Host,
        "nowhere" => Scope::Nowhere,
        other => Scope::Other(other.parse().map_err(|_| {
            choice("scope", other, "global, site, link, host or a number below 256")
        })?),
    }))
}

fn route_kind(kind: &str) -> Result<RouteKind> {
    Ok(match kind {
        "" | "unicast" => RouteKind::Unicast,
        "local" => RouteKind::Local,
        "broadcast" => RouteKind::Broadcast,
        "blackhole" => RouteKind::Blackhole,
        "unreachable" => RouteKind::Unreachable,
        "prohibit" => RouteKind::Prohibit,
        "throw" => RouteKind::Throw,
        other => RouteKind::Other(other.parse().map_err(|_| {
            choice("route kind", other, "unicast, blackhole, unreachable, prohibit or throw")
        })?),
    })
}

fn optional<T: FromStr<Err = crated_netns::Error>>(text: &str) -> Result<Option<T>> {
    names::optional(text).map(|text| Ok(text.parse()?)).transpose()
}

fn optional_ip(field: &'static str, text: &str) -> Result<Option<IpAddr>> {
    names::optional(text).map(|text| ip(field, &text)).transpose()
}

fn ip(field: &'static str, text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| invalid(field, &format!("{text:?} is no IP address")))
}

fn narrow<T: TryFrom<u32>>(field: &'static str, value: u32) -> Result<T> {
    T::try_from(value).map_err(|_| invalid(field, &format!("{value} is too large")))
}

fn choice(field: &'static str, given: &str, choices: &str) -> Error {
    invalid(field, &format!("{given:?} is not {choices}"))
}

pub(super) fn invalid(field: &str, reason: &str) -> Error {
    Error::Invalid(format!("{field}: {reason}"))
}
