//! Namespaces: labels of a name under which everything else is kept.

use std::ops::ControlFlow;

use crated_content::LabelUpdate;

use super::record::{NamespaceRow, Record};
use super::schema::Table;
use super::txn::View;
use super::{Db, Error, Event, Labels, Namespace, Object, Result, key, rows, validate};

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRecord {
    /// Its name.
    pub name: Namespace,
    /// Its labels; none has an empty value.
    pub labels: Labels,
}

/// The namespace records.
#[derive(Clone)]
pub struct Namespaces {
    db: Db,
}

impl Namespaces {
    pub(super) fn new(db: Db) -> Self {
        Self { db }
    }

    /// The labels of `name`, or `None` when the namespace has never been written to.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn labels(&self, name: &Namespace) -> Result<Option<Labels>> {
        let row: Option<NamespaceRow> =
            rows::load(&self.db.read()?, Table::Namespaces, &[name.as_str()])?;
        Ok(row.map(|row| row.labels))
    }

    /// Every namespace, in name order.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn list(&self) -> Result<Vec<NamespaceRecord>> {
        rows::collect(&self.db.read()?, Table::Namespaces, &[], |name, row: NamespaceRow| {
            Ok(Some(NamespaceRecord { name: name.parse()?, labels: row.labels }))
        })
    }

    /// Creates a namespace.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`]; [`Error::InvalidArgument`] for a label that is too long.
    pub fn create(&self, name: &Namespace, labels: &Labels) -> Result<NamespaceRecord> {
        let labels = LabelUpdate::Replace(labels.clone()).apply(&Labels::new());
        validate::labels(&labels)?;
        let record = NamespaceRecord { name: name.clone(), labels };
        self.db.write(move |tx| {
            let at = key::join(&[record.name.as_str()]);
            if tx.has(Table::Namespaces, &at)? {
                return Err(Error::already_exists(Object::Namespace, record.name.as_str()));
            }
            tx.put(Table::Namespaces, at, NamespaceRow { labels: record.labels.clone() }.store());
            tx.emit(
                &record.name,
                Event::NamespaceCreate {
                    name: record.name.to_string(),
                    labels: record.labels.clone(),
                },
            );
            Ok(record)
        })
    }

    /// Changes the labels of a namespace.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] for a label that is too long.
    pub fn update(&self, name: &Namespace, update: &LabelUpdate) -> Result<NamespaceRecord> {
        let (name, update) = (name.clone(), update.clone());
        self.db.write(move |tx| {
            let row: NamespaceRow = rows::load(tx, Table::Namespaces, &[name.as_str()])?
                .ok_or_else(|| Error::not_found(Object::Namespace, name.as_str()))?;
            let labels = update.apply(&row.labels);
            validate::labels(&labels)?;
            let row = NamespaceRow { labels };
            tx.put(Table::Namespaces, key::join(&[name.as_str()]), row.store());
            let labels = row.labels;
            tx.emit(
                &name,
                Event::NamespaceUpdate { name: name.to_string(), labels: labels.clone() },
            );
            Ok(NamespaceRecord { name, labels })
        })
    }

    /// Removes an empty namespace, with its leases.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::FailedPrecondition`] naming what it still holds: images,
    /// blobs, containers, snapshots per snapshotter. Leases, sandboxes and ingests do not count.
    pub fn delete(&self, name: &Namespace) -> Result<()> {
        let name = name.clone();
        self.db.write(move |tx| {
            let at = key::join(&[name.as_str()]);
            if !tx.has(Table::Namespaces, &at)? {
                return Err(Error::not_found(Object::Namespace, name.as_str()));
            }
            let left = contents(tx, &name)?;
            if !left.is_empty() {
                return Err(Error::FailedPrecondition {
                    object: Object::Namespace,
                    id: name.to_string(),
                    reason: format!("must be empty, but it still has {}", left.join(", ")),
                });
            }
            for table in [Table::Leases, Table::Resources, Table::Ingests, Table::Sandboxes] {
                let mut keys = Vec::new();
                tx.scan(table, &key::prefix(&[name.as_str()]), &mut |key, _| {
                    keys.push(key.to_vec());
                    Ok(ControlFlow::Continue(()))
                })?;
                for key in keys {
                    tx.remove(table, key);
                }
            }
            tx.remove(Table::Namespaces, at);
            tx.effects.dirty = true;
            tx.effects.dirty_content = true;
            tx.emit(&name, Event::NamespaceDelete { name: name.to_string() });
            Ok(())
        })
    }
}

/// What keeps a namespace from being removed, in words.
fn contents(view: &impl View, name: &Namespace) -> Result<Vec<String>> {
    let prefix = key::prefix(&[name.as_str()]);
    let mut left = Vec::new();
    for (table, what) in
        [(Table::Images, "images"), (Table::Blobs, "blobs"), (Table::Containers, "containers")]
    {
        if view.any(table, &prefix)? {
            left.push(what.to_owned());
        }
    }
    let mut snapshotters = std::collections::BTreeSet::new();
    view.scan(Table::Snapshots, &prefix, &mut |at, _| {
        if let Some([_, snapshotter, _]) = key::split::<3>(at) {
            snapshotters.insert(snapshotter);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    left.extend(
        snapshotters
            .into_iter()
            .map(|snapshotter| format!("snapshots on {snapshotter} snapshotter")),
    );
    Ok(left)
}
