//! Which kernel interface attaches mounts, and what both have in common.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::loopdev::LoopDevice;
use crate::options::{Datum, Flags};
use crate::overlay::Overlay;
use crate::request::{Attached, Request};
use crate::{Error, Mount, Result, attach, classic, fuse, sys};

/// The kernel interface that attaches mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// `fsopen`, `fsconfig`, `fsmount`, `open_tree`, `mount_setattr` and
    /// `move_mount`: no page limit on options, and the kernel explains itself.
    /// Single mounts that it cannot express here (overlays before Linux 6.7,
    /// values beyond 255 bytes) still go the classic way.
    NewApi,
    /// `mount(2)`, for kernels or system call filters without the above.
    Classic,
}

impl Backend {
    /// What this kernel and its filters let this process use, probed once.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Backend> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let backend = if sys::new_mount_api_answers() { Self::NewApi } else { Self::Classic };
            tracing::debug!(?backend, "mount interface chosen");
            backend
        })
    }
}

/// Attaches all or nothing.
pub(crate) fn attach_all(mounts: &[Mount], root: &Path, backend: Backend) -> Result<()> {
    let mut attached: Vec<Attached> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        match attach_one(mount, root, backend) {
            Ok(one) => attached.extend(one),
            Err(error) => return Err(take_back(attached, root, error)),
        }
    }
    Ok(())
}

fn take_back(attached: Vec<Attached>, root: &Path, error: Error) -> Error {
    let results = attached.into_iter().rev().map(Attached::take_back);
    let mut failures: Vec<_> = results.filter_map(Result::err).collect();
    if failures.is_empty() {
        return error;
    }
    failures.insert(0, error);
    Error::Incomplete { path: root.to_owned(), failures }
}

/// Attaches one mount; `None` when an existing one was changed instead.
fn attach_one(mount: &Mount, root: &Path, backend: Backend) -> Result<Option<Attached>> {
    let request = Request::new(mount, root)?;
    tracing::debug!(kind = mount.kind, source = mount.source, target = ?request.target.path, "attach");
    if request.options.remount {
        remount(&request, backend)?;
        return Ok(None);
    }
    if is_change_only(&request) {
        propagate(&request, request.target.as_fd(), backend)?;
        return Ok(None);
    }
    let attached = if request.options.bind.is_some() || mount.kind == "bind" {
        bind(&request, backend)?
    } else {
        filesystem(&request, backend)?
    };
    if let Err(error) = propagate(&request, attached.as_fd(), backend) {
        return Err(attached.take_back_after(error));
    }
    Ok(Some(attached))
}

/// `mount --make-rprivate /x`: no type, no source, only a propagation word.
fn is_change_only(request: &Request<'_>) -> bool {
    let Request { mount, options, .. } = request;
    let typeless = mount.kind.is_empty() || mount.kind == "none";
    typeless && options.bind.is_none() && options.propagation.is_some()
}

fn bind(request: &Request<'_>, backend: Backend) -> Result<Attached> {
    if request.mount.source.is_empty() {
        return Err(Error::invalid("source", "", "a bind needs one"));
    }
    if let Some(datum) = request.options.data.first() {
        return Err(Error::invalid("option", datum.to_string(), "means nothing to a bind"));
    }
    match backend {
        Backend::NewApi => attach::bind(request),
        // mount(2) cannot map ids; the calls that can may be there nonetheless.
        Backend::Classic if request.options.id_map.is_some() => attach::bind(request),
        Backend::Classic => classic::bind(request),
    }
}

fn filesystem(request: &Request<'_>, backend: Backend) -> Result<Attached> {
    let kind = &*request.mount.kind;
    if kind.is_empty() || kind.contains('/') {
        return Err(Error::invalid("kind", kind, "is no filesystem type"));
    }
    if kind == "overlay" {
        let overlay = Overlay::from_options(&request.options)?;
        return crate::overlay::attach(request, &overlay, backend);
    }
    if request.options.id_map.is_some() {
        let reason = "only binds and overlays can have their ids mapped";
        return Err(Error::invalid("option", "uidmap", reason));
    }
    if fuse::is_fuse(kind) {
        return fuse::attach(request);
    }
    if kind == "erofs" && request.source_is_file() {
        return erofs_file(request, backend);
    }
    if request.options.loop_device && !request.source_is_block_device() {
        return through_loop(request, backend);
    }
    plain(request, &request.mount.source, &request.options.data, backend)
}

fn plain(
    request: &Request<'_>,
    source: &str,
    data: &[Datum],
    backend: Backend,
) -> Result<Attached> {
    match backend {
        Backend::NewApi if attach::fits(source, data) => attach::filesystem(request, source, data),
        _ => classic::filesystem(request, source, data),
    }
}

/// EROFS reads an image straight from a file since Linux 6.12. A kernel that
/// cannot writes a line about it to its log, so it is asked only once.
fn erofs_file(request: &Request<'_>, backend: Backend) -> Result<Attached> {
    static NEEDS_DEVICE: AtomicBool = AtomicBool::new(false);
    if !NEEDS_DEVICE.load(Ordering::Relaxed) {
        let answer = plain(request, &request.mount.source, &request.options.data, backend);
        match answer {
            Err(error) if is_errno(&error, Errno::NOTBLK) => {
                NEEDS_DEVICE.store(true, Ordering::Relaxed);
            }
            answer => return answer,
        }
    }
    through_loop(request, backend)
}

fn through_loop(request: &Request<'_>, backend: Backend) -> Result<Attached> {
    let read_only = request.options.flags.contains(Flags::READ_ONLY);
    let device = LoopDevice::attach(request.source(), read_only)?;
    let mut extra = Vec::new();
    let mut data = request.options.data.clone();
    for datum in data.iter_mut().filter(|datum| datum.key == "device") {
        if let Some(path) = &mut datum.value {
            let blob = LoopDevice::attach(Path::new(path), true)?;
            *path = blob.path().to_owned();
            extra.push(blob);
        }
    }
    // The devices free themselves with their last user: this scope on failure,
    // the filesystem on success.
    plain(request, device.path(), &data, backend)
}

fn remount(request: &Request<'_>, backend: Backend) -> Result<()> {
    match backend {
        Backend::NewApi => attach::remount(request),
        Backend::Classic => classic::remount(request),
    }
}

/// Does nothing if no propagation word was given.
fn propagate(request: &Request<'_>, mount: BorrowedFd<'_>, backend: Backend) -> Result<()> {
    match backend {
        Backend::NewApi => attach::propagate(request, mount),
        Backend::Classic => classic::propagate(request, mount),
    }
}

fn is_errno(error: &Error, errno: Errno) -> bool {
    let code = error.io_error().and_then(std::io::Error::raw_os_error);
    code == Some(errno.raw_os_error())
}
