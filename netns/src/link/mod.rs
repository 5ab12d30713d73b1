//! Links: what to make, what to change, and what is there.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};

use crate::Result;
use crate::error::{Step, Subject};
use crate::netlink::{Request, Socket};

/// Brings the loopback device of the calling thread's namespace up.
pub(crate) fn loopback_up() -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = 1;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Socket::open()?.change(Request {
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
        step: Step::new(Subject::Link, "bring up", "link lo"),
    })
}
