//! Exit codes of children and of the orphans of children.
//!
//! A runtime such as runc leaves the container's first process behind; it
//! becomes the child of the nearest *subreaper*, which must be the process
//! that wants its exit code. [`Reaper::new`] makes this process one.
//!
//! Who knows a pid claims it and waits on its pidfd. Other children stay
//! untouched unless [`Reaper::sweep_orphans`] runs, which a program whose
//! children are all containers wants: then orphans are reaped, and while a
//! [`Hold`] exists their exits are kept, so that a process that ends before
//! its pid is known loses nothing.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::MetadataExt,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{
    Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, set_child_subreaper, waitid,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{Error, Exit, Result};

/// Collects exits; one per process.
#[derive(Debug, Default)]
pub struct Reaper {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    claimed: HashSet<u32>,
    holds: usize,
    early: HashMap<u32, Exit>,
    sweeping: bool,
    /// Score children start with, when this process protects itself.
    child_oom_score: Option<i32>,
}

impl Reaper {
    /// Makes this process a child subreaper, for good.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] on kernels without it.
    pub fn new() -> Result<Arc<Self>> {
        set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|e| Error::io("become subreaper", "process", e))?;
        Ok(Arc::default())
    }

    /// Keeps exits of unknown children until the hold is dropped.
    pub fn hold(self: &Arc<Self>) -> Hold {
        self.lock().holds += 1;
        Hold { reaper: Arc::clone(self) }
    }

    /// Takes responsibility for a child, ended or not. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if no such process exists and no exit is kept.
    pub fn claim(self: &Arc<Self>, pid: u32) -> Result<Claim> {
        let mut state = self.lock();
        if let Some(exit) = state.early.remove(&pid) {
            return Ok(Claim { reaper: Arc::clone(self), pid, source: Source::Early(exit) });
        }
        let fd = open_pidfd(pid)?;
        let fd = crate::sys::watch(fd, Interest::READABLE)
            .map_err(|e| Error::io("watch", format!("pid {pid}"), e))?;
        state.claimed.insert(pid);
        Ok(Claim { reaper: Arc::clone(self), pid, source: Source::Running(fd) })
    }

    /// Spawns a command and claims it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with the program's name.
    pub fn spawn(self: &Arc<Self>, command: &mut Command) -> Result<(Child, Claim)> {
        let _hold = self.hold();
        let score = self.lock().child_oom_score;
        if let Some(score) = score {
            // Failing leaves the child protected too, which is no reason to stop.
            let _ = set_oom_score(score);
        }
        let child = command.spawn();
        if score.is_some() {
            let _ = set_oom_score(OOM_SCORE_PROTECTED);
        }
        let child = child.map_err(|e| Error::io("run", command.get_program(), e))?;
        let claim = self.claim(child.id())?;
        Ok((child, claim))
    }

    /// Makes the kernel spare this process when memory runs out, but not what
    /// [`Reaper::spawn`] spawns.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] without the privilege to.
    pub fn protect_from_oom(&self) -> Result<()> {
        let own = std::fs::read_to_string(OOM_SCORE).ok().and_then(|s| s.trim().parse().ok());
        set_oom_score(OOM_SCORE_PROTECTED).map_err(|e| Error::io("write", OOM_SCORE, e))?;
        self.lock().child_oom_score = own;
        Ok(())
    }

    /// Reaps orphans until dropped. For programs all of whose children come
    /// from [`Reaper::spawn`] and from container runtimes: others would find
    /// their children's exits gone.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if signals cannot be received.
    pub async fn sweep_orphans(self: Arc<Self>) -> Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut ended =
            signal(SignalKind::child()).map_err(|e| Error::io("watch", "SIGCHLD", e))?;
        self.lock().sweeping = true;
        loop {
            self.sweep();
            if ended.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// Reaps ended children up to the first claimed one, whose owner goes on.
    fn sweep(&self) {
        let mut state = self.lock();
        while let Ok(Some(pid)) = crate::sys::ended_child() {
            if state.claimed.contains(&pid) {
                return;
            }
            let Some(exit) = Pid::from_raw(pid as i32).and_then(|pid| reap(WaitId::Pid(pid)))
            else {
                return;
            };
            if state.holds > 0 {
                state.early.insert(pid, exit);
            }
        }
    }

    /// Reaps children that have ended in a PID namespace, told by its inode, and that nobody has
    /// claimed. Returns how many of it are left, ended or not.
    ///
    /// A runtime that dies while it joins a container leaves such children to this process, and
    /// the first process of the container cannot end before they are reaped.
    pub(crate) fn reap_namespace(&self, namespace: u64) -> usize {
        let mut left = 0;
        let mut state = self.lock();
        for pid in children() {
            let within = std::fs::metadata(format!("/proc/{pid}/ns/pid"));
            if state.claimed.contains(&pid) || within.map_or(0, |meta| meta.ino()) != namespace {
                continue;
            }
            match Pid::from_raw(pid as i32).and_then(|pid| reap(WaitId::Pid(pid))) {
                Some(exit) if state.holds > 0 => {
                    state.early.insert(pid, exit);
                }
                Some(_) => {}
                None => left += 1,
            }
        }
        left
    }

    fn release(&self, pid: u32) {
        let mut state = self.lock();
        state.claimed.remove(&pid);
        let sweeping = state.sweeping;
        drop(state);
        if sweeping {
            self.sweep();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it exists, exits of children nobody claimed are kept.
#[derive(Debug)]
pub struct Hold {
    reaper: Arc<Reaper>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.reaper.lock();
        state.holds -= 1;
        if state.holds == 0 {
            state.early.clear();
        }
    }
}

/// The right to a child's exit. Dropped early, the exit is lost.
#[derive(Debug)]
pub struct Claim {
    reaper: Arc<Reaper>,
    pid: u32,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Early(Exit),
    Running(AsyncFd<OwnedFd>),
}

impl Claim {
    /// Pid of the child; nobody else gets this number while the claim is held.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the end and reaps.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] if it is not a child of this process, after it ended.
    pub async fn wait(&mut self) -> Result<Exit> {
        let fd = match &self.source {
            Source::Early(exit) => return Ok(*exit),
            Source::Running(fd) => fd,
        };
        loop {
            let mut ready = fd
                .readable()
                .await
                .map_err(|e| Error::io("wait for", format!("pid {}", self.pid), e))?;
            match waitid(WaitId::PidFd(fd.get_ref().as_fd()), wait_options()) {
                Ok(Some(status)) => {
                    let exit = Exit::now(exit_status(&status));
                    self.source = Source::Early(exit);
                    self.reaper.release(self.pid);
                    return Ok(exit);
                }
                Ok(None) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    let text = format!("wait for pid {}: {error}", self.pid);
                    return Err(Error::Unknown(text));
                }
            }
        }
    }

    /// Sends a signal to exactly this process.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] once it has ended, [`Error::InvalidArgument`] for a
    /// number that is no signal.
    pub fn signal(&self, number: u32) -> Result<()> {
        match &self.source {
            Source::Running(fd) => signal(fd.get_ref(), number),
            Source::Early(_) => Err(finished()),
        }
    }

    /// Another way to signal the process, while somebody waits for it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when descriptors run out.
    pub fn handle(&self) -> Result<Handle> {
        let fd = match &self.source {
            Source::Running(fd) => Some(fd.get_ref().try_clone()),
            Source::Early(_) => None,
        };
        let fd = fd.transpose();
        Ok(Handle { fd: fd.map_err(|e| Error::io("clone", format!("pid {}", self.pid), e))? })
    }
}

/// Signals exactly one process, whoever reuses its pid.
#[derive(Debug, Default)]
pub struct Handle {
    fd: Option<OwnedFd>,
}

impl Handle {
    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// As [`Claim::signal`].
    pub fn signal(&self, number: u32) -> Result<()> {
        signal(self.fd.as_ref().ok_or_else(finished)?, number)
    }
}

fn signal(fd: &OwnedFd, signal: u32) -> Result<()> {
    let number = i32::try_from(signal).unwrap_or(-1);
    crate::sys::pidfd_signal(fd, number).map_err(|e| match e.raw_os_error() {
        Some(nix::libc::ESRCH) => finished(),
        Some(nix::libc::EINVAL) => Error::InvalidArgument(format!("signal {signal}")),
        _ => Error::io("send signal to", "process", e),
    })
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Source::Running(fd) = &self.source {
            // Nobody else will; a child still running is left to the sweep.
            let _ = reap(WaitId::PidFd(fd.get_ref().as_fd()));
            self.reaper.release(self.pid);
        }
    }
}

/// What callers of a kill that came too late are told.
pub(crate) fn finished() -> Error {
    Error::NotFound("process already finished: not found".into())
}

fn open_pidfd(pid: u32) -> Result<OwnedFd> {
    let missing = || Error::NotFound(format!("process {pid} not found"));
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(missing)?;
    pidfd_open(raw, PidfdFlags::NONBLOCK).map_err(|e| match e {
        rustix::io::Errno::SRCH => missing(),
        e => Error::io("open pidfd of", format!("pid {pid}"), e),
    })
}

/// Pids of this process's children, ended ones included.
fn children() -> Vec<u32> {
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may hold anything, come the state and the parent.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(&own))
    };
    pids.filter(is_child).collect()
}

fn wait_options() -> WaitIdOptions {
    WaitIdOptions::EXITED | WaitIdOptions::NOHANG
}

fn reap(id: WaitId<'_>) -> Option<Exit> {
    let status = waitid(id, wait_options()).ok().flatten()?;
    Some(Exit::now(exit_status(&status)))
}

fn exit_status(status: &WaitIdStatus) -> u32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code as u32 & 0xff,
        (None, Some(signal)) => 128 + signal as u32,
        (None, None) => 255,
    }
}

fn set_oom_score(score: i32) -> io::Result<()> {
    std::fs::write(OOM_SCORE, score.to_string())
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// One above the daemon's own at its strongest, so that shims go before it.
const OOM_SCORE_PROTECTED: i32 = -998;
