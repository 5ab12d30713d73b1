//! The frames netlink datagrams consist of. Pure: bytes in, values out.

use netlink_packet_core::{NetlinkSerializable, NlasIterator, ParseableParametrized};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkHeader, LinkMessage};

use crate::KernelError;

/// Bytes of a frame's header.
const HEADER_LEN: usize = 16;
/// Bytes of an error frame's body before its attributes, when the kernel cut
/// the original request off: an error number and the request's header.
const ERROR_LEN: usize = 4 + HEADER_LEN;
/// Frame types below this are control messages.
const CONTROL_MIN: u16 = 16;
/// `NLMSGERR_ATTR_MSG`: the extended acknowledgement text.
const EXT_ACK_TEXT: u16 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_SETLINK: u16 = 19;

/// Bytes that are not a netlink datagram.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// One message of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Message type, `NLMSG_*` or `RTM_*`.
    pub kind: u16,
    /// `NLM_F_*` flags.
    pub flags: u16,
    /// Sequence number of the request this answers, 0 for events.
    pub sequence: u32,
    /// The bytes after the header.
    pub payload: &'a [u8],
}

/// What a frame means to whoever waits for an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Body {
    /// The request was carried out (`None`) or refused.
    Ack(Option<KernelError>),
    /// The end of a dump, with the error that ended it early if any.
    Done(Option<KernelError>),
    /// The kernel dropped messages for want of room.
    Overrun,
    /// An object.
    Message(Box<RouteNetlinkMessage>),
    /// A message type this crate has no use for.
    Ignored,
}

/// Iterates over the frames of a datagram; ends after the first malformed one.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// Frames of `datagram`.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some(header) = self.rest.first_chunk::<HEADER_LEN>() else {
            let left = std::mem::take(&mut self.rest).len();
            return Some(Err(Malformed(format!("{left} bytes are too few for a header"))));
        };
        let len = u32_at(header, 0) as usize;
        if len < HEADER_LEN || len > self.rest.len() {
            let left = std::mem::take(&mut self.rest).len();
            return Some(Err(Malformed(format!("frame of {len} bytes in {left} left"))));
        }
        let frame = Frame {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32_at(header, 8),
            payload: &self.rest[HEADER_LEN..len],
        };
        self.rest = &self.rest[align(len).min(self.rest.len())..];
        Some(Ok(frame))
    }
}

impl Frame<'_> {
    /// True when the kernel's table changed during the dump this belongs to.
    pub fn interrupted(&self) -> bool {
        self.flags & libc::NLM_F_DUMP_INTR as u16 != 0
    }

    /// Reads the payload.
    ///
    /// A link is read attribute by attribute and unknown or odd ones are left
    /// out, so that a newer kernel's additions never hide a device.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when even the fixed part cannot be read.
    pub fn body(&self) -> Result<Body, Malformed> {
        match i32::from(self.kind) {
            libc::NLMSG_ERROR => return self.status().map(Body::Ack),
            libc::NLMSG_DONE => return self.status().map(Body::Done),
            libc::NLMSG_OVERRUN => return Ok(Body::Overrun),
            _ if self.kind < CONTROL_MIN => return Ok(Body::Ignored),
            _ => {}
        }
        if (RTM_NEWLINK..=RTM_SETLINK).contains(&self.kind) {
            let link = parse_link(self.payload)?;
            return Ok(Body::Message(Box::new(match self.kind {
                RTM_NEWLINK => RouteNetlinkMessage::NewLink(link),
                RTM_SETLINK => RouteNetlinkMessage::SetLink(link),
                17 => RouteNetlinkMessage::DelLink(link),
                _ => RouteNetlinkMessage::GetLink(link),
            })));
        }
        if !matches!(self.kind, 20..=46 | 88..=90) {
            return Ok(Body::Ignored);
        }
        RouteNetlinkMessage::parse_with_param(self.payload, self.kind)
            .map(|message| Body::Message(Box::new(message)))
            .map_err(|error| Malformed(format!("message type {}: {error}", self.kind)))
    }

    /// The error number of an acknowledgement or dump end, with its text.
    fn status(&self) -> Result<Option<KernelError>, Malformed> {
        let Some(code) = self.payload.first_chunk::<4>() else {
            // A dump may end without a status.
            return match i32::from(self.kind) {
                libc::NLMSG_DONE => Ok(None),
                _ => Err(Malformed("acknowledgement without error number".into())),
            };
        };
        let errno = i32::from_ne_bytes(*code).saturating_neg();
        if errno <= 0 {
            return Ok(None);
        }
        Ok(Some(KernelError { errno, message: self.extended_text() }))
    }

    fn extended_text(&self) -> Option<String> {
        if self.flags & libc::NLM_F_ACK_TLVS as u16 == 0 {
            return None;
        }
        let start = match i32::from(self.kind) {
            libc::NLMSG_DONE => 4,
            _ if self.flags & libc::NLM_F_CAPPED as u16 != 0 => ERROR_LEN,
            // The whole request is quoted; its length is in its header.
            _ => align(u32_at(self.payload.get(4..8)?, 0) as usize).checked_add(4)?,
        };
        let text = NlasIterator::new(self.payload.get(start..)?)
            .map_while(Result::ok)
            .find(|attribute| attribute.kind() == EXT_ACK_TEXT)?;
        let bytes = text.value();
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

/// Appends `message` to `out` as one frame, padded to the netlink alignment.
pub fn encode(message: &RouteNetlinkMessage, flags: u16, sequence: u32, out: &mut Vec<u8>) {
    let start = out.len();
    let len = HEADER_LEN + NetlinkSerializable::buffer_len(message);
    out.resize(start + align(len), 0);
    let frame = &mut out[start..];
    frame[0..4].copy_from_slice(&(len as u32).to_ne_bytes());
    frame[4..6].copy_from_slice(&message.message_type().to_ne_bytes());
    frame[6..8].copy_from_slice(&flags.to_ne_bytes());
    frame[8..12].copy_from_slice(&sequence.to_ne_bytes());
    message.serialize(&mut frame[HEADER_LEN..len]);
}

/// Wraps encoded attributes into one attribute of type `kind`.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut bytes = Vec::with_capacity(align(len));
    bytes.extend_from_slice(&(len as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(align(len), 0);
    bytes
}

fn parse_link(payload: &[u8]) -> Result<LinkMessage, Malformed> {
    let mut link = LinkMessage::default();
    link.header = LinkHeader::parse(payload).map_err(|error| Malformed(error.to_string()))?;
    let family = link.header.interface_family;
    link.attributes = NlasIterator::new(&payload[HEADER_LEN..])
        .map_while(Result::ok)
        .filter_map(|attribute| LinkAttribute::parse_with_param(&attribute, family).ok())
        .collect();
    Ok(link)
}

fn align(len: usize) -> usize {
    len.saturating_add(3) & !3
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkFlags};
    use proptest::prelude::*;

    use super::*;

    /// A frame around a payload.
    fn frame(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_LEN + payload.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    fn body(bytes: &[u8]) -> Body {
        Frames::new(bytes).next().unwrap().unwrap().body().unwrap()
    }

    fn refusal(errno: i32, quoted: &[u8]) -> Vec<u8> {
        let mut payload = (-errno).to_ne_bytes().to_vec();
        payload.extend(((HEADER_LEN + quoted.len()) as u32).to_ne_bytes());
        payload.extend([0; HEADER_LEN - 4]);
        payload.extend(quoted);
        payload
    }

    const TLVS: u16 = libc::NLM_F_ACK_TLVS as u16;
    const CAPPED: u16 = libc::NLM_F_CAPPED as u16;

    #[test]
    fn acknowledgement_text_is_found_behind_capped_and_quoted_requests() {
        let text = attribute(EXT_ACK_TEXT, b"Unknown device type\0");
        for (flags, quoted) in [(TLVS | CAPPED, &[][..]), (TLVS, &[1, 2, 3, 4, 5, 6, 7, 8])] {
            let mut payload = refusal(libc::EOPNOTSUPP, quoted);
            payload.extend(attribute(2, &4_u32.to_ne_bytes()));
            payload.extend(&text);
            let message = Some("Unknown device type".into());
            let expected = KernelError { errno: libc::EOPNOTSUPP, message };
            assert_eq!(body(&frame(2, flags, &payload)), Body::Ack(Some(expected)));
        }
        let plain = frame(2, CAPPED, &refusal(libc::EEXIST, &[]));
        assert_eq!(body(&plain), Body::Ack(Some(KernelError::new(libc::EEXIST))));
        assert_eq!(body(&frame(2, CAPPED, &refusal(0, &[]))), Body::Ack(None));
    }

    #[test]
    fn several_frames_of_one_datagram_are_read_in_order() {
        let mut bytes = frame(2, 0, &refusal(0, &[]));
        bytes.extend(frame(1, 0, &[]));
        bytes.extend(frame(4, 0, &[]));
        bytes.extend(frame(3, 0, &0_i32.to_ne_bytes()));
        let bodies: Vec<_> =
            Frames::new(&bytes).map(|frame| frame.unwrap().body().unwrap()).collect();
        assert_eq!(bodies, [Body::Ack(None), Body::Ignored, Body::Overrun, Body::Done(None)]);
    }

    #[test]
    fn lengths_that_lie_end_the_iteration_with_an_error() {
        for len in [0_u32, 15, 17 + 16, u32::MAX] {
            let mut bytes = frame(3, 0, &[]);
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            let mut frames = Frames::new(&bytes);
            assert!(frames.next().unwrap().is_err(), "{len}");
            assert!(frames.next().is_none());
        }
        assert!(Frames::new(&[1, 2, 3]).next().unwrap().is_err());
    }

    #[test]
    fn odd_attribute_of_a_link_is_left_out_and_the_rest_kept() {
        let mut payload = vec![0; 16];
        payload[4] = 9;
        // An MTU of one byte, a name, and a length beyond the end.
        payload.extend(attribute(4, &[1]));
        payload.extend(attribute(3, b"eth0\0"));
        payload.extend([0xff, 0xff, 1, 0]);
        let Body::Message(message) = body(&frame(RTM_NEWLINK, 0, &payload)) else { panic!() };
        let RouteNetlinkMessage::NewLink(link) = *message else { panic!() };
        assert_eq!(link.header.index, 9);
        assert_eq!(link.attributes, [LinkAttribute::IfName("eth0".into())]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for frame in Frames::new(&bytes).map_while(Result::ok) {
                let _ = frame.body();
            }
        }

        #[test]
        fn arbitrary_payloads_of_known_types_never_panic(
            kind in 0_u16..120,
            flags in any::<u16>(),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            for frame in Frames::new(&frame(kind, flags, &payload)).map_while(Result::ok) {
                let _ = frame.body();
            }
        }

        #[test]
        fn link_survives_the_way_there_and_back(
            index in any::<u32>(),
            mtu in any::<u32>(),
            name in "[a-z][a-z0-9]{0,14}",
            flags in any::<u16>(),
            sequence in any::<u32>(),
        ) {
            let mut link = LinkMessage::default();
            link.header.index = index;
            link.header.flags = LinkFlags::Up;
            link.attributes = vec![LinkAttribute::IfName(name), LinkAttribute::Mtu(mtu)];
            let message = RouteNetlinkMessage::NewLink(link);
            let mut bytes = Vec::new();
            encode(&message, flags, sequence, &mut bytes);
            encode(&message, flags, sequence, &mut bytes);
            prop_assert_eq!(bytes.len() % 4, 0);
            let frames: Vec<_> = Frames::new(&bytes).map(Result::unwrap).collect();
            prop_assert_eq!(frames.len(), 2);
            for frame in frames {
                prop_assert_eq!((frame.flags, frame.sequence), (flags, sequence));
                prop_assert_eq!(frame.body().unwrap(), Body::Message(Box::new(message.clone())));
            }
        }
    }
}
