//! Removing from the stores below what no record names.
//!
//! A first pass over a store finds candidates and takes no locks. Each candidate is then held
//! alone, which fails while a call uses it, and looked up in the records again: a call that took
//! it up in between has recorded it by then, and a call to come waits until it is gone.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use crated_content::{Digest, Store};
use crated_snapshot::Snapshotter;

use crate::metadata::holders::Object;
use crate::metadata::record::{IngestRow, NamespaceRow, Record};
use crate::metadata::schema::Table;
use crate::metadata::txn::View;
use crate::metadata::{Db, Result, key, rows};

/// What a cleanup did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cleaned {
    pub(super) removed: usize,
    /// Objects left because a running call holds them.
    pub(super) held: usize,
}

/// Removes blobs and ingests that no namespace knows.
pub(super) fn content(db: &Db, store: &dyn Store) -> Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    let mut candidates = Vec::new();
    {
        let view = db.read()?;
        let known = Known::load(&view)?;
        let mut failed = None;
        store.walk(&mut |info| match known.has_blob(&view, &info.digest) {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => {
                candidates.push(info.digest);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    for batch in candidates.chunks(BATCH_LEN) {
        remove_blobs(db, store, batch, &mut cleaned)?;
    }
    remove_ingests(db, store, &mut cleaned)?;
    Ok(cleaned)
}

fn remove_blobs(db: &Db, store: &dyn Store, batch: &[Digest], cleaned: &mut Cleaned) -> Result<()> {
    let mut owned = Vec::with_capacity(batch.len());
    for digest in batch {
        match db.inner().holders.try_own(Object::Blob(digest.to_string())) {
            Some(held) => owned.push((digest, held)),
            None => cleaned.held += 1,
        }
    }
    let view = db.read()?;
    let known = Known::load(&view)?;
    for (digest, _held) in owned {
        if known.has_blob(&view, digest)? {
            continue;
        }
        match store.delete(digest) {
            Ok(()) => cleaned.removed += 1,
            Err(crated_content::Error::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn remove_ingests(db: &Db, store: &dyn Store, cleaned: &mut Cleaned) -> Result<()> {
    let mut owned = Vec::new();
    for status in store.statuses()? {
        match db.inner().holders.try_own(Object::Ingest(status.reference.clone())) {
            Some(held) => owned.push((status.reference, held)),
            None => cleaned.held += 1,
        }
    }
    if owned.is_empty() {
        return Ok(());
    }
    let known = Known::load(&db.read()?)?;
    for (reference, _held) in owned {
        if known.ingests.contains(&reference) {
            continue;
        }
        match store.abort(&reference) {
            Ok(()) => cleaned.removed += 1,
            Err(crated_content::Error::IngestNotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What the records say of the content store, apart from the blobs, which are looked up.
struct Known {
    namespaces: Vec<String>,
    /// Blobs that ingests share.
    expected: HashSet<String>,
    /// Ingests, by the name they have below.
    ingests: HashSet<String>,
}

impl Known {
    fn load(view: &impl View) -> Result<Self> {
        let namespaces =
            rows::collect(view, Table::Namespaces, &[], |name, _: NamespaceRow| Ok(Some(name)))?;
        let (mut expected, mut ingests) = (HashSet::new(), HashSet::new());
        view.scan(Table::Ingests, &[], &mut |_, value| {
            let row = IngestRow::load(value)?;
            expected.extend(row.expected);
            ingests.insert(row.backend);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Self { namespaces, expected, ingests })
    }

    fn has_blob(&self, view: &impl View, digest: &Digest) -> Result<bool> {
        if self.expected.contains(digest.as_str()) {
            return Ok(true);
        }
        for namespace in &self.namespaces {
            if view.has(Table::Blobs, &key::join(&[namespace, digest.as_str()]))? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Removes snapshots that no namespace knows, children before parents, and has the snapshotter
/// give back their space.
pub(super) fn snapshots(db: &Db, name: &str, snapshotter: &dyn Snapshotter) -> Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    let mut parents: HashMap<String, Option<String>> = HashMap::new();
    snapshotter.walk(&mut |info| {
        parents.insert(info.name, info.parent.map(String::from));
        ControlFlow::Continue(())
    })?;
    let mut candidates = Vec::new();
    {
        let view = db.read()?;
        for snapshot in parents.keys() {
            if !view.any(Table::Backends, &key::prefix(&[name, snapshot]))? {
                candidates.push((depth(&parents, snapshot), snapshot.clone()));
            }
        }
    }
    candidates.sort_unstable_by(|a, b| b.cmp(a));
    for (_, snapshot) in candidates {
        let object = Object::Snapshot(name.to_owned(), snapshot.clone());
        let Some(_held) = db.inner().holders.try_own(object) else {
            cleaned.held += 1;
            continue;
        };
        if db.read()?.any(Table::Backends, &key::prefix(&[name, &snapshot]))? {
            continue;
        }
        match snapshotter.remove(&snapshot) {
            Ok(()) => cleaned.removed += 1,
            Err(crated_snapshot::Error::NotFound(_)) => {}
            Err(error @ crated_snapshot::Error::FailedPrecondition { .. }) => {
                tracing::warn!(%error, snapshotter = name, key = snapshot, "snapshot not removed");
                cleaned.held += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    snapshotter.cleanup()?;
    Ok(cleaned)
}

/// How many snapshots a snapshot stands on.
fn depth(parents: &HashMap<String, Option<String>>, snapshot: &str) -> usize {
    let mut depth = 0;
    let mut at = snapshot;
    while let Some(Some(parent)) = parents.get(at) {
        depth += 1;
        at = parent;
        // A snapshotter that answers in circles must not keep the collector busy for ever.
        if depth > parents.len() {
            break;
        }
    }
    depth
}

/// Blobs looked up in one view: opening a view costs more than a lookup, and calls that want one
/// of the blobs wait meanwhile.
const BATCH_LEN: usize = 64;
