//! How much a writable layer may hold, by the project quotas of its filesystem.

use std::path::Path;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::snapshotter::{Labels, Usage};
use crate::sys;
use crate::tree::Dir;

/// The label with the bytes that the writable layer of a snapshot may hold.
///
/// It needs an ext4 or XFS mounted with `prjquota`, and Linux 5.14; anywhere
/// else preparing such a snapshot is [`Error::Unsupported`]. Writing more ends
/// in `EDQUOT` or `ENOSPC`, for those who write to this snapshot alone.
pub const QUOTA_LABEL: &str = "containerd.io/snapshot/quota-bytes";

/// A limit asked for in labels, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    kib_max: u64,
}

/// Ids of projects begin here, far from those people give out by hand.
const FIRST_PROJECT: u32 = 1 << 30;

/// More than any filesystem holds, and no kernel multiplies it past its numbers.
const BYTES_MAX: u64 = 1 << 62;

impl Quota {
    /// The limit in `labels`, if there is one.
    pub(crate) fn of(labels: &Labels) -> Result<Option<Self>> {
        let Some(text) = labels.get(QUOTA_LABEL) else { return Ok(None) };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u64>() {
            Ok(bytes) if digits && (1..=BYTES_MAX).contains(&bytes) => {
                Ok(Some(Self { kib_max: bytes.div_ceil(1024) }))
            }
            _ => {
                let reason = format!("{text:?} is not a number of bytes from 1 to {BYTES_MAX}");
                Err(Error::invalid("quota", reason))
            }
        }
    }

    /// Limits what the empty directories `dirs` of the snapshot `id` will hold
    /// together.
    pub(crate) fn apply(self, id: u64, dirs: &[&Path]) -> Result<()> {
        let project = project(id)?;
        for path in dirs {
            sys::set_project(Dir::open(path)?, project).map_err(|e| refused(path, e))?;
        }
        for path in dirs.iter().take(1) {
            sys::limit_project(Dir::open(path)?, project, self.kib_max)
                .map_err(|e| refused(path, e))?;
        }
        Ok(())
    }
}

/// What the snapshot `id` holds, in one call.
pub(crate) fn usage(id: u64, dir: &Path) -> Result<Usage> {
    let used = sys::project_usage(Dir::open(dir)?, project(id)?).map_err(|e| refused(dir, e))?;
    Ok(Usage { size_bytes: used.used_bytes, inodes: used.used_inodes })
}

/// Lets go of the limit of the snapshot `id`, whose directory may be gone.
pub(crate) fn release(id: u64, dir: &Path) {
    let released = project(id).and_then(|project| Ok((Dir::open(dir)?, project))).and_then(
        |(dir, project)| {
            sys::limit_project(&dir, project, 0).map_err(|e| dir.error("release quota of", e))
        },
    );
    if let Err(error) = released {
        tracing::warn!(id, %error, "limit of a removed snapshot stays");
    }
}

fn project(id: u64) -> Result<u32> {
    u32::try_from(id).ok().and_then(|id| FIRST_PROJECT.checked_add(id)).ok_or(
        Error::LimitExceeded { limit: "project ids", max: (u32::MAX - FIRST_PROJECT).into() },
    )
}

/// Why a filesystem takes no quota, in words that help.
fn refused(path: &Path, errno: Errno) -> Error {
    let why = match errno {
        Errno::NOTTY | Errno::OPNOTSUPP => "has no project ids",
        Errno::SRCH => "is not mounted with prjquota",
        Errno::NOSYS | Errno::INVAL => "has no project quotas in this kernel",
        errno => return Error::io("limit", path, errno),
    };
    let reason = format!("quota: the filesystem of {} {why} ({errno})", path.display());
    Error::Unsupported { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Option<Quota>> {
        Quota::of(&[(QUOTA_LABEL.to_owned(), text.to_owned())].into())
    }

    #[test]
    fn limits_are_checked() {
        assert_eq!(Quota::of(&Labels::new()).unwrap(), None);
        assert_eq!(parsed("1").unwrap(), Some(Quota { kib_max: 1 }));
        assert_eq!(parsed("1048577").unwrap(), Some(Quota { kib_max: 1025 }));
        for bad in ["", "0", "-1", "+1", "1k", " 1", "9223372036854775808", "18446744073709551616"]
        {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_of_projects_run_out_with_an_error() {
        assert_eq!(project(7).unwrap(), FIRST_PROJECT + 7);
        assert!(matches!(project(u64::from(u32::MAX)), Err(Error::LimitExceeded { .. })));
    }
}
