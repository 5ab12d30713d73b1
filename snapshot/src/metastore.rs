//! The parent and child graph of snapshots, shared by implementors.
//!
//! One database file holds five tables:
//!
//! ```text
//! snapshots  key or name       -> JSON of Record
//! children   (parent, child)   -> ()
//! counters   "last_id"         -> greatest id ever given out
//!            "format"          -> version of this layout
//!            "boot_*", "device" -> where the file was last open (module `settled`)
//! unsettled  id                -> name, committed but perhaps not on the disk
//! lost       key or name       -> () (module `settled`)
//! ```
//!
//! Ids name directories. They only grow, so a directory whose id is not in
//! the database belongs to nobody: its snapshot was removed, or was never
//! finished.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;
use std::time::SystemTime;

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::snapshotter::{CommitOptions, Info, Key, Kind, LabelUpdate, Labels, Name, Usage};

mod settled;

/// When a committed snapshot reaches the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// Many together: a commit returns at once, marked as unsettled, and one
    /// flush of the filesystem settles all of them, seconds later or in
    /// [`settle`](crate::Snapshotter::settle). What a power cut finds unsettled
    /// is gone when the snapshotter is next opened, with all that stood on it,
    /// and can be made again; the end of a process alone costs nothing.
    #[default]
    Batched,
    /// Before the call returns: the filesystem is flushed, then the record is
    /// written durably. Commits side by side share a flush.
    EachCommit,
    /// With the next `sync` or `cleanup`. Until then a crash takes back every
    /// change since the last one, as if it had not been asked for; a committed
    /// snapshot is complete or absent, never damaged.
    Deferred,
    /// Whenever the kernel likes. After a power cut a committed snapshot may
    /// hold empty files and nobody will know: for roots that do not outlive
    /// the machine.
    Never,
}

/// The graph of snapshots of one snapshotter, in one file.
///
/// Every method is one transaction. Those that change something run one after
/// the other; reading never waits.
#[derive(Debug)]
pub struct MetaStore {
    database: Database,
    sync: SyncMode,
    /// Held while the filesystem is flushed: those who wait find it done.
    settling: Mutex<()>,
}

/// One snapshot as its implementor sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Names its directory, from active to committed.
    pub id: u64,
    /// What callers know about it.
    pub info: Info,
    /// Ids of the layers below, nearest first.
    pub parent_ids: Vec<u64>,
    /// What it occupied when it was committed.
    pub usage: Usage,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    id: u64,
    parent: Option<String>,
    kind: StoredKind,
    labels: Labels,
    created_at: SystemTime,
    updated_at: SystemTime,
    size_bytes: u64,
    inodes: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredKind {
    View,
    Active,
    Committed,
}

type SnapshotTable = TableDefinition<'static, &'static str, &'static [u8]>;

const SNAPSHOTS: SnapshotTable = TableDefinition::new("snapshots");
const CHILDREN: TableDefinition<'static, (&str, &str), ()> = TableDefinition::new("children");
const COUNTERS: TableDefinition<'static, &str, u64> = TableDefinition::new("counters");

/// Version of the layout drawn above.
const FORMAT: u64 = 1;

/// A snapshotter's records are small and few; the engine's default of one
/// gigabyte is meant for other databases.
const CACHE_BYTES: usize = 8 << 20;

/// Longest chain followed. The kernel stacks 500 lower directories; twice that
/// ends the walk on a damaged database.
const CHAIN_LENGTH_MAX: usize = 1000;

impl MetaStore {
    /// Opens or makes the database file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Metadata`], also when another process has it open or a newer
    /// version has written it.
    pub fn open(path: &Path, sync: SyncMode) -> Result<Self> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|e| Error::metadata("open", e))?;
        let store = Self { database, sync, settling: Mutex::default() };
        let place = settled::Place::of(path)?;
        store.write_with(Durability::Immediate, |tx| {
            tx.open_table(SNAPSHOTS).map_err(table)?;
            tx.open_table(CHILDREN).map_err(table)?;
            let mut counters = tx.open_table(COUNTERS).map_err(table)?;
            let format = counters.get("format").map_err(storage)?.map(|v| v.value());
            match format {
                Some(FORMAT) => {}
                None => drop(counters.insert("format", FORMAT).map_err(storage)?),
                Some(other) => {
                    let reason = format!("metadata format {other}, this version knows {FORMAT}");
                    return Err(Error::Unsupported { reason });
                }
            }
            drop(counters);
            settled::arrive(tx, place)
        })?;
        Ok(store)
    }

    /// The snapshot of this key or name, with its chain.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Metadata`].
    pub fn snapshot(&self, key: &str) -> Result<Snapshot> {
        let tx = self.database.begin_read().map_err(|e| Error::metadata("read", e))?;
        let snapshots = tx.open_table(SNAPSHOTS).map_err(table)?;
        let record = load(&snapshots, key)?;
        snapshot_of(&snapshots, key, record)
    }

    /// What callers know about the snapshot of this key or name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Metadata`].
    pub fn info(&self, key: &str) -> Result<Info> {
        let tx = self.database.begin_read().map_err(|e| Error::metadata("read", e))?;
        let snapshots = tx.open_table(SNAPSHOTS).map_err(table)?;
        load(&snapshots, key)?.info(key)
    }

    /// The snapshot of this key, if it is one that has mounts.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Metadata`];
    /// [`Error::FailedPrecondition`] for a committed one.
    pub fn mountable(&self, key: &Key) -> Result<Snapshot> {
        let snapshot = self.snapshot(key.as_str())?;
        match snapshot.info.kind {
            Kind::Active | Kind::View => Ok(snapshot),
            Kind::Committed => {
                Err(Error::precondition(key.as_str(), "is committed, not mountable"))
            }
        }
    }

    /// What a snapshot occupies: what `measure` finds for an active one, else
    /// what is recorded.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Metadata`], and those of `measure`.
    pub fn usage(
        &self,
        key: &str,
        measure: impl FnOnce(&Snapshot) -> Result<Usage>,
    ) -> Result<Usage> {
        let snapshot = self.snapshot(key)?;
        match snapshot.info.kind {
            Kind::Active => measure(&snapshot),
            Kind::View | Kind::Committed => Ok(snapshot.usage),
        }
    }

    /// Records a new snapshot and lets `make` put its directory in place
    /// before the record counts.
    ///
    /// # Errors
    ///
    /// Those of [`Snapshotter::prepare`](crate::Snapshotter::prepare), and
    /// those of `make`, after which nothing was recorded.
    pub fn create(
        &self,
        kind: Kind,
        key: &Key,
        parent: Option<&Name>,
        labels: &Labels,
        make: impl FnOnce(&Snapshot) -> Result<()>,
    ) -> Result<Snapshot> {
        self.write(|tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS).map_err(table)?;
            if snapshots.get(key.as_str()).map_err(storage)?.is_some() {
                return Err(Error::AlreadyExists(key.to_string()));
            }
            if let Some(parent) = parent {
                if !matches!(load(&snapshots, parent.as_str())?.kind, StoredKind::Committed) {
                    let reason = format!("{:?} is not committed", parent.as_str());
                    return Err(Error::invalid("parent", reason));
                }
                let mut children = tx.open_table(CHILDREN).map_err(table)?;
                children.insert((parent.as_str(), key.as_str()), ()).map_err(storage)?;
            }
            let now = SystemTime::now();
            let record = Record {
                id: next_id(tx)?,
                parent: parent.map(Name::to_string),
                kind: kind.into(),
                labels: labels.clone(),
                created_at: now,
                updated_at: now,
                size_bytes: 0,
                inodes: 0,
            };
            store(&mut snapshots, key.as_str(), &record)?;
            settled::made(tx, key.as_str())?;
            let snapshot = snapshot_of(&snapshots, key.as_str(), record)?;
            make(&snapshot)?;
            Ok(snapshot)
        })
    }

    /// Records that the active snapshot `id` of `key` is now committed as
    /// `name`, after `finish` has done what is left to do on disk.
    ///
    /// # Errors
    ///
    /// Those of [`Snapshotter::commit`](crate::Snapshotter::commit), and those
    /// of `finish`, after which nothing was recorded.
    pub fn commit(
        &self,
        name: &Name,
        key: &Key,
        options: &CommitOptions,
        usage: Usage,
        finish: impl FnOnce(&Snapshot) -> Result<()>,
    ) -> Result<Snapshot> {
        self.write(|tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS).map_err(table)?;
            let mut children = tx.open_table(CHILDREN).map_err(table)?;
            let mut record = committable(&snapshots, name, key, options)?;
            if let Some(parent) = record.parent.clone().or(options.parent.clone().map(String::from))
            {
                children.remove((parent.as_str(), key.as_str())).map_err(storage)?;
                children.insert((parent.as_str(), name.as_str()), ()).map_err(storage)?;
                record.parent = Some(parent);
            }
            snapshots.remove(key.as_str()).map_err(storage)?;
            let now = SystemTime::now();
            record.kind = StoredKind::Committed;
            record.labels.clone_from(&options.labels);
            (record.created_at, record.updated_at) = (now, now);
            (record.size_bytes, record.inodes) = (usage.size_bytes, usage.inodes);
            store(&mut snapshots, name.as_str(), &record)?;
            settled::made(tx, name.as_str())?;
            if self.sync == SyncMode::Batched {
                settled::committed(tx, record.id, name.as_str())?;
            }
            let snapshot = snapshot_of(&snapshots, name.as_str(), record)?;
            finish(&snapshot)?;
            Ok(snapshot)
        })
    }

    /// Says whether [`commit`](Self::commit) would be refused, so that the
    /// costly part before it can be spared.
    ///
    /// # Errors
    ///
    /// Those of [`commit`](Self::commit).
    pub fn check_commit(
        &self,
        name: &Name,
        key: &Key,
        options: &CommitOptions,
    ) -> Result<Snapshot> {
        let tx = self.database.begin_read().map_err(|e| Error::metadata("read", e))?;
        let snapshots = tx.open_table(SNAPSHOTS).map_err(table)?;
        let record = committable(&snapshots, name, key, options)?;
        snapshot_of(&snapshots, key.as_str(), record)
    }

    /// Forgets a snapshot after `release` has put its directory out of use.
    ///
    /// # Errors
    ///
    /// Those of [`Snapshotter::remove`](crate::Snapshotter::remove), and those
    /// of `release`, after which the snapshot is still recorded.
    pub fn remove(
        &self,
        key: &str,
        release: impl FnOnce(&Snapshot) -> Result<()>,
    ) -> Result<Snapshot> {
        self.write(|tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS).map_err(table)?;
            let mut children = tx.open_table(CHILDREN).map_err(table)?;
            let record = load(&snapshots, key)?;
            let first = children.range((key, "")..).map_err(storage)?.next().transpose();
            if let Some((pair, _)) = first.map_err(storage)?
                && pair.value().0 == key
            {
                return Err(Error::precondition(key, "has children"));
            }
            let snapshot = snapshot_of(&snapshots, key, record)?;
            if let Some(parent) = &snapshot.info.parent {
                children.remove((parent.as_str(), key)).map_err(storage)?;
            }
            snapshots.remove(key).map_err(storage)?;
            settled::removed(tx, snapshot.id)?;
            release(&snapshot)?;
            Ok(snapshot)
        })
    }

    /// Changes the labels of a snapshot.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Metadata`].
    pub fn update(&self, key: &str, labels: &LabelUpdate) -> Result<Info> {
        self.write(|tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS).map_err(table)?;
            let mut record = load(&snapshots, key)?;
            record.labels = labels.apply(&record.labels);
            record.updated_at = SystemTime::now();
            store(&mut snapshots, key, &record)?;
            record.info(key)
        })
    }

    /// Calls `visit` with the id and the info of every snapshot of one moment,
    /// until it breaks.
    ///
    /// # Errors
    ///
    /// [`Error::Metadata`].
    pub fn walk(&self, visit: &mut dyn FnMut(u64, Info) -> ControlFlow<()>) -> Result<()> {
        let tx = self.database.begin_read().map_err(|e| Error::metadata("read", e))?;
        let snapshots = tx.open_table(SNAPSHOTS).map_err(table)?;
        for entry in snapshots.iter().map_err(storage)? {
            let (key, value) = entry.map_err(storage)?;
            let record = parse(value.value())?;
            if visit(record.id, record.info(key.value())?).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Calls `f` with the ids and kinds of all snapshots while none can be
    /// made, committed or removed.
    ///
    /// # Errors
    ///
    /// [`Error::Metadata`], and those of `f`.
    pub fn with_ids<T>(&self, f: impl FnOnce(&BTreeMap<u64, Kind>) -> Result<T>) -> Result<T> {
        self.write(|tx| {
            let snapshots = tx.open_table(SNAPSHOTS).map_err(table)?;
            let mut ids = BTreeMap::new();
            for entry in snapshots.iter().map_err(storage)? {
                let (_, value) = entry.map_err(storage)?;
                let record = parse(value.value())?;
                ids.insert(record.id, record.kind.into());
            }
            f(&ids)
        })
    }

    /// Makes every transaction so far durable.
    ///
    /// Flush the filesystem first: records of snapshots must not outlive what
    /// they describe.
    ///
    /// # Errors
    ///
    /// [`Error::Metadata`].
    pub fn flush(&self) -> Result<()> {
        self.write_with(Durability::Immediate, |_| Ok(()))
    }

    fn write<T>(&self, f: impl FnOnce(&WriteTransaction) -> Result<T>) -> Result<T> {
        let durability = match self.sync {
            SyncMode::Deferred => Durability::None,
            SyncMode::Batched | SyncMode::EachCommit | SyncMode::Never => Durability::Immediate,
        };
        self.write_with(durability, f)
    }

    /// Runs `f` in a transaction that counts only if `f` succeeds.
    fn write_with<T>(
        &self,
        durability: Durability,
        f: impl FnOnce(&WriteTransaction) -> Result<T>,
    ) -> Result<T> {
        let mut tx = self.database.begin_write().map_err(|e| Error::metadata("begin", e))?;
        tx.set_durability(durability).map_err(|e| Error::metadata("begin", e))?;
        match f(&tx) {
            Ok(value) => {
                tx.commit().map_err(|e| Error::metadata("commit", e))?;
                Ok(value)
            }
            Err(error) => {
                tx.abort().map_err(|e| Error::metadata("abort", e))?;
                Err(error)
            }
        }
    }
}

impl Snapshot {
    /// For use inside [`MetaStore::commit`]: fails if the key was removed and
    /// taken again since `self` was read.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn ensure_same(&self, later: &Self) -> Result<()> {
        match self.id == later.id {
            true => Ok(()),
            false => Err(Error::NotFound(self.info.name.clone())),
        }
    }
}

impl Record {
    fn info(&self, key: &str) -> Result<Info> {
        Ok(Info {
            name: key.to_owned(),
            parent: self.parent.as_deref().map(Name::new).transpose()?,
            kind: self.kind.into(),
            labels: self.labels.clone(),
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

impl From<Kind> for StoredKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::View => Self::View,
            Kind::Active => Self::Active,
            Kind::Committed => Self::Committed,
        }
    }
}

impl From<StoredKind> for Kind {
    fn from(kind: StoredKind) -> Self {
        match kind {
            StoredKind::View => Self::View,
            StoredKind::Active => Self::Active,
            StoredKind::Committed => Self::Committed,
        }
    }
}

/// The record of `key` if it may be committed as `name`.
fn committable(
    snapshots: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &Name,
    key: &Key,
    options: &CommitOptions,
) -> Result<Record> {
    if snapshots.get(name.as_str()).map_err(storage)?.is_some() {
        return Err(Error::AlreadyExists(name.to_string()));
    }
    let record = load(snapshots, key.as_str())?;
    if !matches!(record.kind, StoredKind::Active) {
        return Err(Error::precondition(key.as_str(), "is not active"));
    }
    let Some(wanted) = &options.parent else { return Ok(record) };
    match &record.parent {
        Some(parent) if parent == wanted.as_str() => {}
        Some(parent) => {
            let reason = format!("{:?} asked for, {parent:?} is set", wanted.as_str());
            return Err(Error::invalid("parent", reason));
        }
        None => {
            let parent = load(snapshots, wanted.as_str())?;
            if !matches!(parent.kind, StoredKind::Committed) {
                return Err(Error::precondition(wanted.as_str(), "is not committed"));
            }
        }
    }
    Ok(record)
}

fn snapshot_of(
    snapshots: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
    record: Record,
) -> Result<Snapshot> {
    let mut parent_ids = Vec::new();
    let mut next = record.parent.clone();
    while let Some(name) = next {
        if parent_ids.len() == CHAIN_LENGTH_MAX {
            let reason = format!("has more than {CHAIN_LENGTH_MAX} layers below it");
            return Err(Error::precondition(key, reason));
        }
        let parent = load(snapshots, &name)?;
        parent_ids.push(parent.id);
        next = parent.parent;
    }
    let usage = Usage { size_bytes: record.size_bytes, inodes: record.inodes };
    Ok(Snapshot { id: record.id, info: record.info(key)?, parent_ids, usage })
}

fn load(snapshots: &impl ReadableTable<&'static str, &'static [u8]>, key: &str) -> Result<Record> {
    match snapshots.get(key).map_err(storage)? {
        Some(value) => parse(value.value()),
        None => Err(Error::NotFound(key.to_owned())),
    }
}

fn store(
    snapshots: &mut redb::Table<'_, &'static str, &'static [u8]>,
    key: &str,
    record: &Record,
) -> Result<()> {
    let value = serde_json::to_vec(record)
        .map_err(|e| Error::metadata("encode", std::io::Error::from(e)))?;
    snapshots.insert(key, value.as_slice()).map_err(storage)?;
    Ok(())
}

fn parse(value: &[u8]) -> Result<Record> {
    serde_json::from_slice(value).map_err(|e| Error::metadata("decode", std::io::Error::from(e)))
}

fn next_id(tx: &WriteTransaction) -> Result<u64> {
    let mut counters = tx.open_table(COUNTERS).map_err(table)?;
    let last = counters.get("last_id").map_err(storage)?.map_or(0, |value| value.value());
    let id = last + 1;
    counters.insert("last_id", id).map_err(storage)?;
    Ok(id)
}

fn table(error: redb::TableError) -> Error {
    Error::metadata("open table of", error)
}

fn storage(error: redb::StorageError) -> Error {
    Error::metadata("access", error)
}
