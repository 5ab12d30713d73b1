//! What a container uses and where it is limited: cgroups of both versions.
//!
//! A host is *unified* when `/sys/fs/cgroup` itself is of version 2. On all
//! others, hybrid ones too, the controllers are where version 1 has them.

mod haste;
mod parse;
mod v1;
mod v2;

use std::{
    collections::BTreeMap,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use prost_types::Any;
use tokio::io::unix::AsyncFd;

pub use haste::Haste;

use crate::{Error, Result};

/// The cgroup of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// Folder of each controller.
    V1(BTreeMap<String, PathBuf>),
    V2(PathBuf),
}

impl Cgroup {
    /// The cgroup a process is in.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the process has ended or is in no cgroup.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let root = Path::new(ROOT);
        let missing = || Error::NotFound(format!("cgroup of pid {pid}: not found"));
        if is_unified(root) {
            let path = parse::membership(&text).remove("").ok_or_else(missing)?;
            return Ok(Cgroup { kind: Kind::V2(below(root, &path)) });
        }
        let mounts = fs::read_to_string(MOUNTS).map_err(|e| Error::io("read", MOUNTS, e))?;
        let mounts = parse::v1_mounts(&mounts);
        let folders = parse::membership(&text).into_iter().filter_map(|(controller, path)| {
            let mount = mounts.get(&controller)?;
            Some((controller, below(mount, &path)))
        });
        let folders: BTreeMap<_, _> = folders.collect();
        if folders.is_empty() { Err(missing()) } else { Ok(Cgroup { kind: Kind::V1(folders) }) }
    }

    /// A sample of resource use, as the message of the host's version.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] once the cgroup is gone.
    pub fn stats(&self) -> Result<Any> {
        let folder = self.folder()?;
        if !folder.is_dir() {
            return Err(Error::NotFound(format!("cgroup {}: not found", folder.display())));
        }
        Ok(match &self.kind {
            Kind::V1(folders) => crate::proto::pack(&v1::stats(folders)),
            Kind::V2(folder) => crate::proto::pack(&v2::stats(folder)),
        })
    }

    /// All pids in it and below it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] once the cgroup is gone.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        collect_pids(self.folder()?, 0, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills every process in it, those that appear meanwhile included.
    pub fn kill(&self) {
        if let Kind::V2(folder) = &self.kind
            && fs::write(folder.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        for _ in 0..KILL_ROUNDS_MAX {
            let pids = self.pids().unwrap_or_default();
            let mut killed = false;
            for pid in pids {
                let pid = rustix::process::Pid::from_raw(pid as i32);
                if let Some(pid) = pid {
                    let kill = rustix::process::Signal::KILL;
                    killed |= rustix::process::kill_process(pid, kill).is_ok();
                }
            }
            if !killed {
                return;
            }
        }
    }

    /// Freezes or thaws every process in it; returns before all are frozen.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::NotFound`] without a freezer.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let (path, word) = match &self.kind {
            Kind::V2(folder) => (folder.join("cgroup.freeze"), if frozen { "1" } else { "0" }),
            Kind::V1(folders) => {
                let missing = || Error::NotFound("freezer cgroup: not found".into());
                let folder = folders.get("freezer").ok_or_else(missing)?;
                (folder.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" })
            }
        };
        fs::write(&path, word).map_err(|e| Error::io("write", path, e))
    }

    /// Watches for the kernel killing processes of it for lack of memory.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::NotFound`] without a memory controller.
    pub fn watch_oom(&self) -> Result<OomWatch> {
        match &self.kind {
            Kind::V1(folders) => {
                let missing = || Error::NotFound("memory cgroup: not found".into());
                v1::watch_oom(folders.get("memory").ok_or_else(missing)?)
            }
            Kind::V2(folder) => v2::watch_oom(folder),
        }
    }

    /// One folder that has all its processes.
    fn folder(&self) -> Result<&Path> {
        match &self.kind {
            Kind::V2(folder) => Ok(folder),
            Kind::V1(folders) => {
                let mut known = ["devices", "memory", "pids", "name=systemd"].iter();
                let found = known.find_map(|name| folders.get(*name));
                let found = found.or_else(|| folders.values().next());
                found
                    .map(PathBuf::as_path)
                    .ok_or_else(|| Error::NotFound("cgroup: not found".into()))
            }
        }
    }
}

/// A watch on one cgroup's memory.
#[derive(Debug)]
pub struct OomWatch {
    signal: AsyncFd<OwnedFd>,
    /// Events are counted here, after this word.
    counter: PathBuf,
    word: &'static str,
    seen: u64,
}

impl OomWatch {
    fn new(
        signal: OwnedFd,
        interest: tokio::io::Interest,
        counter: PathBuf,
        word: &'static str,
    ) -> Result<Self> {
        let signal =
            crate::sys::watch(signal, interest).map_err(|e| Error::io("watch", &counter, e))?;
        let mut watch = OomWatch { signal, counter, word, seen: 0 };
        watch.seen = watch.count().unwrap_or_default();
        Ok(watch)
    }

    /// Waits for the next kill; `None` once the cgroup is gone.
    pub async fn next(&mut self) -> Option<()> {
        use tokio::io::{Interest, Ready};
        loop {
            let interest = Interest::READABLE | Interest::PRIORITY;
            let mut ready = self.signal.ready(interest).await.ok()?;
            let mut bytes = [0; 8];
            // Empties an eventfd; elsewhere the counter's file is read below.
            let _ = rustix::io::read(self.signal.get_ref(), &mut bytes[..]);
            ready.clear_ready_matching(Ready::ALL);
            drop(ready);
            let count = self.count()?;
            if count > self.seen {
                self.seen = count;
                return Some(());
            }
        }
    }

    /// Whether there was a kill that [`OomWatch::next`] has not told of; it counts as told then.
    /// What the kernel reports late is found this way once the container has ended.
    pub fn missed(&mut self) -> bool {
        let count = self.count().unwrap_or_default();
        let missed = count > self.seen;
        self.seen = self.seen.max(count);
        missed
    }

    fn count(&self) -> Option<u64> {
        let text = fs::read_to_string(&self.counter).ok()?;
        Some(parse::keyed(&text).remove(self.word).unwrap_or_default())
    }
}

/// Moves a process into the cgroup at `path`, in every hierarchy of the host,
/// making it where it is missing.
///
/// # Errors
///
/// [`Error::InvalidArgument`] for a path that leads upwards, [`Error::Io`].
pub fn join(path: &str, pid: u32) -> Result<()> {
    if path.split('/').any(|part| part == "..") {
        return Err(Error::InvalidArgument(format!("cgroup path {path:?} leads upwards")));
    }
    let folders = everywhere(path)?;
    for folder in folders {
        fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        let procs = folder.join("cgroup.procs");
        fs::write(&procs, pid.to_string()).map_err(|e| Error::io("write", &procs, e))?;
    }
    Ok(())
}

/// Removes what an aborted creation or a runtime that was killed has left of the cgroup at `path`:
/// its processes, and its folders in every hierarchy. One that is not there is removed.
///
/// Touches nothing unless the last part of the path is the container's own, that is contains
/// `id` as a word: a cgroup shared with others is not the container's to remove.
///
/// # Errors
///
/// [`Error::Io`] for a folder that stays.
pub fn remove(path: &str, id: &str) -> Result<()> {
    if !is_own(path, id) {
        return Ok(());
    }
    for folder in everywhere(path)? {
        if !folder.is_dir() {
            continue;
        }
        let mut tries = 0;
        while let Err(error) = remove_folder(&folder, 0) {
            if tries == 0 {
                Cgroup { kind: Kind::V2(folder.clone()) }.kill();
            }
            // A process that was killed leaves when it has come to its end.
            tries += 1;
            if tries >= REMOVALS_MAX {
                return Err(Error::io("remove", folder, error));
            }
            std::thread::sleep(REMOVAL_PAUSE);
        }
    }
    Ok(())
}

/// Whether a cgroup is one container's alone: its last part names it, as in `/a/box` or
/// `/a/x-box.scope`.
pub(crate) fn is_own(path: &str, id: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let ends = |edge: Option<char>| edge.is_none_or(|c| !c.is_alphanumeric());
    let names = |(at, _): (usize, &str)| {
        ends(name[..at].chars().next_back()) && ends(name[at + id.len()..].chars().next())
    };
    !id.is_empty() && name.match_indices(id).any(names) && path.split('/').all(|part| part != "..")
}

fn remove_folder(folder: &Path, depth: usize) -> std::io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if depth >= DEPTH_MAX => return Err(error),
        Err(_) => {}
        Ok(()) => return Ok(()),
    }
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_folder(&entry.path(), depth + 1)?;
        }
    }
    fs::remove_dir(folder)
}

/// The folders of a path in every hierarchy of the host, version 2 of a hybrid one included.
fn everywhere(path: &str) -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if is_unified(root) {
        return Ok(vec![below(root, path)]);
    }
    let mounts = fs::read_to_string(MOUNTS).map_err(|e| Error::io("read", MOUNTS, e))?;
    let mut mounts: Vec<_> = parse::v1_mounts(&mounts).into_values().collect();
    let hybrid = root.join("unified");
    if is_unified(&hybrid) {
        mounts.push(hybrid);
    }
    mounts.sort();
    mounts.dedup();
    Ok(mounts.iter().map(|mount| below(mount, path)).collect())
}

fn is_unified(root: &Path) -> bool {
    rustix::fs::statfs(root).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(CGROUP2_MAGIC))
}

/// Membership paths start at the mount.
fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

fn collect_pids(folder: &Path, depth: usize, pids: &mut Vec<u32>) -> Result<()> {
    let path = folder.join("cgroup.procs");
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    if depth >= DEPTH_MAX {
        return Ok(());
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // One that vanished has no processes.
            let _ = collect_pids(&entry.path(), depth + 1, pids);
        }
    }
    Ok(())
}

const ROOT: &str = "/sys/fs/cgroup";
const MOUNTS: &str = "/proc/self/mountinfo";
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Containers that nest deeper than this hide from nobody but statistics.
const DEPTH_MAX: usize = 32;

/// A process that was killed is gone within this many pauses, unless the kernel keeps it.
const REMOVALS_MAX: u32 = 100;
const REMOVAL_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// A fork bomb loses against this many rounds or has a pids limit.
const KILL_ROUNDS_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::is_own;

    #[test]
    fn only_a_cgroup_that_names_the_container_is_its_own() {
        for path in ["/box", "/a/box", "/a/x-box.scope", "/a/boxes-box", "/a/ns:box"] {
            assert!(is_own(path, "box"), "{path}");
        }
        for path in ["", "/", "/a", "/box/a", "/a/boxes", "/a/sandbox", "/a/../box", "/box/"] {
            assert!(!is_own(path, "box"), "{path}");
        }
        assert!(!is_own("/a", ""));
    }
}
