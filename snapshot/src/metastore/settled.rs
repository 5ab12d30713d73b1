//! Which committed snapshots are known to be on the disk.
//!
//! With [`SyncMode::Batched`](super::SyncMode::Batched) a commit is recorded
//! durably before the files it is about have reached the disk. Until a flush
//! of the filesystem has settled it, its id stands in `unsettled`. The files
//! themselves are in the kernel's memory, so they are safe for as long as this
//! boot of the machine has this filesystem mounted. The database therefore
//! remembers where it was open; when it is opened elsewhere, what is unsettled
//! may be damaged, and goes, together with all that was built on it. The names
//! stay in `lost` until they are made again or forgotten, for those who keep
//! records of their own.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;

use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{CHILDREN, COUNTERS, MetaStore, SNAPSHOTS, parse, storage, table};
use crate::error::{Error, Result};

const UNSETTLED: TableDefinition<'static, u64, &str> = TableDefinition::new("unsettled");
const LOST: TableDefinition<'static, &str, ()> = TableDefinition::new("lost");

/// A boot of the machine, and a filesystem mounted during it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    boot_high: u64,
    boot_low: u64,
    device: u64,
}

/// Random, and new with each boot: random(4).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Place {
    /// Where the file at `path` is now.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(BOOT_ID).map_err(|e| Error::io("read", BOOT_ID, e))?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let boot = u128::from_str_radix(&digits, 16).map_err(|_| {
            let reason = format!("{BOOT_ID} holds {text:?}, which is no id of a boot");
            Error::Unsupported { reason }
        })?;
        let metadata = path.metadata().map_err(|e| Error::io("stat", path, e))?;
        Ok(Self { boot_high: (boot >> 64) as u64, boot_low: boot as u64, device: metadata.dev() })
    }

    fn fields(self) -> [(&'static str, u64); 3] {
        [("boot_high", self.boot_high), ("boot_low", self.boot_low), ("device", self.device)]
    }
}

/// Notes where the database is open now. If it was elsewhere before, drops
/// what was unsettled there.
pub(super) fn arrive(tx: &WriteTransaction, place: Place) -> Result<()> {
    tx.open_table(UNSETTLED).map_err(table)?;
    tx.open_table(LOST).map_err(table)?;
    let mut moved = false;
    let mut counters = tx.open_table(COUNTERS).map_err(table)?;
    for (field, value) in place.fields() {
        let before = counters.insert(field, value).map_err(storage)?.map(|v| v.value());
        moved |= before != Some(value);
    }
    drop(counters);
    if moved { drop_unsettled(tx) } else { Ok(()) }
}

fn drop_unsettled(tx: &WriteTransaction) -> Result<()> {
    let mut unsettled = tx.open_table(UNSETTLED).map_err(table)?;
    let mut queue = Vec::new();
    for entry in unsettled.iter().map_err(storage)? {
        queue.push(entry.map_err(storage)?.1.value().to_owned());
    }
    unsettled.retain(|_, _| false).map_err(storage)?;
    let mut snapshots = tx.open_table(SNAPSHOTS).map_err(table)?;
    let mut children = tx.open_table(CHILDREN).map_err(table)?;
    let mut lost = tx.open_table(LOST).map_err(table)?;
    let mut seen = BTreeSet::new();
    while let Some(key) = queue.pop() {
        if !seen.insert(key.clone()) {
            continue;
        }
        for pair in children.range((key.as_str(), "")..).map_err(storage)? {
            let (pair, _) = pair.map_err(storage)?;
            let (parent, child) = pair.value();
            if parent != key {
                break;
            }
            queue.push(child.to_owned());
        }
        let Some(record) = snapshots.remove(key.as_str()).map_err(storage)? else { continue };
        let record = parse(record.value())?;
        if let Some(parent) = &record.parent {
            children.remove((parent.as_str(), key.as_str())).map_err(storage)?;
        }
        lost.insert(key.as_str(), ()).map_err(storage)?;
        tracing::warn!(key, "snapshot may be damaged by a power cut and is dropped");
    }
    Ok(())
}

/// A snapshot is recorded: it is not lost any more.
pub(super) fn made(tx: &WriteTransaction, key: &str) -> Result<()> {
    tx.open_table(LOST).map_err(table)?.remove(key).map_err(storage)?;
    Ok(())
}

/// A snapshot is committed whose files may still be in memory alone.
pub(super) fn committed(tx: &WriteTransaction, id: u64, name: &str) -> Result<()> {
    tx.open_table(UNSETTLED).map_err(table)?.insert(id, name).map_err(storage)?;
    Ok(())
}

/// A snapshot is gone.
pub(super) fn removed(tx: &WriteTransaction, id: u64) -> Result<()> {
    tx.open_table(UNSETTLED).map_err(table)?.remove(id).map_err(storage)?;
    Ok(())
}

impl MetaStore {
    /// Settles everything committed so far: `flush` has to write the files of
    /// all snapshots to the disk. It is not called when nothing is unsettled,
    /// and those who come while it runs wait and share its result if they can.
    ///
    /// # Errors
    ///
    /// Those of `flush`, after which nothing is settled; [`Error::Metadata`].
    pub fn settle(&self, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let _one_at_a_time = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = self.unsettled()?;
        if ids.is_empty() {
            return Ok(());
        }
        flush()?;
        self.write_with(Durability::Immediate, |tx| {
            let mut unsettled = tx.open_table(UNSETTLED).map_err(table)?;
            for id in ids {
                unsettled.remove(id).map_err(storage)?;
            }
            Ok(())
        })
    }

    fn unsettled(&self) -> Result<Vec<u64>> {
        let tx = self.database.begin_read().map_err(|e| Error::metadata("read", e))?;
        let unsettled = tx.open_table(UNSETTLED).map_err(table)?;
        let ids = unsettled.iter().map_err(storage)?;
        ids.map(|entry| entry.map(|(id, _)| id.value()).map_err(storage)).collect()
    }

    /// Keys and names of snapshots that a power cut took, neither made again
    /// nor [forgotten](Self::forget_lost) since.
    ///
    /// # Errors
    ///
    /// [`Error::Metadata`].
    pub fn lost(&self) -> Result<Vec<String>> {
        let tx = self.database.begin_read().map_err(|e| Error::metadata("read", e))?;
        let lost = tx.open_table(LOST).map_err(table)?;
        let keys = lost.iter().map_err(storage)?;
        keys.map(|entry| entry.map(|(key, _)| key.value().to_owned()).map_err(storage)).collect()
    }

    /// Takes `keys` off the list of what was [lost](Self::lost).
    ///
    /// # Errors
    ///
    /// [`Error::Metadata`].
    pub fn forget_lost(&self, keys: &[String]) -> Result<()> {
        self.write_with(Durability::Immediate, |tx| keys.iter().try_for_each(|key| made(tx, key)))
    }
}
