//! Mounts as data, and the calls that attach and detach them.
//!
//! A [`Mount`] is the common language between those who know *what* a
//! filesystem is made of (a snapshotter, a build tool) and those who need it
//! somewhere (a runtime, a copy). It is four strings, it travels over the wire
//! unchanged, and making one touches nothing.
//!
//! ```no_run
//! use std::path::Path;
//! use crated_mount::{Mount, TempMount};
//!
//! let layers = [Mount {
//!     kind: "overlay".into(),
//!     source: "overlay".into(),
//!     options: vec!["lowerdir=/layers/2:/layers/1".into()],
//!     ..Mount::default()
//! }];
//! let tree = TempMount::attach(&layers, Path::new("/run/example"))?;
//! println!("{}", std::fs::read_to_string(tree.path().join("etc/os-release")).unwrap());
//! tree.close()?; // or drop it
//! # Ok::<(), crated_mount::Error>(())
//! ```

#[cfg(not(target_os = "linux"))]
compile_error!("crated-mount speaks to the Linux kernel only");

use std::path::Path;

mod attach;
mod backend;
mod classic;
mod detach;
mod error;
mod fuse;
mod holders;
pub mod idmap;
mod loopdev;
pub mod mountinfo;
pub mod options;
mod overlay;
mod read_only;
mod request;
mod staging;
mod sys;
mod target;
mod temp;

pub use backend::Backend;
pub use detach::{
    BUSY_WAIT_MAX, DetachFlags, detach, detach_all, detach_recursive, detach_recursive_with,
};
pub use error::{Attempt, Error, Result};
pub use holders::{HOLDERS_MAX, Holder, HolderUse, holders};
pub use loopdev::LoopDevice;
pub use overlay::{LAYERS_MAX, escape_layer};
pub use read_only::read_only;
pub use temp::TempMount;

/// What to mount: plain data, as it travels between components.
///
/// Nothing is checked until it is attached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Mount {
    /// Filesystem type such as `overlay`, `bind` or `erofs`.
    pub kind: String,
    /// A device, a directory, an image file, or a word that means nothing.
    pub source: String,
    /// Sub-path inside the root given to [`Mount::attach`]; empty means the root
    /// itself. It is resolved as if the root were `/`, so neither `..` nor a
    /// symbolic link leads out of it, and it must exist.
    pub target: String,
    /// One option per string: flag words (`ro`, `nosuid`, `rbind`, `rprivate`),
    /// `loop`, `uidmap=`, `gidmap=`, or data for the filesystem.
    pub options: Vec<String>,
}

impl Mount {
    /// Attaches this mount at its target inside `root`.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidArgument`]: a malformed option; nothing was tried.
    /// - [`Error::NotFound`]: the source, a layer or the target is missing.
    /// - [`Error::PermissionDenied`], [`Error::Unsupported`], [`Error::Refused`]:
    ///   the kernel's answer, with its own log lines.
    ///
    /// After an error nothing stays attached.
    pub fn attach(&self, root: &Path) -> Result<()> {
        self.attach_with(root, Backend::detect())
    }

    /// [`attach`](Self::attach) through a chosen kernel interface.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach).
    pub fn attach_with(&self, root: &Path, backend: Backend) -> Result<()> {
        attach_all_with(std::slice::from_ref(self), root, backend)
    }
}

/// Attaches `mounts` in order, each at its target inside `root`.
///
/// # Errors
///
/// Those of [`Mount::attach`]. What had been attached is detached again; should
/// that fail too, [`Error::Incomplete`] lists the first failure and the others.
pub fn attach_all(mounts: &[Mount], root: &Path) -> Result<()> {
    attach_all_with(mounts, root, Backend::detect())
}

/// [`attach_all`] through a chosen kernel interface.
///
/// # Errors
///
/// Those of [`attach_all`].
pub fn attach_all_with(mounts: &[Mount], root: &Path, backend: Backend) -> Result<()> {
    backend::attach_all(mounts, root, backend)
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
