//! The directory of an ingest: what is in it, and how much of that can be believed.

use std::io;
use std::time::SystemTime;

use rustix::fs::OFlags;

use crate::error::Result;
use crate::local::checkpoint::{self, Checkpoint, Epoch, Slots};
use crate::local::dir::{Dir, is_absent, is_regular};
use crate::local::{modified, timestamp};
use crate::store::REFERENCE_LEN_MAX;
use crate::{Digest, Status};

/// An ingest directory, read.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) reference: String,
    pub(crate) total: Option<u64>,
    pub(crate) expected: Option<Digest>,
    pub(crate) started_at: SystemTime,
    pub(crate) updated_at: SystemTime,
    /// How many bytes of `data` are the caller's, in order and without holes.
    pub(crate) offset: u64,
    /// A hash state at or before `offset`.
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) slots: Vec<Checkpoint>,
}

impl Record {
    /// Reads the directory; `None` when it is not a whole ingest.
    pub(crate) fn read(dir: &Dir, epoch: Epoch) -> io::Result<Option<Self>> {
        let data = match dir.stat("data") {
            Ok(stat) if is_regular(&stat) => stat,
            Ok(_) => return Ok(None),
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(reference) = dir.read_small("ref", REFERENCE_LEN_MAX as u64)? else {
            return Ok(None);
        };
        let Ok(reference) = String::from_utf8(reference) else { return Ok(None) };
        let slots = dir.read_small("checkpoint", checkpoint::FILE_SIZE_BYTES_MAX)?;
        let slots = slots.map(|bytes| checkpoint::decode(&bytes));
        let size_bytes = u64::try_from(data.st_size).unwrap_or(0);
        let (offset, checkpoint) = trusted(slots.as_deref(), size_bytes, epoch);
        let text = |name| -> io::Result<Option<String>> {
            let bytes = dir.read_small(name, TEXT_SIZE_BYTES_MAX)?;
            Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
        };
        let time = |name| -> io::Result<Option<SystemTime>> {
            Ok(text(name)?.as_deref().and_then(timestamp::parse))
        };
        let changed_at = modified(&data);
        Ok(Some(Self {
            reference,
            total: text("total")?.and_then(|text| text.trim().parse().ok()),
            expected: text("expected")?.and_then(|text| text.trim().parse().ok()),
            started_at: time("startedat")?.unwrap_or(changed_at),
            updated_at: time("updatedat")?.map_or(changed_at, |at| at.max(changed_at)),
            offset,
            checkpoint,
            slots: slots.unwrap_or_default(),
        }))
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            reference: self.reference.clone(),
            offset: self.offset,
            total: self.total,
            expected: self.expected.clone(),
            started_at: self.started_at,
            updated_at: self.updated_at,
        }
    }
}

/// How much of the data counts, and the hash state to continue from.
///
/// - No checkpoint file: another program wrote the ingest and its length is all there is.
/// - A slot of this epoch: the kernel kept every write that completed. The length is right if
///   writes extended the file one by one; otherwise what is behind the slot may have holes.
/// - A synced slot of an earlier epoch: what it covers was on the disk before it was written. What
///   is behind may be stale, zero or missing.
/// - Slots, but none that holds: nothing can be said, so the ingest starts over. Hashing what is
///   there instead would let a commit without an expected digest publish what nobody wrote.
fn trusted(
    slots: Option<&[Checkpoint]>,
    size_bytes: u64,
    epoch: Epoch,
) -> (u64, Option<Checkpoint>) {
    let Some(slots) = slots else { return (size_bytes, None) };
    match checkpoint::newest(slots, epoch) {
        Some(slot) if slot.offset > size_bytes => (0, None),
        Some(slot) if slot.epoch == epoch && slot.length_is_progress => {
            (size_bytes, Some(slot.clone()))
        }
        Some(slot) => (slot.offset, Some(slot.clone())),
        None => (0, None),
    }
}

/// The directory name of a reference: references hold any character and are long.
pub(crate) fn key(reference: &str) -> String {
    Digest::of(reference.as_bytes()).hex().to_owned()
}

/// Writes everything but the data. Returns the open checkpoint file.
pub(crate) fn create(dir: &Dir, status: &Status) -> Result<Slots> {
    // Before there is any data: without it the length of the data would be believed.
    let slots = open_slots(dir, &[])?;
    write_text(dir, "ref", &status.reference)?;
    write_text(dir, "startedat", &timestamp::format(status.started_at))?;
    write_text(dir, "updatedat", &timestamp::format(status.updated_at))?;
    write_announced(dir, status, None, None)?;
    Ok(slots)
}

/// Notes what a later writer announced anew; on a full disk nothing new must be needed. Returns
/// the open checkpoint file.
pub(crate) fn reopen(dir: &Dir, status: &Status, record: &Record) -> Result<Slots> {
    write_announced(dir, status, record.total, record.expected.as_ref())?;
    open_slots(dir, &record.slots)
}

fn write_announced(
    dir: &Dir,
    status: &Status,
    total: Option<u64>,
    expected: Option<&Digest>,
) -> Result<()> {
    if let Some(announced) = status.total.filter(|_| status.total != total) {
        write_text(dir, "total", &announced.to_string())?;
    }
    match &status.expected {
        Some(announced) if status.expected.as_ref() != expected => {
            write_text(dir, "expected", announced.as_str())
        }
        _ => Ok(()),
    }
}

fn write_text(dir: &Dir, name: &'static str, text: &str) -> Result<()> {
    dir.write_small(name, text.as_bytes()).map(drop).map_err(dir.fail("write", name))
}

fn open_slots(dir: &Dir, known: &[Checkpoint]) -> Result<Slots> {
    let flags = OFlags::RDWR | OFlags::CREATE;
    let file = dir.open_file("checkpoint", flags, 0o644);
    Ok(Slots::new(file.map_err(dir.fail("open", "checkpoint"))?, known))
}

/// Makes the directory itself survive a power cut, so that a synced checkpoint is found again.
pub(crate) fn sync(parent: &Dir, dir: &Dir) -> io::Result<()> {
    for name in ["ref", "startedat", "total", "expected"] {
        match dir.read_file(name) {
            Ok(file) => file.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    dir.sync()?;
    parent.sync()
}

/// Times, sizes and digests are shorter.
const TEXT_SIZE_BYTES_MAX: u64 = 256;
