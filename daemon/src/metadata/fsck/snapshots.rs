//! Records of snapshots.

use crated_snapshot::{Info, Kind};

use super::{Check, LABEL_RECREATED};
use crate::metadata::record::{SnapshotRow, stamp};
use crate::metadata::schema::Table;
use crate::metadata::txn::View;
use crate::metadata::{Namespace, Result, key, rows};

impl Check<'_> {
    /// Snapshots that are recorded without being there, and parents that are not recorded.
    pub(super) fn recorded_snapshots(&mut self) -> Result<()> {
        for namespace in self.namespaces()? {
            let mut recorded = Vec::new();
            let within = [namespace.as_str()];
            rows::visit_pairs(
                &self.view,
                Table::Snapshots,
                &within,
                |snapshotter, key, row: SnapshotRow| {
                    recorded.push((snapshotter, key, row));
                    Ok(())
                },
            )?;
            for (snapshotter, key, row) in recorded {
                if !self.below.snapshotters.contains(&snapshotter) {
                    // Not looked at: a proxy's, or out of use on this host.
                    continue;
                }
                let object = format!("snapshot {snapshotter}/{key}");
                if !self.below.snapshots.contains_key(&(snapshotter.clone(), row.backend)) {
                    let problem = "its files are gone: remove it".to_owned();
                    self.plan.note(namespace.as_str(), object.clone(), problem, false);
                }
                if let Some(parent) = row.parent
                    && !self.want_snapshot(&namespace, &snapshotter, &parent)?
                {
                    let problem = format!("its parent {parent} is gone: remove it");
                    self.plan.note(namespace.as_str(), object, problem, false);
                }
            }
        }
        Ok(())
    }

    /// Makes sure that a snapshot which something refers to is recorded, with its parents; `false`
    /// when there is nothing to record.
    pub(super) fn want_snapshot(
        &mut self,
        namespace: &Namespace,
        snapshotter: &str,
        key: &str,
    ) -> Result<bool> {
        if self.has_snapshot(namespace, snapshotter, key)?
            || !self.below.snapshotters.contains(snapshotter)
        {
            return Ok(true);
        }
        let found = self.below.snapshots.iter().find(|((of, name), _)| {
            of == snapshotter && parse(name) == Some((namespace.as_str(), key))
        });
        match found.map(|(_, info)| info.clone()) {
            Some(info) => self.recreate(namespace, snapshotter, key, &info, false).map(|()| true),
            None => Ok(false),
        }
    }

    /// After a loss: every snapshot whose name below says where it belongs.
    pub(super) fn unrecorded_snapshots(&mut self) -> Result<()> {
        let below: Vec<(String, Info)> =
            self.below.snapshots.iter().map(|((of, _), info)| (of.clone(), info.clone())).collect();
        for (snapshotter, info) in below {
            if self.view.any(Table::Backends, &key::prefix(&[&snapshotter, &info.name]))? {
                continue;
            }
            let named = parse(&info.name)
                .and_then(|(namespace, key)| Some((namespace.parse::<Namespace>().ok()?, key)));
            match named {
                Some((namespace, key)) if !self.has_snapshot(&namespace, &snapshotter, key)? => {
                    let key = key.to_owned();
                    self.recreate(&namespace, &snapshotter, &key, &info, true)?;
                }
                Some(_) => {}
                None => {
                    let object = format!("snapshot {snapshotter}/{}", info.name);
                    let problem = "was not made by this daemon, the next collection removes it";
                    self.plan.note("-", object, problem.to_owned(), false);
                }
            }
        }
        Ok(())
    }

    fn has_snapshot(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<bool> {
        let slot = (namespace.clone(), snapshotter.to_owned(), key.to_owned());
        let at = rows::address(namespace, &[snapshotter, key]);
        Ok(self.plan.snapshots.contains_key(&slot) || self.view.has(Table::Snapshots, &at)?)
    }

    fn recreate(
        &mut self,
        namespace: &Namespace,
        snapshotter: &str,
        key: &str,
        info: &Info,
        root: bool,
    ) -> Result<()> {
        let mut labels = info.labels.clone();
        if root {
            labels.insert(LABEL_RECREATED.to_owned(), "unnamed snapshot".to_owned());
        }
        let parent = match &info.parent {
            Some(parent) => Some(self.key_of(snapshotter, parent.as_str(), namespace)?),
            None => None,
        };
        let row = SnapshotRow {
            labels,
            backend: info.name.clone(),
            parent: parent.clone(),
            created_at: stamp(info.created_at),
            updated_at: stamp(info.updated_at),
            committed: info.kind == Kind::Committed,
        };
        let slot = (namespace.clone(), snapshotter.to_owned(), key.to_owned());
        self.plan.snapshots.insert(slot, row);
        let object = format!("snapshot {snapshotter}/{key}");
        let problem = "is stored without a record".to_owned();
        self.plan.note(namespace.as_str(), object, problem, true);
        if let Some(parent) = parent {
            self.want_snapshot(namespace, snapshotter, &parent)?;
        }
        Ok(())
    }

    /// What `namespace` calls the snapshot that is called `backend` below.
    fn key_of(&self, snapshotter: &str, backend: &str, namespace: &Namespace) -> Result<String> {
        let prefix = key::prefix(&[snapshotter, backend, namespace.as_str()]);
        let mut recorded = None;
        self.view.scan(Table::Backends, &prefix, &mut |at, _| {
            recorded = Some(String::from_utf8_lossy(&at[prefix.len()..]).into_owned());
            Ok(std::ops::ControlFlow::Break(()))
        })?;
        let named = || parse(backend).map_or(backend, |(_, key)| key).to_owned();
        Ok(recorded.unwrap_or_else(named))
    }
}

/// Namespace and key of a name below: `<namespace>/<number>/<key>`.
fn parse(backend: &str) -> Option<(&str, &str)> {
    let (namespace, rest) = backend.split_once('/')?;
    let (number, key) = rest.split_once('/')?;
    number.parse::<u64>().ok()?;
    (!key.is_empty()).then_some((namespace, key))
}
