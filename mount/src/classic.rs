//! Attaching through mount(2), for kernels and filters without the newer calls.
//!
//! What the `libmount` crate can express goes through it, because it looks at
//! the paths concerned after a failure and says what is wrong with them.
//! Everything else is built here: other options, propagation, layer lists
//! beyond a page.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};

use crate::options::{Datum, Flags, Propagation, Reach};
use crate::overlay::Overlay;
use crate::request::{Attached, Request};
use crate::target::{magic_path, open_reference};
use crate::{Error, Result, sys};

/// Binds the source, then restricts the new mount in a second step.
pub(crate) fn bind(request: &Request<'_>) -> Result<Attached> {
    libmount::BindMount::new(request.source(), request.target.magic_path())
        .recursive(request.options.bind == Some(Reach::Tree))
        .mount()
        .map_err(|error| explained(request, "bind", &error))?;
    let attached = attached(request)?;
    let restrict = request.options.flags & !(Flags::SUPERBLOCK | Flags::SILENT);
    if restrict.is_empty() {
        return Ok(attached);
    }
    let restricted = with_inherited(request, restrict);
    match restricted.and_then(|flags| remount_bind(request, flags)) {
        Ok(()) => Ok(attached),
        Err(error) => Err(attached.take_back_after(error)),
    }
}

/// Makes an overlay, from a working directory near the layers if their names
/// would not fit the page otherwise.
pub(crate) fn overlay(request: &Request<'_>, overlay: &Overlay) -> Result<Attached> {
    let data = overlay_data(&overlay.lowers, overlay);
    let simple =
        overlay.rest.is_empty() && overlay.data_only.is_empty() && request.options.flags.is_empty();
    if data.len() < DATA_MAX_BYTES {
        if simple {
            libmount_overlay(request, overlay)?;
        } else {
            mount_data(request, &request.mount.source, &data)?;
        }
        return attached(request);
    }
    let Some(base) = common_parent(&overlay.lowers) else {
        return Err(too_long(request, data.len()));
    };
    let relative = overlay.lowers.iter().map(|path| relative_to(path, &base));
    let data = overlay_data(&relative.collect::<Vec<_>>(), overlay);
    if data.len() >= DATA_MAX_BYTES {
        return Err(too_long(request, data.len()));
    }
    let base = open_reference(&base)
        .map_err(|errno| request.failed("open common parent of layers", errno))?;
    in_directory(request, &base, || mount_data(request, &request.mount.source, &data))?;
    attached(request)
}

/// Makes any other filesystem with its data joined by commas.
pub(crate) fn filesystem(request: &Request<'_>, source: &str, data: &[Datum]) -> Result<Attached> {
    let words: Vec<_> = data.iter().map(Datum::to_string).collect();
    mount_data(request, source, words.join(",").as_bytes())?;
    attached(request)
}

/// `remount`, with or without `bind`.
pub(crate) fn remount(request: &Request<'_>) -> Result<()> {
    if request.options.bind.is_some() {
        remount_bind(request, request.options.flags)?;
    } else {
        let words: Vec<_> = request.options.data.iter().map(Datum::to_string).collect();
        let target = request.target.magic_path();
        mount_remount(target, flag_bits(request.options.flags), words.join(","))
            .map_err(|errno| request.failed("remount", errno))?;
    }
    propagate(request, request.target.as_fd())
}

/// Sets the requested propagation on the attached `mount`.
pub(crate) fn propagate(request: &Request<'_>, mount: BorrowedFd<'_>) -> Result<()> {
    let Some((propagation, reach)) = request.options.propagation else {
        return Ok(());
    };
    let mut flags = match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Shared => MountPropagationFlags::SHARED,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Unbindable => MountPropagationFlags::UNBINDABLE,
    };
    flags.set(MountPropagationFlags::REC, reach == Reach::Tree);
    mount_change(magic_path(mount), flags).map_err(|errno| request.failed("set propagation", errno))
}

fn libmount_overlay(request: &Request<'_>, overlay: &Overlay) -> Result<()> {
    let lowers = overlay.lowers.iter().map(PathBuf::as_path);
    let target = request.target.magic_path();
    let mount = match (&overlay.upper, &overlay.work) {
        (Some(upper), Some(work)) => libmount::Overlay::writable(lowers, upper, work, target),
        _ => libmount::Overlay::readonly(lowers, target),
    };
    mount.mount().map_err(|error| explained(request, "mount", &error))
}

/// `flags` and those that the bind took over from its source, which would be
/// lost in the second step otherwise.
///
/// Not asked of libmount, which looks flags up by path in the list of the
/// process's mounts, while this thread may have a namespace of its own.
fn with_inherited(request: &Request<'_>, flags: Flags) -> Result<Flags> {
    let present = rustix::fs::statvfs(real_path(request)?)
        .map_err(|errno| request.failed("read flags of bind", errno))?
        .f_flag;
    let on = MOUNT_FLAGS.iter().filter(|(_, _, shown)| present.intersects(*shown));
    let mut inherited = on.fold(Flags::NONE, |set, (flag, ..)| set | *flag);
    if !(flags & Flags::ATIME).is_empty() {
        inherited = inherited & !Flags::ATIME;
    }
    Ok(inherited | flags)
}

fn remount_bind(request: &Request<'_>, flags: Flags) -> Result<()> {
    mount_remount(real_path(request)?, flag_bits(flags) | MountFlags::BIND, "")
        .map_err(|errno| request.failed("remount bind", errno))
}

fn mount_data(request: &Request<'_>, source: &str, data: &[u8]) -> Result<()> {
    if data.len() >= DATA_MAX_BYTES {
        return Err(too_long(request, data.len()));
    }
    let data = CString::new(data).map_err(|_| Error::invalid("option", "data", "holds a NUL"))?;
    let kind = request.mount.kind.as_str();
    let flags = flag_bits(request.options.flags);
    match mount(source, request.target.magic_path(), kind, flags, data.as_c_str()) {
        Ok(()) => Ok(()),
        Err(errno @ Errno::NODEV) => {
            Err(request.unsupported("mount", "this kernel has no such filesystem", errno))
        }
        Err(errno) => {
            let data = data.to_string_lossy().into_owned();
            let option = (!data.is_empty()).then_some(data);
            Err(request.explained("mount with", option, Vec::new(), errno))
        }
    }
}

/// Runs `work` on a thread of its own whose working directory is `base`; the
/// rest of the process stays where it is.
fn in_directory<T: Send>(
    request: &Request<'_>,
    base: &OwnedFd,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    thread::scope(|scope| {
        let body = || {
            sys::unshare_working_directory()
                .and_then(|()| rustix::process::fchdir(base))
                .map_err(|errno| request.failed("enter common parent of layers", errno))?;
            work()
        };
        let thread = thread::Builder::new()
            .name("mount-near-layers".to_owned())
            .spawn_scoped(scope, body)
            .map_err(|cause| Error::io("start a thread for", &request.target.path, cause))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The mount that now covers the target.
fn attached(request: &Request<'_>) -> Result<Attached> {
    let path = real_path(request)?;
    let root =
        open_reference(&path).map_err(|errno| request.failed("open what was mounted", errno))?;
    Ok(Attached::new(root, &request.target))
}

fn real_path(request: &Request<'_>) -> Result<PathBuf> {
    let target = &request.target;
    target.real_path().map_err(|cause| Error::io("read link of", &target.path, cause))
}

fn overlay_data(lowers: &[PathBuf], overlay: &Overlay) -> Vec<u8> {
    let mut data = b"lowerdir=".to_vec();
    append_list(&mut data, lowers, b":");
    if !overlay.data_only.is_empty() {
        data.extend(b"::");
        append_list(&mut data, &overlay.data_only, b"::");
    }
    for (key, path) in [("upperdir", &overlay.upper), ("workdir", &overlay.work)] {
        if let Some(path) = path {
            data.extend(format!(",{key}=").bytes());
            append_escaped(&mut data, path);
        }
    }
    for datum in &overlay.rest {
        data.extend(format!(",{datum}").bytes());
    }
    data
}

fn append_list(data: &mut Vec<u8>, paths: &[PathBuf], separator: &[u8]) {
    for (index, path) in paths.iter().enumerate() {
        if index > 0 {
            data.extend(separator);
        }
        append_escaped(data, path);
    }
}

fn append_escaped(data: &mut Vec<u8>, path: &Path) {
    for byte in path.as_os_str().as_encoded_bytes() {
        if matches!(byte, b'\\' | b':' | b',') {
            data.push(b'\\');
        }
        data.push(*byte);
    }
}

/// The deepest directory above all of `paths`.
fn common_parent(paths: &[PathBuf]) -> Option<PathBuf> {
    let mut common = paths.first()?.parent()?.to_owned();
    for path in paths {
        while !path.starts_with(&common) {
            common.pop();
        }
    }
    Some(common)
}

fn relative_to(path: &Path, base: &Path) -> PathBuf {
    match path.strip_prefix(base) {
        Ok(rest) if rest.as_os_str().is_empty() => PathBuf::from("."),
        Ok(rest) => rest.to_owned(),
        Err(_) => path.to_owned(),
    }
}

fn too_long(request: &Request<'_>, size_bytes: usize) -> Error {
    Error::OptionsTooLong {
        kind: request.mount.kind.clone(),
        target: request.target.path.clone(),
        size_bytes,
        max_bytes: DATA_MAX_BYTES - 1,
    }
}

/// Takes the errno and the explanation out of the library's error.
///
/// It offers its cause only as a trait object that cannot be cast, so the number
/// is read where the standard library prints it.
fn explained(request: &Request<'_>, step: &'static str, error: &libmount::Error) -> Error {
    let text = error.to_string();
    let number = text.split_once("(os error ").and_then(|(_, rest)| rest.split_once(')'));
    let errno = number.and_then(|(number, _)| number.parse().ok());
    let errno = errno.map_or(Errno::IO, Errno::from_raw_os_error);
    request.explained(step, None, vec![text], errno)
}

fn flag_bits(flags: Flags) -> MountFlags {
    let on = MOUNT_FLAGS.iter().filter(|(flag, ..)| flags.contains(*flag));
    on.fold(MountFlags::empty(), |set, (_, bit, _)| set | *bit)
}

/// mount(2) reads one page, of which the last byte ends the string. Pages of
/// other sizes are larger.
const DATA_MAX_BYTES: usize = 4096;

/// Each flag for mount(2), and as statvfs(3) shows it on a mount.
const MOUNT_FLAGS: &[(Flags, MountFlags, StatVfsMountFlags)] = &[
    (Flags::READ_ONLY, MountFlags::RDONLY, StatVfsMountFlags::RDONLY),
    (Flags::NO_SUID, MountFlags::NOSUID, StatVfsMountFlags::NOSUID),
    (Flags::NO_DEV, MountFlags::NODEV, StatVfsMountFlags::NODEV),
    (Flags::NO_EXEC, MountFlags::NOEXEC, StatVfsMountFlags::NOEXEC),
    (Flags::NO_SYMLINKS, MountFlags::NOSYMFOLLOW, ST_NOSYMFOLLOW),
    (Flags::NO_DIR_ATIME, MountFlags::NODIRATIME, StatVfsMountFlags::NODIRATIME),
    (Flags::NO_ATIME, MountFlags::NOATIME, StatVfsMountFlags::NOATIME),
    (Flags::REL_ATIME, MountFlags::RELATIME, StatVfsMountFlags::RELATIME),
    (Flags::STRICT_ATIME, MountFlags::STRICTATIME, StatVfsMountFlags::empty()),
    (Flags::SYNC, MountFlags::SYNCHRONOUS, StatVfsMountFlags::empty()),
    (Flags::DIR_SYNC, MountFlags::DIRSYNC, StatVfsMountFlags::empty()),
    (Flags::LAZY_TIME, MountFlags::LAZYTIME, StatVfsMountFlags::empty()),
    (Flags::MAND_LOCK, MountFlags::PERMIT_MANDATORY_FILE_LOCKING, StatVfsMountFlags::empty()),
    (Flags::SILENT, MountFlags::SILENT, StatVfsMountFlags::empty()),
];

/// statfs(2) shows `nosymfollow` as this bit, which rustix does not name.
const ST_NOSYMFOLLOW: StatVfsMountFlags = StatVfsMountFlags::from_bits_retain(0x2000);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_parent_is_above_every_layer() {
        for (paths, parent) in [
            (&["/a/b/1/fs", "/a/b/2/fs"][..], "/a/b"),
            (&["/a/b", "/a/bc"], "/a"),
            (&["/a/b/c", "/a/b/c/d"], "/a/b"),
            (&["/x", "/y/z"], "/"),
        ] {
            let paths: Vec<_> = paths.iter().map(PathBuf::from).collect();
            assert_eq!(common_parent(&paths).unwrap(), Path::new(parent));
        }
    }

    #[test]
    fn every_special_character_of_a_layer_is_escaped() {
        let overlay = Overlay {
            lowers: vec!["/a:b".into(), "/c,d".into()],
            data_only: vec!["/e\\f".into()],
            upper: Some("/u,v".into()),
            work: Some("/w x".into()),
            ..Overlay::default()
        };

        let data = overlay_data(&overlay.lowers, &overlay);

        let expected = r"lowerdir=/a\:b:/c\,d::/e\\f,upperdir=/u\,v,workdir=/w x";
        assert_eq!(String::from_utf8(data).unwrap(), expected);
    }
}
