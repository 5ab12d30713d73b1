//! What one job works with: the namespaces it touches, opened once each and
//! closed when the job ends.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use crate::error::{Step, Subject};
use crate::namespace::At;
use crate::netlink::Request;
use crate::netlink::{Hopper, Socket, own_netns};
use crate::root::Inner;
use crate::{Error, NetnsName, PinState, Place, Result};

pub(crate) struct Session<'h> {
    pub(crate) inner: Arc<Inner>,
    hopper: &'h mut Hopper,
    visits: Vec<Visit>,
}

struct Visit {
    at: At,
    fd: OwnedFd,
    socket: Socket,
}

impl<'h> Session<'h> {
    pub(crate) fn new(inner: Arc<Inner>, hopper: &'h mut Hopper) -> Self {
        Self { inner, hopper, visits: Vec::new() }
    }

    /// The socket of a namespace, checked to be the one the handle names.
    pub(crate) fn socket(&mut self, at: &At) -> Result<&mut Socket> {
        let place = self.visit(at)?;
        Ok(&mut self.visits[place].socket)
    }

    /// The namespace `place` means within a description applied at `base`.
    pub(crate) fn resolve(&mut self, base: &At, place: &Place) -> Result<At> {
        match place {
            Place::Here => Ok(base.clone()),
            Place::Host => Ok(At::Home),
            Place::Named(name) => match base {
                At::Pin { name: own, .. } if own == name => Ok(base.clone()),
                _ => self.named(name),
            },
        }
    }

    fn named(&mut self, name: &NetnsName) -> Result<At> {
        match self.inner.look(name, self.hopper)? {
            PinState::Live(id) => Ok(At::Pin { name: name.clone(), id }),
            PinState::Missing => Err(Error::not_found(format!("namespace {name}"))),
            state => Err(Error::Stale { netns: name.to_string(), state }),
        }
    }

    /// An open descriptor of a namespace; valid until the session ends.
    pub(crate) fn fd(&mut self, at: &At) -> Result<RawFd> {
        let place = self.visit(at)?;
        Ok(self.visits[place].fd.as_raw_fd())
    }

    /// Runs `work` inside a namespace.
    pub(crate) fn inside<T>(&mut self, at: &At, work: impl FnOnce() -> T) -> Result<T> {
        let place = self.visit(at)?;
        self.hopper.visit(self.visits[place].fd.as_fd(), work)
    }

    /// Gives `of` an id in the home namespace, so that events can name it.
    pub(crate) fn ensure_nsid(&mut self, of: &At) -> Result<Option<i32>> {
        let fd = self.fd(of)?;
        let home = self.socket(&At::Home)?;
        assign_nsid(home, fd)?;
        nsid_of(home, fd)
    }

    fn visit(&mut self, at: &At) -> Result<usize> {
        if let Some(place) = self.visits.iter().position(|visit| visit.at == *at) {
            return Ok(place);
        }
        let (fd, socket) = match at {
            At::Home => (own_netns()?, self.hopper.home_socket()?),
            At::Pin { name, id } => {
                let stale = |state| Error::Stale { netns: name.to_string(), state };
                let fd = match self.inner.open_pin(name)? {
                    Ok(fd) => fd,
                    Err(PinState::Missing) => {
                        return Err(Error::not_found(format!("namespace {name}")));
                    }
                    Err(state) => return Err(stale(state)),
                };
                let socket = self.hopper.socket_in(fd.as_fd())?;
                if socket.cookie()? != id.cookie {
                    return Err(stale(PinState::Replaced));
                }
                (fd, socket)
            }
        };
        self.visits.push(Visit { at: at.clone(), fd, socket });
        Ok(self.visits.len() - 1)
    }
}

/// The id of the namespace `fd` is open on, as seen by `home`.
pub(crate) fn nsid_of(home: &mut Socket, fd: RawFd) -> Result<Option<i32>> {
    let step = Step::new(Subject::Nsid, "read", "namespace id");
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(fd as u32));
    let RouteNetlinkMessage::NewNsId(answer) =
        home.one(RouteNetlinkMessage::GetNsId(message), &step)?
    else {
        return Ok(None);
    };
    Ok(answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
        _ => None,
    }))
}

/// Gives the namespace `fd` is open on an id in `home`'s, unless it has one.
pub(crate) fn assign_nsid(home: &mut Socket, fd: RawFd) -> Result<()> {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(fd as u32));
    message.attributes.push(NsidAttribute::Id(-1));
    let request = Request {
        message: RouteNetlinkMessage::NewNsId(message),
        flags: 0,
        step: Step::new(Subject::Nsid, "assign", "namespace id"),
    };
    match home.change(request) {
        Ok(()) | Err(Error::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
