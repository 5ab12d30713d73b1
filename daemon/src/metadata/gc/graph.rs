//! The objects of one namespace and what refers to what.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::Node;
use super::labels::{Condition, Meaning, expires, is_flat, meanings, used_at};
use crate::metadata::leases::Resource;
use crate::metadata::network::{HOST, LinkRecord, NetnsRecord};
use crate::metadata::record::{
    BlobRow, ContainerRefs, ImageRow, IngestRow, LeaseRow, SandboxRow, SnapshotRow, time,
};
use crate::metadata::schema::Table;
use crate::metadata::txn::ReadTx;
use crate::metadata::{Labels, Namespace, Result, leases, rows};

/// How an object is held: not, as it stands, or with all it refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    #[default]
    None,
    Flat,
    Full,
}

/// What holding the one end means for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    /// Followed from what is held in full.
    Full,
    /// Followed always; the other end is held as this one is.
    Chain,
    /// Followed always; the other end is held as it stands.
    Flat,
}

/// See the module. Objects are numbered; one that is only referred to is not present.
#[derive(Default)]
pub(super) struct Graph {
    pub(super) ids: HashMap<Node, u32>,
    pub(super) present: Vec<bool>,
    pub(super) edges: Vec<(u32, u32, Edge)>,
    pub(super) roots: Vec<u32>,
    /// Objects that are roots only because they are fresh.
    pub(super) fresh: Vec<u32>,
    /// Pairs of an object and one that lives while it does, for whatever reason.
    pub(super) back: Vec<(u32, u32)>,
    conditions: Vec<(u32, u32, Vec<Condition>)>,
    used_at: HashMap<u32, SystemTime>,
}

/// The time of a collection, and how long it spares what is fresh.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) now: SystemTime,
    pub(super) spare: Option<Duration>,
}

impl Moment {
    /// Whether something created then is still fresh. What was created later than now, because
    /// the clock was set back, is.
    fn spares(&self, created_at: SystemTime) -> bool {
        let age = self.now.duration_since(created_at).unwrap_or_default();
        self.spare.is_some_and(|spare| age < spare)
    }
}

impl Graph {
    /// Reads a namespace.
    pub(super) fn load(view: &ReadTx, namespace: &Namespace, moment: Moment) -> Result<Self> {
        let mut graph = Self::default();
        let within = [namespace.as_str()];
        graph.load_leases(view, namespace, moment)?;
        rows::visit(view, Table::Images, &within, |name, row: ImageRow| {
            graph.add_image(name, &row, moment)
        })?;
        rows::visit(view, Table::Blobs, &within, |digest, row: BlobRow| {
            let id = graph.add(Node::Content(digest.parse()?));
            if moment.spares(time(row.created_at)) {
                graph.fresh.push(id);
            }
            graph.add_labels(id, &row.labels);
            Ok(())
        })?;
        rows::visit(view, Table::Ingests, &within, |reference, row: IngestRow| {
            let id = graph.add(Node::Ingest(reference));
            if row.expires_at.is_some_and(|expires| time(Some(expires)) > moment.now) {
                graph.roots.push(id);
            }
            if let Some(digest) = row.expected {
                let blob = graph.intern(Node::Content(digest.parse()?));
                graph.edges.push((id, blob, Edge::Full));
            }
            Ok(())
        })?;
        rows::visit_pairs(view, Table::Snapshots, &within, |snapshotter, key, row| {
            graph.add_snapshot(snapshotter, key, row, moment);
            Ok(())
        })?;
        rows::visit(view, Table::Containers, &within, |name, row: ContainerRefs| {
            let id = graph.add(Node::Container(name));
            graph.roots.push(id);
            if let (Some(snapshotter), Some(key)) = (row.snapshotter, row.snapshot_key) {
                let snapshot = graph.intern(Node::Snapshot { snapshotter, key });
                graph.edges.push((id, snapshot, Edge::Full));
            }
            if let Some(netns) = row.netns {
                let netns = graph.intern(Node::Netns(netns));
                graph.edges.push((id, netns, Edge::Full));
            }
            graph.add_labels(id, &row.labels);
            Ok(())
        })?;
        graph.load_networks(view, namespace, moment)?;
        rows::visit(view, Table::Sandboxes, &within, |name, row: SandboxRow| {
            let id = graph.add(Node::Sandbox(name));
            graph.roots.push(id);
            graph.add_labels(id, &row.labels);
            Ok(())
        })?;
        graph.weigh_conditions(moment.now);
        Ok(graph)
    }

    /// Networks made without a lease are roots: losing a live one is worse than a leak.
    fn load_networks(
        &mut self,
        view: &ReadTx,
        namespace: &Namespace,
        moment: Moment,
    ) -> Result<()> {
        let within = [namespace.as_str()];
        let rooted = |leased: bool, labels: &Labels| {
            !leased && expires(labels).is_none_or(|expires| expires > moment.now)
        };
        rows::visit(view, Table::Netns, &within, |name, row: NetnsRecord| {
            if row.deleting {
                return Ok(());
            }
            let id = self.add(Node::Netns(name));
            if rooted(row.leased, &row.labels) {
                self.roots.push(id);
            }
            self.add_labels(id, &row.labels);
            Ok(())
        })?;
        let (mut on_host, mut uses) = (HashMap::new(), Vec::new());
        rows::visit_pairs(view, Table::Links, &within, |netns, name, row: LinkRecord| {
            if row.deleting {
                return Ok(());
            }
            let id = self.add(Node::Link { netns: netns.clone(), id: name });
            if netns == HOST {
                on_host.insert(row.name, id);
                if rooted(row.leased, &row.labels) {
                    self.roots.push(id);
                }
            } else {
                let netns = self.intern(Node::Netns(netns));
                self.edges.push((netns, id, Edge::Full));
            }
            uses.extend(row.uses.into_iter().map(|name| (id, name)));
            self.add_labels(id, &row.labels);
            Ok(())
        })?;
        for (id, name) in uses {
            if let Some(used) = on_host.get(&name) {
                self.edges.push((id, *used, Edge::Full));
            }
        }
        Ok(())
    }

    fn load_leases(&mut self, view: &ReadTx, namespace: &Namespace, moment: Moment) -> Result<()> {
        rows::visit(view, Table::Leases, &[namespace.as_str()], |name, row: LeaseRow| {
            let id = self.add(Node::Lease(name.clone()));
            if expires(&row.labels).is_none_or(|expires| expires > moment.now) {
                self.roots.push(id);
            }
            let flat = is_flat(&row.labels);
            for resource in leases::resources(view, namespace, &name)? {
                self.add_resource(id, &resource, flat);
            }
            Ok(())
        })
    }

    fn add_resource(&mut self, lease: u32, resource: &Resource, flat: bool) {
        // Only resources that were understood when added are recorded.
        let Ok(node) = resource.node() else { return };
        let edge = match node {
            Node::Ingest(_) => Edge::Full,
            _ if flat => Edge::Flat,
            _ => Edge::Full,
        };
        let id = self.intern(node);
        self.edges.push((lease, id, edge));
    }

    fn add_image(&mut self, name: String, row: &ImageRow, moment: Moment) -> Result<()> {
        let id = self.add(Node::Image(name));
        if expires(&row.labels).is_none_or(|expires| expires > moment.now) {
            self.roots.push(id);
        }
        let target = self.intern(Node::Content(row.digest.parse()?));
        self.edges.push((id, target, Edge::Chain));
        self.add_labels(id, &row.labels);
        Ok(())
    }

    fn add_snapshot(&mut self, snapshotter: String, key: String, row: SnapshotRow, moment: Moment) {
        if let Some(parent) = row.parent {
            let parent = Node::Snapshot { snapshotter: snapshotter.clone(), key: parent };
            let (id, parent) = (
                self.add(Node::Snapshot { snapshotter: snapshotter.clone(), key: key.clone() }),
                self.intern(parent),
            );
            self.edges.push((id, parent, Edge::Chain));
        }
        let id = self.add(Node::Snapshot { snapshotter, key });
        if !row.committed && moment.spares(time(row.created_at)) {
            self.fresh.push(id);
        }
        if let Some(used) = used_at(&row.labels) {
            self.used_at.insert(id, used);
        }
        self.add_labels(id, &row.labels);
    }

    fn add_labels(&mut self, id: u32, labels: &Labels) {
        meanings(labels, |meaning| match meaning {
            Meaning::Root => self.roots.push(id),
            Meaning::Forward(node) => {
                let other = self.intern(node);
                self.edges.push((id, other, Edge::Full));
            }
            Meaning::Back(node) => {
                let other = self.intern(node);
                self.edges.push((other, id, Edge::Full));
                self.back.push((other, id));
            }
            Meaning::Condition(node, conditions) => {
                let snapshot = self.intern(node);
                self.conditions.push((snapshot, id, conditions));
                self.back.push((snapshot, id));
            }
        });
    }

    fn weigh_conditions(&mut self, now: SystemTime) {
        for (snapshot, holder, conditions) in std::mem::take(&mut self.conditions) {
            let used = self.used_at.get(&snapshot);
            if used.is_some_and(|used| conditions.iter().any(|c| c.holds(*used, now))) {
                self.edges.push((snapshot, holder, Edge::Full));
            }
        }
    }

    /// The number of an object that is there.
    fn add(&mut self, node: Node) -> u32 {
        let id = self.intern(node);
        self.present[id as usize] = true;
        id
    }

    /// The number of an object that is referred to.
    fn intern(&mut self, node: Node) -> u32 {
        let next = u32::try_from(self.present.len()).expect("fewer than 2^32 objects fit a host");
        let id = *self.ids.entry(node).or_insert(next);
        if id == next {
            self.present.push(false);
        }
        id
    }
}
