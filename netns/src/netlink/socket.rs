//! A blocking rtnetlink socket: requests, batches and whole dumps.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;

use super::message::{Body, Frames, Malformed, encode};
use crate::error::Step;
use crate::{Error, KernelError, Result, sys};

/// How long the kernel may take for one answer. RTNL may be held by somebody
/// deleting many devices; ten seconds is far above what that takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest datagram read. The kernel sends dumps in pieces of at most 32 KiB.
const DATAGRAM_LEN_MAX: usize = 64 * 1024;
/// Attempts to read a table that changes meanwhile.
const DUMP_ATTEMPTS_MAX: usize = 5;
/// Requests sent at once; their acknowledgements must fit the default receive
/// buffer of 208 KiB, where each takes about 1 KiB.
const BATCH_LEN_MAX: usize = 64;

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;

/// One change to ask for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) message: RouteNetlinkMessage,
    pub(crate) flags: u16,
    pub(crate) step: Step,
}

/// A socket in the namespace it was opened in, wherever its thread goes.
pub(crate) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buf: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self> {
        let open = || -> std::io::Result<netlink_sys::Socket> {
            let mut inner = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
            inner.bind_auto()?;
            inner.set_ext_ack(true)?;
            inner.set_cap_ack(true)?;
            inner.set_netlink_get_strict_chk(true)?;
            for side in [rustix::net::sockopt::Timeout::Recv, rustix::net::sockopt::Timeout::Send] {
                rustix::net::sockopt::set_socket_timeout(&inner, side, Some(ANSWER_TIMEOUT))?;
            }
            Ok(inner)
        };
        let inner = open().map_err(|error| failed("open netlink socket", &error))?;
        Ok(Self { inner, sequence: 0, buf: vec![0; DATAGRAM_LEN_MAX] })
    }

    /// The cookie of the namespace the socket is in.
    pub(crate) fn cookie(&self) -> Result<u64> {
        sys::netns_cookie(&self.inner).map_err(|errno| Error::Kernel {
            step: "read namespace cookie".into(),
            kernel: errno.into(),
        })
    }

    /// Carries out one change.
    pub(crate) fn change(&mut self, request: Request) -> Result<()> {
        let step = request.step.clone();
        let mut outcomes = self.batch(std::slice::from_ref(&request))?;
        match outcomes.pop().flatten() {
            Some(kernel) => Err(step.error(kernel)),
            None => Ok(()),
        }
    }

    /// Sends all changes, then collects one answer each, in order. A refused
    /// change does not keep the kernel from carrying out those behind it.
    pub(crate) fn batch(&mut self, requests: &[Request]) -> Result<Vec<Option<KernelError>>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(BATCH_LEN_MAX) {
            let first = self.sequence.wrapping_add(1);
            let mut out = Vec::with_capacity(256 * chunk.len());
            for request in chunk {
                self.sequence = self.sequence.wrapping_add(1);
                encode(&request.message, REQUEST | ACK | request.flags, self.sequence, &mut out);
            }
            let step = chunk[0].step.text();
            self.send(&out, &step)?;
            let mut answers = vec![None; chunk.len()];
            let mut missing = chunk.len();
            while missing > 0 {
                self.receive(&step, |sequence, body, _| {
                    let place = sequence.wrapping_sub(first) as usize;
                    let Body::Ack(outcome) = body else { return Ok(()) };
                    if let Some(answer @ None) = answers.get_mut(place) {
                        *answer = Some(outcome);
                        missing -= 1;
                    }
                    Ok(())
                })?;
            }
            outcomes.extend(answers.into_iter().flatten());
        }
        Ok(outcomes)
    }

    /// Asks for one object.
    pub(crate) fn one(
        &mut self,
        message: RouteNetlinkMessage,
        step: &Step,
    ) -> Result<RouteNetlinkMessage> {
        self.sequence = self.sequence.wrapping_add(1);
        let (mut found, mut outcome, wanted) = (None, None, self.sequence);
        let mut out = Vec::with_capacity(128);
        encode(&message, REQUEST | ACK, wanted, &mut out);
        let text = step.text();
        self.send(&out, &text)?;
        while outcome.is_none() {
            self.receive(&text, |sequence, body, _| {
                match body {
                    Body::Ack(ack) if sequence == wanted => outcome = Some(ack),
                    Body::Message(message) if sequence == wanted => found = Some(*message),
                    _ => {}
                }
                Ok(())
            })?;
        }
        match (outcome.flatten(), found) {
            (Some(kernel), _) => Err(step.error(kernel)),
            (None, Some(found)) => Ok(found),
            (None, None) => Err(Error::not_found(step.object.clone())),
        }
    }

    /// Reads a whole table, again when it changed meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] when it changed during every attempt.
    pub(crate) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
        step: &Step,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS_MAX {
            if let Some(objects) = self.dump_once(message, step)? {
                return Ok(objects);
            }
        }
        Err(Error::Interrupted { step: step.text() })
    }

    fn dump_once(
        &mut self,
        message: &RouteNetlinkMessage,
        step: &Step,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let wanted = self.sequence;
        let mut out = Vec::with_capacity(128);
        encode(message, REQUEST | DUMP, wanted, &mut out);
        let text = step.text();
        self.send(&out, &text)?;
        let (mut objects, mut end, mut torn) = (Vec::new(), None, false);
        while end.is_none() {
            self.receive(&text, |sequence, body, interrupted| {
                if sequence != wanted {
                    return Ok(());
                }
                torn |= interrupted;
                match body {
                    Body::Message(message) => objects.push(*message),
                    Body::Done(status) | Body::Ack(status) => end = Some(status),
                    Body::Overrun => torn = true,
                    _ => {}
                }
                Ok(())
            })?;
        }
        match end.flatten() {
            Some(kernel) if kernel.errno == libc::EINTR => Ok(None),
            Some(kernel) => Err(step.error(kernel)),
            None => Ok((!torn).then_some(objects)),
        }
    }

    fn send(&mut self, bytes: &[u8], step: &str) -> Result<()> {
        loop {
            match self.inner.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(step, &error)),
            }
        }
    }

    /// Reads one datagram and hands each of its frames to `each`.
    fn receive(
        &mut self,
        step: &str,
        mut each: impl FnMut(u32, Body, bool) -> Result<(), Malformed>,
    ) -> Result<()> {
        let len = loop {
            match self.inner.recv(&mut self.buf.as_mut_slice(), libc::MSG_TRUNC) {
                Ok(len) => break len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(step, &error)),
            }
        };
        let malformed = |Malformed(reason)| Error::Malformed { step: step.to_owned(), reason };
        let Some(datagram) = self.buf.get(..len) else {
            return Err(malformed(Malformed(format!("datagram of {len} bytes was cut"))));
        };
        for frame in Frames::new(datagram) {
            let frame = frame.map_err(malformed)?;
            let body = frame.body().map_err(malformed)?;
            each(frame.sequence, body, frame.interrupted()).map_err(malformed)?;
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

fn failed(step: &str, error: &std::io::Error) -> Error {
    let step = step.to_owned();
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Error::TimedOut { step },
        Some(errno @ (libc::EPERM | libc::EACCES)) => Error::Permission {
            step,
            needs: "CAP_NET_ADMIN",
            kernel: Some(KernelError::new(errno)),
        },
        errno => Error::Kernel { step, kernel: KernelError::new(errno.unwrap_or(libc::EIO)) },
    }
}
