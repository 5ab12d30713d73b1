//! What an earlier daemon lost: what a power cut took below goes from the records too, and so does
//! what the daemon was unpacking when it was killed.

use std::ops::ControlFlow;

use super::{LABEL_UNPACKING, Slot, Snapshots};
use crate::metadata::record::{Record, SnapshotRow};
use crate::metadata::schema::Table;
use crate::metadata::txn::View;
use crate::metadata::{Namespace, Result, key};

impl Snapshots {
    /// Erases the records of snapshots that the snapshotter below no longer trusts after a power
    /// cut, so that their layers are unpacked again. For the start, before anybody calls.
    ///
    /// Only what the snapshotter itself names goes: one that is empty for other reasons, such as a
    /// volume that is not mounted, costs no record.
    ///
    /// # Errors
    ///
    /// Those of the records and of the snapshotter; the rest follows at the next start.
    pub fn drop_lost(&self) -> Result<usize> {
        let lost = self.backend().lost()?;
        if lost.is_empty() {
            return Ok(0);
        }
        let mut slots = Vec::new();
        let view = self.inner.db.read()?;
        for backend in &lost {
            let prefix = key::prefix(&[self.name(), backend]);
            view.scan(Table::Backends, &prefix, &mut |at, _| {
                if let Some([_, _, namespace, key]) = key::split::<4>(at) {
                    let namespace = Namespace::try_from(namespace.as_str())?;
                    slots.push(Slot { namespace, snapshotter: self.name().to_owned(), key });
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        drop(view);
        let count = slots.len();
        self.inner.db.write(move |tx| {
            for slot in &slots {
                if let Some(row) = slot.load(tx)? {
                    slot.erase(tx, &row);
                }
            }
            Ok(())
        })?;
        tracing::warn!(snapshotter = self.name(), count, "snapshots lost in a power cut");
        self.backend().forget_lost(&lost)?;
        Ok(count)
    }

    /// Erases the records of snapshots that this daemon was unpacking layers into when it was
    /// killed; the next collection takes what is below. For the start, before anybody calls:
    /// nobody can be working on them then. Those of clients, which may be, have no such label.
    ///
    /// # Errors
    ///
    /// Those of the records; nothing is erased then.
    pub fn drop_unfinished(&self) -> Result<usize> {
        let mut slots = Vec::new();
        for namespace in self.inner.db.namespaces().list()? {
            let mut prefix = key::prefix(&[namespace.name.as_str(), self.name()]);
            let front = prefix.len();
            prefix.extend_from_slice(UNPACKING_PREFIX.as_bytes());
            let view = self.inner.db.read()?;
            view.scan(Table::Snapshots, &prefix, &mut |at, value| {
                let row = SnapshotRow::load(value)?;
                if !row.committed && row.labels.contains_key(LABEL_UNPACKING) {
                    let namespace = namespace.name.clone();
                    let key = String::from_utf8_lossy(&at[front..]).into_owned();
                    slots.push(Slot { namespace, snapshotter: self.name().to_owned(), key });
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        if slots.is_empty() {
            return Ok(0);
        }
        let count = slots.len();
        self.inner.db.write(move |tx| {
            for slot in &slots {
                if let Some(row) = slot.load(tx)? {
                    slot.erase(tx, &row);
                    tx.effects.dirty = true;
                    tx.effects.dirty_snapshotters.push(slot.snapshotter.clone());
                }
            }
            Ok(())
        })?;
        tracing::info!(snapshotter = self.name(), count, "layers that were not finished are gone");
        Ok(count)
    }
}

/// What the keys of all extractions start with, whoever makes them.
const UNPACKING_PREFIX: &str = "extract-";
