//! What happens in all namespaces, through one socket in the home namespace.
//!
//! The kernel tags each event with the id its namespace has in the home one.
//! [`crate::NetnsRoot`] gives every namespace it pins such an id; the monitor
//! turns ids back into names. Namespaces without an id are not heard of.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::netlink::Lane;
use crate::netlink::message::{Body, Frames};
use crate::root::Inner;
use crate::session::nsid_of;
use crate::{Addr, Error, KernelError, Link, NetnsName, NetnsRoot, Result, Route, link, sys};

/// `RTNLGRP_NSID`.
const GROUP_NSID: u32 = 28;
/// Links, addresses and routes of both families, namespaces: `RTNLGRP_*`.
const GROUPS: [u32; 6] = [1, 5, 7, 9, 11, GROUP_NSID];
/// Receive buffer asked for: room for the events of some thousand devices
/// that come and go at once.
const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// Largest event datagram; one object each, a link with statistics is 2 KiB.
const DATAGRAM_LEN_MAX: usize = 64 * 1024;

/// The namespace an event comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The home namespace.
    Host,
    /// A namespace pinned in the root.
    Pinned(NetnsName),
    /// Another namespace with this id in the home namespace: somebody else's,
    /// or one whose pin is gone already.
    Other(i32),
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Where.
    pub origin: Origin,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are what each variant is about")]
pub enum EventKind {
    /// A link was made or moved in. Its addresses, routes and limits are not
    /// filled in.
    LinkNew(Box<Link>),
    /// A link changed.
    LinkChanged(Box<Link>),
    /// A link was removed or moved away.
    LinkGone { ifindex: u32, link: Box<Link> },
    /// An address was added or changed.
    AddrAdded { ifindex: u32, addr: Addr },
    /// An address was removed.
    AddrRemoved { ifindex: u32, addr: Addr },
    /// A route was added or changed; its link is given by index.
    RouteAdded { ifindex: Option<u32>, route: Route },
    /// A route was removed.
    RouteRemoved { ifindex: Option<u32>, route: Route },
    /// A namespace got its id.
    NetnsNew,
    /// A namespace and all that was in it is gone.
    NetnsGone,
    /// Events were lost: read everything again. Events that follow are newer
    /// than this one.
    Overrun,
}

/// Listens to all namespaces of a root. Holds one socket, which keeps no
/// namespace alive.
///
/// Names are found when events are read: a reader that comes after a namespace
/// is gone sees [`Origin::Other`]. Read all the time, on a thread of its own.
///
/// To miss nothing, open the monitor first and list afterwards: whatever
/// changes in between is reported.
pub struct Monitor {
    inner: Arc<Inner>,
    socket: netlink_sys::Socket,
    names: HashMap<i32, Option<NetnsName>>,
    pending: VecDeque<Event>,
    buf: Vec<u8>,
}

impl Monitor {
    /// Starts listening.
    pub fn open(root: &NetnsRoot) -> Result<Self> {
        Self::with_buffer(root, RECEIVE_BUFFER_BYTES)
    }

    /// Starts listening with a receive buffer of about this size. What does not
    /// fit while nobody reads is lost and reported as [`EventKind::Overrun`].
    pub fn with_buffer(root: &NetnsRoot, bytes: usize) -> Result<Self> {
        let socket =
            root.inner.job(Lane::Read, "open monitor", move |_| listen(&GROUPS, true, bytes))?;
        Ok(Self {
            inner: Arc::clone(&root.inner),
            socket,
            names: HashMap::new(),
            pending: VecDeque::new(),
            buf: vec![0; DATAGRAM_LEN_MAX],
        })
    }

    /// The next event, waiting for it for at most `timeout`, or for ever.
    /// `None` when the time is up.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<Event>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if !wait_readable(&self.socket, left)? {
                return Ok(None);
            }
            self.receive()?;
            if self.pending.is_empty() && left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
        }
    }

    /// Reads one datagram into the queue.
    fn receive(&mut self) -> Result<()> {
        let tagged = match sys::recv_tagged(&self.socket, &mut self.buf) {
            Ok(tagged) => tagged,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(Errno::NOBUFS) => {
                // Ids may have changed hands among what was lost.
                self.names.clear();
                self.pending.push_back(Event { origin: Origin::Host, kind: EventKind::Overrun });
                return Ok(());
            }
            Err(errno) => {
                let step = "read events".into();
                return Err(Error::Kernel { step, kernel: errno.into() });
            }
        };
        let Some(datagram) = self.buf.get(..tagged.len) else {
            self.pending.push_back(Event { origin: Origin::Host, kind: EventKind::Overrun });
            return Ok(());
        };
        let mut messages = Vec::new();
        for frame in Frames::new(datagram).map_while(Result::ok) {
            if let Ok(Body::Message(message)) = frame.body() {
                messages.push(*message);
            }
        }
        for message in messages {
            self.digest(&message, tagged.nsid)?;
        }
        Ok(())
    }

    fn digest(&mut self, message: &RouteNetlinkMessage, nsid: Option<i32>) -> Result<()> {
        let (nsid, kind) = match message {
            RouteNetlinkMessage::NewNsId(message) => {
                let id = id_of(message);
                // The id may have been another namespace's before.
                id.map(|id| self.names.remove(&id));
                (id, EventKind::NetnsNew)
            }
            RouteNetlinkMessage::DelNsId(message) => (id_of(message), EventKind::NetnsGone),
            other => match translate(other) {
                Some(kind) => (nsid, kind),
                None => return Ok(()),
            },
        };
        let origin = match nsid {
            None => Origin::Host,
            Some(id) => self.origin(id)?,
        };
        if let (EventKind::NetnsGone, Some(id)) = (&kind, nsid) {
            self.names.remove(&id);
        }
        self.pending.push_back(Event { origin, kind });
        Ok(())
    }

    /// The name behind an id, from all pins when it was not heard of before.
    fn origin(&mut self, id: i32) -> Result<Origin> {
        if !self.names.contains_key(&id) {
            let known: BTreeSet<NetnsName> = self.names.values().flatten().cloned().collect();
            let found = self.inner.job(Lane::Read, "name namespaces", move |session| {
                let mut found = Vec::new();
                for name in session.inner.names()?.difference(&known) {
                    let Ok(Ok(fd)) = session.inner.open_pin(name) else { continue };
                    let home = session.socket(&crate::namespace::At::Home)?;
                    if let Some(id) = nsid_of(home, fd.as_raw_fd())? {
                        found.push((id, Some(name.clone())));
                    }
                }
                Ok(found)
            })?;
            self.names.extend(found);
            self.names.entry(id).or_insert(None);
        }
        Ok(match self.names.get(&id) {
            Some(Some(name)) => Origin::Pinned(name.clone()),
            _ => Origin::Other(id),
        })
    }
}

impl AsFd for Monitor {
    /// Readable when [`Monitor::wait`] has something to read. Drain with a
    /// timeout of zero until it answers `None`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

fn translate(message: &RouteNetlinkMessage) -> Option<EventKind> {
    Some(match message {
        RouteNetlinkMessage::NewLink(message) => {
            let link = own_link(message)?;
            // The kernel marks the first notice of a device by "all changed".
            match message.header.change_mask.bits() {
                u32::MAX => EventKind::LinkNew(link),
                _ => EventKind::LinkChanged(link),
            }
        }
        RouteNetlinkMessage::DelLink(message) => {
            EventKind::LinkGone { ifindex: message.header.index, link: own_link(message)? }
        }
        RouteNetlinkMessage::NewAddress(message) => {
            let (ifindex, addr) = Addr::read(message)?;
            EventKind::AddrAdded { ifindex, addr }
        }
        RouteNetlinkMessage::DelAddress(message) => {
            let (ifindex, addr) = Addr::read(message)?;
            EventKind::AddrRemoved { ifindex, addr }
        }
        RouteNetlinkMessage::NewRoute(message) => {
            EventKind::RouteAdded { ifindex: out_index(message), route: read_route(message)? }
        }
        RouteNetlinkMessage::DelRoute(message) => {
            EventKind::RouteRemoved { ifindex: out_index(message), route: read_route(message)? }
        }
        _ => return None,
    })
}

/// The link, unless the message is a bridge's about one of its ports.
fn own_link(message: &netlink_packet_route::link::LinkMessage) -> Option<Box<Link>> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    Some(Box::new(link::decode(message)?))
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    Route::read(message, |_| None)
}

fn out_index(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn id_of(message: &NsidMessage) -> Option<i32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
        _ => None,
    })
}

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
