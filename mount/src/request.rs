//! One mount on its way: parsed, its target held, its failures put into words.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::Attempt;
use crate::options::{Flags, Options};
use crate::target::{Target, magic_path};
use crate::{Error, Mount, Result};

/// A mount whose options are parsed and whose target is resolved.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) mount: &'a Mount,
    pub(crate) options: Options,
    pub(crate) target: Target,
}

impl<'a> Request<'a> {
    pub(crate) fn new(mount: &'a Mount, root: &Path) -> Result<Self> {
        for (what, value) in
            [("kind", &mount.kind), ("source", &mount.source), ("target", &mount.target)]
        {
            if value.contains('\0') {
                return Err(Error::invalid(what, value, "contains a NUL byte"));
            }
        }
        let mut options = Options::parse(&mount.options)?;
        if mount.kind == "erofs" {
            // It never writes, and a read-only device is refused without this.
            options.flags |= Flags::READ_ONLY;
        }
        match Target::resolve(root, &mount.target) {
            Ok(target) => Ok(Self { mount, options, target }),
            Err((path, errno)) => {
                Err(attempt(mount, &path, "open target", None, Vec::new(), errno).into())
            }
        }
    }

    /// The source as a path.
    pub(crate) fn source(&self) -> &Path {
        Path::new(&self.mount.source)
    }

    pub(crate) fn source_is_file(&self) -> bool {
        fs::metadata(self.source()).is_ok_and(|data| data.is_file())
    }

    pub(crate) fn source_is_block_device(&self) -> bool {
        fs::metadata(self.source()).is_ok_and(|data| data.file_type().is_block_device())
    }

    /// A failed step without anything more to say.
    pub(crate) fn failed(&self, step: &'static str, errno: Errno) -> Error {
        self.explained(step, None, Vec::new(), errno)
    }

    pub(crate) fn explained(
        &self,
        step: &'static str,
        option: Option<String>,
        log: Vec<String>,
        errno: Errno,
    ) -> Error {
        attempt(self.mount, &self.target.path, step, option, log, errno).into()
    }

    /// A failure that is the kernel's or the filesystem's inability.
    pub(crate) fn unsupported(&self, step: &'static str, why: &str, errno: Errno) -> Error {
        let log = vec![why.to_owned()];
        let attempt = attempt(self.mount, &self.target.path, step, None, log, errno);
        Error::Unsupported(Box::new(attempt))
    }
}

fn attempt(
    mount: &Mount,
    target: &Path,
    step: &'static str,
    option: Option<String>,
    log: Vec<String>,
    errno: Errno,
) -> Attempt {
    Attempt {
        kind: mount.kind.clone(),
        source: mount.source.clone(),
        target: target.to_owned(),
        step,
        option,
        log,
        cause: errno.into(),
    }
}

/// A mount that is in place, held by its root so that it can be taken back
/// whatever has happened to the path.
#[derive(Debug)]
pub(crate) struct Attached {
    root: OwnedFd,
    path: PathBuf,
}

impl Attached {
    pub(crate) fn new(root: OwnedFd, target: &Target) -> Self {
        Self { root, path: target.path.clone() }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Takes the mount back, lazily: it is ours and nobody should use it yet.
    pub(crate) fn take_back(self) -> Result<()> {
        match rustix::mount::unmount(magic_path(self.root.as_fd()), UnmountFlags::DETACH) {
            Ok(()) => Ok(()),
            Err(errno) => Err(Error::io("take back mount at", &self.path, errno)),
        }
    }

    /// Takes the mount back because of `error`, and tells of both failures if
    /// that does not work either.
    pub(crate) fn take_back_after(self, error: Error) -> Error {
        let path = self.path.clone();
        match self.take_back() {
            Ok(()) => error,
            Err(second) => Error::Incomplete { path, failures: vec![error, second] },
        }
    }
}
