//! What the daemon does in several steps: composed of the primitives' traits, without naming any
//! implementor.
//!
//! ```text
//!  registry ─ Fetcher ─► bytes ─ Writer ─► content
//!                                            │ Provider
//!                                            ▼
//!                              inflate ─ Applier ─► active snapshot ─ commit ─► chain of snapshots
//! ```
//!
//! [`pull`] walks an image from its root, stores every document and layer, and unpacks the chosen
//! manifests. [`fetch`] brings one blob into the store, from the offset an earlier attempt
//! reached. [`unpack`] turns layers into snapshots, bottom up.
//!
//! # Promises
//!
//! - An image name appears after everything it needs is stored, verified and unpacked.
//! - A layer's snapshot is committed only when the bytes, their uncompressed form and the chain
//!   are what the configuration names; a failed one is removed.
//! - What was verified stays for the next attempt, under the lease of the call.

pub mod fetch;
pub mod pull;
pub mod unpack;

mod error;

pub use error::{Error, Result};
