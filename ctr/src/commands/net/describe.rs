//! Links, addresses and routes as people write them, on the command line and in plans.

use std::collections::BTreeMap;

use crated_api::network as api;
use crated_api::network::link_spec::Kind;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::spec::split_pair;

/// What kind of link it is.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default)]
pub(crate) struct LinkKind {
    /// One of veth, bridge, macvlan, macvtap, ipvlan, vlan, vxlan, tap, tun, ifb, dummy, vrf,
    /// netkit, wireguard, and existing for a device that is moved in.
    #[arg(short, long, default_value = "veth")]
    pub(crate) kind: String,
    /// Name of the other end (veth, netkit); made up when absent.
    #[arg(long)]
    peer: Option<String>,
    /// Where the other end is (veth, netkit): a network namespace, or host.
    #[arg(long)]
    peer_netns: Option<String>,
    /// The bridge of the other end (veth, netkit).
    #[arg(long)]
    peer_master: Option<String>,
    /// The link it is made on (macvlan, macvtap, ipvlan, vlan, vxlan).
    #[arg(long)]
    parent: Option<String>,
    /// Where that link is: a network namespace, or host.
    #[arg(long)]
    parent_netns: Option<String>,
    /// How it works: bridge, private, vepa or passthru (macvlan), l2, l3 or l3s (ipvlan, netkit).
    #[arg(long)]
    mode: Option<String>,
    /// Number of the VLAN (vlan) or of the network (vxlan).
    #[arg(long)]
    number: Option<u32>,
    /// Own address in the underlay (vxlan).
    #[arg(long)]
    local: Option<String>,
    /// The other end or a multicast group (vxlan).
    #[arg(long)]
    remote: Option<String>,
    /// UDP port (vxlan).
    #[arg(long)]
    port: Option<u32>,
    /// Routing table (vrf).
    #[arg(long)]
    table: Option<u32>,
    /// The device's name where it is now (existing).
    #[arg(long)]
    from: Option<String>,
    /// Where it is now (existing): a network namespace, or host.
    #[arg(long)]
    from_netns: Option<String>,
    /// Take the device although others made it (existing).
    #[arg(long)]
    adopt: bool,
    /// Tell VLANs apart (bridge).
    #[arg(long)]
    vlan_filtering: bool,
}

/// What a link is set to.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    /// Hardware address.
    #[arg(long)]
    mac: Option<String>,
    /// Largest packet in bytes.
    #[arg(long)]
    mtu: Option<u32>,
    /// The bridge or VRF it belongs to; empty to leave it.
    #[arg(long)]
    master: Option<String>,
    /// Whether it is up.
    #[arg(long)]
    up: Option<bool>,
    /// Length of the send queue in packets.
    #[arg(long)]
    txqlen: Option<u32>,
    /// Free text.
    #[arg(long)]
    alias: Option<String>,
    /// Further names.
    #[arg(long = "altname")]
    altnames: Vec<String>,
    /// Whether it gets an IPv6 link-local address by itself.
    #[arg(long)]
    ipv6_auto: Option<bool>,
    /// Addresses, such as 10.9.0.2/24 or "fd00::2/64 nodad"; with set, all it is to have.
    #[arg(long = "addr")]
    addrs: Vec<String>,
    /// Routes through it, such as "default via 10.9.0.1"; with set, all it is to have.
    #[arg(long = "route")]
    routes: Vec<String>,
    /// Limit of what it sends, such as 10mbit; 0 for none.
    #[arg(long)]
    egress: Option<String>,
    /// Limit of what it receives, such as 10mbit; 0 for none.
    #[arg(long)]
    ingress: Option<String>,
    /// Do not talk to other isolated ports of the bridge.
    #[arg(long)]
    isolated: Option<bool>,
    /// Send packets back out of the port they came in by.
    #[arg(long)]
    hairpin: Option<bool>,
}

/// KEY=VALUE for each; a word alone would be dropped without a word.
pub(crate) fn pairs(list: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| match text.contains('=') {
        true => split_pair(text),
        false => Err(refused(format!("{text:?} is not KEY=VALUE"))),
    };
    list.iter().map(pair).collect()
}

impl LinkKind {
    /// The kind as the API has it.
    pub(crate) fn message(&self) -> Result<Kind> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        // Beside a network namespace, what a link is made on is usually the host's.
        let host = |text: &Option<String>| text.clone().unwrap_or_else(|| "host".to_owned());
        let parent = || match &self.parent {
            Some(parent) => Ok(parent.clone()),
            None => Err(refused(format!("a {} needs --parent", self.kind))),
        };
        Ok(match self.kind.as_str() {
            // A plan need not say the usual.
            "" | "veth" | "netkit" => {
                let pair = Box::new(api::Pair {
                    peer: Some(Box::new(api::LinkSpec {
                        name: text(&self.peer),
                        master: text(&self.peer_master),
                        ..api::LinkSpec::default()
                    })),
                    peer_netns: host(&self.peer_netns),
                    layer3: self.mode.as_deref() == Some("l3"),
                });
                if self.kind == "netkit" { Kind::Netkit(pair) } else { Kind::Veth(pair) }
            }
            "bridge" => Kind::Bridge(api::Bridge {
                vlan_filtering: self.vlan_filtering.then_some(true),
                ..api::Bridge::default()
            }),
            "macvlan" | "macvtap" => {
                let made = api::Macvlan {
                    parent: parent()?,
                    parent_netns: host(&self.parent_netns),
                    mode: text(&self.mode),
                };
                if self.kind == "macvlan" { Kind::Macvlan(made) } else { Kind::Macvtap(made) }
            }
            "ipvlan" => Kind::Ipvlan(api::Ipvlan {
                parent: parent()?,
                parent_netns: host(&self.parent_netns),
                mode: text(&self.mode),
            }),
            "vlan" => Kind::Vlan(api::Vlan {
                parent: parent()?,
                parent_netns: host(&self.parent_netns),
                id: self.number.ok_or_else(|| refused("a vlan needs --number"))?,
                provider: false,
            }),
            "vxlan" => Kind::Vxlan(api::Vxlan {
                id: Some(self.number.ok_or_else(|| refused("a vxlan needs --number"))?),
                underlay_netns: host(&self.parent_netns),
                dev: text(&self.parent),
                local: text(&self.local),
                remote: text(&self.remote),
                port: self.port,
                ..api::Vxlan::default()
            }),
            "tap" => Kind::Tap(api::Tun::default()),
            "tun" => Kind::Tun(api::Tun::default()),
            "ifb" => Kind::Ifb(api::Plain {}),
            "dummy" => Kind::Dummy(api::Plain {}),
            "wireguard" => Kind::Wireguard(api::Plain {}),
            "vrf" => Kind::Vrf(api::Vrf {
                table: self.table.ok_or_else(|| refused("a vrf needs --table"))?,
            }),
            "existing" => Kind::Existing(api::Existing {
                name: self.from.clone().ok_or_else(|| {
                    refused("an existing device needs --from, its name where it is now")
                })?,
                netns: text(&self.from_netns),
                adopt: self.adopt,
            }),
            other => {
                return Err(refused(format!(
                    "kind {other:?} is not one of veth, bridge, macvlan, macvtap, ipvlan, vlan, \
                     vxlan, tap, tun, ifb, dummy, vrf, netkit, wireguard, existing"
                )));
            }
        })
    }
}

impl Settings {
    /// The settings as the API has them, and which of them were given.
    pub(crate) fn message(&self) -> Result<(api::LinkSpec, Vec<String>)> {
        let mut given = Vec::new();
        let mut note = |field: &str, is: bool| {
            if is {
                given.push(format!("spec.{field}"));
            }
        };
        note("mac", self.mac.is_some());
        note("mtu", self.mtu.is_some());
        note("master", self.master.is_some());
        note("up", self.up.is_some());
        note("tx_queue_len", self.txqlen.is_some());
        note("alias", self.alias.is_some());
        note("altnames", !self.altnames.is_empty());
        note("ipv6_auto", self.ipv6_auto.is_some());
        note("addrs", !self.addrs.is_empty());
        note("routes", !self.routes.is_empty());
        note("bandwidth", self.egress.is_some() || self.ingress.is_some());
        note("port", self.isolated.is_some() || self.hairpin.is_some());
        let limited = self.egress.is_some() || self.ingress.is_some();
        let port = self.isolated.is_some() || self.hairpin.is_some();
        // An empty one clears the list.
        let some = |list: &[String]| -> Vec<String> {
            list.iter().filter(|text| !text.is_empty()).cloned().collect()
        };
        let spec = api::LinkSpec {
            mac: self.mac.clone().unwrap_or_default(),
            mtu: self.mtu,
            master: self.master.clone().unwrap_or_default(),
            up: self.up,
            tx_queue_len: self.txqlen,
            alias: self.alias.clone(),
            altnames: some(&self.altnames),
            ipv6_auto: self.ipv6_auto,
            addrs: some(&self.addrs).iter().map(|text| address(text)).collect::<Result<_>>()?,
            routes: some(&self.routes).iter().map(|text| route(text)).collect::<Result<_>>()?,
            bandwidth: limited
                .then(|| -> Result<_> {
                    let egress = self.egress.as_deref().map(rate).transpose()?.flatten();
                    let ingress = self.ingress.as_deref().map(rate).transpose()?.flatten();
                    Ok(api::Bandwidth { egress, ingress })
                })
                .transpose()?,
            port: port.then(|| api::Port {
                isolated: self.isolated,
                hairpin: self.hairpin,
                ..api::Port::default()
            }),
            ..api::LinkSpec::default()
        };
        Ok((spec, given))
    }
}

/// `10.9.0.2/24`, followed by `nodad`, `noprefixroute`, `peer IP`, `label TEXT` in any order.
pub(crate) fn address(text: &str) -> Result<api::Address> {
    let mut words = text.split_whitespace();
    let mut address = api::Address {
        address: words.next().unwrap_or_default().to_owned(),
        ..api::Address::default()
    };
    while let Some(word) = words.next() {
        match word {
            "nodad" => address.nodad = true,
            "noprefixroute" => address.noprefixroute = true,
            "peer" => address.peer = value("address", text, word, words.next())?,
            "label" => address.label = value("address", text, word, words.next())?,
            other => return Err(unknown("address", text, other, "nodad, noprefixroute, peer IP")),
        }
    }
    Ok(address)
}

/// `default via 10.9.0.1`, `10.0.0.0/8 dev eth0 table 7 metric 5 src IP onlink`, `blackhole DST`.
pub(crate) fn route(text: &str) -> Result<api::Route> {
    let mut words = text.split_whitespace().peekable();
    let mut route = api::Route::default();
    if let Some(kind @ ("blackhole" | "unreachable" | "prohibit" | "throw")) = words.peek().copied()
    {
        route.kind = kind.to_owned();
        words.next();
    }
    route.dst = words.next().unwrap_or_default().to_owned();
    if route.dst.is_empty() {
        return Err(refused(format!("route {text:?} names no destination")));
    }
    while let Some(word) = words.next() {
        let mut text_of = || value("route", text, word, words.next());
        match word {
            "via" => route.gateway = text_of()?,
            "dev" => route.dev = text_of()?,
            "src" => route.source = text_of()?,
            "table" => route.table = number(text, word, &text_of()?)?,
            "metric" => route.metric = Some(number(text, word, &text_of()?)?),
            "mtu" => route.mtu = Some(number(text, word, &text_of()?)?),
            "onlink" => route.onlink = true,
            other => {
                let known = "via IP, dev LINK, src IP, table N, metric N, mtu N, onlink";
                return Err(unknown("route", text, other, known));
            }
        }
    }
    Ok(route)
}

/// `10mbit`, `1.5gbit`, `800kbit` or bits per second; nothing for 0.
pub(crate) fn rate(text: &str) -> Result<Option<api::Rate>> {
    let lower = text.to_lowercase();
    let units = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)];
    let (digits, unit) = units
        .iter()
        .find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, *factor)))
        .unwrap_or((&lower, 1.0));
    let number: f64 = digits
        .trim()
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number >= 0.0)
        .ok_or_else(|| refused(format!("rate {text:?} is not like 10mbit")))?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    let bits = (number * unit) as u64;
    Ok((bits > 0).then(|| api::Rate { bits_per_second: bits, ..api::Rate::default() }))
}

/// A rate as people read it.
pub(crate) fn rate_text(rate: &api::Rate) -> String {
    let bits = rate.bits_per_second;
    for (unit, size) in [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000)] {
        if bits >= size && bits.is_multiple_of(size) {
            return format!("{}{unit}", bits / size);
        }
    }
    format!("{bits}bit")
}

/// A route as people read it, in the words that [`route`] takes.
pub(crate) fn route_text(route: &api::Route) -> String {
    let mut text = String::new();
    if !matches!(route.kind.as_str(), "" | "unicast") {
        text.push_str(&format!("{} ", route.kind));
    }
    text.push_str(match route.dst.as_str() {
        "0.0.0.0/0" | "::/0" => "default",
        dst => dst,
    });
    let mut add = |word: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!(" {word} {value}"));
        }
    };
    add("via", &route.gateway);
    add("dev", &route.dev);
    add("src", &route.source);
    if !matches!(route.table, 0 | 254) {
        add("table", &route.table.to_string());
    }
    add("metric", &route.metric.map(|metric| metric.to_string()).unwrap_or_default());
    for hop in &route.multipath {
        add("nexthop via", &hop.gateway);
        add("dev", &hop.dev);
    }
    text
}

fn value(what: &str, text: &str, word: &str, value: Option<&str>) -> Result<String> {
    value
        .map(str::to_owned)
        .ok_or_else(|| refused(format!("{what} {text:?}: {word} needs a value")))
}

fn number(text: &str, word: &str, value: &str) -> Result<u32> {
    value.parse().map_err(|_| refused(format!("route {text:?}: {word} {value:?} is no number")))
}

fn unknown(what: &str, text: &str, word: &str, known: &str) -> Error {
    refused(format!("{what} {text:?}: {word:?} is not one of {known}"))
}

pub(crate) fn refused(text: impl Into<String>) -> Error {
    Error::Refused(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_they_are_printed() {
        for text in [
            "default via 10.9.0.1",
            "10.0.0.0/8 dev eth0 table 7 metric 5",
            "blackhole 192.0.2.0/24",
            "10.1.0.0/16 via 10.0.0.1 dev eth0 src 10.0.0.2",
        ] {
            assert_eq!(route_text(&route(text).unwrap()), text);
        }
        for bad in ["", "default via", "default by 10.0.0.1", "default table x"] {
            assert!(route(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rates_have_units() {
        let bits = |text| rate(text).unwrap().map(|rate| rate.bits_per_second);
        assert_eq!(bits("10mbit"), Some(10_000_000));
        assert_eq!(bits("1.5Gbit"), Some(1_500_000_000));
        assert_eq!(bits("8000"), Some(8000));
        assert_eq!(bits("0"), None);
        for bad in ["", "fast", "-1mbit", "nanmbit", "10mbyte"] {
            assert!(rate(bad).is_err(), "{bad:?}");
        }
        assert_eq!(rate_text(&rate("10mbit").unwrap().unwrap()), "10mbit");
    }

    #[test]
    fn addresses_take_flags() {
        let address = address("fd00::2/64 nodad noprefixroute").unwrap();
        assert_eq!(address.address, "fd00::2/64");
        assert!(address.nodad && address.noprefixroute);
        assert!(super::address("10.0.0.1/24 quick").is_err());
    }
}
