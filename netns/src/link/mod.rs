//! Links: what to make, what to change, and what is there.

pub(crate) mod apply;
mod change;
mod decode;
mod encode;
mod kinds;
pub(crate) mod read;
mod spec;
pub(crate) mod uses;

pub use change::LinkChange;
pub use decode::{KindInfo, Link, Lower, OperState};
pub use kinds::{
    BridgeOpts, IpvlanMode, LinkKind, MacvlanMode, Parent, PeerSpec, Place, TunOpts, VxlanOpts,
};
pub use spec::{ALIAS_LEN_MAX, LinkSettings, LinkSpec, PortSettings, PortVlan};

pub(crate) use encode::{Birth, by_index, kind_attributes, set};

use crate::Result;
use crate::error::{Step, Subject};
use crate::netlink::{Request, Socket};

/// Index of the loopback device in every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Brings the loopback device of the socket's namespace up.
pub(crate) fn loopback_up(socket: &mut Socket) -> Result<()> {
    socket.change(Request {
        message: encode::up(LOOPBACK_INDEX, true),
        flags: 0,
        step: Step::new(Subject::Link, "bring up", "link lo"),
    })
}

/// Reads a link from a message about it.
pub(crate) fn decode(message: &netlink_packet_route::link::LinkMessage) -> Option<Link> {
    decode::link(message).map(|raw| raw.link)
}
