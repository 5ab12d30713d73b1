//! One entry after another, into the target.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::diff::apply::early::EarlyWriter;
use crate::diff::apply::metadata::{self, Held, Times};
use crate::diff::apply::path::CleanPath;
use crate::diff::apply::resolve::{Handle, Made, Resolver, fs_error, lossy, stat_at};
use crate::diff::apply::whiteout::{self, Special};
use crate::diff::apply::written::Written;
use crate::diff::{ApplyOptions, Target};
use crate::error::{Error, Result};
use crate::tar::{Entry, EntryKind, TarReader};
use crate::tree::{self, Stat};

/// The state of one application.
pub(crate) struct Unpacker<'a> {
    pub(super) resolver: Resolver<'a>,
    /// Kept only if the target was not empty at first: else all in it comes
    /// from this layer.
    pub(super) written: Option<Written>,
    options: &'a ApplyOptions,
    dir_times: Vec<DirTimes>,
    entries: u64,
    claimed_bytes: u64,
    early: Option<EarlyWriter>,
}

/// Times to set once nothing more is put into a directory.
struct DirTimes {
    path: Vec<u8>,
    identity: (u64, u64),
    times: Times,
}

/// How often a name that somebody else keeps taking is cleared.
const TRIES_MAX: usize = 8;

const PATH_ENTRY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const CREATE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl<'a> Unpacker<'a> {
    pub(crate) fn new(target: &'a Target, options: &'a ApplyOptions) -> Result<Self> {
        let empty = tree::entries(target.root())
            .map_err(|e| Error::io("list", "target directory", e))?
            .is_empty();
        Ok(Self {
            resolver: Resolver::new(target.root(), target.layers())?,
            written: (!empty).then(Written::new),
            options,
            dir_times: Vec::new(),
            entries: 0,
            claimed_bytes: 0,
            early: options.write_early.then(EarlyWriter::start).transpose()?,
        })
    }

    /// Unpacks every entry of `tar`, and sets the times of directories.
    pub(crate) fn run(&mut self, tar: &mut TarReader<'_>) -> Result<()> {
        while let Some(entry) = tar.next_entry()? {
            self.charge(&entry)?;
            let path = CleanPath::new(&entry.path)?;
            match whiteout::classify(&path)? {
                Special::No => self.unpack(&entry, &path, tar)?,
                Special::Ignored => {}
                Special::Whiteout => {
                    let parent = self.parent(&path)?;
                    self.hide(&parent, &path.name()[whiteout::PREFIX.len()..], &entry.path)?;
                }
                Special::Opaque => {
                    let dir = self.directory(path.parent())?;
                    self.hide_all(&dir, path.parent())?;
                }
            }
        }
        self.finish()
    }

    fn charge(&mut self, entry: &Entry) -> Result<()> {
        self.entries += 1;
        if self.entries > self.options.entries_max {
            let max = self.options.entries_max;
            return Err(Error::LimitExceeded { limit: "count of entries", max });
        }
        self.claimed_bytes = self.claimed_bytes.saturating_add(entry.size);
        if self.claimed_bytes > self.options.size_bytes_max {
            let max = self.options.size_bytes_max;
            return Err(Error::LimitExceeded { limit: "size of files in bytes", max });
        }
        Ok(())
    }

    fn unpack(&mut self, entry: &Entry, path: &CleanPath, tar: &mut TarReader<'_>) -> Result<()> {
        if path.is_root() {
            return match entry.kind {
                EntryKind::Directory => {
                    let fd = self.resolver.reopen(b"").map_err(|e| fs_error("open", b"", e))?;
                    self.describe_dir(&fd, Vec::new(), entry)
                }
                _ => Err(Error::archive(&entry.path, "the root can only be a directory")),
            };
        }
        let parent = self.parent(path)?;
        match entry.kind {
            EntryKind::Directory => self.make_dir(&parent, entry, path)?,
            EntryKind::File => self.make_file(&parent, entry, path, tar)?,
            EntryKind::HardLink => self.make_link(&parent, entry, path)?,
            EntryKind::Symlink => self.make_symlink(&parent, entry, path)?,
            EntryKind::CharacterDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                self.make_node(&parent, entry, path)?;
            }
        }
        if let Some(written) = &mut self.written {
            written.insert(parent.identity()?, path.name());
        }
        Ok(())
    }

    fn make_file(
        &mut self,
        parent: &Handle,
        entry: &Entry,
        path: &CleanPath,
        tar: &mut TarReader<'_>,
    ) -> Result<()> {
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let fd = self.place(parent, path, "create", |dir, name| {
            rustix::fs::openat(dir, name, CREATE, mode)
        })?;
        match &entry.sparse {
            None => copy(tar, entry, entry.size, |bytes| rustix::io::write(&fd, bytes))?,
            Some(regions) => {
                for region in regions {
                    let mut at = region.offset;
                    copy(tar, entry, region.length, |bytes| {
                        let count = rustix::io::pwrite(&fd, bytes, at)?;
                        at += count as u64;
                        Ok(count)
                    })?;
                }
                rustix::fs::ftruncate(&fd, entry.size)
                    .map_err(|e| fs_error("resize", &entry.path, e))?;
            }
        }
        self.describe(fd.as_fd(), Held::Open, FileType::RegularFile, entry)?;
        if let Some(early) = &self.early {
            early.take(fd, entry.size);
        }
        Ok(())
    }

    fn make_symlink(&mut self, parent: &Handle, entry: &Entry, path: &CleanPath) -> Result<()> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(Error::archive(&entry.path, "bad target of symbolic link"));
        }
        self.place(parent, path, "link", |dir, name| {
            rustix::fs::symlinkat(&*entry.link, dir, name)
        })?;
        self.describe_path(parent, path, FileType::Symlink, entry)
    }

    fn make_node(&mut self, parent: &Handle, entry: &Entry, path: &CleanPath) -> Result<()> {
        let (kind, device) = match entry.kind {
            EntryKind::CharacterDevice => (FileType::CharacterDevice, true),
            EntryKind::BlockDevice => (FileType::BlockDevice, true),
            _ => (FileType::Fifo, false),
        };
        if kind == FileType::CharacterDevice && (entry.major, entry.minor) == (0, 0) {
            return Err(Error::archive(&entry.path, "device 0:0 is overlayfs' whiteout"));
        }
        if device && self.options.skip_devices {
            return Ok(());
        }
        if entry.major > MAJOR_MAX || entry.minor > MINOR_MAX {
            return Err(Error::archive(&entry.path, "device number the kernel does not have"));
        }
        let number = match device {
            true => rustix::fs::makedev(entry.major, entry.minor),
            false => 0,
        };
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        self.place(parent, path, "make node", |dir, name| {
            rustix::fs::mknodat(dir, name, kind, mode, number)
        })?;
        self.describe_path(parent, path, kind, entry)
    }

    fn make_link(&mut self, parent: &Handle, entry: &Entry, path: &CleanPath) -> Result<()> {
        let refuse = |reason: &str| Error::archive(&entry.path, reason);
        let target = CleanPath::new(&entry.link)?;
        if target.is_root() || target == *path {
            return Err(refuse("hard link to the root or to itself"));
        }
        let missing = || refuse("hard link to what is not in the layer");
        let source_dir = self.resolver.find(target.parent())?.ok_or_else(missing)?;
        let source = stat_at(&source_dir, target.name(), &entry.path)?.ok_or_else(missing)?;
        if source.is_dir() {
            return Err(refuse("hard link to a directory"));
        }
        if source.is_whiteout() {
            return Err(missing());
        }
        if let Some(there) = stat_at(parent, path.name(), &entry.path)?
            && (there.dev, there.ino) == (source.dev, source.ino)
        {
            return Ok(());
        }
        self.place(parent, path, "link", |dir, name| {
            rustix::fs::linkat(source_dir.as_fd(), target.name(), dir, name, AtFlags::empty())
        })
    }

    fn make_dir(&mut self, parent: &Handle, entry: &Entry, path: &CleanPath) -> Result<()> {
        let name = path.name();
        let mut replaced = false;
        if let Some(stat) = stat_at(parent, name, &entry.path)?
            && !stat.is_dir()
        {
            self.clear(parent, name, &entry.path)?;
            replaced = true;
        }
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(fs_error("make directory", &entry.path, errno)),
        }
        let fd = rustix::fs::openat(parent, name, OPEN_DIR, Mode::empty())
            .map_err(|e| fs_error("open", &entry.path, e))?;
        if replaced {
            // What lies below was hidden by what stood here: it stays hidden.
            self.resolver.layers().make_opaque(fd.as_fd(), &entry.path)?;
        }
        self.describe_dir(&fd, path.as_bytes().to_vec(), entry)
    }

    /// Makes a new entry, clearing the name if it is taken.
    fn place<T>(
        &mut self,
        parent: &Handle,
        path: &CleanPath,
        op: &'static str,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<T> {
        for _ in 0..TRIES_MAX {
            match make(parent.as_fd(), path.name()) {
                Ok(made) => return Ok(made),
                Err(Errno::EXIST) => self.clear(parent, path.name(), path.as_bytes())?,
                Err(Errno::NOENT) if op == "link" => {
                    return Err(Error::archive(path.as_bytes(), "link to what is gone"));
                }
                Err(errno) => return Err(fs_error(op, path.as_bytes(), errno)),
            }
        }
        Err(fs_error(op, path.as_bytes(), Errno::EXIST))
    }

    /// Removes what stands at `name`, whatever it is.
    pub(super) fn clear(&mut self, parent: &Handle, name: &[u8], path: &[u8]) -> Result<()> {
        let Some(stat) = stat_at(parent, name, path)? else { return Ok(()) };
        let name = c_name(name, path)?;
        tree::remove(parent.as_fd(), &name).map_err(|e| fs_error("remove", path, e))?;
        if stat.is_dir() || stat.file_type() == FileType::Symlink {
            self.resolver.forget();
        }
        Ok(())
    }

    /// Owner, mode, attributes and times of an entry just made.
    fn describe(
        &self,
        fd: BorrowedFd<'_>,
        held: Held,
        kind: FileType,
        entry: &Entry,
    ) -> Result<()> {
        let stat = stat_fd(fd, &entry.path)?;
        if stat.file_type() != kind {
            return Err(Error::io("verify", lossy(&entry.path), Errno::STALE));
        }
        metadata::set(fd, held, &stat, entry)?;
        metadata::set_times(fd, held, metadata::times(entry))
            .map_err(|e| fs_error("set times", &entry.path, e))
    }

    fn describe_path(
        &self,
        parent: &Handle,
        path: &CleanPath,
        kind: FileType,
        entry: &Entry,
    ) -> Result<()> {
        let fd = rustix::fs::openat(parent, path.name(), PATH_ENTRY, Mode::empty())
            .map_err(|e| fs_error("open", &entry.path, e))?;
        self.describe(fd.as_fd(), Held::Path, kind, entry)
    }

    fn describe_dir(&mut self, fd: &OwnedFd, path: Vec<u8>, entry: &Entry) -> Result<()> {
        let stat = stat_fd(fd.as_fd(), &entry.path)?;
        metadata::set(fd.as_fd(), Held::Open, &stat, entry)?;
        let (identity, times) = ((stat.dev, stat.ino), metadata::times(entry));
        if let Some(notes) = self.resolver.layers().notes() {
            notes.describe(&path, identity);
        }
        self.dir_times.push(DirTimes { path, identity, times });
        Ok(())
    }

    fn parent(&mut self, path: &CleanPath) -> Result<Rc<Handle>> {
        self.directory(path.parent())
    }

    /// The directory `path`, made if need be: like the one in the layers
    /// below, or with mode 0755.
    fn directory(&mut self, path: &[u8]) -> Result<Rc<Handle>> {
        let dir_times = &mut self.dir_times;
        let mut fresh_opaque = Vec::new();
        let notes = self.resolver.layers().notes();
        let dir = self.resolver.find_or_make(path, &mut self.written, &mut |made: Made| {
            if let Some(notes) = notes.filter(|_| made.unknown) {
                notes.assume(made.path.clone(), &made.dir)?;
            }
            match &made.model {
                Some((model, stat)) => {
                    metadata::copy_dir(model.as_fd(), stat, made.dir.as_fd())?;
                    let identity = made.dir.identity()?;
                    let times = (stat.atime, stat.mtime);
                    dir_times.push(DirTimes { path: made.path.clone(), identity, times });
                }
                None => metadata::set_mode(made.dir.as_fd(), Held::Path, 0o755)
                    .map_err(|e| fs_error("change mode", &made.path, e))?,
            }
            if made.opaque {
                fresh_opaque.push((made.dir, made.path));
            }
            Ok(())
        })?;
        for (dir, path) in fresh_opaque {
            self.resolver.layers().make_opaque(dir.as_fd(), &path)?;
        }
        Ok(dir)
    }

    /// Sets the times of directories, now that their content is final. Those
    /// which were replaced since are passed over.
    fn finish(&mut self) -> Result<()> {
        for DirTimes { path, identity, times } in self.dir_times.drain(..) {
            let fd = match self.resolver.reopen(&path) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(fs_error("open", &path, errno)),
            };
            let stat = stat_fd(fd.as_fd(), &path)?;
            if (stat.dev, stat.ino) == identity {
                metadata::set_times(fd.as_fd(), Held::Open, times)
                    .map_err(|e| fs_error("set times", &path, e))?;
            }
        }
        Ok(())
    }
}

/// Hands `length` bytes of the entry's data to `write`.
fn copy(
    tar: &mut TarReader<'_>,
    entry: &Entry,
    length: u64,
    mut write: impl FnMut(&[u8]) -> rustix::io::Result<usize>,
) -> Result<()> {
    let mut left = length;
    while left > 0 {
        let mut bytes = tar.data(left)?;
        left -= bytes.len() as u64;
        while !bytes.is_empty() {
            match write(bytes) {
                Ok(0) => return Err(fs_error("write", &entry.path, Errno::NOSPC)),
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(fs_error("write", &entry.path, errno)),
            }
        }
    }
    Ok(())
}

fn stat_fd(fd: BorrowedFd<'_>, path: &[u8]) -> Result<Stat> {
    rustix::fs::fstat(fd).map(Stat::from).map_err(|e| fs_error("stat", path, e))
}

pub(super) fn c_name(name: &[u8], path: &[u8]) -> Result<std::ffi::CString> {
    std::ffi::CString::new(name).map_err(|_| Error::archive(path, "zero byte in name"))
}

/// Twelve and twenty bits, as the kernel has them.
const MAJOR_MAX: u32 = 0xfff;
const MINOR_MAX: u32 = 0xf_ffff;
