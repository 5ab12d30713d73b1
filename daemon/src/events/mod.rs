//! Events: who did what, told to whoever subscribed.
//!
//! [`Exchange`] passes each event to every subscription whose filters it passes, in the order of
//! publication and without ever waiting for a reader. Nothing is kept for later subscribers.
//!
//! A reader that stops reading does not lose single events: they queue up, as clients expect. The
//! queue is bounded in bytes, not to let one stuck client take the daemon with it. At the bound
//! ([`QUEUE_BYTES_MAX`]) the subscription ends: its reader still gets everything queued, then
//! [`Error::Overrun`], and knows that it has to look at the state of things again.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Any;

use crate::filters::Adaptor;

pub use self::exchange::{Error, Exchange, QUEUE_BYTES_MAX, Subscription};

mod encode;
mod exchange;
mod fields;

/// One event on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// When it happened.
    pub timestamp: SystemTime,
    /// The namespace it happened in.
    pub namespace: String,
    /// What kind of event it is: `/tasks/exit` for example.
    pub topic: String,
    /// The event, passed on byte for byte.
    pub event: Any,
}

impl Adaptor for Envelope {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "namespace" => crate::filters::text(&self.namespace),
            "topic" => crate::filters::text(&self.topic),
            "event" => fields::field(&self.event, rest).map(Cow::Owned),
            _ => None,
        }
    }
}

/// The time that clients in Go take for none at all: the first second of year 1.
pub fn zero_time() -> SystemTime {
    UNIX_EPOCH - Duration::from_secs(62_135_596_800)
}

#[cfg(test)]
mod tests;
