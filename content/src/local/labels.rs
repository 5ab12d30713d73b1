//! Labels, kept beside the blobs: `labels/<algorithm>/<hex>` holds a JSON object of strings and
//! its modification time is when they last changed. No file means no labels.

use std::io::Write;
use std::time::SystemTime;

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};

use crate::error::{Error, Result};
use crate::local::dir::is_absent;
use crate::local::layout::Layout;
use crate::{Digest, Labels, check};

/// The labels of `digest` and when they last changed.
pub(crate) fn read(layout: &Layout, digest: &Digest) -> Result<(Labels, Option<SystemTime>)> {
    let dir = layout.labels(digest.algorithm());
    let failed = || dir.fail("read labels", digest.hex());
    let Some(bytes) = dir.read_small(digest.hex(), FILE_SIZE_BYTES_MAX).map_err(failed())? else {
        return Ok((Labels::new(), None));
    };
    let labels = serde_json::from_slice(&bytes).map_err(|error| Error::Corrupt {
        digest: digest.clone(),
        reason: format!("its labels: {error}"),
    })?;
    let changed_at = match dir.stat(digest.hex()) {
        Ok(stat) => Some(super::modified(&stat)),
        Err(error) if is_absent(&error) => None,
        Err(error) => return Err(failed()(error)),
    };
    Ok((labels, changed_at))
}

/// Replaces the labels of `digest`, durably. The caller holds the digest.
pub(crate) fn write(layout: &Layout, digest: &Digest, labels: &Labels) -> Result<()> {
    check::labels(labels)?;
    let dir = layout.labels(digest.algorithm());
    let failed = || dir.fail("write labels", digest.hex());
    let bytes = serde_json::to_vec(labels).expect("a map of strings has a JSON form");
    if bytes.len() as u64 > FILE_SIZE_BYTES_MAX {
        let reason = format!("{} bytes in all, more than {FILE_SIZE_BYTES_MAX}", bytes.len());
        return Err(Error::InvalidArgument { what: "labels", reason });
    }
    let (name, mut file) = layout.create_temporary(0o644)?;
    let stored = file
        .write_all(&bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| layout.temporary.rename(&name, dir, digest.hex()));
    if let Err(error) = stored {
        // Cleared at the next start if this fails too.
        let _ = layout.temporary.remove_file(&name);
        return Err(failed()(error));
    }
    layout.sync_dir(dir)
}

/// Removes the labels of `digest`, if any. The caller holds the digest.
pub(crate) fn remove(layout: &Layout, digest: &Digest) -> Result<()> {
    let dir = layout.labels(digest.algorithm());
    match dir.remove_file(digest.hex()) {
        Err(error) if !is_absent(&error) => Err(dir.fail("remove labels", digest.hex())(error)),
        _ => Ok(()),
    }
}

/// Modification time now, everything else as it is.
pub(crate) fn touch() -> Timestamps {
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Timestamps { last_access: omit, last_modification: now }
}

/// Far more than any client attaches; bounds what a damaged file can make us read.
const FILE_SIZE_BYTES_MAX: u64 = 16 * 1024 * 1024;
