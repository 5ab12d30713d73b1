//! One collection, start to end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::graph::{Graph, Moment};
use super::mark::Marked;
use super::sweep::Sweep;
use super::{Node, Report, cleanup};
use crate::error::chain;
use crate::metadata::batch::{lock, panic_text};
use crate::metadata::record::NamespaceRow;
use crate::metadata::schema::Table;
use crate::metadata::txn::ReadTx;
use crate::metadata::{Content, Db, Error, Namespace, Result, Snapshots, rows};

/// Collects the garbage of all namespaces.
pub struct Collector {
    db: Db,
    content: Option<Content>,
    snapshots: Vec<Snapshots>,
    reporter: Option<Reporter>,
    pub(super) sweep_len: usize,
}

/// Told of each collection that ended; without a report of one that failed.
type Reporter = Box<dyn Fn(Option<&Report>) + Send + Sync>;

impl Collector {
    /// A collector for the records of `db` and the given stores below, all of which are looked
    /// through in the first collection: a crash may have left things behind.
    pub fn new(db: &Db, content: Option<Content>, snapshots: Vec<Snapshots>) -> Self {
        {
            let mut dirty = lock(&db.inner().dirty);
            dirty.content = content.is_some();
            dirty.snapshotters.extend(snapshots.iter().map(|it| it.name().to_owned()));
        }
        Self { db: db.clone(), content, snapshots, reporter: None, sweep_len: SWEEP_LEN }
    }

    /// Has `reporter` called after each collection, with what it did or nothing when it failed.
    #[must_use]
    pub fn reporting(mut self, reporter: impl Fn(Option<&Report>) + Send + Sync + 'static) -> Self {
        self.reporter = Some(Box::new(reporter));
        self
    }

    /// Collects once, stores below included, and says what was done. Collections of one database
    /// never overlap.
    ///
    /// Blobs and active snapshots younger than `spare` are left alone even when nothing refers to
    /// them: a client may be about to label the blob, or to create the container.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when nothing was removed; [`Error::Collection`] when a store below
    /// failed, naming each one that did. What was left is tried again next time.
    pub fn collect(&self, spare: Option<Duration>) -> Result<Report> {
        let outcome = self.run(spare);
        if let Some(reporter) = &self.reporter {
            reporter(outcome.as_ref().ok());
        }
        outcome
    }

    fn run(&self, spare: Option<Duration>) -> Result<Report> {
        let _alone = lock(&self.db.inner().collecting);
        let started = Instant::now();
        let mut report = Report::default();
        self.collect_records(spare, &mut report, |_| ())?;
        report.elapsed = started.elapsed();
        let started = Instant::now();
        let outcome = self.clean_up(&mut report);
        report.cleanup = started.elapsed();
        tracing::debug!(
            records = report.removed.len(),
            blobs = report.blobs_removed,
            snapshots = report.snapshots_removed,
            elapsed = ?report.elapsed,
            pause = ?report.pause,
            cleanup = ?report.cleanup,
            "garbage collected"
        );
        outcome.map(|()| report)
    }

    /// Marks and sweeps; `meanwhile` runs before each transaction of the sweep, as writers may.
    pub(super) fn collect_records(
        &self,
        spare: Option<Duration>,
        report: &mut Report,
        mut meanwhile: impl FnMut(usize),
    ) -> Result<()> {
        let (view, _barrier) = self.begin()?;
        let moment = Moment { now: SystemTime::now(), spare };
        let namespaces = rows::collect(&view, Table::Namespaces, &[], |name, _: NamespaceRow| {
            name.parse::<Namespace>().map(Some)
        })?;
        let mut marked = Marked::default();
        for namespace in namespaces {
            let graph = Graph::load(&view, &namespace, moment)?;
            marked.add(namespace, graph);
        }
        report.spared = marked.spared;
        drop(view);
        let garbage = marked.take_garbage();
        let sweep = Arc::new(Mutex::new(Sweep::new(marked)));
        meanwhile(0);
        for (number, chunk) in garbage.chunks(self.sweep_len).enumerate() {
            if number > 0 {
                meanwhile(number);
            }
            let (db, chunk, sweep) = (self.db.clone(), chunk.to_vec(), Arc::clone(&sweep));
            let (removed, pause) = self.db.write(move |tx| {
                let started = Instant::now();
                let mut sweep = lock(&sweep);
                let mut touched = match &lock(&db.inner().barrier).log {
                    Some(log) => sweep.news(log),
                    None => Vec::new(),
                };
                touched.extend(in_use(&db));
                let removed = sweep.remove(tx, chunk, touched)?;
                Ok((removed, started.elapsed()))
            })?;
            report.removed.extend(removed);
            report.pause = report.pause.max(pause);
        }
        report.removed.sort_unstable();
        Ok(())
    }

    /// Takes a view and has writers note down from there on what they touch, until the guard is
    /// dropped.
    fn begin(&self) -> Result<(ReadTx, Barrier)> {
        let guard = Barrier(self.db.clone());
        let db = self.db.clone();
        // Within a transaction no commit can slip between the view and the start of the log. The
        // view does not show what this batch has written so far, so the log starts with that.
        let view = self.db.write(move |_| {
            let mut barrier = lock(&db.inner().barrier);
            barrier.log = Some(barrier.batch.clone());
            db.inner().reference_removed.store(false, std::sync::atomic::Ordering::Release);
            db.read()
        })?;
        Ok((view, guard))
    }

    /// Cleans every dirty store up, side by side.
    fn clean_up(&self, report: &mut Report) -> Result<()> {
        let dirty = std::mem::take(&mut *lock(&self.db.inner().dirty));
        let content = self.content.as_ref().filter(|_| dirty.content);
        let snapshots = self.snapshots.iter().filter(|it| dirty.snapshotters.contains(it.name()));
        let mut failures = Vec::new();
        if dirty.network
            && let Some(clean) = self.db.inner().network_cleaner.get()
        {
            match clean() {
                Ok(removed) => report.networks_removed += removed,
                Err(reason) => {
                    failures.push(format!("networks: {reason}"));
                    lock(&self.db.inner().dirty).network = true;
                }
            }
        }
        std::thread::scope(|scope| {
            let content = content.map(|content| {
                scope.spawn(|| guarded(|| cleanup::content(&self.db, &**content.backend())))
            });
            let snapshots: Vec<_> = snapshots
                .map(|it| {
                    let clean = || cleanup::snapshots(&self.db, it.name(), &**it.backend());
                    (it.name(), scope.spawn(move || guarded(clean)))
                })
                .collect();
            if let Some(thread) = content {
                match joined(thread.join()) {
                    Ok(cleaned) => {
                        report.blobs_removed += cleaned.removed;
                        self.again(cleaned.held > 0, None);
                    }
                    Err(error) => {
                        failures.push(format!("content: {}", chain(&error)));
                        self.again(true, None);
                    }
                }
            }
            for (name, thread) in snapshots {
                match joined(thread.join()) {
                    Ok(cleaned) => {
                        report.snapshots_removed += cleaned.removed;
                        self.again(false, (cleaned.held > 0).then_some(name));
                    }
                    Err(error) => {
                        failures.push(format!("snapshotter {name}: {}", chain(&error)));
                        self.again(false, Some(name));
                    }
                }
            }
        });
        if failures.is_empty() {
            return Ok(());
        }
        Err(Error::Collection { reason: failures.join("; ") })
    }

    /// Has the next collection look at a store once more.
    fn again(&self, content: bool, snapshotter: Option<&str>) {
        let mut dirty = lock(&self.db.inner().dirty);
        dirty.content |= content;
        dirty.snapshotters.extend(snapshotter.map(str::to_owned));
    }

    pub(super) fn db(&self) -> &Db {
        &self.db
    }
}

/// Ends the log of touched objects.
struct Barrier(Db);

impl Drop for Barrier {
    fn drop(&mut self) {
        lock(&self.0.inner().barrier).log = None;
    }
}

/// The snapshots that running calls work on.
fn in_use(db: &Db) -> Vec<(Namespace, Node)> {
    let names = db.inner().holders.names();
    names
        .into_iter()
        .filter_map(|(namespace, snapshotter, key)| {
            Some((namespace.parse().ok()?, Node::Snapshot { snapshotter, key }))
        })
        .collect()
}

/// A store below that panics fails its own cleanup and no other.
fn guarded(clean: impl FnOnce() -> Result<cleanup::Cleaned>) -> Result<cleanup::Cleaned> {
    catch_unwind(AssertUnwindSafe(clean))
        .unwrap_or_else(|panic| Err(Error::Internal { reason: panic_text(panic.as_ref()) }))
}

fn joined(outcome: std::thread::Result<Result<cleanup::Cleaned>>) -> Result<cleanup::Cleaned> {
    outcome.unwrap_or_else(|panic| Err(Error::Internal { reason: panic_text(panic.as_ref()) }))
}

/// Records removed in one transaction: writers wait no longer than for these, and there are few
/// enough transactions that collecting 10^5 objects stays a matter of seconds.
const SWEEP_LEN: usize = 512;
