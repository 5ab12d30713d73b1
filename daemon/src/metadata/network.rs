//! Network namespaces and links: what was asked for. What is there, the kernel knows.

use std::ops::ControlFlow;
use std::time::SystemTime;

use prost_types::Timestamp;

use super::gc::Node;
use super::record::{ContainerRefs, Record};
use super::schema::Table;
use super::txn::{View, WriteTx};
use super::{Any, Db, Error, Labels, Namespace, Object, Result, Scope, key, leases, rows};

/// The namespace that links outside every recorded one are in.
pub const HOST: &str = "host";

/// A network namespace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NetnsRecord {
    /// An identifier, unique in its namespace.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Labels; none has an empty value.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: Labels,
    /// Settings asked for.
    #[prost(btree_map = "string, string", tag = "3")]
    pub sysctls: Labels,
    /// The loopback device was to be up.
    #[prost(bool, tag = "4")]
    pub lo_up: bool,
    /// The name of its pin.
    #[prost(string, tag = "5")]
    pub pin: String,
    /// The boot it was made in.
    #[prost(string, tag = "6")]
    pub boot_id: String,
    /// Made under a lease: collected when nothing refers to it.
    #[prost(bool, tag = "7")]
    pub leased: bool,
    /// Its deletion has begun.
    #[prost(bool, tag = "8")]
    pub deleting: bool,
    /// When it was created.
    #[prost(message, optional, tag = "9")]
    pub created_at: Option<Timestamp>,
    /// When it was created or last changed.
    #[prost(message, optional, tag = "10")]
    pub updated_at: Option<Timestamp>,
    /// Counts changes.
    #[prost(uint64, tag = "11")]
    pub revision: u64,
    /// Taken over, not made.
    #[prost(bool, tag = "12")]
    pub adopted: bool,
}

/// A link.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinkRecord {
    /// Id of its network namespace, or [`HOST`].
    #[prost(string, tag = "1")]
    pub netns: String,
    /// Unique in its network namespace.
    #[prost(string, tag = "2")]
    pub id: String,
    /// Labels; none has an empty value.
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: Labels,
    /// Its name in the kernel.
    #[prost(string, tag = "4")]
    pub name: String,
    /// The name of its other end, when that is the host's.
    #[prost(string, tag = "5")]
    pub host_peer: String,
    /// Names of the host's links that it is attached to or made on.
    #[prost(string, repeated, tag = "6")]
    pub uses: Vec<String>,
    /// What was asked for, as the API has it.
    #[prost(bytes = "vec", tag = "7")]
    pub spec: Vec<u8>,
    /// Made under a lease: collected when nothing refers to it.
    #[prost(bool, tag = "8")]
    pub leased: bool,
    /// Its removal has begun.
    #[prost(bool, tag = "9")]
    pub deleting: bool,
    /// When it was created.
    #[prost(message, optional, tag = "10")]
    pub created_at: Option<Timestamp>,
    /// When it was created or last changed.
    #[prost(message, optional, tag = "11")]
    pub updated_at: Option<Timestamp>,
    /// Counts changes.
    #[prost(uint64, tag = "12")]
    pub revision: u64,
    /// For a device that existed: its name where it came from.
    #[prost(string, tag = "13")]
    pub origin_name: String,
    /// For a device that existed: where it came from, an id or [`HOST`].
    #[prost(string, tag = "14")]
    pub origin_netns: String,
    /// The boot it was made in.
    #[prost(string, tag = "15")]
    pub boot_id: String,
}

impl Record for NetnsRecord {}
impl Record for LinkRecord {}

/// One change to the records.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are the object meant")]
#[allow(clippy::large_enum_variant, reason = "a call has few, and each is stored at once")]
pub enum NetworkChange {
    /// A new namespace; refused when there is one of the id.
    CreateNetns(NetnsRecord),
    /// A namespace as it is now.
    PutNetns(NetnsRecord),
    /// A namespace and the links in it are gone. Fine when they were.
    RemoveNetns { id: String },
    /// A new link; refused when there is one of the id.
    CreateLink(LinkRecord),
    /// A link as it is now.
    PutLink(LinkRecord),
    /// A link is gone. Fine when it was.
    RemoveLink { netns: String, id: String },
}

/// What one look at the records found.
#[derive(Clone, Debug, Default)]
pub struct NetworkView {
    /// The namespaces asked for that are there.
    pub netns: Vec<NetnsRecord>,
    /// The links asked for that are there.
    pub links: Vec<LinkRecord>,
}

/// The records of networks.
#[derive(Clone)]
pub struct Networks {
    db: Db,
}

impl Networks {
    pub(super) fn new(db: Db) -> Self {
        Self { db }
    }

    /// The namespaces and the links named, those that are there, from one view.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn look(
        &self,
        namespace: &Namespace,
        netns: &[&str],
        links: &[(&str, &str)],
    ) -> Result<NetworkView> {
        let view = self.db.read()?;
        let mut found = NetworkView::default();
        for id in netns {
            found.netns.extend(rows::load::<NetnsRecord>(
                &view,
                Table::Netns,
                &[namespace.as_str(), id],
            )?);
        }
        for (netns, id) in links {
            let at = [namespace.as_str(), netns, id];
            found.links.extend(rows::load::<LinkRecord>(&view, Table::Links, &at)?);
        }
        Ok(found)
    }

    /// The namespace called `id`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn netns(&self, namespace: &Namespace, id: &str) -> Result<NetnsRecord> {
        let found = self.look(namespace, &[id], &[])?.netns.pop();
        found.ok_or_else(|| Error::not_found(Object::Netns, id))
    }

    /// The link called `id` in `netns`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn link(&self, namespace: &Namespace, netns: &str, id: &str) -> Result<LinkRecord> {
        let found = self.look(namespace, &[], &[(netns, id)])?.links.pop();
        found.ok_or_else(|| Error::not_found(Object::Link, format!("{netns}/{id}")))
    }

    /// All namespaces, in name order.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn all_netns(&self, namespace: &Namespace) -> Result<Vec<NetnsRecord>> {
        let view = self.db.read()?;
        rows::collect(&view, Table::Netns, &[namespace.as_str()], |_, row| Ok(Some(row)))
    }

    /// All links of one network namespace, or of all.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn all_links(&self, namespace: &Namespace, netns: Option<&str>) -> Result<Vec<LinkRecord>> {
        let view = self.db.read()?;
        match netns {
            Some(netns) => links_of(&view, namespace, netns),
            None => scan(&view, Table::Links, &key::prefix(&[namespace.as_str()])),
        }
    }

    /// Everything, of all namespaces, from one view.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn everything(&self) -> Result<Vec<(Namespace, NetworkView)>> {
        let view = self.db.read()?;
        let mut all = Vec::new();
        rows::visit(&view, Table::Namespaces, &[], |name, _: super::record::NamespaceRow| {
            let namespace: Namespace = name.parse()?;
            let prefix = key::prefix(&[namespace.as_str()]);
            let found = NetworkView {
                netns: scan(&view, Table::Netns, &prefix)?,
                links: scan(&view, Table::Links, &prefix)?,
            };
            if !(found.netns.is_empty() && found.links.is_empty()) {
                all.push((namespace, found));
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Containers whose specification names the network namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn containers(&self, namespace: &Namespace, id: &str) -> Result<Vec<String>> {
        containers_in(&self.db.read()?, namespace, id)
    }

    /// Makes all changes, or none. What is created is attached to the lease of `scope`.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] for what is created, [`Error::NotFound`] when the namespace of a
    /// new link is not there.
    pub fn commit(&self, scope: &Scope, changes: Vec<NetworkChange>) -> Result<()> {
        let scope = scope.clone();
        self.db.write(move |tx| changes.into_iter().try_for_each(|change| make(tx, &scope, change)))
    }

    /// Begins to delete a namespace, unless a container refers to it or `etag` is another's. From
    /// then on no container can be made that does.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::FailedPrecondition`].
    pub fn begin_delete(
        &self,
        scope: &Scope,
        id: &str,
        force: bool,
    ) -> Result<(NetnsRecord, Vec<LinkRecord>)> {
        let (scope, id) = (scope.clone(), id.to_owned());
        self.db.write(move |tx| {
            let namespace = &scope.namespace;
            let found = rows::load(tx, Table::Netns, &[namespace.as_str(), &id])?;
            let mut record: NetnsRecord =
                found.ok_or_else(|| Error::not_found(Object::Netns, &id))?;
            let users = containers_in(tx, namespace, &id)?;
            if !force && !users.is_empty() {
                let reason = format!("used by container {}", users.join(", "));
                return Err(Error::FailedPrecondition { object: Object::Netns, id, reason });
            }
            record.deleting = true;
            let links = links_of(tx, namespace, &id)?;
            rows::store(tx, Table::Netns, namespace, &[&id], &record)?;
            Ok((record, links))
        })
    }
}

fn make(tx: &mut WriteTx<'_, '_>, scope: &Scope, change: NetworkChange) -> Result<()> {
    let namespace = &scope.namespace;
    match change {
        NetworkChange::CreateNetns(record) => {
            if tx.has(Table::Netns, &rows::address(namespace, &[&record.id]))? {
                return Err(Error::already_exists(Object::Netns, record.id));
            }
            leases::attach(tx, scope, "netns", &record.id)?;
            put_netns(tx, namespace, &record)
        }
        NetworkChange::PutNetns(record) => put_netns(tx, namespace, &record),
        NetworkChange::RemoveNetns { id } => {
            for link in links_of(tx, namespace, &id)? {
                tx.remove(Table::Links, rows::address(namespace, &[&id, &link.id]));
            }
            tx.remove(Table::Netns, rows::address(namespace, &[&id]));
            tx.effects.dirty = true;
            Ok(())
        }
        NetworkChange::CreateLink(record) => {
            let at = [record.netns.as_str(), record.id.as_str()];
            if tx.has(Table::Links, &rows::address(namespace, &at))? {
                return Err(Error::already_exists(Object::Link, at.join("/")));
            }
            let home = rows::address(namespace, &[&record.netns]);
            if record.netns != HOST && !tx.has(Table::Netns, &home)? {
                return Err(Error::not_found(Object::Netns, record.netns));
            }
            leases::attach(tx, scope, "link", &at.join("/"))?;
            put_link(tx, namespace, &record)
        }
        NetworkChange::PutLink(record) => put_link(tx, namespace, &record),
        NetworkChange::RemoveLink { netns, id } => {
            tx.remove(Table::Links, rows::address(namespace, &[&netns, &id]));
            tx.effects.dirty = true;
            Ok(())
        }
    }
}

fn put_netns(tx: &mut WriteTx<'_, '_>, namespace: &Namespace, record: &NetnsRecord) -> Result<()> {
    tx.touch(namespace, Node::Netns(record.id.clone()));
    rows::store(tx, Table::Netns, namespace, &[&record.id], record)
}

fn put_link(tx: &mut WriteTx<'_, '_>, namespace: &Namespace, record: &LinkRecord) -> Result<()> {
    tx.touch(namespace, Node::Link { netns: record.netns.clone(), id: record.id.clone() });
    rows::store(tx, Table::Links, namespace, &[&record.netns, &record.id], record)
}

/// The links in one network namespace.
pub(super) fn links_of(
    view: &impl View,
    namespace: &Namespace,
    netns: &str,
) -> Result<Vec<LinkRecord>> {
    scan(view, Table::Links, &key::prefix(&[namespace.as_str(), netns]))
}

fn scan<R: Record>(view: &impl View, table: Table, prefix: &[u8]) -> Result<Vec<R>> {
    let mut found = Vec::new();
    view.scan(table, prefix, &mut |_, value| {
        found.push(R::load(value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

fn containers_in(view: &impl View, namespace: &Namespace, id: &str) -> Result<Vec<String>> {
    rows::collect(view, Table::Containers, &[namespace.as_str()], |name, row: ContainerRefs| {
        Ok((row.netns.as_deref() == Some(id)).then_some(name))
    })
}

/// The network namespace of ours that a container's specification names.
///
/// # Errors
///
/// [`Error::FailedPrecondition`] when it names a pin of ours that is no namespace here.
pub(super) fn of_container(
    tx: &impl View,
    db: &Db,
    namespace: &Namespace,
    spec: &Any,
) -> Result<Option<String>> {
    let Some(directory) = db.inner().pins.get() else { return Ok(None) };
    let Some(path) = network_path(spec) else { return Ok(None) };
    let Ok(pin) = std::path::Path::new(&path).strip_prefix(directory) else { return Ok(None) };
    let refused = |reason: &str| Error::FailedPrecondition {
        object: Object::Netns,
        id: path.clone(),
        reason: reason.to_owned(),
    };
    let mut found = None;
    rows::visit(tx, Table::Netns, &[namespace.as_str()], |id, row: NetnsRecord| {
        if std::path::Path::new(&row.pin) == pin {
            found = Some((id, row.deleting));
        }
        Ok(())
    })?;
    match found {
        Some((id, false)) => Ok(Some(id)),
        Some((_, true)) => Err(refused("it is being deleted")),
        None => Err(refused("no network namespace of this namespace is there")),
    }
}

/// The path of the network namespace that a specification in JSON asks to join.
pub fn network_path(spec: &Any) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Spec {
        linux: Option<Linux>,
    }
    #[derive(serde::Deserialize)]
    struct Linux {
        #[serde(default)]
        namespaces: Option<Vec<Joined>>,
    }
    #[derive(serde::Deserialize)]
    struct Joined {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        path: String,
    }
    let spec: Spec = serde_json::from_slice(&spec.value).ok()?;
    let mut namespaces = spec.linux?.namespaces.unwrap_or_default().into_iter();
    namespaces
        .find(|joined| joined.kind == "network" && !joined.path.is_empty())
        .map(|joined| joined.path)
}

/// Now, as records have it.
pub fn now() -> Option<Timestamp> {
    Some(SystemTime::now().into())
}
