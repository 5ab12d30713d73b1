//! Containers kept by shims: processes of their own that outlive the daemon.
//!
//! [`ShimRuntime`] is the daemon's side. It makes a bundle, starts the shim
//! binary of the runtime's name, speaks ttrpc with it, and finds everything
//! again after a restart. What it writes, so that a daemon of another version
//! can take over:
//!
//! ```text
//! <state_dir>/<namespace>/<id>/     0700
//!   config.json  rootfs/            see crate::Bundle
//!   work -> <root_dir>/<namespace>/<id>
//!   log                             FIFO, the shim's log
//!   shim-binary-path                absolute path of the shim
//!   bootstrap.json                  {"version":2,"address":"unix://…","protocol":"ttrpc"}
//!   address                         the address alone
//!   leftover.json                   why it is not removed yet, see [`Leftover`]
//! ```
//!
//! The name of a runtime is the absolute path of a shim, or ends in two parts
//! that name one: `io.containerd.runc.v2` is `containerd-shim-runc-v2`, looked
//! for in the working folder, in `PATH` and beside the daemon.
//!
//! A shim that dies or stays mute costs its own container only: the `delete`
//! action of its binary cleans up, [`ShimEvents`] hears of the end, and whoever
//! waits is released.

mod address;
pub(crate) mod blocker;
mod client;
mod config;
mod folders;
mod recover;
mod removal;
mod runtime;
mod sandbox;
mod start;

use std::sync::Arc;

pub use address::{Address, SOCKET_DIR, SOCKET_DIR_MAX_BYTES, socket_path};
pub use client::ShimTask;
pub use config::{CreateShimTask, ShimConfig, Timeouts};
pub use recover::Recovered;
pub use removal::{Leftover, Step};
pub use runtime::ShimRuntime;
pub use sandbox::{CreateSandbox, SandboxExit, ShimSandbox, ShimSandboxes};

use crate::proto::types::Envelope;

/// Receives events made on behalf of shims that died: `/tasks/exit`, then
/// `/tasks/delete`. Called from a task of the runtime; must not block.
pub type ShimEvents = Arc<dyn Fn(Envelope) + Send + Sync>;
