//! Walks two trees side by side and writes what differs.
//!
//! Where the upper tree is an overlay on just what the lower tree shows, its
//! upper directory names everything that can have changed: the walk then looks
//! only at those names, with the same eyes. The result is the same bytes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crated_mount::{Mount, TempMount};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::diff::{DiffOptions, Diffed, Differ, digest_string};
use crate::error::{Error, Result};
use crate::tar::{Entry, EntryKind, TarWriter};
use crate::tree::{Dir, Stat};

/// Walks both filesystems side by side.
///
/// Files count as changed when mode, owner, device, capabilities, size or time
/// differ; where a time has lost its fraction, content is compared too. The
/// only attribute a layer carries is `security.capability`. Sockets are left
/// out.
#[derive(Clone, Debug)]
pub struct WalkingDiffer {
    temp_root: PathBuf,
}

impl WalkingDiffer {
    /// A differ that attaches what it compares below `temp_root`, a directory
    /// which nobody else should be able to write to.
    pub fn new(temp_root: impl Into<PathBuf>) -> Self {
        Self { temp_root: temp_root.into() }
    }
}

impl Default for WalkingDiffer {
    /// With `/run/crated-snapshot` as its temporary root.
    fn default() -> Self {
        Self::new(crate::diff::DEFAULT_TEMP_ROOT)
    }
}

impl Differ for WalkingDiffer {
    fn diff(
        &self,
        lower: &[Mount],
        upper: &[Mount],
        out: &mut dyn Write,
        options: &DiffOptions,
    ) -> Result<Diffed> {
        let guide = guide(lower, upper).map(|path| Dir::open(Path::new(path))).transpose()?;
        let attach = |mounts: &[Mount]| match mounts {
            [] => Ok(None),
            _ => TempMount::attach(&crated_mount::read_only(mounts), &self.temp_root)
                .map(Some)
                .map_err(|source| Error::Mount { op: "diff", source }),
        };
        let (lower, upper) = (attach(lower)?, attach(upper)?);
        let open = |mount: &Option<TempMount>| {
            mount.as_ref().map(|mount| Dir::open(mount.path())).transpose()
        };
        let result = write_layer(open(&lower)?, open(&upper)?, guide, out, options);
        for mount in [lower, upper].into_iter().flatten() {
            mount.close().map_err(|source| Error::Mount { op: "diff", source })?;
        }
        result
    }
}

/// The upper directory which names all differences, if there is one.
fn guide<'a>(lower: &[Mount], upper: &'a [Mount]) -> Option<&'a str> {
    let [upper] = upper else { return None };
    let lower = match lower {
        [lower] if lower.kind == "bind" => lower.source.as_str(),
        [lower] if lower.kind == "overlay" && option(lower, "upperdir=").is_none() => {
            option(lower, "lowerdir=")?
        }
        _ => return None,
    };
    let same = upper.kind == "overlay" && option(upper, "lowerdir=")? == lower;
    if same { option(upper, "upperdir=") } else { None }
}

fn option<'a>(mount: &'a Mount, prefix: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(prefix))
}

fn write_layer(
    lower: Option<Dir>,
    upper: Option<Dir>,
    guide: Option<Dir>,
    out: &mut dyn Write,
    options: &DiffOptions,
) -> Result<Diffed> {
    let stream = |source| Error::Stream { op: "write", source };
    let compressed = Hashed::new(out);
    let encoder = options.compression.encoder(compressed).map_err(stream)?;
    let tar = TarWriter::new(Hashed::new(encoder));
    let mut differ = Walk {
        tar,
        upper: upper.as_ref(),
        epoch: options.source_date_epoch.map(seconds),
        parents: HashSet::new(),
        sources: HashMap::new(),
        waiting: HashMap::new(),
    };
    differ.dir(lower.as_ref(), upper.as_ref(), guide.as_ref(), b"")?;
    let plain = differ.tar.finish().map_err(stream)?;
    let (encoder, diff_id, size_bytes_uncompressed) = plain.finish();
    let mut compressed = encoder.finish().map_err(stream)?;
    compressed.flush().map_err(stream)?;
    let (_, digest, size_bytes) = compressed.finish();
    Ok(Diffed { diff_id, size_bytes_uncompressed, digest, size_bytes })
}

struct Walk<'a, W: Write> {
    tar: TarWriter<W>,
    /// Root of the upper tree, to describe parents from.
    upper: Option<&'a Dir>,
    epoch: Option<i64>,
    /// Directories written so far.
    parents: HashSet<Vec<u8>>,
    /// The first name written of each file with several.
    sources: HashMap<(u64, u64), Vec<u8>>,
    /// Unchanged names of files with several, in case another one changed.
    waiting: HashMap<(u64, u64), Vec<Vec<u8>>>,
}

impl<W: Write> Walk<'_, W> {
    fn dir(
        &mut self,
        lower: Option<&Dir>,
        upper: Option<&Dir>,
        guide: Option<&Dir>,
        path: &[u8],
    ) -> Result<()> {
        for (name, (below, above)) in candidates(lower, upper, guide)? {
            let path = join(path, name.to_bytes());
            let below = below.filter(|stat| stat.file_type() != FileType::Socket);
            let above = above.filter(|stat| stat.file_type() != FileType::Socket);
            let (Some(above), Some(upper)) = (above, upper) else {
                if below.is_some() {
                    self.whiteout(&path)?;
                }
                continue;
            };
            let changed = match (below, lower) {
                (Some(below), Some(lower)) => differs(lower, &below, upper, &above, &name)?,
                _ => true,
            };
            if above.is_dir() {
                self.directory(
                    lower.filter(|_| below.is_some_and(|stat| stat.is_dir())),
                    upper,
                    guide,
                    &name,
                    &path,
                    &above,
                    changed,
                )?;
            } else {
                self.file(upper, &name, path, &above, changed)?;
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "three trees, and one place in them")]
    fn directory(
        &mut self,
        lower: Option<&Dir>,
        upper: &Dir,
        guide: Option<&Dir>,
        name: &CStr,
        path: &[u8],
        stat: &Stat,
        changed: bool,
    ) -> Result<()> {
        if changed && self.parents.insert(path.to_vec()) {
            self.parents_of(path)?;
            self.write(upper, name, path.to_vec(), stat)?;
        }
        let Some(child) = upper.open_dir(name)? else { return Ok(()) };
        let lower = match lower {
            Some(lower) => lower.open_dir(name)?,
            None => None,
        };
        let guide = match guide {
            Some(guide) if lower.is_some() => guide.open_dir(name)?.filter(is_transparent),
            _ => None,
        };
        self.dir(lower.as_ref(), Some(&child), guide.as_ref(), path)
    }

    fn file(
        &mut self,
        upper: &Dir,
        name: &CStr,
        path: Vec<u8>,
        stat: &Stat,
        changed: bool,
    ) -> Result<()> {
        let identity = (stat.dev, stat.ino);
        let linked = stat.links > 1;
        if linked && let Some(source) = self.sources.get(&identity).cloned() {
            return self.link(path, source, stat);
        }
        if !changed {
            if linked {
                self.waiting.entry(identity).or_default().push(path);
            }
            return Ok(());
        }
        self.parents_of(&path)?;
        self.write(upper, name, path.clone(), stat)?;
        if linked {
            for other in self.waiting.remove(&identity).unwrap_or_default() {
                self.link(other, path.clone(), stat)?;
            }
            self.sources.insert(identity, path);
        }
        Ok(())
    }

    /// Writes the directories above `path` that were not yet.
    fn parents_of(&mut self, path: &[u8]) -> Result<()> {
        let Some(mut dir) = self.upper.map(Dir::again).transpose()? else { return Ok(()) };
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut start = 0;
        for (end, _) in slashes {
            let name = c_string(&path[start..end])?;
            start = end + 1;
            let stat = dir.stat_entry(&name)?.ok_or_else(|| vanished(&dir, &name))?;
            if self.parents.insert(path[..end].to_vec()) {
                self.write(&dir, &name, path[..end].to_vec(), &stat)?;
            }
            dir = dir.open_dir(&name)?.ok_or_else(|| vanished(&dir, &name))?;
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        self.parents_of(path)?;
        let name = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let mut marked = path[..name].to_vec();
        marked.extend_from_slice(b".wh.");
        marked.extend_from_slice(&path[name..]);
        let seconds = self.epoch.unwrap_or(0);
        let entry = Entry { path: marked, mtime: (seconds, 0), ..blank(EntryKind::File) };
        self.tar.entry(&entry).map_err(write_error)
    }

    fn link(&mut self, path: Vec<u8>, link: Vec<u8>, stat: &Stat) -> Result<()> {
        self.parents_of(&path)?;
        let entry = Entry { path, link, ..self.described(stat, EntryKind::HardLink) };
        self.tar.entry(&entry).map_err(write_error)
    }

    /// Writes one entry with its data.
    fn write(&mut self, dir: &Dir, name: &CStr, mut path: Vec<u8>, stat: &Stat) -> Result<()> {
        let kind = match stat.file_type() {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            FileType::CharacterDevice => EntryKind::CharacterDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            FileType::Fifo => EntryKind::Fifo,
            _ => return Ok(()),
        };
        let mut entry = self.described(stat, kind);
        if let Some(value) = capability(dir, name, stat)? {
            entry.xattrs.push((CAPABILITY.as_bytes().to_vec(), value));
        }
        match kind {
            EntryKind::Symlink => entry.link = dir.read_link(name)?.into_bytes(),
            EntryKind::Directory => path.push(b'/'),
            EntryKind::File => entry.size = stat.size,
            EntryKind::CharacterDevice | EntryKind::BlockDevice => {
                entry.major = rustix::fs::major(stat.rdev);
                entry.minor = rustix::fs::minor(stat.rdev);
            }
            EntryKind::HardLink | EntryKind::Fifo => {}
        }
        entry.path = path;
        self.tar.entry(&entry).map_err(write_error)?;
        match kind {
            EntryKind::File => self.copy(dir, name, stat.size),
            _ => Ok(()),
        }
    }

    /// Writes exactly `size` bytes of a file. One that grows meanwhile is cut
    /// there, one that shrinks is an error.
    fn copy(&mut self, dir: &Dir, name: &CStr, size: u64) -> Result<()> {
        if size == 0 {
            return Ok(());
        }
        let error = |source: io::Error| Error::io("read", dir.entry_path(name), source);
        let mut file = open_file(dir, name)?.take(size);
        let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(size).unwrap_or(COPY_BYTES))];
        let mut left = size;
        while left > 0 {
            let count = match file.read(&mut buffer) {
                Ok(0) => return Err(error(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(error(e)),
            };
            self.tar.data(&buffer[..count]).map_err(write_error)?;
            left -= count as u64;
        }
        Ok(())
    }

    fn described(&self, stat: &Stat, kind: EntryKind) -> Entry {
        let seconds = self.epoch.map_or(stat.mtime.0, |epoch| stat.mtime.0.min(epoch));
        Entry {
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            mtime: (seconds, 0),
            ..blank(kind)
        }
    }
}

type Candidates = BTreeMap<CString, (Option<Stat>, Option<Stat>)>;

/// Names to look at in one directory, with what stands there on both sides.
fn candidates(lower: Option<&Dir>, upper: Option<&Dir>, guide: Option<&Dir>) -> Result<Candidates> {
    let mut names = match guide {
        Some(guide) => guide.names()?,
        None => {
            let mut names = upper.map_or(Ok(Vec::new()), Dir::names)?;
            names.extend(lower.map_or(Ok(Vec::new()), Dir::names)?);
            names
        }
    };
    names.sort_unstable();
    names.dedup();
    let stat = |dir: Option<&Dir>, name: &CStr| dir.map_or(Ok(None), |dir| dir.stat_entry(name));
    names
        .into_iter()
        .map(|name| {
            let stats = (stat(lower, &name)?, stat(upper, &name)?);
            Ok((name, stats))
        })
        .collect()
}

/// Whether a directory of an upper layer merges with the same one below, so
/// that what it does not name is unchanged.
fn is_transparent(dir: &Dir) -> bool {
    OPAQUE_XATTRS.iter().all(|name| {
        let value = rustix::fs::fgetxattr(dir, *name, &mut [0_u8; 0][..]);
        matches!(value, Err(Errno::NODATA | Errno::OPNOTSUPP))
    })
}

/// Both ways of not merging: hiding what is below, or coming from elsewhere.
const OPAQUE_XATTRS: [&str; 4] = [
    "trusted.overlay.opaque",
    "trusted.overlay.redirect",
    "user.overlay.opaque",
    "user.overlay.redirect",
];

const CAPABILITY: &str = "security.capability";

/// Whether an entry present on both sides differs in what a layer carries.
fn differs(lower: &Dir, below: &Stat, upper: &Dir, above: &Stat, name: &CStr) -> Result<bool> {
    if (below.mode, below.uid, below.gid, below.rdev)
        != (above.mode, above.uid, above.gid, above.rdev)
        || below.mtime.0 != above.mtime.0
        || capability(lower, name, below)? != capability(upper, name, above)?
    {
        return Ok(true);
    }
    if above.is_dir() {
        return Ok(false);
    }
    if below.size != above.size {
        return Ok(true);
    }
    // Layers and some filesystems keep whole seconds: then a time proves
    // nothing.
    if below.mtime.1 != 0 && above.mtime.1 != 0 {
        return Ok(below.mtime.1 != above.mtime.1);
    }
    match above.file_type() {
        FileType::RegularFile => content_differs(lower, upper, name, above.size),
        FileType::Symlink => Ok(lower.read_link(name)? != upper.read_link(name)?),
        _ => Ok(false),
    }
}

fn content_differs(lower: &Dir, upper: &Dir, name: &CStr, size: u64) -> Result<bool> {
    if size == 0 {
        return Ok(false);
    }
    let (mut below, mut above) = (open_file(lower, name)?, open_file(upper, name)?);
    let mut buffers = (vec![0; COPY_BYTES], vec![0; COPY_BYTES]);
    loop {
        let count = fill(&mut below, &mut buffers.0)
            .map_err(|e| Error::io("read", lower.entry_path(name), e))?;
        let other = fill(&mut above, &mut buffers.1)
            .map_err(|e| Error::io("read", upper.entry_path(name), e))?;
        if buffers.0[..count] != buffers.1[..other] {
            return Ok(true);
        }
        if count == 0 {
            return Ok(false);
        }
    }
}

fn fill(file: &mut std::fs::File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn open_file(dir: &Dir, name: &CStr) -> Result<std::fs::File> {
    // A file can have become a FIFO since it was looked at: never wait for one.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir.as_fd(), name, flags, Mode::empty())
        .map_err(|e| Error::io("open", dir.entry_path(name), e))?;
    Ok(fd.into())
}

fn capability(dir: &Dir, name: &CStr, stat: &Stat) -> Result<Option<Vec<u8>>> {
    if !stat.is_file() {
        return Ok(None);
    }
    let mut value = vec![0; CAPABILITY_BYTES_MAX];
    match rustix::fs::lgetxattr(dir.magic_path(name), CAPABILITY, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(Error::io("read attribute", dir.entry_path(name), errno)),
    }
}

fn blank(kind: EntryKind) -> Entry {
    Entry {
        path: Vec::new(),
        link: Vec::new(),
        kind,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        atime: None,
        size: 0,
        sparse: None,
        major: 0,
        minor: 0,
        xattrs: Vec::new(),
    }
}

/// Whole seconds since 1970, rounded down.
fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let up = i64::from(before.subsec_nanos() > 0);
            -i64::try_from(before.as_secs()).unwrap_or(i64::MAX - 1) - up
        }
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir {
        b"" => name.to_vec(),
        _ => [dir, b"/", name].concat(),
    }
}

fn c_string(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Error::invalid("name", "zero byte"))
}

fn vanished(dir: &Dir, name: &CStr) -> Error {
    Error::io("stat", dir.entry_path(name), io::Error::from(io::ErrorKind::NotFound))
}

/// Errors on the way out may come from the encoder or the caller's writer.
fn write_error(source: io::Error) -> Error {
    Error::Stream { op: "write", source }
}

/// Counts and hashes what passes.
struct Hashed<W> {
    inner: W,
    hasher: Sha256,
    size_bytes: u64,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), size_bytes: 0 }
    }

    fn finish(self) -> (W, String, u64) {
        (self.inner, digest_string(&self.hasher.finalize()), self.size_bytes)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// One read call's worth.
const COPY_BYTES: usize = 128 << 10;

/// The kernel's structure has 24 bytes; more is not a capability.
const CAPABILITY_BYTES_MAX: usize = 64;
