//! Attaching through the mount API of Linux 5.2 and later.
//!
//! A filesystem is configured one option at a time on a descriptor, which is
//! also where the kernel leaves its explanations; the finished mount is a second
//! descriptor that appears at its target in one step, complete.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, fspick, move_mount, open_tree,
};

use crate::options::{Datum, Flags, Propagation, Reach};
use crate::request::{Attached, Request};
use crate::sys::{MountAttr, mount_setattr};
use crate::{Error, Result};

/// Binds the source, with all its attributes set before anyone can see it.
pub(crate) fn bind(request: &Request<'_>) -> Result<Attached> {
    let recursive = request.options.bind == Some(Reach::Tree);
    let tree = open_clone(request.source().as_os_str(), recursive)
        .map_err(|errno| request.failed("open source", errno))?;
    if let Some(map) = &request.options.id_map {
        let namespace = map.user_namespace()?;
        map_ids(request, tree.as_fd(), recursive, namespace.as_fd())?;
    }
    let set = attributes(request.options.flags);
    let clear = atime_mask(request.options.flags);
    if !set.is_empty() || !clear.is_empty() {
        let change = MountAttr { set: Some(set), clear: Some(clear), ..MountAttr::default() };
        // Like mount(8): the flags are those of the top mount.
        mount_setattr(tree.as_fd(), false, &change)
            .map_err(|errno| request.failed("set attributes", errno))?;
    }
    place(request, tree)
}

/// A copy of the mount at `path`, showing `path` as its root, attached nowhere.
pub(crate) fn open_clone(path: &std::ffi::OsStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, flags)
}

/// Shows the detached `tree` through `namespace`.
pub(crate) fn map_ids(
    request: &Request<'_>,
    tree: BorrowedFd<'_>,
    recursive: bool,
    namespace: BorrowedFd<'_>,
) -> Result<()> {
    let change = MountAttr { user_namespace: Some(namespace), ..MountAttr::default() };
    mount_setattr(tree, recursive, &change).map_err(|errno| match errno {
        Errno::INVAL => {
            request.unsupported("map ids", "the filesystem cannot be mounted id-mapped", errno)
        }
        Errno::PERM => {
            let why = "the mount is id-mapped already, or belongs to another user namespace";
            request.explained("map ids", None, vec![why.to_owned()], errno)
        }
        Errno::NOSYS => request.unsupported("map ids", "needs linux 5.12", errno),
        _ => request.failed("map ids", errno),
    })
}

/// Whether the source and every value fit fsconfig(2).
pub(crate) fn fits(source: &str, data: &[Datum]) -> bool {
    let fits = |text: &str| text.len() <= VALUE_MAX_BYTES;
    fits(source) && data.iter().filter_map(Datum::plain_value).all(fits)
}

/// Makes a filesystem instance of the request's kind and attaches it.
pub(crate) fn filesystem(request: &Request<'_>, source: &str, data: &[Datum]) -> Result<Attached> {
    let context = Context::open(request)?;
    if !source.is_empty() {
        context.string("source", source)?;
    }
    context.superblock_flags()?;
    for datum in data {
        context.datum(datum)?;
    }
    context.finish()
}

/// Sets the requested propagation on the attached `mount`.
pub(crate) fn propagate(request: &Request<'_>, mount: BorrowedFd<'_>) -> Result<()> {
    let Some((propagation, reach)) = request.options.propagation else {
        return Ok(());
    };
    let change =
        MountAttr { propagation: Some(propagation_flag(propagation)), ..MountAttr::default() };
    mount_setattr(mount, reach == Reach::Tree, &change)
        .map_err(|errno| request.failed("set propagation", errno))
}

/// `remount`: the flags replace those of the mount at the target; without
/// `bind` the filesystem's own options change too.
pub(crate) fn remount(request: &Request<'_>) -> Result<()> {
    if request.options.bind.is_none() {
        let fd = fspick(
            request.target.as_fd(),
            "",
            FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC,
        );
        let fd = fd.map_err(|errno| request.failed("open filesystem", errno))?;
        let context = Context { fd, request };
        context.superblock_flags()?;
        if !request.options.flags.contains(Flags::READ_ONLY) {
            context.flag("rw")?;
        }
        for datum in &request.options.data {
            context.datum(datum)?;
        }
        fsconfig_reconfigure(&context.fd)
            .map_err(|errno| context.failed("reconfigure", None, errno))?;
    }
    let set = attributes(request.options.flags);
    let clear = (ALL_BUT_ATIME - set) | atime_mask(request.options.flags);
    let change = MountAttr { set: Some(set), clear: Some(clear), ..MountAttr::default() };
    mount_setattr(request.target.as_fd(), false, &change)
        .map_err(|errno| request.failed("set attributes", errno))?;
    propagate(request, request.target.as_fd())
}

/// A filesystem instance being configured.
pub(crate) struct Context<'r> {
    pub(crate) fd: OwnedFd,
    pub(crate) request: &'r Request<'r>,
}

impl<'r> Context<'r> {
    pub(crate) fn open(request: &'r Request<'r>) -> Result<Self> {
        let kind = request.mount.kind.as_str();
        match fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(fd) => Ok(Self { fd, request }),
            Err(errno @ Errno::NODEV) => {
                let why = "this kernel has no such filesystem";
                Err(request.unsupported("open filesystem type", why, errno))
            }
            Err(errno) => Err(request.failed("open filesystem type", errno)),
        }
    }

    pub(crate) fn string(&self, key: &str, value: &str) -> Result<()> {
        fsconfig_set_string(&self.fd, key, value)
            .map_err(|errno| self.failed("set option", Some(format!("{key}={value}")), errno))
    }

    fn flag(&self, key: &str) -> Result<()> {
        fsconfig_set_flag(&self.fd, key)
            .map_err(|errno| self.failed("set option", Some(key.to_owned()), errno))
    }

    pub(crate) fn descriptor(&self, key: &str, value: BorrowedFd<'_>) -> Result<(), Errno> {
        fsconfig_set_fd(&self.fd, key, value)
    }

    pub(crate) fn datum(&self, datum: &Datum) -> Result<()> {
        match datum.plain_value() {
            Some(value) => self.string(&datum.key, value),
            None => self.flag(&datum.key),
        }
    }

    pub(crate) fn superblock_flags(&self) -> Result<()> {
        let mut on =
            SUPERBLOCK_KEYS.iter().filter(|(flag, _)| self.request.options.flags.contains(*flag));
        on.try_for_each(|(_, key)| self.flag(key))
    }

    /// Creates the instance, mounts it and attaches it.
    pub(crate) fn finish(&self) -> Result<Attached> {
        fsconfig_create(&self.fd).map_err(|errno| self.failed(STEP_CREATE, None, errno))?;
        let attributes = attributes(self.request.options.flags);
        let mount = fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|errno| self.failed("mount filesystem", None, errno))?;
        place(self.request, mount)
    }

    pub(crate) fn failed(&self, step: &'static str, option: Option<String>, errno: Errno) -> Error {
        self.request.explained(step, option, self.log(), errno)
    }

    /// The errors and warnings that the kernel left on the descriptor.
    fn log(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = [0; 1024];
        for _ in 0..LOG_LINES_MAX {
            let Ok(size) = rustix::io::read(&self.fd, &mut buffer) else {
                break;
            };
            let text = String::from_utf8_lossy(&buffer[..size]);
            if let Some(("e" | "w", message)) = text.trim_end().split_once(' ') {
                lines.push(message.to_owned());
            }
        }
        lines
    }
}

/// Makes the detached `mount` appear at the target.
fn place(request: &Request<'_>, mount: OwnedFd) -> Result<Attached> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mount, "", &request.target, "", flags)
        .map_err(|errno| request.failed("move to target", errno))?;
    Ok(Attached::new(mount, &request.target))
}

fn attributes(flags: Flags) -> MountAttrFlags {
    let on = ATTRIBUTES.iter().filter(|(flag, _)| flags.contains(*flag));
    on.fold(MountAttrFlags::empty(), |set, (_, attribute)| set | *attribute)
}

/// The access time setting is a number, not a bit: to set it is to clear it too.
fn atime_mask(flags: Flags) -> MountAttrFlags {
    if (flags & Flags::ATIME).is_empty() {
        MountAttrFlags::empty()
    } else {
        MountAttrFlags::MOUNT_ATTR__ATIME
    }
}

fn propagation_flag(propagation: Propagation) -> MountPropagationFlags {
    match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Shared => MountPropagationFlags::SHARED,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Unbindable => MountPropagationFlags::UNBINDABLE,
    }
}

pub(crate) const STEP_CREATE: &str = "create filesystem";

/// fsconfig(2) takes 256 bytes with the final NUL.
pub(crate) const VALUE_MAX_BYTES: usize = 255;

/// The kernel keeps at most eight messages; the bound is against surprises.
const LOG_LINES_MAX: usize = 16;

const SUPERBLOCK_KEYS: &[(Flags, &str)] = &[
    (Flags::READ_ONLY, "ro"),
    (Flags::SYNC, "sync"),
    (Flags::DIR_SYNC, "dirsync"),
    (Flags::LAZY_TIME, "lazytime"),
    (Flags::MAND_LOCK, "mand"),
];

const ATTRIBUTES: &[(Flags, MountAttrFlags)] = &[
    (Flags::READ_ONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
    (Flags::NO_SUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
    (Flags::NO_DEV, MountAttrFlags::MOUNT_ATTR_NODEV),
    (Flags::NO_EXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    (Flags::NO_SYMLINKS, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
    (Flags::NO_DIR_ATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    (Flags::NO_ATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
    (Flags::STRICT_ATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
];

const ALL_BUT_ATIME: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW)
    .union(MountAttrFlags::MOUNT_ATTR_NODIRATIME);
