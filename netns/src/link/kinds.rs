//! Kinds of links and their own settings.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::spec::LinkSettings;
use crate::{Error, IfName, NetnsName, Result};

/// A namespace named from within a link's description.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Place {
    /// The namespace the description is applied in.
    #[default]
    Here,
    /// The home namespace of the root.
    Host,
    /// A pinned namespace of the root.
    Named(NetnsName),
}

/// An existing link that another one is made on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Parent {
    /// Its name.
    pub name: IfName,
    /// Where it is. The new link is born there and lives in its own place.
    #[serde(default)]
    pub place: Place,
}

impl Parent {
    /// A link of the home namespace.
    pub fn on_host(name: IfName) -> Self {
        Self { name, place: Place::Host }
    }

    /// A link of the same namespace.
    pub fn here(name: IfName) -> Self {
        Self { name, place: Place::Here }
    }
}

/// The other end of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSpec {
    /// Its name.
    pub name: IfName,
    /// Where it lives.
    #[serde(default)]
    pub place: Place,
    /// Its settings; `bandwidth` included, all but `altnames` as for any link.
    #[serde(default)]
    pub settings: LinkSettings,
}

impl PeerSpec {
    /// An end in the home namespace, brought up.
    pub fn on_host(name: IfName) -> Self {
        Self {
            name,
            place: Place::Host,
            settings: LinkSettings { up: true, ..LinkSettings::default() },
        }
    }

    /// An end in the same namespace, brought up.
    pub fn here(name: IfName) -> Self {
        Self { place: Place::Here, ..Self::on_host(name) }
    }

    /// An end in another pinned namespace, brought up.
    pub fn in_netns(name: IfName, netns: NetnsName) -> Self {
        Self { place: Place::Named(netns), ..Self::on_host(name) }
    }

    /// The same as a port of a bridge.
    #[must_use]
    pub fn master(mut self, bridge: IfName) -> Self {
        self.settings.master = Some(bridge);
        self
    }
}

/// What kind of link to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LinkKind {
    /// A virtual cable.
    Veth {
        /// The other end.
        peer: PeerSpec,
    },
    /// A switch. Takes at most 1023 ports.
    Bridge(BridgeOpts),
    /// A second hardware address on a parent.
    Macvlan {
        /// The link shared.
        parent: Parent,
        /// Who may talk to whom.
        mode: MacvlanMode,
    },
    /// A macvlan that a virtual machine reads through a character device.
    Macvtap {
        /// The link shared.
        parent: Parent,
        /// Who may talk to whom.
        mode: MacvlanMode,
    },
    /// More addresses on a parent's hardware address.
    Ipvlan {
        /// The link shared.
        parent: Parent,
        /// Layer to switch at.
        mode: IpvlanMode,
    },
    /// One VLAN of a parent.
    Vlan {
        /// The trunk.
        parent: Parent,
        /// VLAN id, 1 to 4094.
        id: u16,
        /// 802.1ad (provider) tags instead of 802.1Q.
        #[serde(default)]
        provider: bool,
    },
    /// Ethernet over UDP.
    Vxlan(VxlanOpts),
    /// A layer-2 device fed by a program; persists without one.
    Tap(TunOpts),
    /// A layer-3 device fed by a program; persists without one.
    Tun(TunOpts),
    /// A device to redirect traffic to for shaping.
    Ifb,
    /// A device that drops what it is sent.
    Dummy,
    /// A routing domain.
    Vrf {
        /// Its routing table.
        table: u32,
    },
    /// A pair like veth with a program at each end.
    Netkit {
        /// The other end.
        peer: PeerSpec,
        /// Layer 3 (no hardware addresses) instead of layer 2.
        layer3: bool,
    },
    /// A tunnel; only the device is made, keys are up to the caller.
    Wireguard,
    /// No new link: one that exists is moved in, renamed to the new name.
    Existing {
        /// Its name there.
        name: IfName,
        /// Where it is now.
        from: Place,
    },
    /// Any other kind, with its attributes encoded by the caller.
    Raw {
        /// The kernel's name of the kind.
        kind: String,
        /// Encoded `IFLA_INFO_DATA`.
        data: Vec<u8>,
    },
}

/// Settings of a bridge; absent ones are the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BridgeOpts {
    /// Run the spanning tree protocol.
    pub stp: Option<bool>,
    /// Time a port waits before forwarding, to a hundredth of a second.
    pub forward_delay: Option<Duration>,
    /// Time after which a learned address is forgotten.
    pub ageing_time: Option<Duration>,
    /// Priority in the spanning tree.
    pub priority: Option<u16>,
    /// Tell VLANs apart.
    pub vlan_filtering: Option<bool>,
    /// Send multicast only where somebody listens.
    pub multicast_snooping: Option<bool>,
}

/// Who macvlan links of one parent may talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MacvlanMode {
    /// Each other, directly.
    #[default]
    Bridge,
    /// Nobody on the same parent.
    Private,
    /// Each other through an external switch that reflects.
    Vepa,
    /// One link takes the parent over.
    Passthru,
}

/// The layer an ipvlan link works at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum IpvlanMode {
    /// Link layer.
    #[default]
    L2,
    /// Network layer.
    L3,
    /// Network layer with connection tracking of the parent's namespace.
    L3s,
}

/// Settings of a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VxlanOpts {
    /// Network id, below 2^24.
    pub id: u32,
    /// Where the packets travel: the device is born there and its sockets stay.
    #[serde(default)]
    pub underlay: Place,
    /// Link of the underlay to send through.
    #[serde(default)]
    pub dev: Option<IfName>,
    /// Own address in the underlay.
    #[serde(default)]
    pub local: Option<IpAddr>,
    /// Multicast group, or the one other end.
    #[serde(default)]
    pub remote: Option<IpAddr>,
    /// UDP port; 4789 is the standard one.
    #[serde(default = "vxlan_port")]
    pub port: u16,
    /// Learn addresses from what arrives; the kernel's default is yes.
    #[serde(default)]
    pub learning: Option<bool>,
    /// Time to live of the packets.
    #[serde(default)]
    pub ttl: Option<u8>,
}

fn vxlan_port() -> u16 {
    4789
}

impl VxlanOpts {
    /// A device of network `id` on the standard port.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            underlay: Place::Here,
            dev: None,
            local: None,
            remote: None,
            port: vxlan_port(),
            learning: None,
            ttl: None,
        }
    }
}

/// Settings of a tun or tap device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TunOpts {
    /// User that may attach without privileges.
    pub owner: Option<u32>,
    /// Group that may attach without privileges.
    pub group: Option<u32>,
    /// Allow several queues.
    pub multi_queue: bool,
    /// Prefix packets with a virtio header.
    pub vnet_header: bool,
    /// Prefix packets with flags and protocol.
    pub packet_info: bool,
}

impl LinkKind {
    /// The kernel's name of the kind; `None` for links moved in.
    pub fn name(&self) -> Option<&str> {
        Some(match self {
            Self::Veth { .. } => "veth",
            Self::Bridge(_) => "bridge",
            Self::Macvlan { .. } => "macvlan",
            Self::Macvtap { .. } => "macvtap",
            Self::Ipvlan { .. } => "ipvlan",
            Self::Vlan { .. } => "vlan",
            Self::Vxlan(_) => "vxlan",
            Self::Tap(_) | Self::Tun(_) => "tun",
            Self::Ifb => "ifb",
            Self::Dummy => "dummy",
            Self::Vrf { .. } => "vrf",
            Self::Netkit { .. } => "netkit",
            Self::Wireguard => "wireguard",
            Self::Existing { .. } => return None,
            Self::Raw { kind, .. } => kind,
        })
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Vlan { id, .. } if !(1..=4094).contains(id) => {
                Err(Error::value("vlan id", format!("{id} is not 1 to 4094")))
            }
            Self::Vxlan(opts) => opts.check(),
            Self::Vrf { table: 0 } => Err(Error::value("table", "0 names no table")),
            Self::Veth { peer } | Self::Netkit { peer, .. } => peer.settings.check(),
            Self::Raw { kind, .. } if kind.is_empty() || kind.len() > 32 => {
                Err(Error::value("kind", "1 to 32 bytes"))
            }
            _ => Ok(()),
        }
    }
}

impl VxlanOpts {
    fn check(&self) -> Result<()> {
        if self.id >= 1 << 24 {
            return Err(Error::value("vxlan id", format!("{} is not below 2^24", self.id)));
        }
        if self.port == 0 {
            return Err(Error::value("vxlan port", "0"));
        }
        let mixed =
            |remote: IpAddr| self.local.is_some_and(|local| local.is_ipv4() != remote.is_ipv4());
        if self.remote.is_some_and(mixed) {
            return Err(Error::value("vxlan remote", "another family than local"));
        }
        let group = self.remote.is_some_and(|remote| remote.is_multicast());
        if group && self.dev.is_none() {
            return Err(Error::value("vxlan dev", "a multicast group needs a device"));
        }
        Ok(())
    }
}
