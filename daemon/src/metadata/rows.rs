//! Reading and writing whole records through a view.

use std::ops::ControlFlow;

use super::record::{NamespaceRow, Record};
use super::schema::Table;
use super::txn::{View, WriteTx};
use super::{Namespace, Result, key};

/// The record at `parts`.
pub(super) fn load<R: Record>(view: &impl View, table: Table, parts: &[&str]) -> Result<Option<R>> {
    view.value(table, &key::join(parts))?.map(|bytes| R::load(&bytes)).transpose()
}

/// Writes the record at `parts`, and its namespace, the first part, if that is new.
pub(super) fn store(
    tx: &mut WriteTx<'_, '_>,
    table: Table,
    namespace: &Namespace,
    parts: &[&str],
    record: &impl Record,
) -> Result<()> {
    ensure_namespace(tx, namespace)?;
    tx.put(table, address(namespace, parts), record.store());
    Ok(())
}

/// The key of `parts` in `namespace`.
pub(super) fn address(namespace: &Namespace, parts: &[&str]) -> Vec<u8> {
    let mut all = Vec::with_capacity(parts.len() + 1);
    all.push(namespace.as_str());
    all.extend_from_slice(parts);
    key::join(&all)
}

/// Creates the namespace unless it is there: the first write into one does.
pub(super) fn ensure_namespace(tx: &mut WriteTx<'_, '_>, namespace: &Namespace) -> Result<()> {
    let at = key::join(&[namespace.as_str()]);
    if !tx.has(Table::Namespaces, &at)? {
        tx.put(Table::Namespaces, at, NamespaceRow::default().store());
    }
    Ok(())
}

/// Calls `visit` with the last name and the record of everything below `parts`, in name order.
pub(super) fn each<R: Record>(
    view: &impl View,
    table: Table,
    parts: &[&str],
    mut visit: impl FnMut(String, R) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let prefix = key::prefix(parts);
    view.scan(table, &prefix, &mut |key, value| {
        let name = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
        visit(name, R::load(value)?)
    })
}

/// Calls `visit` with the last name and the record of everything below `parts`.
pub(super) fn visit<R: Record>(
    view: &impl View,
    table: Table,
    parts: &[&str],
    mut visit: impl FnMut(String, R) -> Result<()>,
) -> Result<()> {
    each(view, table, parts, |name, record| {
        visit(name, record)?;
        Ok(ControlFlow::Continue(()))
    })
}

/// Calls `visit` with the last two names and the record of everything below `parts`.
pub(super) fn visit_pairs<R: Record>(
    view: &impl View,
    table: Table,
    parts: &[&str],
    mut visit: impl FnMut(String, String, R) -> Result<()>,
) -> Result<()> {
    let prefix = key::prefix(parts);
    view.scan(table, &prefix, &mut |key, value| {
        if let Some([first, last]) = key::split::<2>(&key[prefix.len()..]) {
            visit(first, last, R::load(value)?)?;
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// The records below `parts` that `pick` makes something of, in name order.
pub(super) fn collect<R: Record, T>(
    view: &impl View,
    table: Table,
    parts: &[&str],
    mut pick: impl FnMut(String, R) -> Result<Option<T>>,
) -> Result<Vec<T>> {
    let mut picked = Vec::new();
    each(view, table, parts, |name, record| {
        picked.extend(pick(name, record)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(picked)
}

/// The next number of a sequence. Numbers are never given out twice.
pub(super) fn next_number(tx: &mut WriteTx<'_, '_>, parts: &[&str]) -> Result<u64> {
    let next = number(tx, parts)? + 1;
    raise_number(tx, parts, next)?;
    Ok(next)
}

/// The last number of a sequence, 0 before the first.
pub(super) fn number(view: &impl View, parts: &[&str]) -> Result<u64> {
    Ok(view
        .value(Table::Sequences, &key::join(parts))?
        .and_then(|bytes| <[u8; 8]>::try_from(bytes.as_slice()).ok())
        .map_or(0, u64::from_le_bytes))
}

/// Makes `number` the last of a sequence unless a higher one is.
pub(super) fn raise_number(tx: &mut WriteTx<'_, '_>, parts: &[&str], last: u64) -> Result<()> {
    if last > number(tx, parts)? {
        tx.put(Table::Sequences, key::join(parts), last.to_le_bytes().to_vec());
    }
    Ok(())
}
