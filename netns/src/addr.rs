//! Addresses and prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use crate::{Error, OWN_PROTOCOL, Result};

/// Lifetime the kernel takes for "for ever".
const FOREVER: u32 = u32::MAX;

/// An IP network: an address without host bits and a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    ip: IpAddr,
    len: u8,
}

impl Prefix {
    /// Everything IPv4, the destination of a default route.
    pub const DEFAULT_V4: Self = Self { ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED), len: 0 };
    /// Everything IPv6, the destination of a default route.
    pub const DEFAULT_V6: Self = Self { ip: IpAddr::V6(Ipv6Addr::UNSPECIFIED), len: 0 };

    /// Checks an address and a length in bits.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] when the length exceeds the address or host bits
    /// are set.
    pub fn new(ip: IpAddr, len: u8) -> Result<Self> {
        check_len(ip, len)?;
        let host_bits_set = match ip {
            IpAddr::V4(v4) => u32::from(v4).checked_shl(len.into()).unwrap_or(0) != 0,
            IpAddr::V6(v6) => u128::from(v6).checked_shl(len.into()).unwrap_or(0) != 0,
        };
        if host_bits_set {
            return Err(Error::value("prefix", format!("{ip}/{len} has host bits set")));
        }
        Ok(Self { ip, len })
    }

    /// The network address.
    pub fn ip(self) -> IpAddr {
        self.ip
    }

    /// The length in bits.
    pub fn bits(self) -> u8 {
        self.len
    }

    /// True for the prefix of length 0, which holds every address.
    pub fn is_default(self) -> bool {
        self.len == 0
    }
}

impl FromStr for Prefix {
    type Err = Error;

    /// Takes `ip/len`, or a plain address for a single host.
    fn from_str(text: &str) -> Result<Self> {
        let (ip, len) = parse(text, "prefix")?;
        Self::new(ip, len)
    }
}

impl TryFrom<String> for Prefix {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.len)
    }
}

/// How far an address or route is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Scope {
    /// Everywhere.
    Global,
    /// Within the site.
    Site,
    /// On the link only.
    Link,
    /// On this host only.
    Host,
    /// Does not exist.
    Nowhere,
    /// Any other value.
    Other(u8),
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Addr {
    /// The address itself.
    pub ip: IpAddr,
    /// Length of its network in bits.
    pub prefix_len: u8,
    /// The other end's address on a point-to-point link.
    #[serde(default)]
    pub peer: Option<IpAddr>,
    /// Scope; chosen by the kernel when absent.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// Skip IPv6 duplicate address detection, so the address works at once.
    #[serde(default)]
    pub nodad: bool,
    /// Do not add a route to the address's network.
    #[serde(default)]
    pub noprefixroute: bool,
    /// Time after which the address is deprecated; absent for never.
    #[serde(default)]
    pub preferred_for: Option<Duration>,
    /// Time after which the address is removed; absent for never.
    #[serde(default)]
    pub valid_for: Option<Duration>,
    /// IPv4 label, which must begin with the link's name.
    #[serde(default)]
    pub label: Option<String>,
    /// Who made it: [`OWN_PROTOCOL`] for addresses made here, 1 to 3 for the
    /// kernel's own. Ignored when adding.
    #[serde(default)]
    pub protocol: u8,
}

impl Addr {
    /// A plain address.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] for unspecified, multicast and broadcast
    /// addresses (the kernel takes them) and for lengths beyond the address.
    pub fn new(ip: IpAddr, prefix_len: u8) -> Result<Self> {
        let addr = Self {
            ip,
            prefix_len,
            peer: None,
            scope: None,
            nodad: false,
            noprefixroute: false,
            preferred_for: None,
            valid_for: None,
            label: None,
            protocol: 0,
        };
        addr.check()?;
        Ok(addr)
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_len(self.ip, self.prefix_len)?;
        let ip = self.ip;
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        if ip.is_unspecified() || ip.is_multicast() || broadcast {
            return Err(Error::value("address", format!("{ip} is not a host's address")));
        }
        if self.peer.is_some_and(|peer| peer.is_ipv4() != ip.is_ipv4()) {
            return Err(Error::value("address", format!("{ip} and its peer differ in family")));
        }
        if self.label.as_ref().is_some_and(|l| l.is_empty() || l.len() > 15 || ip.is_ipv6()) {
            return Err(Error::value("label", "1 to 15 bytes, IPv4 only"));
        }
        let longer = |valid| self.preferred_for.is_some_and(|preferred| preferred > valid);
        if self.valid_for.is_some_and(longer) {
            return Err(Error::value("address", "preferred for longer than valid"));
        }
        Ok(())
    }

    /// What makes two addresses of a link the same to the kernel.
    pub(crate) fn key(&self) -> (IpAddr, u8, Option<IpAddr>) {
        (self.ip, self.prefix_len, self.peer)
    }

    pub(crate) fn message(&self, ifindex: u32) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = family(self.ip);
        message.header.prefix_len = self.prefix_len;
        message.header.index = ifindex;
        let scope = self.scope.unwrap_or(match self.ip.is_loopback() {
            true => Scope::Host,
            false => Scope::Global,
        });
        message.header.scope = scope.into();
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Nodad, self.nodad);
        flags.set(AddressFlags::Noprefixroute, self.noprefixroute);
        let list = &mut message.attributes;
        list.push(AddressAttribute::Local(self.ip));
        list.push(AddressAttribute::Address(self.peer.unwrap_or(self.ip)));
        list.push(AddressAttribute::Flags(flags));
        list.push(AddressAttribute::Protocol(AddressProtocol::Other(OWN_PROTOCOL)));
        if let Some(label) = &self.label {
            list.push(AddressAttribute::Label(label.clone()));
        }
        if self.preferred_for.is_some() || self.valid_for.is_some() {
            let mut cache = CacheInfo::default();
            cache.ifa_preferred = seconds(self.preferred_for.or(self.valid_for));
            cache.ifa_valid = seconds(self.valid_for);
            list.push(AddressAttribute::CacheInfo(cache));
        }
        message
    }

    /// What names the address for its removal. Without the label, which the
    /// kernel changes when the link is renamed.
    pub(crate) fn removal(&self, ifindex: u32) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = family(self.ip);
        message.header.prefix_len = self.prefix_len;
        message.header.index = ifindex;
        message.attributes.push(AddressAttribute::Local(self.ip));
        message.attributes.push(AddressAttribute::Address(self.peer.unwrap_or(self.ip)));
        message
    }

    /// Drops the label the kernel gives every IPv4 address by itself.
    pub(crate) fn without_plain_label(mut self, link: &str) -> Self {
        self.label = self.label.filter(|label| label != link);
        self
    }

    /// Reads an address of the kernel's with the index of its link.
    pub(crate) fn read(message: &AddressMessage) -> Option<(u32, Self)> {
        let (mut local, mut remote, mut flags) = (None, None, AddressFlags::empty());
        let (mut label, mut protocol, mut lifetimes) = (None, 0, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => remote = Some(*ip),
                AddressAttribute::Label(text) => label = Some(text.clone()),
                AddressAttribute::Flags(bits) => flags = *bits,
                AddressAttribute::Protocol(number) => protocol = u8::from(*number),
                AddressAttribute::CacheInfo(info) => lifetimes = Some(*info),
                _ => {}
            }
        }
        let ip = local.or(remote)?;
        let duration = |seconds: u32| match seconds {
            FOREVER => None,
            seconds => Some(Duration::from_secs(seconds.into())),
        };
        let addr = Self {
            ip,
            prefix_len: message.header.prefix_len,
            peer: remote.filter(|remote| *remote != ip),
            scope: Some(message.header.scope.into()),
            nodad: flags.contains(AddressFlags::Nodad),
            noprefixroute: flags.contains(AddressFlags::Noprefixroute),
            preferred_for: lifetimes.as_ref().and_then(|info| duration(info.ifa_preferred)),
            valid_for: lifetimes.as_ref().and_then(|info| duration(info.ifa_valid)),
            label,
            protocol,
        };
        Some((message.header.index, addr))
    }

    pub(crate) fn dump(ifindex: u32) -> RouteNetlinkMessage {
        let mut message = AddressMessage::default();
        message.header.index = ifindex;
        RouteNetlinkMessage::GetAddress(message)
    }
}

impl FromStr for Addr {
    type Err = Error;

    /// Takes `ip/len`, or a plain address for a single host.
    fn from_str(text: &str) -> Result<Self> {
        let (ip, len) = parse(text, "address")?;
        Self::new(ip, len)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix_len)
    }
}

impl From<Scope> for AddressScope {
    fn from(scope: Scope) -> Self {
        Self::from(u8::from(scope))
    }
}

impl From<AddressScope> for Scope {
    fn from(scope: AddressScope) -> Self {
        Self::from(u8::from(scope))
    }
}

impl From<Scope> for u8 {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Global => 0,
            Scope::Site => 200,
            Scope::Link => 253,
            Scope::Host => 254,
            Scope::Nowhere => 255,
            Scope::Other(value) => value,
        }
    }
}

impl From<u8> for Scope {
    fn from(value: u8) -> Self {
        match value {
            0 => Self::Global,
            200 => Self::Site,
            253 => Self::Link,
            254 => Self::Host,
            255 => Self::Nowhere,
            value => Self::Other(value),
        }
    }
}

pub(crate) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn seconds(duration: Option<Duration>) -> u32 {
    let whole = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(FOREVER);
    duration.map_or(FOREVER, whole)
}

fn check_len(ip: IpAddr, len: u8) -> Result<()> {
    let max = if ip.is_ipv4() { 32 } else { 128 };
    if len > max {
        return Err(Error::value("prefix length", format!("{len} exceeds {max}")));
    }
    Ok(())
}

fn parse(text: &str, field: &'static str) -> Result<(IpAddr, u8)> {
    let malformed = || Error::value(field, format!("{:?} is not ip/length", short(text)));
    let (ip, len) = match text.split_once('/') {
        Some((ip, len)) => (ip, Some(len)),
        None => (text, None),
    };
    let ip: IpAddr = ip.parse().map_err(|_| malformed())?;
    let len = match len {
        // Only digits: `parse` alone would take a sign.
        Some(len) if len.bytes().all(|b| b.is_ascii_digit()) => {
            len.parse().map_err(|_| malformed())?
        }
        Some(_) => return Err(malformed()),
        None if ip.is_ipv4() => 32,
        None => 128,
    };
    Ok((ip, len))
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn prefix_is_its_text(ip in any::<IpAddr>(), len in 0..=128_u8) {
            if let Ok(prefix) = Prefix::new(ip, len) {
                prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,60}") {
            let _ = text.parse::<Prefix>();
            let _ = text.parse::<Addr>();
            let _ = text.parse::<crate::Mac>();
            let _ = text.parse::<crate::SysctlKey>();
            if let Ok(name) = text.parse::<crate::IfName>() {
                prop_assert!(!name.as_str().is_empty() && name.as_str().len() <= 15);
                prop_assert!(!name.as_str().contains(['/', ':', '%', ' ']));
            }
            if let Ok(name) = text.parse::<crate::NetnsName>() {
                prop_assert!(std::path::Path::new(name.as_str()).components().count() == 1);
                prop_assert!(!name.as_str().starts_with('.'));
            }
        }

        #[test]
        fn address_survives_the_message(ip in any::<IpAddr>(), len in 0..=128_u8, nodad: bool) {
            if let Ok(mut addr) = Addr::new(ip, len) {
                addr.nodad = nodad;
                let (index, read) = Addr::read(&addr.message(7)).unwrap();
                prop_assert_eq!(index, 7);
                prop_assert_eq!(read.key(), addr.key());
                prop_assert_eq!(read.nodad, nodad);
                prop_assert_eq!(read.protocol, OWN_PROTOCOL);
            }
        }
    }

    #[test]
    fn derived_names_are_stable_and_tell_their_parts_apart() {
        use crate::IfName;
        let name = IfName::derived(&["default", "web", "eth0"]);
        assert_eq!(name, IfName::derived(&["default", "web", "eth0"]));
        assert_eq!(name.as_str().len(), 14);
        assert!(name.as_str().parse::<IfName>().is_ok());
        assert_ne!(name, IfName::derived(&["default", "webeth0"]));
        assert_ne!(name, IfName::derived(&["default", "web", "eth1"]));
    }
}
