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
use crate::metadata::{
    Event, Labels, LinkRecord, Namespace, NetnsRecord, Result, leases, network, rows,
};

type Object = (Namespace, Node);

/// A sweep under way, one transaction after the other. Writers run in between.
pub(super) struct Sweep {
    marked: Marked,
    /// How much of the log of touched objects has been taken in.
    seen: usize,
    changed: HashSet<Object>,
    protected: HashSet<Object>,
}

impl Sweep {
    pub(super) fn new(marked: Marked) -> Self {
        Self { marked, seen: 0, changed: HashSet::new(), protected: HashSet::new() }
    }

    /// What was touched since the last call.
    pub(super) fn news(&mut self, log: &[Object]) -> Vec<Object> {
        let news = log.get(self.seen..).unwrap_or_default().to_vec();
        self.seen = log.len();
        news
    }

    /// Removes `garbage`, except what objects lead to that were `touched` meanwhile.
    pub(super) fn remove(
        &mut self,
        tx: &mut WriteTx<'_, '_>,
        garbage: Vec<Object>,
        touched: Vec<Object>,
    ) -> Result<Vec<Object>> {
        self.protect(tx, touched)?;
        let mut removed = Vec::with_capacity(garbage.len());
        for object in garbage {
            if !self.protected.contains(&object) && remove(tx, &object.0, &object.1)? {
                removed.push(object);
            }
        }
        tx.effects.silent = true;
        Ok(removed)
    }

    /// Protects everything that can be reached from `touched` in the present state of the
    /// database.
    ///
    /// An object that was held in full when marking, and was not touched since, refers to what it
    /// referred to then: all of that is marked, and nothing new can be found behind it.
    fn protect(&mut self, view: &impl View, touched: Vec<Object>) -> Result<()> {
        for object in &touched {
            // Touched again, it may refer to something else by now.
            self.protected.remove(object);
        }
        self.changed.extend(touched.iter().cloned());
        let mut open = touched;
        while let Some(object) = open.pop() {
            if self.protected.contains(&object) {
                continue;
            }
            let (namespace, node) = &object;
            if self.changed.contains(&object) || self.marked.level(namespace, node) != Level::Full {
                let visit = &mut |node| open.push((namespace.clone(), node));
                references(view, namespace, node, visit)?;
            }
            for dependant in self.marked.dependants(namespace, node) {
                open.push((namespace.clone(), dependant.clone()));
            }
            self.protected.insert(object);
        }
        Ok(())
    }
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
                if let Some(netns) = row.netns {
                    visit(Node::Netns(netns));
                }
            }
        }
        Node::Netns(id) => {
            if let Some(row) = rows::load::<NetnsRecord>(view, Table::Netns, &[within, id])? {
                named(&row.labels);
            }
            for link in network::links_of(view, namespace, id)? {
                visit(Node::Link { netns: link.netns, id: link.id });
            }
        }
        Node::Link { netns, id } => {
            if let Some(row) = rows::load::<LinkRecord>(view, Table::Links, &[within, netns, id])? {
                named(&row.labels);
                for host in network::links_of(view, namespace, network::HOST)? {
                    if row.uses.contains(&host.name) {
                        visit(Node::Link { netns: host.netns, id: host.id });
                    }
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
        Node::Netns(id) => {
            let row = rows::load::<NetnsRecord>(tx, Table::Netns, &[namespace.as_str(), id])?;
            let Some(row) = row.filter(|row| !row.deleting) else { return Ok(false) };
            // The kernel's part is deleted afterwards, and the record with it.
            tx.effects.dirty_network = true;
            let row = NetnsRecord { deleting: true, ..row };
            rows::store(tx, Table::Netns, namespace, &[id.as_str()], &row)?;
            return Ok(true);
        }
        Node::Link { netns, id } => {
            let at = [namespace.as_str(), netns.as_str(), id.as_str()];
            let row = rows::load::<LinkRecord>(tx, Table::Links, &at)?;
            let Some(row) = row.filter(|row| !row.deleting) else { return Ok(false) };
            tx.effects.dirty_network = true;
            let row = LinkRecord { deleting: true, ..row };
            rows::store(tx, Table::Links, namespace, &[netns.as_str(), id.as_str()], &row)?;
            return Ok(true);
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
