//! What happens in all namespaces, through one socket in the home namespace.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::NsidAttribute;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::netlink::message::{Body, Frames};
use crate::{Error, KernelError, Result, sys};

/// `RTNLGRP_NSID`.
const GROUP_NSID: u32 = 28;
/// Receive buffer asked for: room for the events of some thousand devices
/// that come and go at once.
const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// Largest event datagram; one object each, a link with statistics is 2 KiB.
const DATAGRAM_LEN_MAX: usize = 64 * 1024;

/// Opens an event socket for `groups` in the calling thread's namespace.
fn listen(groups: &[u32], all: bool, buffer_bytes: usize) -> Result<netlink_sys::Socket> {
    let open = || -> std::io::Result<netlink_sys::Socket> {
        let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
        socket.bind_auto()?;
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, buffer_bytes).is_err() {
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, buffer_bytes)?;
        }
        if all {
            socket.set_listen_all_namespaces(true)?;
        }
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(socket)
    };
    open().map_err(|error| Error::Kernel {
        step: "open event socket".into(),
        kernel: KernelError::new(error.raw_os_error().unwrap_or(libc::EIO)),
    })
}

/// Waits until `socket` is readable; false when the time is up.
fn wait_readable(socket: impl AsFd, timeout: Option<Duration>) -> Result<bool> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match poll(&mut [PollFd::new(&socket, PollFlags::IN)], timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(Error::Kernel { step: "wait for events".into(), kernel: errno.into() }),
    }
}

/// Watches for the end of namespaces.
pub(crate) struct Deaths {
    socket: netlink_sys::Socket,
    buf: Vec<u8>,
}

impl Deaths {
    /// Starts watching; call before the namespace can end.
    pub(crate) fn watch() -> Result<Self> {
        let socket = listen(&[GROUP_NSID], false, RECEIVE_BUFFER_BYTES)?;
        Ok(Self { socket, buf: vec![0; DATAGRAM_LEN_MAX] })
    }

    /// Waits until all namespaces of `nsids` ended or the time is up; answers
    /// with those that ended.
    pub(crate) fn wait(
        &mut self,
        mut nsids: BTreeSet<i32>,
        timeout: Duration,
    ) -> Result<BTreeSet<i32>> {
        let deadline = Instant::now() + timeout;
        let mut gone = BTreeSet::new();
        while !nsids.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !wait_readable(&self.socket, Some(left))? {
                break;
            }
            let len = match sys::recv_tagged(&self.socket, &mut self.buf) {
                Ok(tagged) => tagged.len,
                // Lost events are deaths nobody will hear of: the deadline ends the wait.
                Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => continue,
                Err(errno) => {
                    let step = "wait for the end of namespaces".into();
                    return Err(Error::Kernel { step, kernel: errno.into() });
                }
            };
            for id in ended(self.buf.get(..len).unwrap_or_default()) {
                if nsids.remove(&id) {
                    gone.insert(id);
                }
            }
        }
        Ok(gone)
    }
}

/// Ids of the namespaces whose end `datagram` reports.
fn ended(datagram: &[u8]) -> impl Iterator<Item = i32> {
    Frames::new(datagram).filter_map(|frame| {
        let Body::Message(message) = frame.ok()?.body().ok()? else {
            return None;
        };
        let RouteNetlinkMessage::DelNsId(message) = *message else {
            return None;
        };
        message.attributes.iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) => Some(*id),
            _ => None,
        })
    })
}
