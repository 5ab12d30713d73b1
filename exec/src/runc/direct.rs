//! What runc does in two of its steps, done here without starting it.
//!
//! A container that runc has created waits for a reader of a FIFO, and one that has ended is a
//! folder with its state:
//!
//! ```text
//!   <root>/<id>/state.json    what the container is
//!   <root>/<id>/exec.fifo     its first process writes a byte here and then runs the program;
//!                             the reader takes the byte, waits for the end and removes the FIFO
//! ```
//!
//! To start is to read the FIFO, to delete is to remove cgroup and folder. Starting runc for it
//! costs several times as much. So this is done for runc alone, and only where every file is the
//! one expected: whatever else is found, asked for or configured is left to runc itself.

use std::{
    ffi::OsStr,
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FileType, Mode, OFlags},
    io::{Errno, retry_on_intr},
};
use tokio::io::unix::AsyncFd;

use super::RuncConfig;
use crate::{Error, Result, io::watch_read, spec::Glance};

/// The steps of one container that need no runc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Direct {
    folder: PathBuf,
    start: bool,
    /// The cgroup, if deleting is removing it and the folder.
    cgroup: Option<String>,
}

impl Direct {
    /// What is possible for the container `id` with this spec.
    pub(super) fn new(config: &RuncConfig, id: &str, spec: &Glance) -> Self {
        let is_runc = config.binary.file_name() == Some(OsStr::new("runc"));
        // With such a socket runc passes on what the program tells a service manager.
        let notifies = std::env::var_os("NOTIFY_SOCKET").is_some();
        // Without processes of its own the container may have left some, and runc kills them.
        let plain = !config.systemd_cgroup
            && spec.has_private_pids()
            && !spec.has_poststop_hooks()
            && !spec.has_cache_limits();
        let cgroup = spec.cgroups_path().filter(|path| crate::cgroup::is_own(path, id));
        Direct {
            folder: config.root.join(id),
            start: is_runc && !notifies && !spec.has_poststart_hooks(),
            cgroup: cgroup.filter(|_| is_runc && plain).map(str::to_owned),
        }
    }

    /// Lets the created container run its program. Returns when that is about to happen, or `false`
    /// with nothing done. `ended` resolves when the container's first process has ended.
    ///
    /// # Errors
    ///
    /// [`Error::FailedPrecondition`] if somebody else has started it, or it has ended.
    pub(super) async fn start(&self, ended: impl Future<Output = ()>) -> Result<bool> {
        let path = self.folder.join(FIFO);
        if !self.start || !is_file(&self.folder.join(STATE)) {
            return Ok(false);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(fifo) = rustix::fs::open(&path, flags, Mode::empty()) else { return Ok(false) };
        let kind = rustix::fs::fstat(&fifo).map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kind != Ok(FileType::Fifo) {
            return Ok(false);
        }
        let fifo = watch_read(fifo).map_err(|e| Error::io("watch", &path, e))?;
        if take(&fifo, ended).await.map_err(|e| Error::io("read", &path, e))? == 0 {
            let text = "OCI runtime start failed: the container runs or has ended";
            return Err(Error::FailedPrecondition(text.into()));
        }
        fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        Ok(true)
    }

    /// Removes cgroup and folder of a container whose first process has ended and is reaped, or
    /// returns `false` with nothing done. What fails halfway is for runc to finish.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for what stays.
    pub(super) fn delete(&self, id: &str) -> Result<bool> {
        let Some(cgroup) = &self.cgroup else { return Ok(false) };
        if !self.has_only_what_is_known() {
            return Ok(false);
        }
        crate::cgroup::remove(cgroup, id)?;
        for name in [FIFO, STATE] {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path, e));
                }
                _ => {}
            }
        }
        fs::remove_dir(&self.folder).map_err(|e| Error::io("remove", &self.folder, e))?;
        Ok(true)
    }

    /// Another version of runc may keep more, and know what to do about it.
    fn has_only_what_is_known(&self) -> bool {
        let Ok(entries) = fs::read_dir(&self.folder) else { return false };
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.retain(|name| name != FIFO);
        names == [OsStr::new(STATE)] && is_file(&self.folder.join(STATE))
    }
}

/// Reads to the end, which comes when the program is about to run.
async fn take(fifo: &AsyncFd<OwnedFd>, ended: impl Future<Output = ()>) -> io::Result<usize> {
    let (mut buffer, mut size_bytes) = ([0; 16], 0);
    let mut ended = std::pin::pin!(ended);
    loop {
        // A FIFO that no writer has come to yet is not readable.
        let ready = tokio::select! {
            biased;
            ready = fifo.readable() => Some(ready?),
            () = &mut ended => None,
        };
        match retry_on_intr(|| rustix::io::read(fifo.get_ref(), &mut buffer[..])) {
            Ok(0) => return Ok(size_bytes),
            Ok(size) => size_bytes += size,
            Err(Errno::AGAIN) => {
                if let Some(mut ready) = ready {
                    ready.clear_ready();
                    continue;
                }
                return Ok(size_bytes);
            }
            Err(error) => return Err(error.into()),
        }
        if ready.is_none() {
            // All that its writer wrote was there.
            return Ok(size_bytes);
        }
    }
}

/// Which file a process runs; nothing once it has ended.
pub(super) fn program_of(pid: u32) -> Option<(u64, u64)> {
    let meta = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Waits a moment until the process runs another program than `before`.
///
/// The FIFO is closed just before: who freezes a container between the two stops it halfway, and
/// it cannot even be killed. `runc start` takes about this long to end, and promises no more.
pub(super) fn await_program(pid: u32, before: Option<(u64, u64)>) {
    for _ in 0..PROGRAM_ROUNDS_MAX {
        if before.is_none() || program_of(pid) != before {
            return;
        }
        std::thread::sleep(PROGRAM_PAUSE);
    }
}

fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_file())
}

const STATE: &str = "state.json";
const FIFO: &str = "exec.fifo";

/// Up to 20 ms in all: a hook may come first, and takes what it takes.
const PROGRAM_ROUNDS_MAX: u32 = 200;
const PROGRAM_PAUSE: Duration = Duration::from_micros(100);

#[cfg(test)]
mod tests {
    use std::{future::pending, io::Write};

    use super::*;

    /// The folder runc makes for a created container.
    fn created(root: &Path) -> Direct {
        let folder = root.join("box");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(STATE), "{}").unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.join(FIFO), Mode::from(0o622)).unwrap();
        direct(root, "runc", "{}")
    }

    fn direct(root: &Path, binary: &str, more: &str) -> Direct {
        let config =
            RuncConfig { root: root.into(), binary: binary.into(), ..RuncConfig::default() };
        let mut spec: serde_json::Value = serde_json::from_str(more).unwrap();
        spec["linux"]["cgroupsPath"] = format!("/crated-direct-{}/box", std::process::id()).into();
        spec["linux"]["namespaces"] = serde_json::json!([{ "type": "pid" }]);
        let spec = Glance::of(spec.to_string().as_bytes()).unwrap();
        Direct::new(&config, "box", &spec)
    }

    fn writer(root: &Path) -> fs::File {
        fs::OpenOptions::new().write(true).open(root.join("box").join(FIFO)).unwrap()
    }

    #[tokio::test]
    async fn a_start_takes_the_byte_and_waits_until_the_program_runs() {
        let root = tempfile::tempdir().unwrap();
        let direct = created(root.path());
        let started = tokio::spawn(async move { direct.start(pending()).await });
        let path = root.path().to_owned();
        // Blocks until there is a reader.
        let mut first = tokio::task::spawn_blocking(move || writer(&path)).await.unwrap();
        first.write_all(b"0").unwrap();
        tokio::task::yield_now().await;
        assert!(!started.is_finished());
        drop(first);
        assert!(started.await.unwrap().unwrap());
        assert!(!root.path().join("box").join(FIFO).exists());
    }

    #[tokio::test]
    async fn a_program_that_has_ended_at_once_was_started() {
        let root = tempfile::tempdir().unwrap();
        let direct = created(root.path());
        let fifo = root.path().join("box").join(FIFO);
        // Keeps the pipe, as the reader's end does.
        let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        writer(root.path()).write_all(b"0").unwrap();
        let start = direct.start(std::future::ready(()));
        let (started, ()) = tokio::join!(start, async { drop(reader) });
        assert!(started.unwrap());
    }

    #[tokio::test]
    async fn a_container_that_ended_before_its_start_is_not_started() {
        let root = tempfile::tempdir().unwrap();
        let direct = created(root.path());
        let error = direct.start(std::future::ready(())).await.unwrap_err();
        assert!(matches!(error, Error::FailedPrecondition(_)), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_plain_runc_is_left_to_the_runtime() {
        let root = tempfile::tempdir().unwrap();
        created(root.path());
        let hooks = r#"{"hooks":{"poststart":[{"path":"/x"}],"poststop":[{"path":"/x"}]}}"#;
        for (binary, more) in [("crun", "{}"), ("/opt/runc-wrapper", "{}"), ("runc", hooks)] {
            let direct = direct(root.path(), binary, more);
            assert!(!direct.start(pending()).await.unwrap(), "{binary}");
            assert!(!direct.delete("box").unwrap(), "{binary}");
        }
        let caches = direct(root.path(), "runc", r#"{"linux":{"intelRdt":{}}}"#);
        assert!(!caches.delete("box").unwrap());
        fs::write(root.path().join("box/news"), "").unwrap();
        assert!(!direct(root.path(), "runc", "{}").delete("box").unwrap());
        assert!(root.path().join("box").join(STATE).exists());
    }

    #[test]
    fn a_deletion_removes_the_folder_once() {
        let root = tempfile::tempdir().unwrap();
        let direct = created(root.path());
        assert!(direct.delete("box").unwrap());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        // Missing: the runtime says what that means.
        assert!(!direct.delete("box").unwrap());
    }
}
