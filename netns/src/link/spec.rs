//! What a link should be like when made.

use serde::{Deserialize, Serialize};

use super::kinds::LinkKind;
use crate::{Addr, AltName, Bandwidth, Error, IfName, Mac, Result, Route};

/// Longest alias in bytes, the kernel's `IFALIASZ` less its NUL.
pub const ALIAS_LEN_MAX: usize = 255;
/// Most addresses, routes and names given at once; a limit against mistakes.
const LIST_LEN_MAX: usize = 4096;

/// A link to make: name, kind and settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpec {
    /// Its name.
    pub name: IfName,
    /// Its kind.
    pub kind: LinkKind,
    /// Everything else.
    #[serde(default)]
    pub settings: LinkSettings,
}

/// Settings any link has. Absent ones are left to the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkSettings {
    /// Hardware address, part of the message that makes the link, so that no
    /// other program replaces it first.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Bridge (or other master) of the same namespace to be a port of.
    pub master: Option<IfName>,
    /// Bring the link up.
    pub up: bool,
    /// Length of the send queue in packets.
    pub tx_queue_len: Option<u32>,
    /// Device group. In the home namespace the group marks ownership and must
    /// be left out.
    pub group: Option<u32>,
    /// Free text, at most 255 bytes.
    pub alias: Option<String>,
    /// Further names.
    pub altnames: Vec<AltName>,
    /// Largest segment handed to the device in one piece, in bytes.
    pub gso_max_size: Option<u32>,
    /// Largest segment received packets are joined to, in bytes.
    pub gro_max_size: Option<u32>,
    /// False: no IPv6 link-local address by itself. Applied before `up`.
    pub ipv6_auto: Option<bool>,
    /// Settings as a port of a bridge.
    pub port: PortSettings,
    /// Addresses.
    pub addrs: Vec<Addr>,
    /// Routes through this link.
    pub routes: Vec<Route>,
    /// Limits of rate.
    pub bandwidth: Bandwidth,
}

/// Settings of a bridge port. Absent ones are left alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PortSettings {
    /// Send packets back out of the port they came in by.
    pub hairpin: Option<bool>,
    /// Do not talk to other isolated ports.
    pub isolated: Option<bool>,
    /// Learn addresses.
    pub learning: Option<bool>,
    /// Receive packets for unknown addresses.
    pub unicast_flood: Option<bool>,
    /// VLANs of the port, for a bridge that tells them apart.
    pub vlans: Vec<PortVlan>,
}

/// A VLAN of a bridge port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortVlan {
    /// VLAN id, 1 to 4094.
    pub id: u16,
    /// Packets without a tag belong to it.
    pub pvid: bool,
    /// Packets leave without a tag.
    pub untagged: bool,
}

impl LinkSpec {
    /// A link with default settings, down.
    pub fn new(name: IfName, kind: LinkKind) -> Self {
        Self { name, kind, settings: LinkSettings::default() }
    }

    /// The same, brought up.
    #[must_use]
    pub fn up(mut self) -> Self {
        self.settings.up = true;
        self
    }

    /// The same with a hardware address.
    #[must_use]
    pub fn mac(mut self, mac: Mac) -> Self {
        self.settings.mac = Some(mac);
        self
    }

    /// The same with a largest packet of `bytes`.
    #[must_use]
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.settings.mtu = Some(bytes);
        self
    }

    /// The same as a port of `master`.
    #[must_use]
    pub fn master(mut self, master: IfName) -> Self {
        self.settings.master = Some(master);
        self
    }

    /// The same with one more address.
    #[must_use]
    pub fn address(mut self, addr: Addr) -> Self {
        self.settings.addrs.push(addr);
        self
    }

    /// The same with one more route.
    #[must_use]
    pub fn route(mut self, route: Route) -> Self {
        self.settings.routes.push(route);
        self
    }

    /// The same with limits of rate.
    #[must_use]
    pub fn bandwidth(mut self, bandwidth: Bandwidth) -> Self {
        self.settings.bandwidth = bandwidth;
        self
    }

    /// Checks everything that can be checked without the kernel.
    pub fn check(&self) -> Result<()> {
        self.kind.check()?;
        self.settings.check()
    }
}

impl LinkSettings {
    pub(crate) fn check(&self) -> Result<()> {
        check_alias(self.alias.as_deref())?;
        check_addrs(&self.addrs)?;
        check_len("altnames", self.altnames.len())?;
        self.port.check()?;
        self.bandwidth.check()?;
        check_routes(&self.routes)
    }
}

impl PortSettings {
    pub(crate) fn check(&self) -> Result<()> {
        match self.vlans.iter().find(|vlan| !(1..=4094).contains(&vlan.id)) {
            Some(vlan) => Err(Error::value("vlan", format!("{} is not 1 to 4094", vlan.id))),
            None => Ok(()),
        }
    }

    /// True when nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

pub(crate) fn check_alias(alias: Option<&str>) -> Result<()> {
    match alias {
        Some(alias) if alias.len() > ALIAS_LEN_MAX || alias.contains('\0') => {
            Err(Error::value("alias", "more than 255 bytes or a NUL"))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_addrs(addrs: &[Addr]) -> Result<()> {
    check_len("addresses", addrs.len())?;
    addrs.iter().try_for_each(Addr::check)
}

/// Checks routes of a link: the device is implied.
pub(crate) fn check_routes(routes: &[Route]) -> Result<()> {
    check_len("routes", routes.len())?;
    for route in routes {
        let mut route = route.clone();
        if route.dev.is_none() && route.multipath.is_empty() {
            // Any valid name: only its presence is checked.
            route.dev = Some(IfName::derived(&[]));
        }
        route.check()?;
    }
    Ok(())
}

fn check_len(field: &'static str, len: usize) -> Result<()> {
    if len > LIST_LEN_MAX {
        return Err(Error::value(field, format!("{len} are more than {LIST_LEN_MAX}")));
    }
    Ok(())
}
