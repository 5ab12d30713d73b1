//! Where a mount goes: a place inside a root that it cannot leave.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// A resolved mount point, held by descriptor so that nobody can swap it.
#[derive(Debug)]
pub(crate) struct Target {
    fd: OwnedFd,
    /// For messages: root and sub-path as the caller named them.
    pub(crate) path: PathBuf,
}

impl Target {
    /// Resolves `sub_path` as if `root` were `/`.
    pub(crate) fn resolve(root: &Path, sub_path: &str) -> Result<Self, (PathBuf, Errno)> {
        let named = named(root, sub_path);
        let opened = open_inside(root, sub_path);
        match opened {
            Ok(fd) => Ok(Self { fd, path: named }),
            Err(errno) => Err((named, errno)),
        }
    }

    /// A path to exactly this place, for calls that know only paths.
    pub(crate) fn magic_path(&self) -> PathBuf {
        magic_path(self.fd.as_fd())
    }

    /// The place's path now, as seen from this process's root.
    pub(crate) fn real_path(&self) -> std::io::Result<PathBuf> {
        fs::read_link(self.magic_path())
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `/proc/self/fd/N` leads to what the descriptor refers to, whatever has been
/// renamed or mounted over it since.
pub(crate) fn magic_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// A descriptor that only refers to `path`: no read, no permission on it needed.
pub(crate) fn open_reference(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

fn named(root: &Path, sub_path: &str) -> PathBuf {
    let inside = sub_path.trim_start_matches('/');
    if inside.is_empty() { root.to_owned() } else { root.join(inside) }
}

fn open_inside(root: &Path, sub_path: &str) -> Result<OwnedFd, Errno> {
    let root = open_reference(root)?;
    if sub_path.trim_start_matches('/').is_empty() {
        return Ok(root);
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RACES_MAX {
        match openat2(&root, sub_path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            Err(Errno::NOSYS | Errno::PERM) => return walk(root, Path::new(sub_path)),
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

/// For kernels and filters without `openat2`: name by name, and a symbolic link
/// or `..` is refused rather than interpreted.
fn walk(root: OwnedFd, sub_path: &Path) -> Result<OwnedFd, Errno> {
    let mut at = root;
    for component in sub_path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                at = openat(&at, name, flags, Mode::empty())?;
                let stat = rustix::fs::fstat(&at)?;
                if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink() {
                    return Err(Errno::LOOP);
                }
            }
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL),
        }
    }
    Ok(at)
}

/// `openat2` answers EAGAIN when a rename raced with `..`; an attacker who can
/// keep that up deserves the error.
const RACES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn real(root: &Path, sub_path: &str) -> Result<PathBuf, Errno> {
        let target = Target::resolve(root, sub_path).map_err(|(_, errno)| errno)?;
        Ok(target.real_path().unwrap())
    }

    #[test]
    fn no_sub_path_leaves_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("/", root.join("absolute")).unwrap();
        symlink("../../../..", root.join("a/up")).unwrap();

        assert_eq!(real(&root, "").unwrap(), root);
        assert_eq!(real(&root, "/").unwrap(), root);
        assert_eq!(real(&root, "a/b").unwrap(), root.join("a/b"));
        assert_eq!(real(&root, "../..").unwrap(), root);
        assert_eq!(real(&root, "absolute/a").unwrap(), root.join("a"));
        assert_eq!(real(&root, "a/up/a/b").unwrap(), root.join("a/b"));
        assert_eq!(real(&root, "missing").unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn without_openat2_links_and_dots_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        symlink("a", dir.path().join("link")).unwrap();
        let root = || open_reference(dir.path()).unwrap();

        assert!(walk(root(), Path::new("/a/./b")).is_ok());
        assert_eq!(walk(root(), Path::new("link/b")).unwrap_err(), Errno::LOOP);
        assert_eq!(walk(root(), Path::new("a/../a")).unwrap_err(), Errno::INVAL);
    }
}
