//! Committing: an active snapshot becomes a layer.

use std::time::SystemTime;

use crated_snapshot::{CommitOptions, Key, Name};

use super::create::{NUMBERS_TRIED_MAX, require_parent};
use super::records::without_empty;
use super::{NamespacedSnapshotter, backend_key, inherited, sequence};
use crate::metadata::record::{SnapshotRow, stamp};
use crate::metadata::{Error, Event, Object, Result, rows, validate};

impl NamespacedSnapshotter {
    pub(super) fn publish(&self, name: &str, key: &str, options: &CommitOptions) -> Result<()> {
        let labels = without_empty(options.labels.clone());
        validate::labels(&labels)?;
        let _names = self.own_names([name, key]);
        self.check_lease()?;
        self.refuse_taken(name)?;
        let active = self.load(key)?;
        let parent = match (&active.parent, &options.parent) {
            // Put on top of a parent now.
            (None, Some(parent)) => Some(parent.as_str()),
            (own, _) => own.as_deref(),
        };
        let _parent_record = parent.map(|parent| self.hold_parent(parent));
        let demanded = match &options.parent {
            Some(parent) => Some(Name::new(self.load(parent.as_str())?.backend)?),
            None => None,
        };
        let _below = [
            Some(self.hold(&active.backend)),
            demanded.as_ref().map(|demanded| self.hold(demanded.as_str())),
        ];
        let options = CommitOptions { labels: inherited(&labels), parent: demanded };
        let (backend, number, _held) = self.commit_below(name, key, &active.backend, &options)?;
        let now = stamp(SystemTime::now());
        let row = SnapshotRow {
            labels,
            backend: backend.clone(),
            parent: parent.map(str::to_owned),
            created_at: now,
            updated_at: now,
            committed: true,
        };
        let recorded = self.record_commit(name, key, row, number);
        if recorded.is_err() {
            self.discard(&backend);
        }
        recorded
    }

    /// Commits below, under a name that is free there; returns that name, held.
    fn commit_below(
        &self,
        name: &str,
        key: &str,
        active: &str,
        options: &CommitOptions,
    ) -> Result<(String, u64, crate::metadata::holders::Held)> {
        let active = Key::new(active)?;
        for _ in 0..NUMBERS_TRIED_MAX {
            let number = self.snapshots.inner.next_number(&self.scope.namespace)?;
            let backend = backend_key(&self.scope.namespace, number, name);
            let held = self.hold(&backend);
            match self.backend().commit(&Name::new(backend.clone())?, &active, options) {
                Ok(()) => return Ok((backend, number, held)),
                // Left over from before a crash: the number is used up.
                Err(crated_snapshot::Error::AlreadyExists(_)) => {}
                Err(error) => return Err(self.translate(key, error)),
            }
        }
        Err(Error::Internal { reason: format!("no free number for snapshot {name:?}") })
    }

    fn record_commit(&self, name: &str, key: &str, row: SnapshotRow, number: u64) -> Result<()> {
        let (committed, active, scope) = (self.slot(name), self.slot(key), self.scope.clone());
        self.db().write(move |tx| {
            committed.attach(tx, &scope)?;
            if committed.load(tx)?.is_some() {
                return Err(Error::already_exists(Object::Snapshot, committed.key));
            }
            let before = active.load(tx)?.ok_or_else(|| active.missing())?;
            require_parent(tx, &committed, &row)?;
            active.erase(tx, &before);
            active.detach(tx, &scope)?;
            let numbers = sequence(committed.namespace.as_str(), &committed.snapshotter);
            rows::raise_number(tx, &numbers, number)?;
            committed.store(tx, &row)?;
            tx.emit(
                &committed.namespace,
                Event::SnapshotCommit {
                    key: active.key,
                    name: committed.key.clone(),
                    snapshotter: committed.snapshotter.clone(),
                },
            );
            Ok(())
        })
    }
}
