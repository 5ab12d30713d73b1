//! Leases: what clients hold so that the collector leaves it alone.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::ControlFlow;
use std::time::{SystemTime, UNIX_EPOCH};

use super::gc::Node;
use super::record::{LeaseRow, stamp, time};
use super::schema::Table;
use super::txn::{View, WriteTx};
use super::{Db, Error, Labels, Namespace, Object, Result, Scope, key, rows, validate};
use crate::filters::Filters;

/// A named hold on resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The name: any text.
    pub id: String,
    /// When it was created.
    pub created_at: SystemTime,
    /// Labels; `containerd.io/gc.expire` and `containerd.io/gc.flat` mean something.
    pub labels: Labels,
}

/// Something a lease holds. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// `content`, `ingests`, `images`, `snapshots/<snapshotter>`, `netns` or `link`.
    pub kind: String,
    /// A digest, a reference, a name or a key.
    pub id: String,
}

impl Resource {
    /// The object meant.
    pub(super) fn node(&self) -> Result<Node> {
        let id = || self.id.clone();
        match (self.kind.as_str(), self.kind.split_once('/')) {
            ("content", _) => Ok(Node::Content(self.id.parse()?)),
            ("ingests", _) => Ok(Node::Ingest(id())),
            ("images", _) => Ok(Node::Image(id())),
            ("netns", _) => Ok(Node::Netns(id())),
            ("link", _) => match self.id.split_once('/') {
                Some((netns, id)) => Ok(Node::Link { netns: netns.into(), id: id.into() }),
                None => {
                    let what = format!("resource {:?}", self.id);
                    Err(Error::invalid(what, "must be the network namespace, `/` and the link"))
                }
            },
            (_, Some(("snapshots", snapshotter))) if !snapshotter.is_empty() => {
                Ok(Node::Snapshot { snapshotter: snapshotter.to_owned(), key: id() })
            }
            ("snapshots", _) | (_, Some(("snapshots", _))) => {
                let what = format!("resource type {:?}", self.kind);
                Err(Error::invalid(what, "must name a snapshotter"))
            }
            _ => Err(Error::Unimplemented { what: format!("resource type {:?}", self.kind) }),
        }
    }
}

/// The leases.
#[derive(Clone)]
pub struct Leases {
    db: Db,
}

impl Leases {
    pub(super) fn new(db: Db) -> Self {
        Self { db }
    }

    /// Creates a lease, under a name of its own when `id` is `None`. Labels are not checked.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`]; [`Error::InvalidArgument`] for an empty name.
    pub fn create(
        &self,
        namespace: &Namespace,
        id: Option<&str>,
        labels: &Labels,
    ) -> Result<Lease> {
        let now = SystemTime::now();
        let id = id.map_or_else(|| generate_id(now), str::to_owned);
        validate::present("lease id", &id)?;
        let mut labels = labels.clone();
        labels.retain(|_, value| !value.is_empty());
        let (namespace, lease) = (namespace.clone(), Lease { id, created_at: now, labels });
        self.db.write(move |tx| {
            if tx.has(Table::Leases, &rows::address(&namespace, &[&lease.id]))? {
                return Err(Error::already_exists(Object::Lease, lease.id));
            }
            let row = LeaseRow { labels: lease.labels.clone(), created_at: stamp(now) };
            rows::store(tx, Table::Leases, &namespace, &[&lease.id], &row)?;
            tx.touch(&namespace, Node::Lease(lease.id.clone()));
            Ok(lease)
        })
    }

    /// Ends a lease; what only it held goes with the next collection.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn delete(&self, namespace: &Namespace, id: &str) -> Result<()> {
        let (namespace, id) = (namespace.clone(), id.to_owned());
        self.db.write(move |tx| {
            require(tx, &namespace, &id)?;
            remove(tx, &namespace, &id)?;
            tx.effects.dirty = true;
            Ok(())
        })
    }

    /// The leases of the namespace that pass `filters`, in name order. Those that have expired
    /// stay until the next collection.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Lease>> {
        let view = self.db.read()?;
        rows::collect(&view, Table::Leases, &[namespace.as_str()], |id, row: LeaseRow| {
            let lease = Lease { id, created_at: time(row.created_at), labels: row.labels };
            Ok(filters.matches(&lease).then_some(lease))
        })
    }

    /// Adds a resource, which need not exist, to a lease; adding it twice is fine.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without the lease; [`Error::InvalidArgument`] for a malformed resource,
    /// [`Error::Unimplemented`] for one of an unknown kind.
    pub fn add_resource(&self, namespace: &Namespace, id: &str, resource: &Resource) -> Result<()> {
        let node = resource.node()?;
        validate::present("resource id", &resource.id)?;
        let (namespace, id, resource) = (namespace.clone(), id.to_owned(), resource.clone());
        self.db.write(move |tx| {
            require(tx, &namespace, &id)?;
            tx.touch(&namespace, Node::Lease(id.clone()));
            tx.touch(&namespace, node);
            let at = rows::address(&namespace, &[&id, &resource.kind, &resource.id]);
            tx.put(Table::Resources, at, Vec::new());
            Ok(())
        })
    }

    /// Takes a resource out of a lease, if it is in it.
    ///
    /// # Errors
    ///
    /// Those of [`add_resource`](Self::add_resource).
    pub fn delete_resource(
        &self,
        namespace: &Namespace,
        id: &str,
        resource: &Resource,
    ) -> Result<()> {
        resource.node()?;
        let (namespace, id, resource) = (namespace.clone(), id.to_owned(), resource.clone());
        self.db.write(move |tx| {
            require(tx, &namespace, &id)?;
            let at = rows::address(&namespace, &[&id, &resource.kind, &resource.id]);
            if tx.has(Table::Resources, &at)? {
                tx.remove(Table::Resources, at);
                tx.effects.dirty = true;
            }
            Ok(())
        })
    }

    /// What a lease holds, ordered by kind and id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn resources(&self, namespace: &Namespace, id: &str) -> Result<Vec<Resource>> {
        let view = self.db.read()?;
        require(&view, namespace, id)?;
        resources(&view, namespace, id)
    }
}

/// What a lease holds, as recorded.
pub(super) fn resources(
    view: &impl View,
    namespace: &Namespace,
    id: &str,
) -> Result<Vec<Resource>> {
    let mut found = Vec::new();
    view.scan(Table::Resources, &key::prefix(&[namespace.as_str(), id]), &mut |at, _| {
        if let Some([_, _, kind, id]) = key::split::<4>(at) {
            found.push(Resource { kind, id });
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// Attaches a resource to the lease of `scope`, when there is one.
pub(super) fn attach(tx: &mut WriteTx<'_, '_>, scope: &Scope, kind: &str, id: &str) -> Result<()> {
    let Some(lease) = &scope.lease else { return Ok(()) };
    if !tx.has(Table::Leases, &rows::address(&scope.namespace, &[lease]))? {
        return Err(Error::LeaseNotFound { id: lease.clone() });
    }
    let node = Resource { kind: kind.to_owned(), id: id.to_owned() }.node()?;
    tx.touch(&scope.namespace, Node::Lease(lease.clone()));
    tx.touch(&scope.namespace, node);
    let at = rows::address(&scope.namespace, &[lease, kind, id]);
    if !tx.has(Table::Resources, &at)? {
        tx.put(Table::Resources, at, Vec::new());
    }
    Ok(())
}

/// Whether the lease of `scope` holds the resource, or needs not to because there is no lease.
pub(super) fn attached(view: &impl View, scope: &Scope, kind: &str, id: &str) -> Result<bool> {
    match &scope.lease {
        Some(lease) => {
            view.has(Table::Resources, &rows::address(&scope.namespace, &[lease, kind, id]))
        }
        None => Ok(true),
    }
}

/// Takes a resource out of the lease of `scope`, and out of no other.
pub(super) fn detach(tx: &mut WriteTx<'_, '_>, scope: &Scope, kind: &str, id: &str) -> Result<()> {
    if let Some(lease) = &scope.lease {
        let at = rows::address(&scope.namespace, &[lease, kind, id]);
        if tx.has(Table::Resources, &at)? {
            tx.remove(Table::Resources, at);
        }
    }
    Ok(())
}

/// Removes a lease and its list of resources.
pub(super) fn remove(tx: &mut WriteTx<'_, '_>, namespace: &Namespace, id: &str) -> Result<()> {
    for resource in resources(tx, namespace, id)? {
        let at = rows::address(namespace, &[id, &resource.kind, &resource.id]);
        tx.remove(Table::Resources, at);
    }
    tx.remove(Table::Leases, rows::address(namespace, &[id]));
    Ok(())
}

fn require(view: &impl View, namespace: &Namespace, id: &str) -> Result<()> {
    if view.has(Table::Leases, &rows::address(namespace, &[id]))? {
        return Ok(());
    }
    Err(Error::not_found(Object::Lease, id))
}

/// `<nanoseconds>-<4 characters>`: sortable by age, distinct between callers of one instant.
fn generate_id(now: SystemTime) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let nanos = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let mut random = RandomState::new().build_hasher().finish();
    let mut id = format!("{nanos}-");
    for _ in 0..4 {
        id.push(ALPHABET[(random & 63) as usize] as char);
        random >>= 6;
    }
    id
}
