//! What the tests share: a mount namespace each, and mounts in one line.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crated_mount::mountinfo::MountInfo;
use crated_mount::{Mount, mountinfo};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

/// Runs `test` as root on a thread with a mount namespace of its own, in an
/// empty directory that is gone with the namespace. Skipped with a message when
/// not root, save in CI, where it fails.
pub(crate) fn isolated(test: impl FnOnce(&Path) + Send) {
    if !rustix::process::geteuid().is_root() {
        return missing("root");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    let outcome = std::thread::scope(|scope| {
        let run = || {
            own_namespace();
            let flags = MountFlags::empty();
            rustix::mount::mount("tmpfs", &path, "tmpfs", flags, Some(c"mode=755")).unwrap();
            test(&path);
        };
        scope.spawn(run).join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    // rmdir only: had the tmpfs been mounted outside, this would say so.
    fs::remove_dir(dir.keep()).unwrap();
}

#[allow(deprecated, reason = "the sound form is unsafe; nothing here borrows what it changes")]
fn own_namespace() {
    rustix::thread::unshare(UnshareFlags::NEWNS).unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}

/// Prints that a test cannot run without `what`; in CI, fails.
pub(crate) fn missing(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "needs {what}");
    eprintln!("skipped: needs {what}");
}

/// Runs a program; false when it is not installed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> bool {
    match Command::new(program).args(arguments).output() {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {output:?}");
            true
        }
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => panic!("{program}: {error}"),
    }
}

pub(crate) fn mount(kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Mount {
    Mount {
        kind: kind.to_owned(),
        source: source.as_ref().to_str().unwrap().to_owned(),
        target: String::new(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

pub(crate) fn bind(source: impl AsRef<Path>, options: &[&str]) -> Mount {
    mount("bind", source, options)
}

pub(crate) fn tmpfs() -> Mount {
    mount("tmpfs", "tmpfs", &[])
}

/// A directory below `root`, made now.
pub(crate) fn dir(root: &Path, name: &str) -> PathBuf {
    let path = root.join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

/// A directory with one file named and filled as given.
pub(crate) fn layer(root: &Path, name: &str, file: &str) -> PathBuf {
    let path = dir(root, name);
    fs::write(path.join(file), file).unwrap();
    path
}

pub(crate) fn uid(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().uid()
}

/// The mounts of this thread's namespace at or below `path`.
pub(crate) fn mounts_below(path: &Path) -> Vec<MountInfo> {
    let text = fs::read("/proc/thread-self/mountinfo").unwrap();
    let mut mounts = mountinfo::parse(&text).unwrap();
    mounts.retain(|mount| mount.mount_point.starts_with(path));
    mounts
}

/// The topmost mount at `path`.
pub(crate) fn mount_at(path: &Path) -> MountInfo {
    mounts_below(path).into_iter().rfind(|mount| mount.mount_point == path).unwrap()
}
