//! Rtnetlink: a pure codec, a blocking socket and the threads that hop.
//!
//! Only the codec is public, so that it can be fuzzed and reused; it does no
//! input or output.

pub mod message;
mod socket;
mod worker;

pub(crate) use socket::{Request, Socket};
pub(crate) use worker::{Hopper, Lane, Lanes, OWN_NETNS, own_netns};
