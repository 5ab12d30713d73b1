//! One namespace: its identity, the state of its pin, and its end.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

use crate::netlink::Lane;
use crate::root::Inner;
use crate::session::Session;
use crate::{Error, NetnsName, Result, SysctlKey};

/// Mounts removed from one pin before giving up; a pin has one, or a few when
/// somebody mounted its directory over itself.
const PIN_MOUNTS_MAX: usize = 64;
/// Attempts to unlink a pin that is still a mount point somewhere.
const UNLINK_ATTEMPTS_MAX: u32 = 10;

/// What tells a namespace from every other, across restarts of this process
/// and of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    /// Random id of the boot the namespace was made in.
    pub boot_id: String,
    /// The kernel's cookie, never used twice within one boot.
    pub cookie: u64,
    /// Inode of the namespace file, as shown by `readlink /proc/PID/ns/net`.
    /// Reused by the kernel; for display and for finding processes only.
    pub inode: u64,
}

/// What is found where a pin should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum PinState {
    /// A network namespace, the one expected if one was.
    Live(NetnsId),
    /// A network namespace, but another one than expected.
    Replaced,
    /// A plain file: never pinned, or unmounted by somebody.
    NotMounted,
    /// Something else: a namespace of another type, a link, a special file.
    WrongType,
    /// Nothing.
    Missing,
}

impl fmt::Display for PinState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live(_) => "live",
            Self::Replaced => "another namespace",
            Self::NotMounted => "not mounted",
            Self::WrongType => "not a network namespace",
            Self::Missing => "missing",
        })
    }
}

/// The namespace an operation goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    Home,
    Pin { name: NetnsName, id: NetnsId },
}

/// A handle on a pinned namespace, or on the home namespace of its root.
///
/// Cheap to clone, holds no descriptor, may be used from any thread. It names
/// one namespace for good: when its pin is replaced, every operation answers
/// [`Error::Stale`].
#[derive(Clone)]
pub struct Netns {
    pub(crate) inner: Arc<Inner>,
    pub(crate) at: At,
}

/// How to delete a namespace.
#[derive(Debug, Clone)]
pub struct DeleteOpts {
    /// How long to wait until the kernel has taken the namespace and its
    /// devices apart; zero to return at once.
    pub wait: Duration,
    /// Remove the pin although processes live in the namespace. It then lives
    /// on, without a name, until they end.
    pub force: bool,
}

impl Default for DeleteOpts {
    fn default() -> Self {
        Self { wait: Duration::from_secs(5), force: false }
    }
}

/// How a deletion ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// The kernel reported the namespace's end within the waiting time. False
    /// also when there was nothing to wait for, or no waiting was asked.
    pub gone: bool,
    /// Who still held it when the pin was removed.
    pub holders: Vec<Holder>,
}

/// A process that keeps a namespace alive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Holder {
    /// Process id as seen from this process.
    pub pid: i32,
    /// The command's short name.
    pub command: String,
    /// How it holds the namespace.
    pub kind: HolderKind,
}

/// How a process holds a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum HolderKind {
    /// One of its threads lives inside.
    Member,
    /// It has the namespace file open. Sockets opened inside cannot be told.
    Descriptor,
}

impl Netns {
    /// The name, `None` for the home namespace.
    pub fn name(&self) -> Option<&NetnsName> {
        match &self.at {
            At::Home => None,
            At::Pin { name, .. } => Some(name),
        }
    }

    /// The identity recorded when the handle was made; `None` for home.
    pub fn id(&self) -> Option<&NetnsId> {
        match &self.at {
            At::Home => None,
            At::Pin { id, .. } => Some(id),
        }
    }

    /// Where the pin is: the path to put into an OCI spec. For the home
    /// namespace, a path every thread resolves to its own.
    pub fn path(&self) -> PathBuf {
        match &self.at {
            At::Home => PathBuf::from(crate::netlink::OWN_NETNS),
            At::Pin { name, .. } => self.inner.pin_path(name),
        }
    }

    /// True for the home namespace.
    pub fn is_host(&self) -> bool {
        self.at == At::Home
    }

    /// Looks at the pin now and compares it with this handle's identity.
    ///
    /// # Errors
    ///
    /// Only when looking itself fails; a bad state is an answer.
    pub fn verify(&self) -> Result<PinState> {
        match &self.at {
            At::Home => Err(Error::refused("verify", "the host has no pin")),
            At::Pin { name, id } => {
                let (name, id) = (name.clone(), id.clone());
                self.inner.verify(name, Some(id))
            }
        }
    }

    /// The namespace's id in the home namespace, by which [`crate::Monitor`]
    /// and `ip` tag events; assigned if it has none yet.
    pub fn nsid(&self) -> Result<Option<i32>> {
        let at = self.at.clone();
        self.job(Lane::Change, "assign namespace id", move |session| session.ensure_nsid(&at))
    }

    /// Reads a setting inside the namespace.
    pub fn sysctl(&self, key: &SysctlKey) -> Result<String> {
        let (at, key) = (self.at.clone(), key.clone());
        self.job(Lane::Read, "read sysctl", move |session| session.inside(&at, || key.read())?)
    }

    /// Writes a setting inside the namespace.
    pub fn set_sysctl(&self, key: &SysctlKey, value: &str) -> Result<()> {
        let (at, key, value) = (self.at.clone(), key.clone(), value.to_owned());
        self.job(Lane::Change, "write sysctl", move |session| {
            session.inside(&at, || key.write(&value))?
        })
    }

    /// Processes that keep the namespace alive besides its pin.
    ///
    /// Found by looking through `/proc`: processes this one may not inspect
    /// are missed, and so are sockets. Only while the pin is there
    /// ([`Netns::verify`]): the kernel gives the number of a namespace that
    /// has gone to another.
    pub fn holders(&self) -> Result<Vec<Holder>> {
        match &self.at {
            At::Home => Err(Error::refused("list holders", "every process is in the host")),
            At::Pin { id, .. } => Ok(holders_of(id.inode)),
        }
    }

    /// Removes the pin and, unless somebody else holds it, the namespace with
    /// every device in it.
    ///
    /// Works on whatever state the pin is in, so that it can be repeated after
    /// a crash; only a replaced pin is left alone.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] when processes live inside and `force` is not set,
    /// [`Error::NotFound`] when nothing is there, [`Error::Stale`] when another
    /// namespace has taken the place.
    pub fn delete(&self, opts: &DeleteOpts) -> Result<Deleted> {
        let At::Pin { name, id } = &self.at else {
            return Err(Error::refused("delete namespace", "the host cannot be deleted"));
        };
        let mut results = self.inner.delete(vec![(name.clone(), Some(id.clone()))], opts.clone());
        results.pop().unwrap_or_else(|| Err(Error::not_found(format!("namespace {name}"))))
    }

    pub(crate) fn job<T: Send + 'static>(
        &self,
        lane: Lane,
        step: &'static str,
        job: impl FnOnce(&mut Session<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.inner.job(lane, step, job)
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netns").field("at", &self.at).finish_non_exhaustive()
    }
}

/// Takes every mount off a pin, then the file itself.
pub(crate) fn unpin(path: &Path) -> Result<()> {
    for _ in 0..PIN_MOUNTS_MAX {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(errno) => return Err(Error::io("unmount", path, errno)),
        }
    }
    let mut attempt = 0;
    loop {
        match rustix::fs::unlink(path) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if attempt < UNLINK_ATTEMPTS_MAX => {
                // Somebody's copy of the mount is just going away.
                attempt += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(errno @ rustix::io::Errno::BUSY) => {
                return Err(Error::Busy {
                    step: format!("unlink {}", path.display()),
                    kernel: Some(errno.into()),
                });
            }
            Err(errno) => return Err(Error::io("unlink", path, errno)),
        }
    }
}

/// Processes with a thread inside, or a descriptor on, the namespace file
/// with this inode.
pub(crate) fn holders_of(inode: u64) -> Vec<Holder> {
    holders_of_all(&BTreeSet::from([inode])).remove(&inode).unwrap_or_default()
}

/// The same for several namespaces, by one walk through `/proc`.
pub(crate) fn holders_of_all(inodes: &BTreeSet<u64>) -> HashMap<u64, Vec<Holder>> {
    let wanted = |path: PathBuf| {
        let target = std::fs::read_link(path).ok()?;
        let inode = target.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
        inodes.contains(&inode).then_some(inode)
    };
    let mut holders: HashMap<u64, Vec<Holder>> = HashMap::new();
    let own = std::process::id() as i32;
    // Our own threads visit namespaces; they are nobody's holders.
    for (pid, process) in numbered("/proc").filter(|(pid, _)| *pid != own) {
        let tasks = numbered(process.join("task")).map(|(_, task)| task.join("ns/net"));
        let members: BTreeSet<u64> = tasks.filter_map(wanted).collect();
        let open = numbered(process.join("fd")).map(|(_, fd)| fd);
        let open: BTreeSet<u64> = open.filter_map(wanted).collect();
        let command = || {
            let command = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
            command.trim_end().to_owned()
        };
        for inode in members.union(&open) {
            let kind = match members.contains(inode) {
                true => HolderKind::Member,
                false => HolderKind::Descriptor,
            };
            holders.entry(*inode).or_default().push(Holder { pid, command: command(), kind });
        }
    }
    holders
}

/// Entries of a directory of `/proc` whose names are numbers.
fn numbered(dir: impl AsRef<Path>) -> impl Iterator<Item = (i32, PathBuf)> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
}
