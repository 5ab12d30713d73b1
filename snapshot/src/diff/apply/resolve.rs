//! Directories of the target, found without ever leaving it.
//!
//! A parent directory is resolved once, by the kernel and beneath the held
//! root, and then kept as an open descriptor. Nothing remembers that some
//! *text* was found safe: if an entry replaces a directory by a link, the
//! descriptors of the old one point to what is gone, and all are dropped.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::diff::apply::layers::{Layers, Shadow};
use crate::diff::apply::written::Written;
use crate::error::{Error, Result};
use crate::tree::Stat;

/// The root, and the directories lately used in it.
pub(crate) struct Resolver<'a> {
    root: Rc<Handle>,
    cache: HashMap<Vec<u8>, Rc<Handle>>,
    layers: Layers<'a>,
}

/// A directory held by an `O_PATH` descriptor.
#[derive(Debug)]
pub(crate) struct Handle {
    fd: OwnedFd,
    identity: OnceCell<(u64, u64)>,
}

/// A directory made on the way to another one, which nobody described yet.
pub(crate) struct Made {
    pub(crate) dir: Rc<Handle>,
    /// Its path without links.
    pub(crate) path: Vec<u8>,
    /// The status of its counterpart in the layers below, if it has one.
    pub(crate) model: Option<(OwnedFd, Stat)>,
    /// Whether there may be such a counterpart in layers that are not known yet.
    pub(crate) unknown: bool,
    /// Whether what lies below it must stay hidden.
    pub(crate) opaque: bool,
}

/// One step of a walk from the root.
struct Level {
    dir: Rc<Handle>,
    /// Path without links.
    path: Vec<u8>,
    /// The same directory in the layers below, nearest first, loaded late.
    lowers: Option<Vec<OwnedFd>>,
}

/// Descriptors kept. Layers list directories in order: few are in use at once.
const CACHE_ENTRIES_MAX: usize = 128;

/// The kernel's own bound.
const LINKS_MAX: usize = 40;

/// How often a resolution that raced with a rename is tried.
const TRIES_MAX: usize = 64;

const PATH_DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Never out of the root, never through `/proc`'s links.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

impl<'a> Resolver<'a> {
    pub(crate) fn new(root: BorrowedFd<'_>, layers: Layers<'a>) -> Result<Self> {
        let fd = rustix::fs::openat(root, c".", PATH_DIR, Mode::empty())
            .map_err(|e| Error::io("open", ".", e))?;
        Ok(Self { root: Rc::new(Handle::new(fd)), cache: HashMap::new(), layers })
    }

    pub(crate) fn root(&self) -> Rc<Handle> {
        Rc::clone(&self.root)
    }

    pub(crate) fn layers(&self) -> &Layers<'a> {
        &self.layers
    }

    /// Drops all descriptors but the root's: a directory or link is gone.
    pub(crate) fn forget(&mut self) {
        self.cache.clear();
    }

    /// The directory `path`, if it is there.
    pub(crate) fn find(&mut self, path: &[u8]) -> Result<Option<Rc<Handle>>> {
        if let Some(dir) = self.quick(path)? {
            return Ok(Some(dir));
        }
        self.walk(path, None)
    }

    /// The directory `path`; what is missing of it is made and handed to
    /// `made`.
    pub(crate) fn find_or_make(
        &mut self,
        path: &[u8],
        written: &mut Option<Written>,
        made: &mut dyn FnMut(Made) -> Result<()>,
    ) -> Result<Rc<Handle>> {
        if let Some(dir) = self.cached(path) {
            return Ok(dir);
        }
        // Who keeps book of what was written wants to see every step.
        if written.is_none()
            && let Some(dir) = self.quick(path)?
        {
            return Ok(dir);
        }
        let dir = self
            .walk(path, Some(&mut Making { written, made }))?
            .ok_or_else(|| Error::archive(path, "parent directory vanished"))?;
        self.remember(path, &dir);
        Ok(dir)
    }

    /// Opens the directory `path` for real, without following its last part.
    pub(crate) fn reopen(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = if path.is_empty() { b"." } else { path };
        open_inside(&self.root.fd, path, flags)
    }

    fn cached(&self, path: &[u8]) -> Option<Rc<Handle>> {
        match path {
            b"" => Some(self.root()),
            _ => self.cache.get(path).map(Rc::clone),
        }
    }

    fn remember(&mut self, path: &[u8], dir: &Rc<Handle>) {
        if self.cache.len() >= CACHE_ENTRIES_MAX {
            self.cache.clear();
        }
        self.cache.insert(path.to_vec(), Rc::clone(dir));
    }

    /// What is cached, or what the kernel finds in the target itself.
    fn quick(&mut self, path: &[u8]) -> Result<Option<Rc<Handle>>> {
        if let Some(dir) = self.cached(path) {
            return Ok(Some(dir));
        }
        match open_inside(&self.root.fd, path, PATH_DIR) {
            Ok(fd) => {
                let dir = Rc::new(Handle::new(fd));
                self.remember(path, &dir);
                Ok(Some(dir))
            }
            // Missing, or hidden by a whiteout: the walk tells.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(Errno::LOOP) => Err(Error::archive(path, "too many symbolic links")),
            Err(Errno::NAMETOOLONG) => Err(Error::archive(path, "path is too long")),
            Err(Errno::NOSYS) => Err(Error::Unsupported {
                reason: "this kernel has no openat2, needed to stay inside the target".into(),
            }),
            Err(errno) => Err(Error::io("open", lossy(path), errno)),
        }
    }

    /// Goes component by component through the target as it shows on top of
    /// the layers below, making directories if `making` says how.
    fn walk(&self, path: &[u8], mut making: Option<&mut Making<'_>>) -> Result<Option<Rc<Handle>>> {
        let mut stack = vec![Level { dir: self.root(), path: Vec::new(), lowers: None }];
        let mut todo: Vec<Vec<u8>> = Vec::new();
        push_components(&mut todo, path);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let depth = stack.len();
            if name == b".." {
                stack.truncate((depth - 1).max(1));
                continue;
            }
            let target = match self.step(&mut stack, &name, making.as_deref_mut())? {
                Step::Into(level) => {
                    stack.push(level);
                    continue;
                }
                Step::Follow(target) => target,
                Step::Nowhere => return Ok(None),
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(Error::archive(path, "too many symbolic links"));
            }
            if target.starts_with(b"/") {
                stack.truncate(1);
            }
            push_components(&mut todo, &target);
        }
        Ok(stack.pop().map(|level| level.dir))
    }

    fn step(
        &self,
        stack: &mut [Level],
        name: &[u8],
        making: Option<&mut Making<'_>>,
    ) -> Result<Step> {
        let Some((level, above)) = stack.split_last_mut() else { return Ok(Step::Nowhere) };
        let path = join(&level.path, name);
        let stat = stat_at(&level.dir, name, &path)?;
        let hidden = stat.is_some_and(|stat| self.layers.is_some() && stat.is_whiteout());
        match stat {
            Some(stat) if stat.is_dir() => {
                if let Some(making) = making {
                    making.mark(level.dir.as_ref(), name)?;
                }
                let dir = Rc::new(open_child(&level.dir, name, &path)?);
                return Ok(Step::Into(Level { dir, path, lowers: None }));
            }
            Some(stat) if stat.file_type() == rustix::fs::FileType::Symlink => {
                return read_link(&level.dir, name, &path).map(Step::Follow);
            }
            Some(_) if !hidden => return Err(Error::archive(&path, "parent is not a directory")),
            _ => {}
        }

        let shadow = match hidden {
            true => Shadow::Nothing,
            false => self.shadow(level, above, name)?,
        };
        let unknown = matches!(shadow, Shadow::Unknown);
        let model = match shadow {
            Shadow::Link(target) => return Ok(Step::Follow(target)),
            Shadow::Dir(fd, stat) => Some((fd, stat)),
            Shadow::Other => None,
            Shadow::Nothing | Shadow::Unknown => None,
        };
        let Some(making) = making else { return Ok(Step::Nowhere) };
        if hidden {
            rustix::fs::unlinkat(&level.dir.fd, name, AtFlags::empty())
                .map_err(|e| Error::io("remove", lossy(&path), e))?;
        }
        match rustix::fs::mkdirat(&level.dir.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(fs_error("make directory", &path, errno)),
        }
        making.mark(level.dir.as_ref(), name)?;
        let dir = Rc::new(open_child(&level.dir, name, &path)?);
        let opaque = hidden;
        let (made, at) = (Rc::clone(&dir), path.clone());
        (making.made)(Made { dir: made, path: at, model, unknown, opaque })?;
        let lowers = opaque.then(Vec::new);
        Ok(Step::Into(Level { dir, path, lowers }))
    }

    /// What the layers below hold at `name` in this level.
    fn shadow(&self, level: &mut Level, above: &mut [Level], name: &[u8]) -> Result<Shadow> {
        if !self.layers.is_some() {
            return Ok(Shadow::Nothing);
        }
        if self.layers.notes().is_some() {
            let opaque = |level: &Level| self.layers.is_opaque(level.dir.as_fd());
            let hidden = above.iter().skip(1).chain([&*level]).any(opaque);
            return Ok(if hidden { Shadow::Nothing } else { Shadow::Unknown });
        }
        // A level whose own upper directory is opaque starts afresh.
        for at in 0..above.len() {
            if above[at].lowers.is_none() {
                let lowers = self.lowers_of(&above[..at], &above[at])?;
                above[at].lowers = Some(lowers);
            }
        }
        if level.lowers.is_none() {
            level.lowers = Some(self.lowers_of(above, level)?);
        }
        self.layers.look(level.lowers.as_deref().unwrap_or_default(), name)
    }

    fn lowers_of(&self, above: &[Level], level: &Level) -> Result<Vec<OwnedFd>> {
        match above.last() {
            None => self.layers.roots(),
            Some(_) if self.layers.is_opaque(level.dir.as_fd()) => Ok(Vec::new()),
            Some(parent) => {
                let name = level.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
                self.layers.descend(parent.lowers.as_deref().unwrap_or_default(), name)
            }
        }
    }
}

/// What [`Resolver::walk`] does when something is missing.
struct Making<'a> {
    written: &'a mut Option<Written>,
    made: &'a mut dyn FnMut(Made) -> Result<()>,
}

impl Making<'_> {
    fn mark(&mut self, dir: &Handle, name: &[u8]) -> Result<()> {
        match self.written {
            Some(written) => {
                written.insert(dir.identity()?, name);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

enum Step {
    Into(Level),
    Follow(Vec<u8>),
    Nowhere,
}

impl Handle {
    fn new(fd: OwnedFd) -> Self {
        Self { fd, identity: OnceCell::new() }
    }

    /// Device and inode.
    pub(crate) fn identity(&self) -> Result<(u64, u64)> {
        if let Some(&identity) = self.identity.get() {
            return Ok(identity);
        }
        let stat = rustix::fs::fstat(&self.fd).map_err(|e| Error::io("stat", "parent", e))?;
        let stat = Stat::from(stat);
        Ok(*self.identity.get_or_init(|| (stat.dev, stat.ino)))
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The status of an entry itself, if there is one.
pub(crate) fn stat_at(dir: &Handle, name: &[u8], path: &[u8]) -> Result<Option<Stat>> {
    match rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Stat::from(stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(fs_error("stat", path, errno)),
    }
}

/// An error of the filesystem; the layer is to blame where only a strange one
/// can cause it.
pub(crate) fn fs_error(op: &'static str, path: &[u8], errno: Errno) -> Error {
    match errno {
        Errno::NAMETOOLONG => Error::archive(path, "name is too long for the filesystem"),
        Errno::LOOP => Error::archive(path, "too many symbolic links"),
        Errno::NOTDIR => Error::archive(path, "parent is not a directory"),
        _ => Error::io(op, lossy(path), errno),
    }
}

/// A raw name as a path for messages.
pub(crate) fn lossy(path: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;

    std::ffi::OsStr::from_bytes(path).into()
}

fn open_inside(root: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE) {
            // Something was renamed meanwhile; the kernel wants to look again.
            Err(Errno::AGAIN) if tries < TRIES_MAX => tries += 1,
            result => return result,
        }
    }
}

fn open_child(dir: &Handle, name: &[u8], path: &[u8]) -> Result<Handle> {
    rustix::fs::openat(&dir.fd, name, PATH_DIR | OFlags::NOFOLLOW, Mode::empty())
        .map(Handle::new)
        .map_err(|e| fs_error("open", path, e))
}

fn read_link(dir: &Handle, name: &[u8], path: &[u8]) -> Result<Vec<u8>> {
    rustix::fs::readlinkat(&dir.fd, name, Vec::new())
        .map(std::ffi::CString::into_bytes)
        .map_err(|e| fs_error("read link", path, e))
}

/// Puts the components of `path` on top of a stack, first one uppermost.
fn push_components(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    let parts = path.split(|&byte| byte == b'/').rev();
    todo.extend(parts.filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec));
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir {
        b"" => name.to_vec(),
        _ => [dir, b"/", name].concat(),
    }
}
