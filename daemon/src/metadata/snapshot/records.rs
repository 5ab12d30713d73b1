//! Records of snapshots, and the indexes that go with them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crated_snapshot::{Info, LabelUpdate, Labels};

use super::{NamespacedSnapshotter, inherited, resource_kind};
use crate::metadata::gc::Node;
use crate::metadata::leases::{attach, detach};
use crate::metadata::record::{SnapshotRow, stamp};
use crate::metadata::schema::Table;
use crate::metadata::txn::{View, WriteTx};
use crate::metadata::{Error, Event, Namespace, Object, Result, Scope, key, rows, validate};

impl NamespacedSnapshotter {
    pub(super) fn change_labels(&self, key: &str, update: &LabelUpdate) -> Result<Info> {
        let _name = self.own_names([key]);
        let before = self.load(key)?;
        let after = without_empty(update.apply(&before.labels));
        validate::labels(&after)?;
        let changes = changes(&inherited(&before.labels), &inherited(&after));
        if !changes.is_empty() {
            self.backend()
                .update(&before.backend, &LabelUpdate::Merge(changes))
                .map_err(|error| self.translate(key, error))?;
        }
        let (slot, update) = (self.slot(key), update.clone());
        let row = self.db().write(move |tx| {
            let mut row = slot.load(tx)?.ok_or_else(|| slot.missing())?;
            row.labels = without_empty(update.apply(&row.labels));
            row.updated_at = stamp(SystemTime::now());
            slot.store(tx, &row)?;
            Ok(row)
        })?;
        self.merged(key, row)
    }

    pub(super) fn forget(&self, key: &str) -> Result<()> {
        let _name = self.own_names([key]);
        let (slot, scope) = (self.slot(key), self.scope.clone());
        self.db().write(move |tx| {
            let row = slot.load(tx)?.ok_or_else(|| slot.missing())?;
            if slot.has_children(tx)? {
                return Err(Error::FailedPrecondition {
                    object: Object::Snapshot,
                    id: slot.key,
                    reason: "cannot remove a snapshot with children".to_owned(),
                });
            }
            slot.erase(tx, &row);
            slot.detach(tx, &scope)?;
            tx.effects.dirty = true;
            tx.effects.dirty_snapshotters.push(slot.snapshotter.clone());
            tx.emit(
                &slot.namespace,
                Event::SnapshotRemove { key: slot.key, snapshotter: slot.snapshotter },
            );
            Ok(())
        })
    }

    pub(super) fn slot(&self, key: &str) -> Slot {
        Slot {
            namespace: self.scope.namespace.clone(),
            snapshotter: self.snapshotter().to_owned(),
            key: key.to_owned(),
        }
    }
}

/// The place of one snapshot in the tables.
#[derive(Clone)]
pub(in crate::metadata) struct Slot {
    pub(in crate::metadata) namespace: Namespace,
    pub(in crate::metadata) snapshotter: String,
    pub(in crate::metadata) key: String,
}

impl Slot {
    pub(super) fn missing(&self) -> Error {
        Error::not_found(Object::Snapshot, &self.key)
    }

    /// The place of another snapshot of the same snapshotter.
    pub(super) fn sibling(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    pub(in crate::metadata) fn load(&self, view: &impl View) -> Result<Option<SnapshotRow>> {
        let at = [self.namespace.as_str(), &self.snapshotter, &self.key];
        rows::load(view, Table::Snapshots, &at)
    }

    /// Writes the record and its indexes.
    pub(in crate::metadata) fn store(
        &self,
        tx: &mut WriteTx<'_, '_>,
        row: &SnapshotRow,
    ) -> Result<()> {
        tx.touch(&self.namespace, self.node());
        if let Some(parent) = &row.parent {
            tx.put(Table::Children, self.child_of(parent), Vec::new());
        }
        tx.put(Table::Backends, self.backend(row), Vec::new());
        rows::store(tx, Table::Snapshots, &self.namespace, &[&self.snapshotter, &self.key], row)
    }

    /// Removes the record and its indexes; what is below is left to the collector.
    pub(in crate::metadata) fn erase(&self, tx: &mut WriteTx<'_, '_>, row: &SnapshotRow) {
        if let Some(parent) = &row.parent {
            tx.remove(Table::Children, self.child_of(parent));
        }
        tx.remove(Table::Backends, self.backend(row));
        let at = rows::address(&self.namespace, &[&self.snapshotter, &self.key]);
        tx.remove(Table::Snapshots, at);
    }

    pub(super) fn has_children(&self, view: &impl View) -> Result<bool> {
        let prefix = key::prefix(&[self.namespace.as_str(), &self.snapshotter, &self.key]);
        view.any(Table::Children, &prefix)
    }

    pub(super) fn attach(&self, tx: &mut WriteTx<'_, '_>, scope: &Scope) -> Result<()> {
        attach(tx, scope, &resource_kind(&self.snapshotter), &self.key)
    }

    pub(super) fn detach(&self, tx: &mut WriteTx<'_, '_>, scope: &Scope) -> Result<()> {
        detach(tx, scope, &resource_kind(&self.snapshotter), &self.key)
    }

    fn node(&self) -> Node {
        Node::Snapshot { snapshotter: self.snapshotter.clone(), key: self.key.clone() }
    }

    fn child_of(&self, parent: &str) -> Vec<u8> {
        rows::address(&self.namespace, &[&self.snapshotter, parent, &self.key])
    }

    fn backend(&self, row: &SnapshotRow) -> Vec<u8> {
        key::join(&[&self.snapshotter, &row.backend, self.namespace.as_str(), &self.key])
    }
}

pub(super) fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

/// What turns `before` into `after`.
fn changes(before: &Labels, after: &Labels) -> BTreeMap<String, Option<String>> {
    let removed =
        before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), None));
    let set = after
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), Some(value.clone())));
    removed.chain(set).collect()
}
