//! Letting clients in that name the socket's path as the host of their calls.
//!
//! gRPC clients send an `:authority` with every call. Over a unix socket some send what they were
//! told to dial: `unix:///run/…` (grpc-go before 1.34, hence docker 20.10) or the percent-encoded
//! path (clients built on gRPC's C library). Neither is a valid host, and the HTTP/2 library
//! answers such calls with a protocol error before anybody sees them. The name means nothing to
//! this daemon, so [`Lenient`] replaces its offending bytes on the way in.
//!
//! The replacement has the same length as the original. That keeps the header compression of both
//! ends in step: entries of the dynamic table are counted by length, so later calls that refer to
//! the entry, and the moment at which it is evicted, are the same for client and server.
//!
//! A connection whose first call has a valid name is never looked at again; it costs nothing but
//! that one look.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tonic::transport::server::{Connected, UdsConnectInfo};

use super::huffman;

/// A connection on which any `:authority` is accepted.
#[derive(Debug)]
pub struct Lenient {
    stream: UnixStream,
    filter: Filter,
    /// Filtered bytes that the reader has not taken yet.
    ready: Vec<u8>,
    taken: usize,
    /// The place of the connection among those that may be open.
    _place: Option<OwnedSemaphorePermit>,
}

impl Lenient {
    /// Wraps a connection before anything was read from it.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, filter: Filter::default(), ready: Vec::new(), taken: 0, _place: None }
    }

    /// The same, holding `place` for as long as the connection is open.
    #[must_use]
    pub fn holding(mut self, place: OwnedSemaphorePermit) -> Self {
        self._place = Some(place);
        self
    }
}

impl AsyncRead for Lenient {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.taken < this.ready.len() {
                let length = buf.remaining().min(this.ready.len() - this.taken);
                buf.put_slice(&this.ready[this.taken..this.taken + length]);
                this.taken += length;
                return Poll::Ready(Ok(()));
            }
            if this.filter.is_done() {
                return Pin::new(&mut this.stream).poll_read(cx, buf);
            }
            let mut chunk = [0; CHUNK_BYTES];
            let mut input = ReadBuf::new(&mut chunk);
            std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, &mut input))?;
            if input.filled().is_empty() {
                // The end. A frame cut short stays cut short.
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.taken = 0;
            this.filter.feed(input.filled(), &mut this.ready);
        }
    }
}

impl AsyncWrite for Lenient {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Lenient {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

/// What the filter expects next.
#[derive(Debug)]
enum Filter {
    /// This many bytes of the connection preface.
    Preface(usize),
    /// The head of a frame, of which this much is here.
    Head(Vec<u8>),
    /// This many bytes of a frame that does not matter.
    Payload(usize),
    /// The rest of a frame of headers: head, payload so far, and how much is missing.
    Headers { frame: Vec<u8>, missing: usize },
    /// Nothing: the client needs no help.
    Done,
}

impl Default for Filter {
    fn default() -> Self {
        Self::Preface(0)
    }
}

impl Filter {
    fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Appends to `out` what the reader shall see of `input`.
    fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            match self {
                Self::Preface(seen) => {
                    let length = input.len().min(PREFACE.len() - *seen);
                    let (bytes, rest) = input.split_at(length);
                    out.extend_from_slice(bytes);
                    input = rest;
                    if bytes != &PREFACE[*seen..*seen + length] {
                        *self = Self::Done;
                    } else if *seen + length == PREFACE.len() {
                        *self = Self::Head(Vec::with_capacity(HEAD_BYTES));
                    } else {
                        *seen += length;
                    }
                }
                Self::Head(head) => {
                    let length = input.len().min(HEAD_BYTES - head.len());
                    head.extend_from_slice(&input[..length]);
                    input = &input[length..];
                    if head.len() == HEAD_BYTES {
                        *self = after_head(std::mem::take(head), out);
                    }
                }
                Self::Payload(left) => {
                    let length = input.len().min(*left);
                    out.extend_from_slice(&input[..length]);
                    input = &input[length..];
                    *left -= length;
                    if *left == 0 {
                        *self = Self::Head(Vec::with_capacity(HEAD_BYTES));
                    }
                }
                Self::Headers { frame, missing } => {
                    let length = input.len().min(*missing);
                    frame.extend_from_slice(&input[..length]);
                    input = &input[length..];
                    *missing -= length;
                    if *missing == 0 {
                        *self = after_headers(std::mem::take(frame), out);
                    }
                }
                Self::Done => {
                    out.extend_from_slice(input);
                    return;
                }
            }
        }
    }
}

fn after_head(head: Vec<u8>, out: &mut Vec<u8>) -> Filter {
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    if head[3] == HEADERS && length > 0 && length <= FRAME_BYTES_MAX {
        return Filter::Headers { frame: head, missing: length };
    }
    out.extend_from_slice(&head);
    match length {
        0 => Filter::Head(Vec::with_capacity(HEAD_BYTES)),
        length => Filter::Payload(length),
    }
}

fn after_headers(frame: Vec<u8>, out: &mut Vec<u8>) -> Filter {
    match repair(&frame) {
        Some(repaired) => {
            out.extend_from_slice(&repaired);
            Filter::Head(Vec::with_capacity(HEAD_BYTES))
        }
        // The first call tells: every call of a connection names the same host.
        None => {
            out.extend_from_slice(&frame);
            Filter::Done
        }
    }
}

/// The frame with a valid `:authority`, or without changes when the name stands in the table;
/// `None` when there is nothing to repair or the frame is none that a client sends.
fn repair(frame: &[u8]) -> Option<Vec<u8>> {
    let (head, payload) = frame.split_at_checked(HEAD_BYTES)?;
    let flags = head[4];
    if flags & END_HEADERS == 0 {
        return None;
    }
    let (padding, rest) = match flags & PADDED {
        0 => (0, payload),
        _ => (usize::from(*payload.first()?), &payload[1..]),
    };
    let priority = if flags & PRIORITY == 0 { 0 } else { PRIORITY_BYTES };
    let block = rest.get(priority..rest.len().checked_sub(padding)?)?;
    let block = match repair_block(block)? {
        Repair::Changed(block) => block,
        Repair::Elsewhere => return Some(frame.to_vec()),
    };

    // Padding is dropped: it exists to hide lengths, and this socket hides nothing.
    let length = priority + block.len();
    if length > FRAME_BYTES_MAX {
        return None;
    }
    let length = u32::try_from(length).ok()?.to_be_bytes();
    let mut repaired = Vec::with_capacity(frame.len() + block.len());
    repaired.extend_from_slice(&[length[1], length[2], length[3], HEADERS, flags & !PADDED]);
    repaired.extend_from_slice(&head[5..]);
    repaired.extend_from_slice(&rest[..priority]);
    repaired.extend_from_slice(&block);
    Some(repaired)
}

enum Repair {
    /// The block with another name in it.
    Changed(Vec<u8>),
    /// The block refers to a name sent earlier.
    Elsewhere,
}

/// Walks the fields of a header block. `None`: the name is valid, or the block malformed.
fn repair_block(block: &[u8]) -> Option<Repair> {
    let mut rest = block;
    while let Some(&first) = rest.first() {
        let start = block.len() - rest.len();
        let prefix = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let index = integer(&mut rest, prefix)?;
        if first >= 0x80 || (0x20..0x40).contains(&first) {
            // A field from the table, or a new size of the table.
            continue;
        }
        let named = match index {
            0 => string(&mut rest)? == b":authority",
            index => index == AUTHORITY_INDEX,
        };
        let before_value = block.len() - rest.len();
        let value = string(&mut rest)?;
        if !named {
            continue;
        }
        if Authority::try_from(value.as_slice()).is_ok() {
            return None;
        }
        let mut repaired = block[..before_value].to_vec();
        debug_assert!(before_value > start, "a field has a name");
        put_integer(&mut repaired, 7, 0, value.len());
        repaired.extend(value.iter().map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' => *byte,
            _ => b'-',
        }));
        repaired.extend_from_slice(rest);
        return Some(Repair::Changed(repaired));
    }
    Some(Repair::Elsewhere)
}

/// Takes an integer whose first `prefix` bits share a byte with something else.
fn integer(rest: &mut &[u8], prefix: u32) -> Option<usize> {
    let mask = (1_usize << prefix) - 1;
    let (&first, behind) = rest.split_first()?;
    *rest = behind;
    let mut value = usize::from(first) & mask;
    if value < mask {
        return Some(value);
    }
    for shift in (0..INTEGER_BITS_MAX).step_by(7) {
        let (&byte, behind) = rest.split_first()?;
        *rest = behind;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_integer(out: &mut Vec<u8>, prefix: u32, flags: u8, mut value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        out.push(flags | u8::try_from(value).expect("smaller than the mask"));
        return;
    }
    out.push(flags | u8::try_from(mask).expect("at most eight bits"));
    value -= mask;
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f | 0x80).expect("eight bits"));
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("seven bits"));
}

/// Takes a string, decoded.
fn string(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let coded = rest.first()? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (bytes, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    if coded { huffman::decode(bytes) } else { Some(bytes.to_vec()) }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_BYTES: usize = 9;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;

/// Where `:authority` stands in the static table.
const AUTHORITY_INDEX: usize = 1;

/// Largest frame a client may send before the server allows more.
const FRAME_BYTES_MAX: usize = 16 << 10;

/// No length or index in a frame of this size needs more bits.
const INTEGER_BITS_MAX: u32 = 28;

/// What is read at a time while a connection is filtered: one frame.
const CHUNK_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(block: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, u8::try_from(block.len()).unwrap(), HEADERS, END_HEADERS];
        frame.extend_from_slice(&[0, 0, 0, 1]);
        frame.extend_from_slice(block);
        frame
    }

    fn block(authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x41];
        put_integer(&mut block, 7, 0, authority.len());
        block.extend_from_slice(authority);
        block.push(0x84);
        block
    }

    fn filtered(input: &[u8], step: usize) -> Vec<u8> {
        let (mut filter, mut out) = (Filter::default(), Vec::new());
        for chunk in input.chunks(step) {
            filter.feed(chunk, &mut out);
        }
        out
    }

    #[test]
    fn a_path_becomes_a_name_of_the_same_length() {
        let mut input = PREFACE.to_vec();
        input.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        let start = input.clone();
        input.extend(frame(&block(b"unix:///run/x.sock")));
        let mut expected = start;
        expected.extend(frame(&block(b"unix----run-x.sock")));
        for step in [1, 2, 7, 1000] {
            assert_eq!(filtered(&input, step), expected, "in chunks of {step}");
        }
    }

    #[test]
    fn a_percent_encoded_path_is_repaired_on_every_call() {
        let mut input = PREFACE.to_vec();
        let mut expected = input.clone();
        for _ in 0..3 {
            input.extend(frame(&block(b"%2Frun%2Fx")));
            expected.extend(frame(&block(b"-2Frun-2Fx")));
        }
        assert_eq!(filtered(&input, 11), expected);
    }

    #[test]
    fn valid_names_pass_unchanged_and_end_the_filter() {
        for name in [b"localhost".as_slice(), b"127.0.0.1:80", b"[::]:50051"] {
            let mut input = PREFACE.to_vec();
            input.extend(frame(&block(name)));
            let (mut filter, mut out) = (Filter::default(), Vec::new());
            filter.feed(&input, &mut out);
            assert_eq!(out, input);
            assert!(filter.is_done());
        }
    }

    #[test]
    fn padding_goes_and_priority_stays() {
        let inner = block(b"unix:///x");
        let mut payload = vec![3, 0, 0, 0, 0, 9];
        payload.extend_from_slice(&inner);
        payload.extend_from_slice(&[0; 3]);
        let mut padded = frame(&payload);
        padded[4] |= PADDED | PRIORITY;
        let repaired = repair(&padded).unwrap();
        assert_eq!(repaired[4], END_HEADERS | PRIORITY);
        assert_eq!(repaired[HEAD_BYTES..HEAD_BYTES + 5], [0, 0, 0, 0, 9]);
        assert_eq!(repaired[HEAD_BYTES + 5..], block(b"unix----x"));
    }

    proptest! {
        #[test]
        fn no_input_panics_and_none_gets_lost(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            step in 1_usize..50,
        ) {
            let mut input = PREFACE.to_vec();
            input.extend_from_slice(&bytes);
            let out = filtered(&input, step);
            prop_assert!(out.starts_with(PREFACE));
            prop_assert_eq!(out, filtered(&input, input.len()));
        }

        #[test]
        fn integers_read_back(value in 0_usize..1 << 20, prefix in 4_u32..=7) {
            let mut bytes = Vec::new();
            put_integer(&mut bytes, prefix, 0, value);
            prop_assert_eq!(integer(&mut bytes.as_slice(), prefix), Some(value));
        }
    }
}
