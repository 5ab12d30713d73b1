//! Comparing the records with what is below, and recreating records that can be proved.
//!
//! What proves a record:
//!
//! - A record that is there and refers to an object proves that the object was recorded in the
//!   same namespace. Its bytes or files are in the store below, under the very name.
//! - The name of a snapshot below holds its namespace and its key.
//! - The note of a network namespace that is alive holds its namespace and its id.
//! - After the records were lost, a committed snapshot named by the chain of an image's layers
//!   proves that the image was unpacked in that namespace, and so that manifest, configuration and
//!   layers were recorded there.
//!
//! Nothing proves the names of images, the specifications of containers, or leases. What is
//! recreated after a loss is labelled as a root of the collector, so that it stays until somebody
//! has looked at it. Nothing is ever removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

use crated_content::{Digest, Store};
use crated_snapshot::Snapshotter;

use super::record::{BlobRow, ContainerRefs, ImageRow, NamespaceRow, SnapshotRow};
use super::schema::Table;
use super::snapshot::Slot;
use super::txn::ReadTx;
use super::{Db, Namespace, NetnsRecord, Result, rows};

mod content;
mod snapshots;

/// Put on what was recreated after the records were lost, and keeps it from the collector.
pub const LABEL_RECREATED: &str = "containerd.io/gc.root.fsck";

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Finding {
    /// Where: a namespace, or `-` when it concerns none.
    pub namespace: String,
    /// Which object.
    pub object: String,
    /// What is wrong with it, and what a person can do when the repair cannot.
    pub problem: String,
    /// Whether the repair puts it right.
    pub provable: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.namespace, self.object, self.problem)
    }
}

/// What a comparison found, and the records that would put it right.
#[derive(Default)]
pub struct Plan {
    findings: Vec<Finding>,
    blobs: BTreeMap<(Namespace, Digest), BlobRow>,
    snapshots: BTreeMap<(Namespace, String, String), SnapshotRow>,
    netns: Vec<(Namespace, NetnsRecord)>,
}

/// One comparison.
struct Check<'a> {
    view: ReadTx,
    store: &'a dyn Store,
    below: Below,
    plan: Plan,
}

/// What the stores hold.
#[derive(Default)]
struct Below {
    blobs: BTreeMap<Digest, u64>,
    /// By snapshotter and the name below.
    snapshots: BTreeMap<(String, String), crated_snapshot::Info>,
    snapshotters: BTreeSet<String>,
}

impl Plan {
    /// Compares the records of `db` with `store` and `snapshotters`. After a loss, `lost`, more is
    /// recreated than what records refer to.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`](super::Error::Storage), and those of the stores below.
    pub fn make(
        db: &Db,
        store: &dyn Store,
        snapshotters: &[(String, Arc<dyn Snapshotter>)],
        lost: bool,
    ) -> Result<Self> {
        let below = Below::look(store, snapshotters)?;
        let mut check = Check { view: db.read()?, store, below, plan: Self::default() };
        check.recorded_blobs()?;
        check.recorded_snapshots()?;
        if lost {
            check.unrecorded_snapshots()?;
            check.unrecorded_images()?;
        }
        check.containers()?;
        check.images()?;
        check.plan.findings.sort();
        Ok(check.plan)
    }

    /// Compares the records of `db` with the network namespaces that are alive.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`](super::Error::Storage).
    pub fn add_networks(&mut self, db: &Db, alive: Vec<(Namespace, NetnsRecord)>) -> Result<()> {
        let recorded: BTreeSet<String> = db
            .networks()
            .everything()?
            .into_iter()
            .flat_map(|(_, found)| found.netns)
            .map(|record| record.pin)
            .collect();
        for (namespace, record) in alive.into_iter().filter(|(_, it)| !recorded.contains(&it.pin)) {
            let object = format!("network namespace {}", record.id);
            let problem = "it is alive and has no record; labels and links are not known";
            self.note(namespace.as_str(), object, problem.to_owned(), true);
            self.netns.push((namespace, record));
        }
        self.findings.sort();
        Ok(())
    }

    /// What was found, in a fixed order.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Writes the records that are proved, all of them in one transaction.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`](super::Error::Storage); nothing is written then.
    pub fn apply(&self, db: &Db) -> Result<()> {
        let (blobs, snapshots) = (self.blobs.clone(), self.snapshots.clone());
        let netns = self.netns.clone();
        db.write(move |tx| {
            for ((namespace, digest), row) in &blobs {
                rows::store(tx, Table::Blobs, namespace, &[digest.as_str()], row)?;
            }
            for ((namespace, snapshotter, key), row) in &snapshots {
                let slot = Slot {
                    namespace: namespace.clone(),
                    snapshotter: snapshotter.clone(),
                    key: key.clone(),
                };
                slot.store(tx, row)?;
            }
            for (namespace, record) in &netns {
                rows::store(tx, Table::Netns, namespace, &[&record.id], record)?;
            }
            tx.effects.silent = true;
            Ok(())
        })
    }

    fn note(&mut self, namespace: &str, object: String, problem: String, provable: bool) {
        let namespace = namespace.to_owned();
        self.findings.push(Finding { namespace, object, problem, provable });
    }
}

impl Below {
    fn look(store: &dyn Store, snapshotters: &[(String, Arc<dyn Snapshotter>)]) -> Result<Self> {
        let mut below = Self::default();
        store.walk(&mut |info| {
            below.blobs.insert(info.digest, info.size_bytes);
            ControlFlow::Continue(())
        })?;
        for (name, snapshotter) in snapshotters {
            below.snapshotters.insert(name.clone());
            snapshotter.walk(&mut |info| {
                below.snapshots.insert((name.clone(), info.name.clone()), info);
                ControlFlow::Continue(())
            })?;
        }
        Ok(below)
    }
}

impl Check<'_> {
    fn namespaces(&self) -> Result<Vec<Namespace>> {
        rows::collect(&self.view, Table::Namespaces, &[], |name, _: NamespaceRow| {
            name.parse::<Namespace>().map(Some)
        })
    }

    fn containers(&mut self) -> Result<()> {
        for namespace in self.namespaces()? {
            let named = rows::collect(
                &self.view,
                Table::Containers,
                &[namespace.as_str()],
                |id, row: ContainerRefs| Ok(Some((id, row.snapshotter.zip(row.snapshot_key)))),
            )?;
            for (id, snapshot) in named {
                let Some((snapshotter, key)) = snapshot else { continue };
                if !self.want_snapshot(&namespace, &snapshotter, &key)? {
                    let problem = format!("its snapshot {snapshotter}/{key} is gone: recreate it");
                    self.plan.note(namespace.as_str(), format!("container {id}"), problem, false);
                }
            }
        }
        Ok(())
    }

    fn images(&mut self) -> Result<()> {
        for namespace in self.namespaces()? {
            let targets = rows::collect(
                &self.view,
                Table::Images,
                &[namespace.as_str()],
                |name, row: ImageRow| Ok(Some((name, row.digest.parse::<Digest>()?))),
            )?;
            for (name, target) in targets {
                if !self.want_blob(&namespace, &target, 0)? {
                    let problem = format!("its target {target} is gone: pull it again");
                    self.plan.note(namespace.as_str(), format!("image {name}"), problem, false);
                }
            }
        }
        Ok(())
    }
}

/// Now, as records have it.
fn now() -> Option<super::record::Time> {
    super::record::stamp(SystemTime::now())
}
