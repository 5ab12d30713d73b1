#![doc = include_str!("../README.md")]

#[cfg(not(target_os = "linux"))]
compile_error!("crated-exec needs Linux");

pub mod bundle;
pub mod cgroup;
pub mod console;
mod error;
pub mod io;
pub mod proto;
pub mod reaper;
mod remove;
mod rootfs;
pub mod runc;
pub mod runtime;
pub mod shim;
pub mod spec;
pub mod sys;
#[cfg(feature = "testsuite")]
pub mod testsuite;
pub mod ttrpc;

pub use bundle::Bundle;
pub use error::{Class, Error, Result};
pub use runtime::{
    CreateTask, ExecProcess, Exit, Process, ProcessPid, Runtime, Size, State, Status, Stdio, Task,
};
