//! Programs of the operator that the daemon runs: image verifiers and stream processors.
//!
//! They see what a client or a registry sent, and the daemon sees what they print: neither is
//! trusted to end. Each runs in a process group of its own, which is killed when its time is up or
//! when nobody wants its output any more.

mod processors;
mod run;
mod verifiers;

pub use self::processors::{Processed, Processors, Unprocessable, is_layer};
pub use self::run::{Failure, Limits, Output, run};
pub use self::verifiers::{Rejection, Verifiers};
