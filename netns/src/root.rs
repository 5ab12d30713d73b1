//! The directory namespaces are pinned in.
//!
//! ```text
//! /run/crated/netns/          a tmpfs of its own, private unless asked otherwise
//! ├── web                     empty file, the namespace's file bind-mounted on it
//! └── db
//! /run/netns/web -> …/web     only when RootOptions::expose_in says so
//! ```
//!
//! A crash between making the file and mounting on it leaves a plain file
//! ([`PinState::NotMounted`]); [`NetnsRoot::sweep`] removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use serde::{Deserialize, Serialize};

use crate::namespace::{At, unpin};
use crate::netlink::{Hopper, Lane, Lanes, OWN_NETNS, Socket};
use crate::session::{Session, assign_nsid};
use crate::{
    Capabilities, DeleteOpts, Deleted, Error, Monitor, Netns, NetnsId, NetnsName, PinState, Result,
    SysctlKey, sys,
};

/// Magic of the filesystem namespace files live on, `NSFS_MAGIC`.
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Most pins listed; far above what one machine holds.
const PINS_MAX: usize = 100_000;

/// Whether mounts below the directory show up in other mount namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Propagation {
    /// Pins stay in this mount namespace and what it copies later. Spares
    /// every service with its own mounts a copy of every pin.
    #[default]
    Private,
    /// Pins show up wherever the directory's mount is shared to.
    Shared,
}

/// Settings of a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootOptions {
    /// Propagation of the directory's mount, applied when it is made.
    pub propagation: Propagation,
    /// Directory (usually `/run/netns`) to put a symbolic link to each pin
    /// into, so that `ip netns` sees it. Existing files there are left alone.
    pub expose_in: Option<PathBuf>,
    /// Device group that marks links made in the home namespace as ours.
    pub owner_group: u32,
}

impl Default for RootOptions {
    fn default() -> Self {
        // "cr8d": unlikely to be anybody else's.
        Self { propagation: Propagation::default(), expose_in: None, owner_group: 0x6372_3864 }
    }
}

/// What a namespace starts with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetnsSpec {
    /// Settings written inside before anything else, in key order.
    pub sysctls: BTreeMap<SysctlKey, String>,
    /// Bring the loopback device up.
    pub lo_up: bool,
}

impl Default for NetnsSpec {
    fn default() -> Self {
        Self { sysctls: BTreeMap::new(), lo_up: true }
    }
}

/// Where to find a namespace to adopt.
#[derive(Debug)]
#[non_exhaustive]
pub enum Source {
    /// A namespace file, such as another tool's pin.
    Path(PathBuf),
    /// The namespace a process is in now.
    Pid(i32),
    /// A descriptor open on a namespace file.
    Fd(OwnedFd),
}

/// A directory entry and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// The entry's name.
    pub name: NetnsName,
    /// What was found.
    pub state: PinState,
}

/// What [`NetnsRoot::sweep`] did.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// Unknown pins that were removed.
    pub removed: Vec<NetnsName>,
    /// Unknown pins too young to remove.
    pub spared: Vec<NetnsName>,
    /// Unknown pins that could not be removed.
    pub failed: Vec<(NetnsName, Error)>,
}

/// The owner of one directory of pins and of two worker threads.
///
/// Cheap to clone. The threads end with the last clone and the last handle.
#[derive(Clone)]
pub struct NetnsRoot {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    dir: PathBuf,
    pub(crate) lanes: Lanes,
    boot_id: String,
    pub(crate) options: RootOptions,
}

impl NetnsRoot {
    /// Opens `dir` with default options but for propagation; see
    /// [`NetnsRoot::open_with`].
    pub fn open(dir: impl AsRef<Path>, propagation: Propagation) -> Result<Self> {
        Self::open_with(dir, RootOptions { propagation, ..RootOptions::default() })
    }

    /// Opens `dir`, making it and its mount if needed. Two processes may do so
    /// at once. The calling thread's namespaces become home.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the directory belongs to somebody else or others
    /// may write to it; [`Error::Permission`] without `CAP_SYS_ADMIN`.
    pub fn open_with(dir: impl AsRef<Path>, options: RootOptions) -> Result<Self> {
        let dir = std::path::absolute(dir.as_ref())
            .map_err(|_| Error::value("directory", "no absolute path"))?;
        prepare_dir(&dir, options.propagation)?;
        let boot_id = "/proc/sys/kernel/random/boot_id";
        let boot_id = std::fs::read_to_string(boot_id).map_err(|error| io(boot_id, &error))?;
        let inner =
            Inner { dir, lanes: Lanes::start()?, boot_id: boot_id.trim().to_owned(), options };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// A handle on the home namespace.
    pub fn host(&self) -> Netns {
        Netns { inner: Arc::clone(&self.inner), at: At::Home }
    }

    /// Makes and pins a namespace.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] when anything has the name, even a leftover of
    /// a crash. After any error nothing is left behind.
    pub fn create(&self, name: &NetnsName, spec: &NetnsSpec) -> Result<Netns> {
        let spec = spec.clone();
        self.pin(name, "create namespace", move |hopper, path| {
            hopper.create(|| {
                let mut socket = Socket::open()?;
                if spec.lo_up {
                    crate::link::loopback_up(&mut socket)?;
                }
                for (key, value) in &spec.sysctls {
                    key.write(value)?;
                }
                rustix::mount::mount_bind(OWN_NETNS, path)
                    .map_err(|errno| Error::io("pin namespace at", path, errno))?;
                // Asked from within, which spares a visit.
                Ok(Some(socket.cookie()?))
            })?
        })
    }

    /// Pins an existing namespace under a name of this root.
    ///
    /// # Errors
    ///
    /// As [`NetnsRoot::create`]; [`Error::InvalidValue`] when the source is not
    /// a network namespace, [`Error::NotFound`] when it is gone.
    pub fn adopt(&self, name: &NetnsName, source: Source) -> Result<Netns> {
        let ns = open_source(source)?;
        self.pin(name, "adopt namespace", move |_, path| {
            let file = format!("/proc/thread-self/fd/{}", ns.as_raw_fd());
            rustix::mount::mount_bind(file, path)
                .map_err(|errno| Error::io("pin namespace at", path, errno))?;
            Ok(None)
        })
    }

    /// A handle on a pinned namespace.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when nothing has the name, [`Error::Stale`] when what
    /// has it is no network namespace.
    pub fn get(&self, name: &NetnsName) -> Result<Netns> {
        match self.inner.verify(name.clone(), None)? {
            PinState::Live(id) => Ok(self.recorded(name, id)),
            PinState::Missing => Err(Error::not_found(format!("namespace {name}"))),
            state => Err(Error::Stale { netns: name.to_string(), state }),
        }
    }

    /// A handle made from an identity the caller recorded, without looking;
    /// [`Netns::verify`] tells whether it still holds.
    pub fn recorded(&self, name: &NetnsName, id: NetnsId) -> Netns {
        let at = At::Pin { name: name.clone(), id };
        Netns { inner: Arc::clone(&self.inner), at }
    }

    /// Whether a pin is still the namespace recorded, judged from outside by the inode of its file:
    /// quick enough to look at thousands when a program starts. Operations look closer.
    ///
    /// # Errors
    ///
    /// Only when looking itself fails; a bad state is an answer.
    pub fn peek(&self, name: &NetnsName, id: &NetnsId) -> Result<PinState> {
        let path = self.inner.pin_path(name);
        let stat = match rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(PinState::Missing),
            Err(errno) => return Err(Error::io("stat", path, errno)),
        };
        if id.boot_id == self.inner.boot_id && stat.st_ino == id.inode {
            let on_nsfs = rustix::fs::statfs(&path).is_ok_and(|fs| fs.f_type as u64 == NSFS_MAGIC);
            if on_nsfs {
                return Ok(PinState::Live(id.clone()));
            }
        }
        self.inner.verify(name.clone(), Some(id.clone()))
    }

    /// The random id of the boot this program runs in.
    pub fn boot_id(&self) -> &str {
        &self.inner.boot_id
    }

    /// Every entry of the directory with a valid name, in order of name.
    pub fn list(&self) -> Result<Vec<Pin>> {
        let inner = Arc::clone(&self.inner);
        self.inner.lanes.run(Lane::Read, "list namespaces", move |hopper| {
            let mut pins = Vec::new();
            for name in inner.names()? {
                let state = inner.look(&name, hopper)?;
                if state != PinState::Missing {
                    pins.push(Pin { name, state });
                }
            }
            Ok(pins)
        })
    }

    /// Listens to what happens in all namespaces.
    pub fn monitor(&self) -> Result<Monitor> {
        Monitor::open(self)
    }

    /// What this kernel can do, found out by trying in a namespace that is
    /// thrown away. Takes some ten milliseconds; keep the answer.
    pub fn capabilities(&self) -> Result<Capabilities> {
        self.inner.lanes.run(Lane::Change, "probe the kernel", crate::capabilities::probe)
    }

    /// Deletes several namespaces: all pins first, then one wait for all.
    /// One result per name, in order.
    pub fn delete_all(&self, names: &[NetnsName], opts: &DeleteOpts) -> Vec<Result<Deleted>> {
        let wanted = names.iter().map(|name| (name.clone(), None)).collect();
        self.inner.delete(wanted, opts.clone())
    }

    /// Removes entries whose names are not in `known` and that are older than
    /// `grace`, live or not. For use after a restart, with everything that was
    /// recorded before being made.
    pub fn sweep(&self, known: &BTreeSet<NetnsName>, grace: Duration) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        let names = self.inner.names()?;
        for name in names.into_iter().filter(|name| !known.contains(name)) {
            match self.inner.age(&name) {
                Some(age) if age >= grace => report.removed.push(name),
                Some(_) => report.spared.push(name),
                None => {}
            }
        }
        let opts = DeleteOpts { wait: Duration::ZERO, force: true };
        let results = self.delete_all(&report.removed, &opts);
        let removed = std::mem::take(&mut report.removed);
        for (name, result) in removed.into_iter().zip(results) {
            match result {
                Ok(_) | Err(Error::NotFound { .. }) => report.removed.push(name),
                Err(error) => report.failed.push((name, error)),
            }
        }
        Ok(report)
    }

    /// Claims the name, lets `mount` pin a namespace there, and reads back
    /// what was pinned. Takes everything back on failure.
    fn pin(
        &self,
        name: &NetnsName,
        step: &'static str,
        mount: impl FnOnce(&mut Hopper, &Path) -> Result<Option<u64>> + Send + 'static,
    ) -> Result<Netns> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        let netns = self.inner.lanes.run(Lane::Change, step, move |hopper| {
            let path = inner.pin_path(&name);
            let claim = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
            match rustix::fs::open(&path, claim | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(_) => {}
                Err(errno @ Errno::EXIST) => {
                    let object = format!("namespace {name}");
                    return Err(Error::AlreadyExists { object, kernel: Some(errno.into()) });
                }
                Err(errno) => return Err(Error::io("create", path, errno)),
            }
            let made =
                mount(hopper, &path).and_then(|cookie| inner.finish_pin(&name, cookie, hopper));
            match made {
                Ok(id) => Ok((inner, At::Pin { name, id })),
                Err(error) => {
                    if let Err(undo) = unpin(&path) {
                        tracing::warn!(%undo, path = %path.display(), "cannot take back a pin");
                    }
                    Err(error)
                }
            }
        });
        netns.map(|(inner, at)| Netns { inner, at })
    }
}

impl Inner {
    pub(crate) fn pin_path(&self, name: &NetnsName) -> PathBuf {
        self.dir.join(name.as_str())
    }

    pub(crate) fn job<T: Send + 'static>(
        self: &Arc<Self>,
        lane: Lane,
        step: &'static str,
        job: impl FnOnce(&mut Session<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(self);
        self.lanes.run(lane, step, move |hopper| job(&mut Session::new(inner, hopper)))
    }

    /// Opens a pin if it is a network namespace, else says what it is.
    pub(crate) fn open_pin(&self, name: &NetnsName) -> Result<Result<OwnedFd, PinState>> {
        let path = self.pin_path(name);
        // Non-blocking, so that a pipe somebody put here cannot hold us up.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(match check_type(&fd) {
                Ok(()) => Ok(fd),
                Err(state) => Err(state),
            }),
            Err(Errno::NOENT) => Ok(Err(PinState::Missing)),
            Err(Errno::LOOP | Errno::NXIO) => Ok(Err(PinState::WrongType)),
            Err(errno) => Err(Error::io("open", path, errno)),
        }
    }

    pub(crate) fn verify(
        self: &Arc<Self>,
        name: NetnsName,
        expected: Option<NetnsId>,
    ) -> Result<PinState> {
        let inner = Arc::clone(self);
        self.lanes.run(Lane::Read, "verify namespace", move |hopper| {
            Ok(match (inner.look(&name, hopper)?, expected) {
                (PinState::Live(found), Some(expected)) if !same(&found, &expected) => {
                    PinState::Replaced
                }
                (state, _) => state,
            })
        })
    }

    /// What is at the name now.
    pub(crate) fn look(&self, name: &NetnsName, hopper: &mut Hopper) -> Result<PinState> {
        let fd = match self.open_pin(name)? {
            Ok(fd) => fd,
            Err(state) => return Ok(state),
        };
        let cookie = hopper.socket_in(fd.as_fd())?.cookie()?;
        let stat = rustix::fs::fstat(&fd)
            .map_err(|errno| Error::io("stat", self.pin_path(name), errno))?;
        Ok(PinState::Live(NetnsId { boot_id: self.boot_id.clone(), cookie, inode: stat.st_ino }))
    }

    /// What is at the name now, seen from outside: without its cookie.
    pub(crate) fn glance(&self, name: &NetnsName) -> Result<PinState> {
        let fd = match self.open_pin(name)? {
            Ok(fd) => fd,
            Err(state) => return Ok(state),
        };
        let stat = rustix::fs::fstat(&fd)
            .map_err(|errno| Error::io("stat", self.pin_path(name), errno))?;
        let boot_id = self.boot_id.clone();
        Ok(PinState::Live(NetnsId { boot_id, cookie: 0, inode: stat.st_ino }))
    }

    /// Gives a fresh pin its id and its link for other tools. The cookie is asked for when the
    /// maker does not know it.
    fn finish_pin(
        &self,
        name: &NetnsName,
        cookie: Option<u64>,
        hopper: &mut Hopper,
    ) -> Result<NetnsId> {
        let Ok(fd) = self.open_pin(name)? else {
            return Err(Error::refused(format!("pin {name}"), "somebody unmounted it"));
        };
        let cookie = match cookie {
            Some(cookie) => cookie,
            None => hopper.socket_in(fd.as_fd())?.cookie()?,
        };
        let stat = rustix::fs::fstat(&fd)
            .map_err(|errno| Error::io("stat", self.pin_path(name), errno))?;
        let id = NetnsId { boot_id: self.boot_id.clone(), cookie, inode: stat.st_ino };
        assign_nsid(&mut hopper.home_socket()?, fd.as_raw_fd())?;
        drop(fd);
        if let Some(dir) = &self.options.expose_in {
            rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)).ok();
            let link = dir.join(name.as_str());
            match rustix::fs::symlink(self.pin_path(name), &link) {
                Ok(()) => {}
                Err(Errno::EXIST) if self.is_our_link(name, &link) => {}
                Err(errno) => return Err(Error::io("link", link, errno)),
            }
        }
        Ok(id)
    }

    pub(crate) fn is_our_link(&self, name: &NetnsName, link: &Path) -> bool {
        std::fs::read_link(link).is_ok_and(|target| target == self.pin_path(name))
    }

    /// Names in the directory that could be pins.
    pub(crate) fn names(&self) -> Result<BTreeSet<NetnsName>> {
        let entries = std::fs::read_dir(&self.dir).map_err(|error| io(&self.dir, &error))?;
        let mut names = BTreeSet::new();
        for entry in entries.take(PINS_MAX) {
            let entry = entry.map_err(|error| io(&self.dir, &error))?;
            if let Some(name) = entry.file_name().to_str().and_then(|n| n.parse().ok()) {
                names.insert(name);
            }
        }
        Ok(names)
    }

    /// Time since the entry was made: since the file was for a plain one,
    /// since the namespace was first opened for a pin.
    fn age(&self, name: &NetnsName) -> Option<Duration> {
        let stat = rustix::fs::statat(CWD, self.pin_path(name), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let made = u64::try_from(stat.st_ctime).ok()?;
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(made);
        Some(SystemTime::now().duration_since(made).unwrap_or_default())
    }
}

/// What the file at `path` is, for a path that somebody is about to join. The identity is that of
/// the file alone: its cookie is 0.
///
/// # Errors
///
/// [`Error::NotFound`] when nothing is there, [`Error::Permission`].
pub fn inspect(path: &Path) -> Result<PinState> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| Error::io("open", path, errno))?;
    if let Err(state) = check_type(&fd) {
        return Ok(state);
    }
    let stat = rustix::fs::fstat(&fd).map_err(|errno| Error::io("stat", path, errno))?;
    Ok(PinState::Live(NetnsId { boot_id: String::new(), cookie: 0, inode: stat.st_ino }))
}

pub(crate) fn same(found: &NetnsId, expected: &NetnsId) -> bool {
    found.cookie == expected.cookie && found.boot_id == expected.boot_id
}

fn check_type(fd: &OwnedFd) -> Result<(), PinState> {
    let on_nsfs = rustix::fs::fstatfs(fd).is_ok_and(|fs| fs.f_type as u64 == NSFS_MAGIC);
    if !on_nsfs {
        let plain = rustix::fs::fstat(fd)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        return Err(if plain { PinState::NotMounted } else { PinState::WrongType });
    }
    match sys::namespace_type(fd) {
        Ok(libc::CLONE_NEWNET) => Ok(()),
        _ => Err(PinState::WrongType),
    }
}

fn open_source(source: Source) -> Result<OwnedFd> {
    let open = |path: PathBuf| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| Error::io("open", path, errno))
    };
    let fd = match source {
        Source::Path(path) => open(path)?,
        Source::Pid(pid) if pid <= 0 => {
            return Err(Error::value("pid", format!("{pid} is not a process id")));
        }
        Source::Pid(pid) => {
            open(PathBuf::from(format!("/proc/{pid}/ns/net"))).map_err(|error| match error {
                Error::NotFound { kernel, .. } => {
                    Error::NotFound { object: format!("process {pid}"), kernel }
                }
                error => error,
            })?
        }
        Source::Fd(fd) => fd,
    };
    check_type(&fd).map_err(|state| Error::value("source", format!("it is {state}")))?;
    Ok(fd)
}

/// Makes the directory a mount of its own, once, whoever comes first.
fn prepare_dir(dir: &Path, propagation: Propagation) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(dir).map_err(|error| io(dir, &error))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::open(dir, flags, Mode::empty())
        .map_err(|errno| Error::io("open", dir, errno))?;
    check_owner(dir, &held)?;
    // The lock is on the directory below the mount: whoever waits here finds
    // the mount made.
    rustix::fs::flock(&held, FlockOperation::LockExclusive)
        .map_err(|errno| Error::io("lock", dir, errno))?;
    if is_mount_point(dir)? {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("netns", dir, "tmpfs", flags, Some(c"mode=0700"))
        .map_err(|errno| Error::io("mount tmpfs on", dir, errno))?;
    let change = match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Shared => MountPropagationFlags::SHARED,
    };
    rustix::mount::mount_change(dir, change)
        .map_err(|errno| Error::io("set propagation of", dir, errno))
}

fn check_owner(dir: &Path, held: &OwnedFd) -> Result<()> {
    let stat = rustix::fs::fstat(held).map_err(|errno| Error::io("stat", dir, errno))?;
    let foreign = stat.st_uid != rustix::process::geteuid().as_raw();
    if foreign || stat.st_mode & 0o022 != 0 {
        let reason = "the directory belongs to another user or others may write to it";
        return Err(Error::refused(format!("open {}", dir.display()), reason));
    }
    Ok(())
}

fn is_mount_point(dir: &Path) -> Result<bool> {
    let root = rustix::fs::StatxAttributes::MOUNT_ROOT;
    let stat = rustix::fs::statx(
        CWD,
        dir,
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT,
        rustix::fs::StatxFlags::BASIC_STATS,
    )
    .map_err(|errno| Error::io("stat", dir, errno))?;
    Ok(stat.stx_attributes_mask.contains(root) && stat.stx_attributes.contains(root))
}

fn io(path: impl Into<PathBuf>, error: &std::io::Error) -> Error {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    Error::io("read", path, Errno::from_raw_os_error(errno))
}
