//! What became of containers is told by whichever daemon is asked, and what should run is started
//! again. Needs root, runc, busybox and the shim beside the daemon.
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

#[path = "../common/mod.rs"]
mod common;
mod kept;
mod policies;
#[path = "../common/process.rs"]
mod process;
mod support;
