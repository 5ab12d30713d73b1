//! The mounts of a container's root.

use std::path::Path;

use crated_mount::Mount;

use crate::{Error, Result};

/// Mounts all of them at `root`; on failure none is left.
pub(crate) fn attach(mounts: &[Mount], root: &Path) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    crated_mount::attach_all(mounts, root).map_err(|e| {
        let error = from_mount("mount rootfs component", &e);
        match detach(root) {
            Ok(()) => error,
            Err(left) => Error::Unknown(format!("{error}; and cleaning up: {left}")),
        }
    })
}

/// Refuses a root whose places for kernel file systems are links.
///
/// No image needs that, and runtimes in use put files there by name, which a link of the image
/// would lead to the host.
pub(crate) fn check(root: &Path) -> Result<()> {
    for name in ["dev", "proc", "sys"] {
        if root.join(name).symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
            return Err(Error::InvalidArgument(format!("/{name} of the root is a link")));
        }
    }
    Ok(())
}

/// Detaches everything at and below `root`; nothing mounted is success.
pub(crate) fn detach(root: &Path) -> Result<()> {
    crated_mount::detach_recursive(root).map_err(|e| from_mount("unmount rootfs", &e))
}

fn from_mount(step: &str, error: &crated_mount::Error) -> Error {
    let mut text = format!("{step}: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    Error::Unknown(text)
}
