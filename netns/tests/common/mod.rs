//! A host of one's own for each test: a thread in a network and a mount
//! namespace that nobody else sees.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(clippy::print_stdout, reason = "a skipped test says why")]
#![allow(unsafe_code, reason = "a test thread leaves the process's namespaces for good")]

use std::path::{Path, PathBuf};
use std::process::Command;

use crated_netns::{IfName, NetnsName, NetnsRoot, Propagation};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

/// A scratch host; see [`scratch`].
pub struct Host {
    dir: PathBuf,
    pub root: NetnsRoot,
}

impl Host {
    /// The same host for another thread of it.
    pub fn with(dir: PathBuf, root: NetnsRoot) -> Self {
        Self { dir, root }
    }

    /// The directory of this host's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs a program in the scratch host; panics unless it succeeds.
    pub fn run(&self, line: &str) -> String {
        let (ok, out) = self.try_run(line);
        assert!(ok, "{line}: {out}");
        out
    }

    /// Runs a program in the scratch host.
    pub fn try_run(&self, line: &str) -> (bool, String) {
        let mut words = line.split_whitespace();
        let out = Command::new(words.next().unwrap()).args(words).output().unwrap();
        let text = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

/// Runs `test` on a thread with a network and a mount namespace of its own.
/// Prints why and does nothing when not root, but fails in CI.
pub fn scratch(test: impl FnOnce(&Host) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root");
        println!("skipped: needs root");
        return;
    }
    let thread = std::thread::spawn(|| {
        leave();
        let temp = tempfile::tempdir().unwrap();
        let root = NetnsRoot::open(temp.path().join("netns"), Propagation::Private).unwrap();
        let host = Host { dir: temp.path().to_owned(), root };
        // Keep the directory's mounts from outliving a panicking test.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&host)));
        let _ = rustix::mount::unmount(host.root.dir(), rustix::mount::UnmountFlags::DETACH);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Moves the calling thread into new network and mount namespaces.
pub fn leave() {
    // SAFETY: neither flag concerns descriptors or memory of other threads.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS).unwrap();
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}

/// Moves the calling thread into the namespace pinned at `path`.
pub fn enter(path: &Path) {
    let ns = std::fs::File::open(path).unwrap();
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&ns), None).unwrap();
}

/// Runs `work` on a thread inside the namespace pinned at `path`.
pub fn inside<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || {
        enter(&path);
        work()
    })
}

pub fn ns(name: &str) -> NetnsName {
    name.parse().unwrap()
}

pub fn ifname(name: &str) -> IfName {
    name.parse().unwrap()
}

/// Gives up all capabilities of the calling thread.
pub fn drop_capabilities() {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, sets).unwrap();
}

/// Gives up one capability of the calling thread.
pub fn drop_capability(lost: rustix::thread::CapabilitySet) {
    let mut sets = rustix::thread::capabilities(None).unwrap();
    sets.effective.remove(lost);
    sets.permitted.remove(lost);
    rustix::thread::set_capabilities(None, sets).unwrap();
}
