//! Preparing and viewing, and taking over snapshots that exist below already.

use std::ops::ControlFlow;
use std::time::SystemTime;

use crated_mount::Mount;
use crated_snapshot::{Info, Key, Kind, Labels, Name};

use super::records::{Slot, without_empty};
use super::{LABEL_SNAPSHOT_REF, NamespacedSnapshotter, backend_key, inherited, sequence};
use crate::metadata::holders::Held;
use crate::metadata::record::{SnapshotRow, stamp};
use crate::metadata::txn::{View, WriteTx};
use crate::metadata::{Error, Event, Object, Result, rows, validate};

/// A snapshot about to be made.
struct Draft<'d> {
    kind: Kind,
    slot: Slot,
    parent: Option<(&'d Name, Name)>,
    labels: Labels,
}

/// What the snapshotter below made of a draft.
enum Made {
    Mounts {
        backend: String,
        number: u64,
        mounts: Vec<Mount>,
        held: Held,
    },
    /// It has the layer already.
    Exists,
}

impl NamespacedSnapshotter {
    pub(super) fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: Option<&Name>,
        labels: &Labels,
    ) -> Result<Vec<Mount>> {
        let labels = without_empty(labels.clone());
        validate::labels(&labels)?;
        let target = labels.get(LABEL_SNAPSHOT_REF).cloned();
        let _names = self.own_names([key, target.as_deref().unwrap_or(key)]);
        self.check_lease()?;
        for taken in target.iter().map(String::as_str).chain([key]) {
            self.refuse_taken(taken)?;
        }
        // The parent is held as found, then looked at again: it may be on its way out.
        let _parent_record = parent.map(|parent| self.hold_parent(parent.as_str()));
        let _parent_below = match parent {
            Some(parent) => Some(self.hold(&self.load(parent.as_str())?.backend)),
            None => None,
        };
        let parent = match parent {
            Some(parent) => Some((parent, Name::new(self.load(parent.as_str())?.backend)?)),
            None => None,
        };
        let draft = Draft { kind, slot: self.slot(key), parent, labels };
        match self.make(&draft)? {
            Made::Mounts { backend, number, mounts, held } => {
                let recorded = self.record(&draft, backend, number);
                drop(held);
                recorded.map(|()| mounts)
            }
            Made::Exists => match target {
                Some(target) => Err(self.adopt(&draft, &target)),
                // Clients take AlreadyExists for their own key and would try for ever.
                None => Err(Error::Internal {
                    reason: format!("snapshotter holds an unknown snapshot for key {key:?}"),
                }),
            },
        }
    }

    pub(super) fn check_lease(&self) -> Result<()> {
        use crate::metadata::schema::Table;
        let Some(lease) = &self.scope.lease else { return Ok(()) };
        let at = rows::address(&self.scope.namespace, &[lease]);
        if self.db().read()?.has(Table::Leases, &at)? {
            return Ok(());
        }
        Err(Error::LeaseNotFound { id: lease.clone() })
    }

    /// Refuses a key that is taken, attaching its snapshot to the lease. A record whose snapshot
    /// has vanished below, and on which nothing builds, gives way instead.
    pub(super) fn refuse_taken(&self, key: &str) -> Result<()> {
        let slot = self.slot(key);
        let Some(row) = slot.load(&self.db().read()?)? else { return Ok(()) };
        let vanished =
            matches!(self.backend().stat(&row.backend), Err(crated_snapshot::Error::NotFound(_)));
        let scope = self.scope.clone();
        let taken = self.db().write(move |tx| {
            let Some(row) = slot.load(tx)? else { return Ok(false) };
            if vanished && !slot.has_children(tx)? {
                slot.erase(tx, &row);
                return Ok(false);
            }
            slot.attach(tx, &scope)?;
            Ok(true)
        })?;
        if taken {
            return Err(Error::already_exists(Object::Snapshot, key));
        }
        Ok(())
    }

    /// Has the snapshotter below make the snapshot, under a key that is free there.
    fn make(&self, draft: &Draft<'_>) -> Result<Made> {
        let labels = inherited(&draft.labels);
        let parent = draft.parent.as_ref().map(|(_, below)| below);
        for _ in 0..NUMBERS_TRIED_MAX {
            let number = self.snapshots.inner.next_number(&self.scope.namespace)?;
            let backend = backend_key(&self.scope.namespace, number, &draft.slot.key);
            let held = self.hold(&backend);
            let below = Key::new(backend.clone())?;
            let made = match draft.kind {
                Kind::View => self.backend().view(&below, parent, &labels),
                _ => self.backend().prepare(&below, parent, &labels),
            };
            match made {
                Ok(mounts) => return Ok(Made::Mounts { backend, number, mounts, held }),
                // Left over from before a crash: the number is used up.
                Err(crated_snapshot::Error::AlreadyExists(_))
                    if self.backend().stat(&backend).is_ok() => {}
                Err(crated_snapshot::Error::AlreadyExists(_)) => return Ok(Made::Exists),
                Err(crated_snapshot::Error::NotFound(_)) => {
                    let missing = draft
                        .parent
                        .as_ref()
                        .map_or(draft.slot.key.as_str(), |parent| parent.0.as_str());
                    return Err(Error::not_found(Object::Snapshot, missing));
                }
                Err(error) => return Err(self.translate(&draft.slot.key, error)),
            }
        }
        Err(Error::Internal { reason: format!("no free number for snapshot {:?}", draft.slot.key) })
    }

    /// Records what was made; when that fails, it is removed again.
    fn record(&self, draft: &Draft<'_>, backend: String, number: u64) -> Result<()> {
        let now = stamp(SystemTime::now());
        let row = SnapshotRow {
            labels: draft.labels.clone(),
            backend: backend.clone(),
            parent: draft.parent.as_ref().map(|(parent, _)| parent.to_string()),
            created_at: now,
            updated_at: now,
            committed: false,
        };
        let event = (draft.kind == Kind::Active).then(|| Event::SnapshotPrepare {
            key: draft.slot.key.clone(),
            parent: row.parent.clone(),
            snapshotter: draft.slot.snapshotter.clone(),
        });
        let (slot, scope) = (draft.slot.clone(), self.scope.clone());
        let recorded = self.db().write(move |tx| {
            slot.attach(tx, &scope)?;
            if slot.load(tx)?.is_some() {
                return Err(Error::already_exists(Object::Snapshot, slot.key));
            }
            require_parent(tx, &slot, &row)?;
            rows::raise_number(tx, &sequence(slot.namespace.as_str(), &slot.snapshotter), number)?;
            slot.store(tx, &row)?;
            if let Some(event) = event {
                tx.emit(&slot.namespace, event);
            }
            Ok(())
        });
        if recorded.is_err() {
            self.discard(&backend);
        }
        recorded
    }

    /// Takes a snapshot over that exists below under another name, and answers what the client is
    /// to be told: that the layer exists, if it does.
    fn adopt(&self, draft: &Draft<'_>, target: &str) -> Error {
        match self.try_adopt(draft, target) {
            Ok(()) => Error::already_exists(Object::Snapshot, target),
            Err(error) => error,
        }
    }

    fn try_adopt(&self, draft: &Draft<'_>, target: &str) -> Result<()> {
        let parent = draft.parent.as_ref().map(|(_, below)| below);
        let fits = |info: &Info| {
            info.kind == Kind::Committed
                && info.labels.get(LABEL_SNAPSHOT_REF).is_some_and(|label| label == target)
                && info.parent.as_ref() == parent
        };
        let mut found = None;
        self.backend().walk(&mut |info| {
            if !fits(&info) {
                return ControlFlow::Continue(());
            }
            found = Some(info.name);
            ControlFlow::Break(())
        })?;
        let missing = || Error::not_found(Object::Snapshot, target);
        let backend = found.ok_or_else(missing)?;
        let _held = self.hold(&backend);
        // Looked at again now that the collector cannot take it.
        let below = self.backend().stat(&backend).map_err(|error| self.translate(target, error))?;
        if !fits(&below) {
            return Err(missing());
        }
        let mut labels = below.labels;
        labels.extend(draft.labels.clone());
        let row = SnapshotRow {
            labels,
            backend,
            parent: draft.parent.as_ref().map(|(parent, _)| parent.to_string()),
            created_at: stamp(below.created_at),
            updated_at: stamp(below.updated_at),
            committed: true,
        };
        let (slot, scope) = (draft.slot.sibling(target), self.scope.clone());
        self.db().write(move |tx| {
            slot.attach(tx, &scope)?;
            if slot.load(tx)?.is_none() {
                require_parent(tx, &slot, &row)?;
                slot.store(tx, &row)?;
            }
            Ok(())
        })
    }

    /// Removes a snapshot below that could not be recorded.
    pub(super) fn discard(&self, backend: &str) {
        if let Err(error) = self.backend().remove(backend) {
            tracing::warn!(%error, key = backend, "snapshot left behind for the collector");
        }
    }
}

/// Checks that the parent a record names is still there.
pub(super) fn require_parent(
    tx: &mut WriteTx<'_, '_>,
    slot: &Slot,
    row: &SnapshotRow,
) -> Result<()> {
    match &row.parent {
        Some(parent) => match slot.sibling(parent).load(tx)? {
            Some(_) => Ok(()),
            None => Err(slot.sibling(parent).missing()),
        },
        None => Ok(()),
    }
}

/// Numbers tried before giving up: more than a process can lose in one crash.
pub(super) const NUMBERS_TRIED_MAX: usize = 1024;
