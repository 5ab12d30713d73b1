//! A layer unpacked before the layers below it are there.
//!
//! Few entries of a layer depend on what lies below: directories it writes into without naming
//! them, and a root it empties. They are noted while the layer is unpacked, and looked after once
//! the layers below are known. Where one of them means something else on those layers, the answer
//! is no, and the layer has to be unpacked again on top of them.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::diff::apply::layers::{Layers, Shadow};
use crate::diff::apply::metadata::{self, Held};
use crate::diff::apply::resolve::{Handle, Resolver, fs_error};
use crate::error::{Error, Result};
use crate::tree::{Dir, Stat};

/// What a layer that was unpacked alone took for granted about the layers below.
#[derive(Debug, Default)]
pub struct Assumed {
    /// Directories made on the way to an entry, in the order they were made.
    dirs: Vec<AssumedDir>,
    by_identity: HashMap<(u64, u64), usize>,
    root_is_described: bool,
    root_is_emptied: bool,
}

#[derive(Debug)]
struct AssumedDir {
    path: Vec<u8>,
    identity: (u64, u64),
    /// An entry of its own came later.
    described: bool,
}

impl Assumed {
    /// Puts the layer in `upper` on top of `lowers`, nearest first: directories that it only
    /// passed through take after those below, the way they do when a layer is unpacked in place.
    ///
    /// False when the layer means something else on these layers, for one of its paths leads
    /// through a link below: it then has to be unpacked again, on top of them.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn settle(&self, upper: &Path, lowers: &[&Path]) -> Result<bool> {
        if lowers.is_empty() {
            return Ok(true);
        }
        if self.root_is_emptied {
            return Ok(false);
        }
        let open = |path: &Path| Dir::open(path).map(Dir::into_fd);
        let fds = lowers.iter().map(|path| open(path)).collect::<Result<Vec<OwnedFd>>>()?;
        let layers = Layers::new(&fds, false);
        let root = open(upper)?;
        let resolver = Resolver::new(root.as_fd(), Layers::none())?;
        if !self.root_is_described
            && let Some(below) = fds.first()
        {
            take_owner(below.as_fd(), root.as_fd())?;
        }
        // Nothing is changed before everything is known to fit.
        let mut models = Vec::new();
        for dir in &self.dirs {
            match below(&layers, &dir.path)? {
                Shadow::Link(_) => return Ok(false),
                Shadow::Dir(..) if dir.described => return Ok(false),
                Shadow::Dir(model, stat) => models.push((dir, model, stat)),
                Shadow::Nothing | Shadow::Other | Shadow::Unknown => {}
            }
        }
        // Children first: what is done to one changes the times of none.
        for (dir, model, stat) in models.iter().rev() {
            settle_dir(&resolver, dir, model, stat)?;
        }
        Ok(true)
    }
}

/// What the layers below show at `path`.
fn below(layers: &Layers<'_>, path: &[u8]) -> Result<Shadow> {
    let mut dirs = layers.roots()?;
    let mut names = path.split(|&byte| byte == b'/').peekable();
    while let Some(name) = names.next() {
        if names.peek().is_none() {
            return layers.look(&dirs, name);
        }
        dirs = layers.descend(&dirs, name)?;
    }
    Ok(Shadow::Nothing)
}

fn settle_dir(
    resolver: &Resolver<'_>,
    dir: &AssumedDir,
    model: &OwnedFd,
    stat: &Stat,
) -> Result<()> {
    let fd = match resolver.reopen(&dir.path) {
        Ok(fd) => fd,
        // Replaced or hidden by a later entry.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(errno) => return Err(fs_error("open", &dir.path, errno)),
    };
    let own = rustix::fs::fstat(&fd).map_err(|e| fs_error("stat", &dir.path, e))?;
    let own = Stat::from(own);
    if (own.dev, own.ino) != dir.identity {
        return Ok(());
    }
    metadata::copy_dir(model.as_fd(), stat, fd.as_fd())?;
    metadata::set_times(fd.as_fd(), Held::Open, (stat.atime, stat.mtime))
        .map_err(|e| fs_error("set times", &dir.path, e))
}

fn take_owner(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let stat = |fd| rustix::fs::fstat(fd).map(Stat::from).map_err(|e| fs_error("stat", b"", e));
    let (from, own) = (stat(from)?, stat(to)?);
    if (from.uid, from.gid) == (own.uid, own.gid) {
        return Ok(());
    }
    metadata::set_owner(to, from.uid, from.gid)
        .map_err(|e| Error::io("change owner", "layer root", e))
}

/// The notes of one application, taken by the thread that unpacks.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<Assumed>);

impl Notes {
    pub(crate) fn assume(&self, path: Vec<u8>, dir: &Handle) -> Result<()> {
        let identity = dir.identity()?;
        let mut assumed = self.lock();
        let at = assumed.dirs.len();
        assumed.by_identity.insert(identity, at);
        assumed.dirs.push(AssumedDir { path, identity, described: false });
        Ok(())
    }

    pub(crate) fn describe(&self, path: &[u8], identity: (u64, u64)) {
        let mut assumed = self.lock();
        if path.is_empty() {
            assumed.root_is_described = true;
        } else if let Some(&at) = assumed.by_identity.get(&identity) {
            assumed.dirs[at].described = true;
        }
    }

    pub(crate) fn empty_root(&self) {
        self.lock().root_is_emptied = true;
    }

    pub(crate) fn into_assumed(self) -> Assumed {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Assumed> {
        // Each note is whole before the next: a panic in between spoils none.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
