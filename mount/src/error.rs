//! Why a mount operation failed, named for what the caller can do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::Holder;

/// The result of every fallible function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a mount operation failed, named for what the caller can do about it.
///
/// The message already ends with the operating system's reason, so printing the
/// error alone loses nothing; [`Error::io_error`] gives the reason as a value.
#[allow(missing_docs, reason = "each variant's doc covers its fields")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option, a target or a kind that can never work; nothing was attached.
    #[error("invalid {what} {value:?}: {reason}")]
    InvalidArgument { what: &'static str, value: String, reason: String },
    /// A source, a layer or a target does not exist.
    #[error("{0}")]
    NotFound(Box<Attempt>),
    /// The caller may not do this: no `CAP_SYS_ADMIN`, a locked mount, or a
    /// system call filter.
    #[error("{0}")]
    PermissionDenied(Box<Attempt>),
    /// This kernel, or this filesystem, cannot do what was asked.
    #[error("{0}")]
    Unsupported(Box<Attempt>),
    /// The kernel refused for another reason; the attempt holds its own words.
    #[error("{0}")]
    Refused(Box<Attempt>),
    /// The option string does not fit the page that mount(2) has for it.
    #[error("options of {kind} for {target:?} need {size_bytes} bytes, mount(2) takes {max_bytes}")]
    OptionsTooLong { kind: String, target: PathBuf, size_bytes: usize, max_bytes: usize },
    /// Nothing is mounted there; a cleanup may count this as success.
    #[error("detach {path:?}: not a mount point")]
    NotMounted { path: PathBuf },
    /// Still in use after every retry. Detach lazily, or stop the holders.
    #[error("detach {path:?}: still in use{}", DisplayHolders(.holders))]
    Busy { path: PathBuf, holders: Vec<Holder> },
    /// Several steps of a cleanup failed; the rest of it was done.
    #[error("clean up {path:?}: {}", DisplayAll(.failures))]
    Incomplete { path: PathBuf, failures: Vec<Error> },
    /// A line of `/proc/self/mountinfo` is not what proc(5) describes.
    #[error("mountinfo line {line}: {reason}")]
    MountInfo { line: usize, reason: &'static str },
    /// The operating system refused `op` on `path`.
    #[error("{op} {path:?}: {cause}")]
    Io { op: &'static str, path: PathBuf, cause: io::Error },
}

/// One refused step of attaching one mount.
#[derive(Debug)]
pub struct Attempt {
    /// Filesystem type, or `bind`.
    pub kind: String,
    /// Source as the caller named it.
    pub source: String,
    /// Where it should have appeared.
    pub target: PathBuf,
    /// What was being done, for example `set option`.
    pub step: &'static str,
    /// The option concerned, when one is to blame.
    pub option: Option<String>,
    /// What the kernel, or the library below, wrote about it; often empty.
    pub log: Vec<String>,
    /// The system call's answer.
    pub cause: io::Error,
}

impl Error {
    /// The operating system's answer, when there was one.
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::NotFound(a)
            | Self::PermissionDenied(a)
            | Self::Unsupported(a)
            | Self::Refused(a) => Some(&a.cause),
            Self::Io { cause, .. } => Some(cause),
            _ => None,
        }
    }

    /// The refused step, when the failure was one of attaching.
    pub fn attempt(&self) -> Option<&Attempt> {
        match self {
            Self::NotFound(a)
            | Self::PermissionDenied(a)
            | Self::Unsupported(a)
            | Self::Refused(a) => Some(a),
            _ => None,
        }
    }

    pub(crate) fn invalid(
        what: &'static str,
        value: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self::InvalidArgument { what, value: value.into(), reason: reason.into() }
    }

    pub(crate) fn io(op: &'static str, path: &Path, cause: impl Into<io::Error>) -> Self {
        Self::Io { op, path: path.to_owned(), cause: cause.into() }
    }
}

impl From<Attempt> for Error {
    fn from(attempt: Attempt) -> Self {
        let kind = attempt.cause.kind();
        let attempt = Box::new(attempt);
        match kind {
            io::ErrorKind::NotFound => Self::NotFound(attempt),
            io::ErrorKind::PermissionDenied => Self::PermissionDenied(attempt),
            io::ErrorKind::Unsupported => Self::Unsupported(attempt),
            _ => Self::Refused(attempt),
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, source, target, step, .. } = self;
        write!(f, "attach {kind} {source:?} at {target:?}: {step}")?;
        if let Some(option) = &self.option {
            write!(f, " {option:?}")?;
        }
        for line in &self.log {
            write!(f, ": {line}")?;
        }
        write!(f, ": {}", self.cause)
    }
}

struct DisplayHolders<'a>(&'a [Holder]);

impl fmt::Display for DisplayHolders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, holder) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { " by " } else { ", " })?;
            write!(f, "{holder}")?;
        }
        Ok(())
    }
}

struct DisplayAll<'a>(&'a [Error]);

impl fmt::Display for DisplayAll<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, failure) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{failure}")?;
        }
        Ok(())
    }
}
