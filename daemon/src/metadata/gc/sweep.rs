//! Removing the records of what nothing holds.

use std::collections::HashSet;

use super::Node;
use super::graph::Level;
use super::labels::{Meaning, meanings};
use super::mark::Marked;
use crate::metadata::record::{
    BlobRow, ContainerRefs, ImageRow, IngestRow, SandboxRow, SnapshotRow,
};
use crate::metadata::schema::Table;
use crate::metadata::snapshot::Slot;
use crate::metadata::txn::{View, WriteTx};
use crate::metadata::{Event, Labels, Namespace, Result, leases, rows};

type Object = (Namespace, Node);

/// Removes what was found to be garbage, except what `touched` objects lead to now.
pub(super) fn sweep(
    tx: &mut WriteTx<'_, '_>,
    marked: &Marked,
    garbage: Vec<Object>,
    touched: Vec<Object>,
) -> Result<Vec<Object>> {
    let protected = protect(tx, marked, touched)?;
    let mut removed = Vec::with_capacity(garbage.len());
    for object in garbage {
        if !protected.contains(&object) && remove(tx, &object.0, &object.1)? {
            removed.push(object);
        }
    }
    tx.effects.silent = true;
    Ok(removed)
}

/// Everything that can be reached from `touched` in the present state of the database.
///
/// An object that was held in full when marking, and was not touched since, refers to what it
/// referred to then: all of that is marked, and nothing new can be found behind it.
fn protect(view: &impl View, marked: &Marked, touched: Vec<Object>) -> Result<HashSet<Object>> {
    let changed: HashSet<Object> = touched.iter().cloned().collect();
    let mut protected = HashSet::with_capacity(changed.len() * 2);
    let mut open = touched;
    while let Some(object) = open.pop() {
        if protected.contains(&object) {
            continue;
        }
        let (namespace, node) = &object;
        if changed.contains(&object) || marked.level(namespace, node) != Level::Full {
            references(view, namespace, node, &mut |node| open.push((namespace.clone(), node)))?;
        }
        for dependant in marked.dependants(namespace, node) {
            open.push((namespace.clone(), dependant.clone()));
        }
        protected.insert(object);
    }
    Ok(protected)
}

/// Calls `visit` with everything an object refers to.
fn references(
    view: &impl View,
    namespace: &Namespace,
    node: &Node,
    visit: &mut dyn FnMut(Node),
) -> Result<()> {
    let mut named = |labels: &Labels| {
        meanings(labels, |meaning| {
            if let Meaning::Forward(node) = meaning {
                visit(node);
            }
        });
    };
    let within = namespace.as_str();
    match node {
        Node::Content(digest) => {
            if let Some(row) =
                rows::load::<BlobRow>(view, Table::Blobs, &[within, digest.as_str()])?
            {
                named(&row.labels);
            }
        }
        Node::Image(name) => {
            if let Some(row) = rows::load::<ImageRow>(view, Table::Images, &[within, name])? {
                named(&row.labels);
                visit(Node::Content(row.digest.parse()?));
            }
        }
        Node::Snapshot { snapshotter, key } => {
            let at = [within, snapshotter, key];
            if let Some(row) = rows::load::<SnapshotRow>(view, Table::Snapshots, &at)? {
                named(&row.labels);
                if let Some(parent) = row.parent {
                    visit(Node::Snapshot { snapshotter: snapshotter.clone(), key: parent });
                }
            }
        }
        Node::Container(id) => {
            let at = [within, id.as_str()];
            if let Some(row) = rows::load::<ContainerRefs>(view, Table::Containers, &at)? {
                named(&row.labels);
                if let (Some(snapshotter), Some(key)) = (row.snapshotter, row.snapshot_key) {
                    visit(Node::Snapshot { snapshotter, key });
                }
            }
        }
        Node::Sandbox(id) => {
            if let Some(row) = rows::load::<SandboxRow>(view, Table::Sandboxes, &[within, id])? {
                named(&row.labels);
            }
        }
        Node::Ingest(reference) => {
            let at = [within, reference.as_str()];
            if let Some(digest) =
                rows::load::<IngestRow>(view, Table::Ingests, &at)?.and_then(|row| row.expected)
            {
                visit(Node::Content(digest.parse()?));
            }
        }
        Node::Lease(id) => {
            for resource in leases::resources(view, namespace, id)? {
                if let Ok(node) = resource.node() {
                    visit(node);
                }
            }
        }
    }
    Ok(())
}

/// Removes the record of an object; `false` when somebody else did.
fn remove(tx: &mut WriteTx<'_, '_>, namespace: &Namespace, node: &Node) -> Result<bool> {
    let (table, at) = match node {
        Node::Content(digest) => {
            tx.effects.dirty_content = true;
            (Table::Blobs, rows::address(namespace, &[digest.as_str()]))
        }
        Node::Ingest(reference) => {
            tx.effects.dirty_content = true;
            (Table::Ingests, rows::address(namespace, &[reference]))
        }
        Node::Image(name) => (Table::Images, rows::address(namespace, &[name])),
        Node::Lease(id) => {
            if !tx.has(Table::Leases, &rows::address(namespace, &[id]))? {
                return Ok(false);
            }
            leases::remove(tx, namespace, id)?;
            return Ok(true);
        }
        Node::Snapshot { snapshotter, key } => {
            return remove_snapshot(tx, namespace, snapshotter, key);
        }
        // Always roots.
        Node::Container(_) | Node::Sandbox(_) => return Ok(false),
    };
    if !tx.has(table, &at)? {
        return Ok(false);
    }
    tx.remove(table, at);
    if let Node::Image(name) = node {
        tx.emit(namespace, Event::ImageDelete { name: name.clone() });
    }
    Ok(true)
}

fn remove_snapshot(
    tx: &mut WriteTx<'_, '_>,
    namespace: &Namespace,
    snapshotter: &str,
    key: &str,
) -> Result<bool> {
    let (snapshotter, key) = (snapshotter.to_owned(), key.to_owned());
    let slot = Slot { namespace: namespace.clone(), snapshotter, key };
    let Some(row) = slot.load(tx)? else { return Ok(false) };
    slot.erase(tx, &row);
    let Slot { snapshotter, key, .. } = slot;
    tx.effects.dirty_snapshotters.push(snapshotter.clone());
    tx.emit(namespace, Event::SnapshotRemove { key, snapshotter });
    Ok(true)
}
