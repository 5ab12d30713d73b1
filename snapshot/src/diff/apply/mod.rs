//! A tar stream into a root it cannot escape.
//!
//! Every name is resolved by the kernel beneath a directory held open
//! (`openat2` with `RESOLVE_IN_ROOT`), every change is made on a descriptor of
//! the very file concerned, and memory stays constant whatever the layer says
//! (16 bytes per entry when there is something to hide, and the paths of its
//! directories until their times are set).

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crated_mount::{Mount, TempMount};
use sha2::{Digest, Sha256};

use crate::diff::apply::alone::Notes;
use crate::diff::apply::layers::Layers;
use crate::diff::apply::unpack::Unpacker;
use crate::diff::{Applied, Applier, ApplyOptions, digest_string};
use crate::error::{Error, Result};
use crate::tar::{Stream, TarReader};
use crate::tree::Dir;

mod alone;
mod early;
mod layers;
pub(crate) mod metadata;
mod path;
mod pipeline;
mod resolve;
mod unpack;
mod whiteout;
mod written;

pub use self::alone::Assumed;

/// Unpacks tar layers, compressed or not, as [`apply_tar`] does, hashing on another thread.
#[derive(Clone, Debug)]
pub struct TarApplier {
    temp_root: PathBuf,
}

/// The directory a layer is unpacked into, held open.
#[derive(Debug)]
pub struct Target {
    root: OwnedFd,
    /// Directories of the layers below, nearest first; only for
    /// [`Whiteouts::Overlay`].
    lowers: Vec<OwnedFd>,
    whiteouts: Whiteouts,
    /// Set while the layers below are not known yet.
    notes: Option<Notes>,
    /// Keeps a temporary mount attached while its directory is in use.
    attached: Option<TempMount>,
}

/// What becomes of a layer's whiteouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// They delete what was there before the layer.
    Delete,
    /// They are kept in overlayfs' own form, for an upper directory.
    Overlay {
        /// Whether the overlay is mounted with `userxattr`.
        user_xattr: bool,
    },
}

impl TarApplier {
    /// An applier that attaches what it must below `temp_root`, a directory
    /// which nobody else should be able to write to.
    pub fn new(temp_root: impl Into<PathBuf>) -> Self {
        Self { temp_root: temp_root.into() }
    }
}

impl Default for TarApplier {
    /// With `/run/crated-snapshot` as its temporary root.
    fn default() -> Self {
        Self::new(crate::diff::DEFAULT_TEMP_ROOT)
    }
}

impl Applier for TarApplier {
    fn apply(
        &self,
        layer: &mut dyn Read,
        mounts: &[Mount],
        options: &ApplyOptions,
    ) -> Result<Applied> {
        let target = Target::mounts(mounts, &self.temp_root)?;
        let applied = pipeline::apply(layer, &target, options);
        let closed = target.close();
        let applied = applied?;
        closed?;
        Ok(applied)
    }

    fn apply_alone(
        &self,
        layer: &mut dyn Read,
        upper: &Path,
        options: &ApplyOptions,
    ) -> Result<(Applied, Assumed)> {
        let mut target = Target::overlay(upper, &[], false)?;
        target.notes = Some(Notes::default());
        let applied = pipeline::apply(layer, &target, options)?;
        let assumed = target.notes.take().map(Notes::into_assumed).unwrap_or_default();
        Ok((applied, assumed))
    }
}

impl Target {
    /// A directory holding a whole filesystem.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn directory(path: &Path) -> Result<Self> {
        Self::open(path, &[], Whiteouts::Delete)
    }

    /// The upper directory of an overlay whose lower ones, nearest first, are
    /// `lowers`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn overlay(upper: &Path, lowers: &[&Path], user_xattr: bool) -> Result<Self> {
        Self::open(upper, lowers, Whiteouts::Overlay { user_xattr })
    }

    /// What `mounts` show.
    ///
    /// A single writable bind and the upper directory of a single overlay are
    /// used directly. Anything else is attached at a private directory below
    /// `temp_root` until the target is dropped or [closed](Self::close).
    ///
    /// # Errors
    ///
    /// [`Error::Mount`], [`Error::Io`].
    pub fn mounts(mounts: &[Mount], temp_root: &Path) -> Result<Self> {
        if let [mount] = mounts
            && mount.target.is_empty()
        {
            if let Some(upper) = option(mount, "upperdir=")
                && mount.kind == "overlay"
                && !in_user_namespace()
            {
                let lowers: Vec<&Path> = option(mount, "lowerdir=")
                    .map(|dirs| dirs.split(':').map(Path::new).collect())
                    .unwrap_or_default();
                let user_xattr = mount.options.iter().any(|option| option == "userxattr");
                return Self::overlay(Path::new(upper), &lowers, user_xattr);
            }
            let plain = |option: &String| matches!(option.as_str(), "bind" | "rbind" | "rw");
            if mount.kind == "bind" && mount.options.iter().all(plain) {
                return Self::directory(Path::new(&mount.source));
            }
        }
        let attached = TempMount::attach(mounts, temp_root)
            .map_err(|source| Error::Mount { op: "apply", source })?;
        let mut target = Self::directory(attached.path())?;
        target.attached = Some(attached);
        Ok(target)
    }

    /// What becomes of whiteouts here.
    pub fn whiteouts(&self) -> Whiteouts {
        self.whiteouts
    }

    /// Detaches a temporary mount and reports what a drop would only log.
    ///
    /// # Errors
    ///
    /// [`Error::Mount`].
    pub fn close(self) -> Result<()> {
        let Self { root, lowers, attached, .. } = self;
        drop((root, lowers));
        match attached {
            Some(mount) => mount.close().map_err(|source| Error::Mount { op: "apply", source }),
            None => Ok(()),
        }
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn layers(&self) -> Layers<'_> {
        match self.whiteouts {
            Whiteouts::Delete => Layers::none(),
            Whiteouts::Overlay { user_xattr } => match &self.notes {
                Some(notes) => Layers::unknown(notes),
                None => Layers::new(&self.lowers, user_xattr),
            },
        }
    }

    fn open(path: &Path, lowers: &[&Path], whiteouts: Whiteouts) -> Result<Self> {
        let open = |path: &Path| Dir::open(path).map(Dir::into_fd);
        let root = open(path)?;
        let lowers = lowers.iter().map(|path| open(path)).collect::<Result<_>>()?;
        Ok(Self { root, lowers, whiteouts, notes: None, attached: None })
    }
}

/// Unpacks an uncompressed tar stream into `target` on the calling thread.
///
/// Reads to the end of the stream, hashing all of it. The limit on
/// compression does not apply here.
///
/// # Errors
///
/// Those of [`Applier::apply`].
pub fn apply_tar(
    reader: &mut dyn Read,
    target: &Target,
    options: &ApplyOptions,
) -> Result<Applied> {
    let mut hashed = Hashed { inner: reader, hasher: Sha256::new() };
    let size_bytes = unpack_tar(&mut hashed, target, options)?;
    Ok(Applied { diff_id: digest_string(&hashed.hasher.finalize()), size_bytes })
}

/// The same without a digest; the length of the stream.
fn unpack_tar(reader: &mut dyn Read, target: &Target, options: &ApplyOptions) -> Result<u64> {
    let mut tar = TarReader::new(Stream::new(reader, options.size_bytes_max));
    Unpacker::new(target, options)?.run(&mut tar)?;
    let size_bytes = tar.finish()?;
    if options.sync_fs {
        rustix::fs::syncfs(target.root()).map_err(|e| Error::io("sync", "target", e))?;
    }
    Ok(size_bytes)
}

/// A reader that hashes each byte once, while it is in the cache.
struct Hashed<'a> {
    inner: &'a mut dyn Read,
    hasher: Sha256,
}

impl Read for Hashed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(into)?;
        self.hasher.update(&into[..length]);
        Ok(length)
    }
}

fn option<'a>(mount: &'a Mount, prefix: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(prefix))
}

/// In a user namespace of its own a process may neither set `trusted`
/// attributes nor make device nodes. The initial one maps every id to itself.
pub(crate) fn in_user_namespace() -> bool {
    match std::fs::read_to_string("/proc/self/uid_map") {
        Ok(map) => !map.split_whitespace().eq(["0", "0", "4294967295"]),
        Err(_) => false,
    }
}
