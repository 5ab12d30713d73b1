//! What a power cut took below goes from the records too.

use std::ops::ControlFlow;

use super::{Slot, Snapshots};
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
}
