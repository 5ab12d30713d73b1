//! Limits of rate: token buckets, for both directions.
//!
//! What leaves a link passes a `tbf` queue. What arrives is redirected to an
//! `ifb` device, made beside the link for this purpose, and passes a `tbf`
//! queue there.

use std::time::Duration;

use netlink_packet_core::{DefaultNla, Nla, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption};
use serde::{Deserialize, Serialize};

use crate::netlink::message::attribute;
use crate::{Error, IfName, Result};

/// Nanoseconds of one tick of the kernel's packet scheduler clock.
const TICK_NANOS: u128 = 64;
/// Handle of the root queue made here, `cr:` in hexadecimal-ish, to tell it
/// from queues somebody else made.
pub(crate) const ROOT_HANDLE: TcHandle = TcHandle { major: 0x6372, minor: 0 };
/// Where ingress filters hang.
const INGRESS_HANDLE: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// Parent of a root queue and of the ingress queue.
const INGRESS_PARENT: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
/// Smallest burst taken: one packet of the usual size must fit.
const BURST_BYTES_MIN: u32 = 1600;
/// `ETH_P_ALL` in network order, the protocol of a filter for everything.
const ALL_PROTOCOLS: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;

/// A limit of rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    /// Sustained rate in bits per second, at least 8000.
    pub bits_per_second: u64,
    /// Bytes that may pass at once after a pause.
    pub burst_bytes: u32,
    /// Longest time a packet waits before it is dropped.
    pub latency: Duration,
}

/// Limits of a link, seen from its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Bandwidth {
    /// What the link sends.
    pub egress: Option<Rate>,
    /// What the link receives.
    pub ingress: Option<Rate>,
}

impl Rate {
    /// A limit with a burst of 20 ms worth of data (at least 32 KiB) and a
    /// latency of 50 ms.
    pub fn bits_per_second(bits_per_second: u64) -> Self {
        let burst = bits_per_second / 8 / 50;
        let burst_bytes = u32::try_from(burst).unwrap_or(u32::MAX).max(32 * 1024);
        Self { bits_per_second, burst_bytes, latency: Duration::from_millis(50) }
    }

    fn check(&self) -> Result<()> {
        if self.bits_per_second < 8000 {
            return Err(Error::value("rate", "below 8000 bits per second"));
        }
        if self.burst_bytes < BURST_BYTES_MIN {
            let reason = format!("{} bytes do not hold one packet", self.burst_bytes);
            return Err(Error::value("burst", reason));
        }
        if self.latency.is_zero() || self.latency > Duration::from_secs(60) {
            return Err(Error::value("latency", "must be above 0 and at most a minute"));
        }
        if self.limit_bytes() > u128::from(u32::MAX) {
            return Err(Error::value("latency", "rate times latency exceeds 4 GiB"));
        }
        Ok(())
    }

    fn bytes_per_second(&self) -> u64 {
        self.bits_per_second / 8
    }

    /// Bytes that may wait.
    fn limit_bytes(&self) -> u128 {
        let waiting = u128::from(self.bytes_per_second()) * self.latency.as_nanos() / 1_000_000_000;
        waiting + u128::from(self.burst_bytes)
    }

    /// `struct tc_tbf_qopt` and the attributes beside it.
    fn tbf_options(&self) -> Vec<u8> {
        let rate = self.bytes_per_second();
        let buffer_nanos = u128::from(self.burst_bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let buffer_ticks = u32::try_from(buffer_nanos / TICK_NANOS).unwrap_or(u32::MAX);
        let mut parms = Vec::with_capacity(36);
        // struct tc_ratespec: cell_log, linklayer (1 = Ethernet, which spares
        // the rate table), overhead, cell_align, mpu, rate.
        parms.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        parms.extend_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
        // No peak rate.
        parms.extend_from_slice(&[0; 12]);
        let limit = u32::try_from(self.limit_bytes()).unwrap_or(u32::MAX);
        parms.extend_from_slice(&limit.to_ne_bytes());
        parms.extend_from_slice(&buffer_ticks.to_ne_bytes());
        parms.extend_from_slice(&0_u32.to_ne_bytes());
        let mut options = attribute(TCA_TBF_PARMS, &parms);
        options.extend(attribute(TCA_TBF_BURST, &self.burst_bytes.to_ne_bytes()));
        if rate > u64::from(u32::MAX) {
            options.extend(attribute(TCA_TBF_RATE64, &rate.to_ne_bytes()));
        }
        options
    }
}

impl Bandwidth {
    /// The same rate both ways.
    pub fn both(rate: Rate) -> Self {
        Self { egress: Some(rate), ingress: Some(rate) }
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.egress.iter().chain(&self.ingress).try_for_each(Rate::check)
    }
}

/// Name of the device that shapes what arrives at a link.
pub(crate) fn ifb_name(ifindex: u32) -> IfName {
    IfName::derived(&["ifb", &ifindex.to_string()])
}

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
/// `TC_ACT_STOLEN`: the packet goes elsewhere.
const ACT_STOLEN: u32 = 4;
/// `TCA_EGRESS_REDIR`.
const EGRESS_REDIRECT: u32 = 1;

/// The root queue that limits what `ifindex` sends.
pub(crate) fn limit(ifindex: u32, rate: &Rate) -> RouteNetlinkMessage {
    let header = header(ifindex, ROOT_HANDLE, TcHandle::ROOT, 0);
    RouteNetlinkMessage::NewQueueDiscipline(message(header, "tbf", Some(rate.tbf_options())))
}

/// Takes the limit off `ifindex`.
pub(crate) fn unlimit(ifindex: u32) -> RouteNetlinkMessage {
    let header = header(ifindex, ROOT_HANDLE, TcHandle::ROOT, 0);
    RouteNetlinkMessage::DelQueueDiscipline(message(header, "tbf", None))
}

/// The queue that filters for arriving packets hang on.
pub(crate) fn ingress(ifindex: u32) -> RouteNetlinkMessage {
    let header = header(ifindex, INGRESS_HANDLE, INGRESS_PARENT, 0);
    RouteNetlinkMessage::NewQueueDiscipline(message(header, "ingress", None))
}

/// Removes that queue with its filters.
pub(crate) fn uningress(ifindex: u32) -> RouteNetlinkMessage {
    let header = header(ifindex, INGRESS_HANDLE, INGRESS_PARENT, 0);
    RouteNetlinkMessage::DelQueueDiscipline(message(header, "ingress", None))
}

/// Sends everything that arrives at `ifindex` to `ifb`.
pub(crate) fn redirect(ifindex: u32, ifb: u32) -> RouteNetlinkMessage {
    // struct tc_u32_sel with one key that matches everything: flags TERMINAL,
    // offshift, nkeys 1, padding, four 16-bit offsets and masks, hmask; key.
    let mut selector = vec![1, 0, 1, 0];
    selector.extend_from_slice(&[0; 12]);
    selector.extend_from_slice(&[0; 16]);
    // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    let mirred: Vec<u8> = [0, 0, ACT_STOLEN, 0, 0, EGRESS_REDIRECT, ifb]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    let mut action = attribute(TCA_ACT_KIND, b"mirred\0");
    let nested = attribute(TCA_MIRRED_PARMS, &mirred);
    action.extend(attribute(TCA_ACT_OPTIONS | NESTED, &nested));
    let mut options = attribute(TCA_U32_SEL, &selector);
    options.extend(attribute(TCA_U32_ACT | NESTED, &attribute(1 | NESTED, &action)));
    let priority_and_protocol = (1 << 16) | ALL_PROTOCOLS;
    let none = TcHandle { major: 0, minor: 0 };
    let header = header(ifindex, none, INGRESS_HANDLE, priority_and_protocol);
    RouteNetlinkMessage::NewTrafficFilter(message(header, "u32", Some(options)))
}

/// Asks for all queues.
pub(crate) fn dump() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())
}

/// The limit a queue of ours stands for.
pub(crate) fn read(message: &TcMessage) -> Option<Rate> {
    if message.header.handle != ROOT_HANDLE {
        return None;
    }
    // Options of a kind the codec does not know come as one raw attribute.
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(list) => list.iter().find_map(|option| match option {
            TcOption::Other(raw) => Some(raw_value(raw)),
            _ => None,
        }),
        _ => None,
    })?;
    let (mut rate, mut rate64, mut limit, mut buffer) = (0, None, 0, 0);
    for option in NlasIterator::new(options.as_slice()).map_while(|option| option.ok()) {
        let value = option.value();
        let word = |at: usize| Some(u32::from_ne_bytes(value.get(at..at + 4)?.try_into().ok()?));
        match option.kind() {
            TCA_TBF_PARMS => {
                rate = word(8)?;
                limit = word(24)?;
                buffer = word(28)?;
            }
            TCA_TBF_RATE64 => rate64 = Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?)),
            _ => {}
        }
    }
    let bytes = rate64.unwrap_or(rate.into()).max(1);
    let burst = u128::from(buffer) * TICK_NANOS * u128::from(bytes) / 1_000_000_000;
    let burst_bytes = u32::try_from(burst).unwrap_or(u32::MAX);
    let waiting = u64::from(limit.saturating_sub(burst_bytes));
    let latency = Duration::from_micros(waiting.saturating_mul(1_000_000) / bytes);
    Some(Rate { bits_per_second: bytes * 8, burst_bytes, latency })
}

const NESTED: u16 = libc::NLA_F_NESTED as u16;

fn raw_value(raw: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; raw.value_len()];
    raw.emit_value(&mut value);
    value
}

fn header(ifindex: u32, handle: TcHandle, parent: TcHandle, info: u32) -> TcHeader {
    TcHeader { index: ifindex as i32, handle, parent, info, ..TcHeader::default() }
}

fn message(header: TcHeader, kind: &str, options: Option<Vec<u8>>) -> TcMessage {
    let mut message = TcMessage::default();
    message.header = header;
    let mut name = kind.as_bytes().to_vec();
    name.push(0);
    message.attributes.push(TcAttribute::Other(DefaultNla::new(TCA_KIND, name)));
    message
        .attributes
        .extend(options.map(|raw| TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, raw))));
    message
}
