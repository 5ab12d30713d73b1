//! Network namespaces and interfaces, created, pinned, watched, changed and
//! deleted without a daemon.
//!
//! [`NetnsRoot`] owns one directory of pinned namespaces. [`Netns`] is a
//! handle on one of them (or on the host's): links of every kind the kernel
//! has, addresses, routes, rules, neighbours, sysctls, bandwidth limits and
//! counters. [`Plan`] makes ordered changes over several namespaces and takes
//! them back when one fails; [`Monitor`] reports what happens in all of them
//! through one socket.
//!
//! ```no_run
//! use crated_netns::{LinkKind, LinkSpec, NetnsRoot, NetnsSpec, PeerSpec, Propagation};
//!
//! # fn main() -> Result<(), crated_netns::Error> {
//! let root = NetnsRoot::open("/run/crated/netns", Propagation::Private)?;
//! let web = root.create(&"web".parse()?, &NetnsSpec::default())?;
//! let cable = LinkKind::Veth { peer: PeerSpec::on_host("web0".parse()?) };
//! let eth0 = LinkSpec::new("eth0".parse()?, cable).address("10.9.0.2/24".parse()?).up();
//! println!("{:?} in {}", web.create_link(&eth0)?.addrs, web.path().display());
//! web.delete(&Default::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! All calls block and may be made from any thread, including threads of an
//! async runtime's blocking pool: the caller's thread never changes
//! namespace. Work runs on two threads owned by the root, one for changes and
//! one for reads, which visit a namespace just long enough to open a socket
//! or write a sysctl. A thread that panics or cannot return home ends and is
//! replaced; it is never used again.
//!
//! A handle keeps no descriptor open: a kept one would keep a deleted
//! namespace alive. Each operation opens the pin, checks that it is still the
//! namespace the handle was made for, and closes it.
//!
//! The root's *home* is the network and mount namespace of the thread that
//! called [`NetnsRoot::open`].
//!
//! # What it does not do
//!
//! No address management (the caller chooses every address), no DNS, no port
//! mapping, no packet filter, no CNI configuration. Namespaces owned by a user
//! namespace are not supported.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("network namespaces exist on Linux only");

mod addr;
mod bandwidth;
mod capabilities;
mod delete;
mod error;
mod link;
mod monitor;
mod names;
mod namespace;
mod neigh;
mod ops;
mod plan;
mod root;
mod route;
mod rule;
mod session;
mod stats;
mod sysctl;

pub mod netlink;
mod sys;

pub use addr::{Addr, Prefix, Scope};
pub use bandwidth::{Bandwidth, Rate};
pub use capabilities::Capabilities;
pub use error::{Error, KernelError, Result};
pub use link::{
    ALIAS_LEN_MAX, BridgeOpts, IpvlanMode, KindInfo, Link, LinkChange, LinkKind, LinkSettings,
    LinkSpec, Lower, MacvlanMode, OperState, Parent, PeerSpec, Place, PortSettings, PortVlan,
    TunOpts, VxlanOpts,
};
pub use monitor::{Event, EventKind, Monitor, Origin};
pub use names::{
    ALT_NAME_LEN_MAX, AltName, IF_NAME_LEN_MAX, IfName, Mac, NETNS_NAME_LEN_MAX, NetnsName,
};
pub use namespace::{DeleteOpts, Deleted, Holder, HolderKind, Netns, NetnsId, PinState};
pub use neigh::{Fdb, Neigh};
pub use plan::{Applied, Op, Plan, PlanError};
pub use root::{NetnsRoot, NetnsSpec, Pin, Propagation, RootOptions, Source, SweepReport, inspect};
pub use route::{MAIN_TABLE, NextHop, Route, RouteKind};
pub use rule::Rule;
pub use stats::{NetnsStats, Stats};
pub use sysctl::SysctlKey;

/// The protocol number that addresses, routes and rules made here carry, so
/// that they can be told from those of the kernel and of other programs.
pub const OWN_PROTOCOL: u8 = 201;

/// The examples of the README are compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
