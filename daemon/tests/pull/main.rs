//! Pulling through the transfer service.

mod archive;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/gate.rs"]
mod gate;
#[path = "../common/images.rs"]
mod images;
mod once;
#[path = "../common/process.rs"]
mod process;
mod resume;
mod stacked;
mod support;
mod visible;
