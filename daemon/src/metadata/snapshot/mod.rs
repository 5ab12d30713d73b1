//! A snapshotter as one namespace sees it.
//!
//! The snapshot that a client calls `key` is kept below as `<namespace>/<number>/<key>`. Records
//! hold its labels, parent and times; the snapshotter below holds its files, and gets to see those
//! labels alone that concern it.
//!
//! The snapshotter works first, while the name and the snapshots concerned are held, and the record
//! follows in one transaction. A crash in between leaves a snapshot that nobody knows, which the
//! collector removes.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use crated_mount::Mount;
use crated_snapshot::{
    CommitOptions, Info, Key, Kind, LabelUpdate, Labels, Name, Snapshotter, Usage,
};

use super::batch::lock;
use super::holders::{Held, Object as Holding};
use super::record::{Record, SnapshotRow, time};
use super::schema::Table;
use super::txn::View;
use super::{Db, Error, Namespace, Object, Result, Scope, key, rows};

mod commit;
mod create;
mod lost;
mod records;

pub(super) use self::records::Slot;

/// One snapshotter for all namespaces.
#[derive(Clone)]
pub struct Snapshots {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    name: String,
    backend: Arc<dyn Snapshotter>,
    /// The last number given to a snapshot, per namespace. A number is recorded together with
    /// the snapshot that uses it; those that a crash lost are passed over when met again.
    numbers: Mutex<HashMap<Namespace, u64>>,
}

impl Snapshots {
    /// Puts namespaces over `backend`, which clients know as `name`. Nobody else may write to
    /// `backend` from now on.
    pub fn new(db: &Db, name: impl Into<String>, backend: Arc<dyn Snapshotter>) -> Self {
        let numbers = Mutex::default();
        Self { inner: Arc::new(Inner { db: db.clone(), name: name.into(), backend, numbers }) }
    }

    /// What clients call the snapshotter.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The snapshotter as `scope` sees it.
    pub fn scoped(&self, scope: Scope) -> NamespacedSnapshotter {
        NamespacedSnapshotter { snapshots: self.clone(), scope }
    }

    pub(super) fn backend(&self) -> &Arc<dyn Snapshotter> {
        &self.inner.backend
    }
}

/// The snapshotter of one namespace; everything made is attached to the lease of the scope.
///
/// Errors that the snapshotter's vocabulary has no word for, such as a missing lease, travel
/// inside [`crated_snapshot::Error::Io`]; converting to [`Error`] brings them back.
#[derive(Clone)]
pub struct NamespacedSnapshotter {
    snapshots: Snapshots,
    scope: Scope,
}

impl NamespacedSnapshotter {
    /// On whose behalf the snapshotter works.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    fn db(&self) -> &Db {
        &self.snapshots.inner.db
    }

    fn backend(&self) -> &dyn Snapshotter {
        &*self.snapshots.inner.backend
    }

    fn snapshotter(&self) -> &str {
        &self.snapshots.inner.name
    }

    fn namespace(&self) -> &str {
        self.scope.namespace.as_str()
    }

    /// The record of `key` in a view.
    fn row(&self, view: &impl View, key: &str) -> Result<Option<SnapshotRow>> {
        rows::load(view, Table::Snapshots, &[self.namespace(), self.snapshotter(), key])
    }

    /// The record of `key`, which must be there.
    fn load(&self, key: &str) -> Result<SnapshotRow> {
        self.row(&self.db().read()?, key)?.ok_or_else(|| Error::not_found(Object::Snapshot, key))
    }

    /// Keeps other operations off these names; in one order, so that nobody waits in a circle.
    fn own_names<const N: usize>(&self, mut names: [&str; N]) -> Vec<Held> {
        names.sort_unstable();
        let mut held = Vec::with_capacity(N);
        let mut last = None;
        for name in names {
            if last != Some(name) {
                held.push(self.db().inner().holders.own(Holding::Name(
                    self.namespace().to_owned(),
                    self.snapshotter().to_owned(),
                    name.to_owned(),
                )));
            }
            last = Some(name);
        }
        held
    }

    /// Keeps the collector off the record of a snapshot that is about to get a child.
    fn hold_parent(&self, parent: &str) -> Held {
        self.db().inner().holders.share(Holding::Parent(
            self.namespace().to_owned(),
            self.snapshotter().to_owned(),
            parent.to_owned(),
        ))
    }

    /// Keeps the collector off a snapshot of the snapshotter below.
    fn hold(&self, backend: &str) -> Held {
        let object = Holding::Snapshot(self.snapshotter().to_owned(), backend.to_owned());
        self.db().inner().holders.share(object)
    }

    fn merged(&self, key: &str, row: SnapshotRow) -> Result<Info> {
        let below =
            self.backend().stat(&row.backend).map_err(|error| self.translate(key, error))?;
        let mut labels = below.labels;
        labels.extend(row.labels);
        Ok(Info {
            name: key.to_owned(),
            parent: row.parent.map(Name::new).transpose()?,
            kind: below.kind,
            labels,
            created_at: time(row.created_at),
            updated_at: time(row.updated_at),
        })
    }

    /// An error of the snapshotter below about the snapshot that the client calls `key`.
    fn translate(&self, key: &str, error: crated_snapshot::Error) -> Error {
        use crated_snapshot::Error as Below;
        let key = key.to_owned();
        match error {
            Below::NotFound(_) => Error::NotFound { object: Object::Snapshot, id: key },
            Below::AlreadyExists(_) => Error::AlreadyExists { object: Object::Snapshot, id: key },
            Below::FailedPrecondition { reason, .. } => {
                Below::FailedPrecondition { key, reason }.into()
            }
            other => other.into(),
        }
    }

    fn walk_pages(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        let prefix = key::prefix(&[self.namespace(), self.snapshotter()]);
        let mut after = None;
        loop {
            // No view stays open while the visitor works, however long it takes.
            let page = self.db().read()?.page(Table::Snapshots, &prefix, after.as_deref())?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (at, value) in page {
                let key = String::from_utf8_lossy(&at[prefix.len()..]).into_owned();
                match self.merged(&key, SnapshotRow::load(&value)?) {
                    Ok(info) => {
                        if visit(info).is_break() {
                            return Ok(());
                        }
                    }
                    // Gone below, or removed meanwhile: not worth failing the whole list.
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

impl Snapshotter for NamespacedSnapshotter {
    fn stat(&self, key: &str) -> crated_snapshot::Result<Info> {
        self.load(key).and_then(|row| self.merged(key, row)).map_err(into_snapshot)
    }

    fn update(&self, key: &str, labels: &LabelUpdate) -> crated_snapshot::Result<Info> {
        self.change_labels(key, labels).map_err(into_snapshot)
    }

    fn usage(&self, key: &str) -> crated_snapshot::Result<Usage> {
        self.load(key)
            .and_then(|row| {
                self.backend().usage(&row.backend).map_err(|error| self.translate(key, error))
            })
            .map_err(into_snapshot)
    }

    fn mounts(&self, key: &Key) -> crated_snapshot::Result<Vec<Mount>> {
        self.load(key.as_str())
            .and_then(|row| {
                let below = Key::new(row.backend)?;
                self.backend().mounts(&below).map_err(|error| self.translate(key.as_str(), error))
            })
            .map_err(into_snapshot)
    }

    fn prepare(
        &self,
        key: &Key,
        parent: Option<&Name>,
        labels: &Labels,
    ) -> crated_snapshot::Result<Vec<Mount>> {
        self.create(Kind::Active, key.as_str(), parent, labels).map_err(into_snapshot)
    }

    fn view(
        &self,
        key: &Key,
        parent: Option<&Name>,
        labels: &Labels,
    ) -> crated_snapshot::Result<Vec<Mount>> {
        self.create(Kind::View, key.as_str(), parent, labels).map_err(into_snapshot)
    }

    fn commit(
        &self,
        name: &Name,
        key: &Key,
        options: &CommitOptions,
    ) -> crated_snapshot::Result<()> {
        self.publish(name.as_str(), key.as_str(), options).map_err(into_snapshot)
    }

    fn remove(&self, key: &str) -> crated_snapshot::Result<()> {
        self.forget(key).map_err(into_snapshot)
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> crated_snapshot::Result<()> {
        self.walk_pages(visit).map_err(into_snapshot)
    }

    fn cleanup(&self) -> crated_snapshot::Result<()> {
        self.backend().cleanup()
    }

    fn settle(&self) -> crated_snapshot::Result<()> {
        self.backend().settle()
    }
}

impl Inner {
    /// A number no snapshot of the namespace has been given by this process, nor by an earlier
    /// one that recorded it.
    fn next_number(&self, namespace: &Namespace) -> Result<u64> {
        let stored = {
            let numbers = lock(&self.numbers);
            if numbers.contains_key(namespace) { 0 } else { self.recorded_number(namespace)? }
        };
        let mut numbers = lock(&self.numbers);
        let last = numbers.entry(namespace.clone()).or_insert(stored);
        *last += 1;
        Ok(*last)
    }

    fn recorded_number(&self, namespace: &Namespace) -> Result<u64> {
        let at = sequence(namespace.as_str(), &self.name);
        rows::number(&self.db.read()?, &at)
    }
}

/// Where the last number recorded for a namespace stands.
fn sequence<'a>(namespace: &'a str, snapshotter: &'a str) -> [&'a str; 3] {
    ["snapshots", namespace, snapshotter]
}

/// The labels the snapshotter below gets to see.
fn inherited(labels: &Labels) -> Labels {
    labels
        .iter()
        .filter(|(key, _)| key.starts_with(LABEL_SNAPSHOT_PREFIX) || *key == LABEL_SNAPSHOT_REF)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// How the snapshotter below calls a snapshot. A key as long as it allows leaves no room for what
/// is put in front, so such a one is replaced by its digest.
fn backend_key(namespace: &Namespace, number: u64, key: &str) -> String {
    let plain = format!("{namespace}/{number}/{key}");
    if plain.len() <= crated_snapshot::KEY_LENGTH_MAX {
        return plain;
    }
    format!("{namespace}/{number}/{}", crated_content::Digest::of(key.as_bytes()))
}

/// What a lease calls snapshots of a snapshotter.
fn resource_kind(snapshotter: &str) -> String {
    format!("snapshots/{snapshotter}")
}

/// The same failure in the words of the snapshotter.
fn into_snapshot(error: Error) -> crated_snapshot::Error {
    use crated_snapshot::Error as Below;
    match error {
        Error::Snapshot(error) => error,
        Error::NotFound { object: Object::Snapshot, id } => Below::NotFound(id),
        Error::AlreadyExists { object: Object::Snapshot, id } => Below::AlreadyExists(id),
        Error::FailedPrecondition { object: Object::Snapshot, id, reason } => {
            Below::FailedPrecondition { key: id, reason }
        }
        Error::InvalidArgument { what, reason } => {
            Below::InvalidArgument { what: "snapshot request", reason: format!("{what}: {reason}") }
        }
        other => Below::Io {
            op: "recording in",
            path: "metadata".into(),
            source: std::io::Error::other(other),
        },
    }
}

/// On snapshots that the daemon itself unpacks layers into, until they are committed: nobody goes
/// on with them after a restart.
pub const LABEL_UNPACKING: &str = "crated.io/unpacking";

/// Names a layer independently of who unpacks it; makes the snapshotter below look for one that
/// exists already.
const LABEL_SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

const LABEL_SNAPSHOT_PREFIX: &str = "containerd.io/snapshot/";
