//! Run OCI bundles.

#[cfg(not(target_os = "linux"))]
compile_error!("crated-exec needs Linux");

pub mod bundle;
mod error;
pub mod io;
pub mod proto;
mod rootfs;
pub mod runtime;
pub mod shim;
pub mod ttrpc;

pub use bundle::Bundle;
pub use error::{Class, Error, Result};
pub use runtime::{
    CreateTask, ExecProcess, Exit, Process, ProcessPid, Runtime, Size, State, Status, Stdio, Task,
};
