//! Who keeps a mount busy.

use std::fmt;
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

/// Processes seen to hold something at or below `path`.
pub fn holders(_path: &Path) -> Vec<Holder> {
    Vec::new()
}
