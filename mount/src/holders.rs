//! Who keeps a mount busy.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::Path;

/// A process that keeps a mount busy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id as seen by this process.
    pub pid: u32,
    /// The kernel's short name of the process.
    pub command: String,
    /// What it holds.
    pub holds: HolderUse,
}

/// What a [`Holder`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HolderUse {
    /// Its working directory.
    WorkingDirectory,
    /// Its root directory.
    Root,
    /// The program it runs.
    Executable,
    /// An open file, by descriptor number.
    Descriptor(u32),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, command, .. } = self;
        write!(f, "{command}[{pid}] (")?;
        match self.holds {
            HolderUse::WorkingDirectory => f.write_str("working directory")?,
            HolderUse::Root => f.write_str("root")?,
            HolderUse::Executable => f.write_str("executable")?,
            HolderUse::Descriptor(number) => write!(f, "fd {number}")?,
        }
        f.write_str(")")
    }
}

/// Processes seen to hold something at or below `path`, an absolute path without
/// symbolic links; at most [`HOLDERS_MAX`], and one use of each.
///
/// A help for people, not a proof: processes come and go, those of other users
/// may be hidden, and memory maps are not looked at. Nothing is asked of the
/// filesystem itself, so a dead one does not hang this.
pub fn holders(path: &Path) -> Vec<Holder> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = processes.flatten().filter_map(|entry| number(&entry.file_name()));
    pids.filter_map(|pid| holder(pid, path)).take(HOLDERS_MAX).collect()
}

fn holder(pid: u32, path: &Path) -> Option<Holder> {
    let dir = Path::new("/proc").join(pid.to_string());
    let inside = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(path));
    let links = [
        ("cwd", HolderUse::WorkingDirectory),
        ("root", HolderUse::Root),
        ("exe", HolderUse::Executable),
    ];
    let link = links.into_iter().find(|(name, _)| inside(&dir.join(name)));
    let holds = match link {
        Some((_, holds)) => holds,
        None => {
            let open = fs::read_dir(dir.join("fd")).ok()?.flatten();
            let mut open = open.take(DESCRIPTORS_MAX).filter(|entry| inside(&entry.path()));
            HolderUse::Descriptor(number(&open.next()?.file_name())?)
        }
    };
    let command = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    Some(Holder { pid, command: command.trim_end().to_owned(), holds })
}

fn number(name: &OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

/// Enough to see who it is; the rest is more of the same.
pub const HOLDERS_MAX: usize = 8;

/// A process may have a million; the answer is wanted soon.
const DESCRIPTORS_MAX: usize = 4096;
