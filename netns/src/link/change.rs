//! What to change about a link.

use serde::{Deserialize, Serialize};

use super::kinds::Place;
use super::spec::{LinkSettings, PortSettings, check_addrs, check_alias, check_routes};
use crate::{Addr, AltName, Bandwidth, IfName, Mac, Result, Route};

/// Changes to a link. Absent fields stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkChange {
    /// Hardware address.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Master; `Some(None)` releases the link from its present one.
    pub master: Option<Option<IfName>>,
    /// Up or down.
    pub up: Option<bool>,
    /// Length of the send queue in packets.
    pub tx_queue_len: Option<u32>,
    /// Device group.
    pub group: Option<u32>,
    /// Free text; empty to remove it.
    pub alias: Option<String>,
    /// All further names.
    pub altnames: Option<Vec<AltName>>,
    /// Largest segment handed to the device in one piece, in bytes.
    pub gso_max_size: Option<u32>,
    /// Largest segment received packets are joined to, in bytes.
    pub gro_max_size: Option<u32>,
    /// IPv6 link-local address by itself.
    pub ipv6_auto: Option<bool>,
    /// Settings as a port of a bridge.
    pub port: PortSettings,
    /// All addresses. Only those made by this crate are removed.
    pub addrs: Option<Vec<Addr>>,
    /// All routes through the link. Only those of our protocol are removed.
    pub routes: Option<Vec<Route>>,
    /// Limits of rate, both ways.
    pub bandwidth: Option<Bandwidth>,
    /// New name.
    pub rename: Option<IfName>,
    /// Namespace to move to, as the first step: the kernel takes master,
    /// addresses and routes away on the way, the other fields apply there. A new
    /// name comes along in the same message, so that a name taken there is no
    /// obstacle.
    pub move_to: Option<Place>,
}

impl LinkChange {
    /// Checks everything that can be checked without the kernel.
    pub fn check(&self) -> Result<()> {
        check_alias(self.alias.as_deref())?;
        check_addrs(self.addrs.as_deref().unwrap_or_default())?;
        check_routes(self.routes.as_deref().unwrap_or_default())?;
        self.port.check()?;
        self.bandwidth.iter().try_for_each(Bandwidth::check)
    }
}

impl From<&LinkSettings> for LinkChange {
    /// The changes that bring a new link to these settings.
    fn from(settings: &LinkSettings) -> Self {
        let some = |list: bool| (!list).then_some(());
        Self {
            mac: settings.mac,
            mtu: settings.mtu,
            master: settings.master.clone().map(Some),
            up: settings.up.then_some(true),
            tx_queue_len: settings.tx_queue_len,
            group: settings.group,
            alias: settings.alias.clone(),
            altnames: some(settings.altnames.is_empty()).map(|()| settings.altnames.clone()),
            gso_max_size: settings.gso_max_size,
            gro_max_size: settings.gro_max_size,
            ipv6_auto: settings.ipv6_auto,
            port: settings.port.clone(),
            addrs: some(settings.addrs.is_empty()).map(|()| settings.addrs.clone()),
            routes: some(settings.routes.is_empty()).map(|()| settings.routes.clone()),
            bandwidth: some(settings.bandwidth == Bandwidth::default())
                .map(|()| settings.bandwidth),
            rename: None,
            move_to: None,
        }
    }
}
