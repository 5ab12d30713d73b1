//! What the kernel says, in the words of the API.

use crated_api::network as api;
use crated_netns::{
    Addr, Bandwidth, Fdb, Holder, HolderKind, KindInfo, Link, LinkSpec, Neigh, OWN_PROTOCOL, Rate,
    Route, RouteKind, Rule, Scope, Stats,
};

/// A link as it is, compared with what was asked for.
pub(super) fn status(link: &Link, wanted: Option<&LinkSpec>) -> api::LinkStatus {
    api::LinkStatus {
        ifindex: link.ifindex,
        ifname: link.ifname.to_string(),
        kind: kind(&link.kind),
        oper_state: format!("{:?}", link.oper_state).to_lowercase(),
        up: link.up,
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: link.mtu,
        mtu_min: link.mtu_min,
        mtu_max: link.mtu_max,
        master: link.master.as_ref().map(ToString::to_string).unwrap_or_default(),
        alias: link.alias.clone().unwrap_or_default(),
        altnames: link.altnames.iter().map(ToString::to_string).collect(),
        addrs: link.addrs.iter().map(address).collect(),
        routes: link.routes.iter().map(route).collect(),
        bandwidth: (link.bandwidth != Bandwidth::default()).then(|| bandwidth(&link.bandwidth)),
        lower_ifindex: link.lower.map(|lower| lower.ifindex),
        lower_nsid: link.lower.and_then(|lower| lower.nsid),
        drift: wanted.map(|wanted| drift(link, wanted)).unwrap_or_default(),
        tx_queue_len: link.tx_queue_len,
        group: link.group,
    }
}

/// Settings that were asked for and are not so any more.
fn drift(link: &Link, wanted: &LinkSpec) -> Vec<String> {
    let settings = &wanted.settings;
    let mut found = Vec::new();
    let mut differs = |field: &str, is: String, was: String| {
        found.push(format!("{field} is {is}, was to be {was}"));
    };
    if let Some(mtu) = settings.mtu.filter(|mtu| *mtu != link.mtu) {
        differs("mtu", link.mtu.to_string(), mtu.to_string());
    }
    if let Some(mac) = settings.mac.filter(|mac| Some(*mac) != link.mac) {
        let is = link.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
        differs("mac", is, mac.to_string());
    }
    if settings.up != link.up {
        let word = |up: bool| if up { "up" } else { "down" }.to_owned();
        differs("state", word(link.up), word(settings.up));
    }
    if settings.master.is_some() && settings.master != link.master {
        let text = |master: &Option<crated_netns::IfName>| {
            master.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
        };
        differs("master", text(&link.master), text(&settings.master));
    }
    for addr in &settings.addrs {
        if !link.addrs.iter().any(|a| (a.ip, a.prefix_len) == (addr.ip, addr.prefix_len)) {
            found.push(format!("address {addr} is missing"));
        }
    }
    for route in &settings.routes {
        let same =
            |r: &Route| (r.dst, r.gateway, r.table) == (route.dst, route.gateway, route.table);
        if !link.routes.iter().any(same) {
            found.push(format!("route to {} is missing", route.dst));
        }
    }
    found
}

/// The kernel's name of a kind.
fn kind(kind: &KindInfo) -> String {
    match kind {
        KindInfo::Device => "device",
        KindInfo::Veth => "veth",
        KindInfo::Bridge(_) => "bridge",
        KindInfo::Macvlan(_) => "macvlan",
        KindInfo::Macvtap(_) => "macvtap",
        KindInfo::Ipvlan(_) => "ipvlan",
        KindInfo::Vlan { .. } => "vlan",
        KindInfo::Vxlan(_) => "vxlan",
        KindInfo::Tun => "tun",
        KindInfo::Ifb => "ifb",
        KindInfo::Dummy => "dummy",
        KindInfo::Vrf { .. } => "vrf",
        KindInfo::Netkit => "netkit",
        KindInfo::Wireguard => "wireguard",
        KindInfo::Other(kind) => kind.as_str(),
        _ => "other",
    }
    .to_owned()
}

pub(super) fn address(addr: &Addr) -> api::Address {
    api::Address {
        address: format!("{}/{}", addr.ip, addr.prefix_len),
        peer: addr.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        nodad: addr.nodad,
        noprefixroute: addr.noprefixroute,
        preferred_for_s: addr.preferred_for.map(|time| time.as_secs()),
        valid_for_s: addr.valid_for.map(|time| time.as_secs()),
        label: addr.label.clone().unwrap_or_default(),
        scope: scope(addr.scope),
        protocol: addr.protocol.into(),
    }
}

pub(super) fn route(route: &Route) -> api::Route {
    let text = |ip: Option<std::net::IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let dev = |dev: &Option<crated_netns::IfName>| {
        dev.as_ref().map(ToString::to_string).unwrap_or_default()
    };
    api::Route {
        dst: route.dst.to_string(),
        gateway: text(route.gateway),
        dev: dev(&route.dev),
        table: route.table,
        metric: route.metric,
        protocol: (route.protocol != OWN_PROTOCOL).then_some(route.protocol.into()),
        scope: scope(route.scope),
        source: text(route.source),
        mtu: route.mtu,
        onlink: route.onlink,
        kind: match route.kind {
            RouteKind::Other(value) => value.to_string(),
            kind => format!("{kind:?}").to_lowercase(),
        },
        multipath: route
            .multipath
            .iter()
            .map(|hop| api::NextHop {
                gateway: text(hop.gateway),
                dev: dev(&hop.dev),
                weight: hop.weight.into(),
            })
            .collect(),
    }
}

fn scope(scope: Option<Scope>) -> String {
    match scope {
        None => String::new(),
        Some(Scope::Other(value)) => value.to_string(),
        Some(scope) => format!("{scope:?}").to_lowercase(),
    }
}

pub(super) fn rule(rule: &Rule) -> api::Rule {
    let text = |prefix: Option<crated_netns::Prefix>| {
        prefix.map(|prefix| prefix.to_string()).unwrap_or_default()
    };
    let name = |name: &Option<crated_netns::IfName>| {
        name.as_ref().map(ToString::to_string).unwrap_or_default()
    };
    api::Rule {
        ipv6: rule.ipv6,
        priority: rule.priority,
        from: text(rule.from),
        to: text(rule.to),
        iif: name(&rule.iif),
        oif: name(&rule.oif),
        mark: rule.mark.map(|(mark, _)| mark),
        mark_mask: rule.mark.map(|(_, mask)| mask),
        table: rule.table,
        protocol: rule.protocol.into(),
    }
}

pub(super) fn neighbour(neigh: &Neigh) -> api::Neighbour {
    api::Neighbour {
        dev: neigh.dev.to_string(),
        ip: neigh.ip.to_string(),
        mac: neigh.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        permanent: neigh.permanent,
    }
}

pub(super) fn forwarding(entry: &Fdb) -> api::Forwarding {
    let mac: Vec<String> = entry.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    api::Forwarding {
        dev: entry.dev.to_string(),
        mac: mac.join(":"),
        dst: entry.dst.map(|dst| dst.to_string()).unwrap_or_default(),
        vlan: entry.vlan.map(u32::from),
        permanent: entry.permanent,
        own_table: entry.own_table,
    }
}

fn bandwidth(limits: &Bandwidth) -> api::Bandwidth {
    let rate = |rate: Option<Rate>| {
        rate.map(|rate| api::Rate {
            bits_per_second: rate.bits_per_second,
            burst_bytes: rate.burst_bytes,
            latency_ms: u64::try_from(rate.latency.as_millis()).unwrap_or(u64::MAX),
        })
    };
    api::Bandwidth { egress: rate(limits.egress), ingress: rate(limits.ingress) }
}

pub(super) fn stats(name: &str, stats: &Stats) -> api::LinkStats {
    api::LinkStats {
        name: name.to_owned(),
        rx_bytes: stats.rx_bytes,
        rx_packets: stats.rx_packets,
        rx_errors: stats.rx_errors,
        rx_dropped: stats.rx_dropped,
        tx_bytes: stats.tx_bytes,
        tx_packets: stats.tx_packets,
        tx_errors: stats.tx_errors,
        tx_dropped: stats.tx_dropped,
        multicast: stats.multicast,
        collisions: stats.collisions,
        queue_dropped: stats.queue_dropped,
    }
}

pub(super) fn holder(holder: &Holder) -> api::Holder {
    api::Holder {
        pid: holder.pid,
        command: holder.command.clone(),
        member: holder.kind == HolderKind::Member,
    }
}
