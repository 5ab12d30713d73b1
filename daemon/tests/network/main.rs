//! Network namespaces and links through the daemon, each test on a host of its own: a network and
//! a mount namespace that nobody else sees.

#[path = "../common/mod.rs"]
mod common;
mod scratch;

mod bad_input;
mod collection;
mod containers;
mod kill;
mod lifecycle;
mod recovery;
