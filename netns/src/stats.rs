//! Counters.

use netlink_packet_route::link::Stats64;
use serde::{Deserialize, Serialize};

use crate::IfName;

/// Counters of one link since it was made, 64 bits each. "Received" and
/// "sent" are as seen from the namespace the link is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Packets received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets dropped before they were sent.
    pub tx_dropped: u64,
    /// Multicast packets received.
    pub multicast: u64,
    /// Collisions.
    pub collisions: u64,
    /// Packets a bandwidth limit or another queue dropped.
    pub queue_dropped: u64,
}

/// Counters of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetnsStats {
    /// Per link, in order of index.
    pub links: Vec<(IfName, Stats)>,
    /// Sum over all links but loopback.
    pub total: Stats,
}

impl Stats {
    pub(crate) fn read(raw: &Stats64) -> Self {
        Self {
            rx_bytes: raw.rx_bytes,
            rx_packets: raw.rx_packets,
            rx_errors: raw.rx_errors,
            rx_dropped: raw.rx_dropped,
            tx_bytes: raw.tx_bytes,
            tx_packets: raw.tx_packets,
            tx_errors: raw.tx_errors,
            tx_dropped: raw.tx_dropped,
            multicast: raw.multicast,
            collisions: raw.collisions,
            queue_dropped: 0,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let fields = [
            (&mut self.rx_bytes, other.rx_bytes),
            (&mut self.rx_packets, other.rx_packets),
            (&mut self.rx_errors, other.rx_errors),
            (&mut self.rx_dropped, other.rx_dropped),
            (&mut self.tx_bytes, other.tx_bytes),
            (&mut self.tx_packets, other.tx_packets),
            (&mut self.tx_errors, other.tx_errors),
            (&mut self.tx_dropped, other.tx_dropped),
            (&mut self.multicast, other.multicast),
            (&mut self.collisions, other.collisions),
            (&mut self.queue_dropped, other.queue_dropped),
        ];
        for (sum, term) in fields {
            *sum = sum.wrapping_add(term);
        }
    }
}
