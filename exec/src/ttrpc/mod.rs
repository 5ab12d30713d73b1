//! ttrpc: the small RPC between a daemon and its shims, over Unix sockets.
//!
//! Unary calls only, which is all the task API needs. One connection carries
//! any number of calls at once; a call may stay open for days ([`Client::call`]
//! without a timeout). Everything has a limit: see the constants.
//!
//! ```text
//! frame:  length u32 | stream u32 | type u8 | flags u8 | payload
//!         big endian   odd: client  1 request, 2 response, 3 data
//! ```

mod client;
mod frame;
mod server;

pub use client::{Call, Client};
pub use frame::{Frame, FrameError, FrameReader, HEADER_SIZE_BYTES, Kind, PAYLOAD_MAX_BYTES};
pub use server::{Context, IN_FLIGHT_MAX, Server, Service};
