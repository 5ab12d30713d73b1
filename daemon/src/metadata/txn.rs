//! Views of the database: a snapshot to read, and a transaction in which one operation stages its
//! writes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use redb::{ReadOnlyTable, ReadableTable};

use super::engine::Engine;
use super::events::Event;
use super::gc::Node;
use super::schema::Table;
use super::{Error, Namespace, Result};

type Bytes = &'static [u8];

/// Something records can be read from.
pub(super) trait View {
    /// The value of `key`.
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Calls `visit` with each entry whose key starts with `prefix`, in key order.
    fn scan(&self, table: Table, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()>;

    /// Whether any key starts with `prefix`.
    fn any(&self, table: Table, prefix: &[u8]) -> Result<bool> {
        let mut found = false;
        self.scan(table, prefix, &mut |_, _| {
            found = true;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// Whether `key` has a value.
    fn has(&self, table: Table, key: &[u8]) -> Result<bool> {
        Ok(self.value(table, key)?.is_some())
    }
}

pub(super) type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>> + 'v;

/// The database as it stood at one commit. Never waits, never changes.
pub(super) struct ReadTx {
    tables: Vec<ReadOnlyTable<Bytes, Bytes>>,
    path: std::sync::Arc<Path>,
}

impl ReadTx {
    pub(super) fn begin(engine: &Engine) -> Result<Self> {
        let transaction = engine.begin_read()?;
        let path = engine.path.clone();
        let tables = Table::ALL
            .into_iter()
            .map(|table| transaction.open_table(table.definition()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| storage("reading", &path, error.into()))?;
        Ok(Self { tables, path })
    }

    /// The next entries whose keys start with `prefix`, behind the key `after`; empty at the end.
    pub(super) fn page(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        use std::ops::Bound;
        let failed = |error: redb::StorageError| storage("reading", &self.path, error.into());
        let start = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let mut page = Vec::new();
        let range = (start, Bound::Unbounded);
        for entry in self.tables[table.index()].range::<&[u8]>(range).map_err(failed)? {
            let (key, value) = entry.map_err(failed)?;
            if !key.value().starts_with(prefix) || page.len() == PAGE_LEN {
                break;
            }
            page.push((key.value().to_vec(), value.value().to_vec()));
        }
        Ok(page)
    }
}

impl View for ReadTx {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = ReadableTable::get(&self.tables[table.index()], key)
            .map_err(|error| storage("reading", &self.path, error.into()))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn scan(&self, table: Table, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        scan_table(&self.tables[table.index()], &self.path, prefix, visit)
    }
}

/// The tables of the transaction a batch of operations shares.
pub(super) struct Tables<'txn> {
    tables: Vec<redb::Table<'txn, Bytes, Bytes>>,
    path: std::sync::Arc<Path>,
}

impl<'txn> Tables<'txn> {
    pub(super) fn open(
        transaction: &'txn redb::WriteTransaction,
        path: &std::sync::Arc<Path>,
    ) -> Result<Self> {
        let tables = Table::ALL
            .into_iter()
            .map(|table| transaction.open_table(table.definition()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| storage("opening the tables of", path, error.into()))?;
        Ok(Self { tables, path: path.clone() })
    }

    /// Applies what one operation staged.
    pub(super) fn apply(&mut self, staged: Staged) -> Result<()> {
        for ((table, key), value) in staged {
            let table = &mut self.tables[table.index()];
            let outcome = match value {
                Some(value) => table.insert(key.as_slice(), value.as_slice()).map(drop),
                None => table.remove(key.as_slice()).map(drop),
            };
            outcome.map_err(|error| storage("writing", &self.path, error.into()))?;
        }
        Ok(())
    }
}

/// Writes of one operation: the new value of a key, or `None` for a key removed.
pub(super) type Staged = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// One operation inside a shared transaction.
///
/// What it writes is staged here and applied only when it succeeds, so an operation that fails
/// leaves nothing behind and does not disturb those sharing the transaction with it.
pub(super) struct WriteTx<'a, 'txn> {
    tables: &'a Tables<'txn>,
    staged: Staged,
    pub(super) effects: Effects,
}

/// What one operation did beside writing.
#[derive(Default)]
pub(super) struct Effects {
    /// Published once the transaction is durable, in order.
    pub(super) events: Vec<(Namespace, Event)>,
    /// Objects created or changed: a collection under way must not count on their old state.
    pub(super) touched: Vec<(Namespace, Node)>,
    /// The collector's own work, which must not be the reason for more of it.
    pub(super) silent: bool,
    /// A reference was removed, so something may have become garbage.
    pub(super) dirty: bool,
    /// The deletion of a network has begun.
    pub(super) dirty_network: bool,
    /// The content store may hold blobs or ingests nobody knows.
    pub(super) dirty_content: bool,
    /// These snapshotters may hold snapshots nobody knows.
    pub(super) dirty_snapshotters: Vec<String>,
}

impl<'a, 'txn> WriteTx<'a, 'txn> {
    pub(super) fn new(tables: &'a Tables<'txn>) -> Self {
        Self { tables, staged: Staged::new(), effects: Effects::default() }
    }

    pub(super) fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.staged.insert((table, key), Some(value));
    }

    pub(super) fn remove(&mut self, table: Table, key: Vec<u8>) {
        self.staged.insert((table, key), None);
    }

    pub(super) fn emit(&mut self, namespace: &Namespace, event: Event) {
        self.effects.events.push((namespace.clone(), event));
    }

    pub(super) fn touch(&mut self, namespace: &Namespace, node: Node) {
        self.effects.touched.push((namespace.clone(), node));
    }

    pub(super) fn finish(self) -> (Staged, Effects) {
        (self.staged, self.effects)
    }
}

impl View for WriteTx<'_, '_> {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        // One lookup allocates a key; operations make a handful.
        if let Some(staged) = self.staged.get(&(table, key.to_vec())) {
            return Ok(staged.clone());
        }
        let value = self.tables.tables[table.index()]
            .get(key)
            .map_err(|error| storage("reading", &self.tables.path, error.into()))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn scan(&self, table: Table, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        let mut staged = self
            .staged
            .range((table, prefix.to_vec())..)
            .take_while(|((at, key), _)| *at == table && key.starts_with(prefix))
            .map(|((_, key), value)| (key.as_slice(), value.as_deref()))
            .peekable();
        let mut broke = false;
        let stored = &self.tables.tables[table.index()];
        scan_table(stored, &self.tables.path, prefix, &mut |key, value| {
            // Staged entries in front of, then in place of, the stored one.
            while let Some((staged_key, staged_value)) = staged.next_if(|(at, _)| *at <= key) {
                if let Some(staged_value) = staged_value
                    && visit(staged_key, staged_value)?.is_break()
                {
                    broke = true;
                    return Ok(ControlFlow::Break(()));
                }
                if staged_key == key {
                    return Ok(ControlFlow::Continue(()));
                }
            }
            let flow = visit(key, value)?;
            broke = flow.is_break();
            Ok(flow)
        })?;
        for (key, value) in staged {
            if broke {
                break;
            }
            if let Some(value) = value {
                broke = visit(key, value)?.is_break();
            }
        }
        Ok(())
    }
}

fn scan_table(
    table: &impl ReadableTable<Bytes, Bytes>,
    path: &Path,
    prefix: &[u8],
    visit: &mut Visit<'_>,
) -> Result<()> {
    let failed = |error: redb::StorageError| storage("reading", path, error.into());
    for entry in table.range(prefix..).map_err(failed)? {
        let (key, value) = entry.map_err(failed)?;
        let key = key.value();
        if !key.starts_with(prefix) || visit(key, value.value())?.is_break() {
            break;
        }
    }
    Ok(())
}

pub(super) fn storage(step: &'static str, path: &Path, error: redb::Error) -> Error {
    Error::Storage { step, path: path.to_owned(), source: std::sync::Arc::new(error) }
}

/// Records read at a time when walking: bounds memory, and how long a view stays open.
const PAGE_LEN: usize = 256;
