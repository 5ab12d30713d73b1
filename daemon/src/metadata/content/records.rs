//! Records of blobs: what a namespace sees.

use std::time::SystemTime;

use crated_content::{Digest, Info, LabelUpdate, Labels};

use super::{NamespacedStore, info};
use crate::metadata::gc::Node;
use crate::metadata::leases::{attach, detach};
use crate::metadata::record::{BlobRow, IngestRow, stamp};
use crate::metadata::schema::Table;
use crate::metadata::txn::{View, WriteTx};
use crate::metadata::{Event, Result, Scope, rows, validate};

impl NamespacedStore {
    pub(super) fn load(&self, digest: &Digest) -> Result<Info> {
        let view = self.db().read()?;
        rows::load(&view, Table::Blobs, &[self.scope.namespace.as_str(), digest.as_str()])?
            .map(|row| info(digest.clone(), row))
            .ok_or_else(|| Self::not_found(digest))
    }

    pub(super) fn change_labels(&self, digest: &Digest, update: &LabelUpdate) -> Result<Info> {
        let (namespace, digest, update) =
            (self.scope.namespace.clone(), digest.clone(), update.clone());
        self.db().write(move |tx| {
            let at = [namespace.as_str(), digest.as_str()];
            let mut row: BlobRow =
                rows::load(tx, Table::Blobs, &at)?.ok_or_else(|| Self::not_found(&digest))?;
            row.labels = update.apply(&row.labels);
            validate::labels(&row.labels)?;
            row.updated_at = stamp(SystemTime::now());
            tx.touch(&namespace, Node::Content(digest.clone()));
            rows::store(tx, Table::Blobs, &namespace, &[digest.as_str()], &row)?;
            Ok(info(digest, row))
        })
    }

    pub(super) fn forget(&self, digest: &Digest) -> Result<()> {
        let (scope, digest) = (self.scope.clone(), digest.clone());
        self.db().write(move |tx| {
            let at = rows::address(&scope.namespace, &[digest.as_str()]);
            if !tx.has(Table::Blobs, &at)? {
                return Err(Self::not_found(&digest));
            }
            tx.remove(Table::Blobs, at);
            detach(tx, &scope, "content", digest.as_str())?;
            tx.effects.dirty = true;
            tx.effects.dirty_content = true;
            tx.emit(&scope.namespace, Event::ContentDelete { digest });
            Ok(())
        })
    }
}

/// Makes a published blob visible, ends its ingest and attaches it to the caller's lease; says
/// whether it was visible before, in which case its record stays as it was.
pub(super) fn publish(
    tx: &mut WriteTx<'_, '_>,
    scope: &Scope,
    blob: &(Digest, u64),
    labels: &Labels,
    ingest: (&str, &str),
) -> Result<(Info, bool)> {
    let (digest, size_bytes) = blob;
    let namespace = &scope.namespace;
    let (reference, backend) = ingest;
    if let Some(row) =
        rows::load::<IngestRow>(tx, Table::Ingests, &[namespace.as_str(), reference])?
        && row.backend == backend
    {
        tx.remove(Table::Ingests, rows::address(namespace, &[reference]));
        detach(tx, scope, "ingests", reference)?;
    }
    attach(tx, scope, "content", digest.as_str())?;
    let at = [namespace.as_str(), digest.as_str()];
    if let Some(row) = rows::load::<BlobRow>(tx, Table::Blobs, &at)? {
        tx.touch(namespace, Node::Content(digest.clone()));
        return Ok((info(digest.clone(), row), true));
    }
    let now = stamp(SystemTime::now());
    let row = BlobRow {
        labels: labels.clone(),
        size_bytes: *size_bytes,
        created_at: now,
        updated_at: now,
    };
    tx.touch(namespace, Node::Content(digest.clone()));
    rows::store(tx, Table::Blobs, namespace, &[digest.as_str()], &row)?;
    tx.emit(namespace, Event::ContentCreate { digest: digest.clone(), size_bytes: *size_bytes });
    Ok((info(digest.clone(), row), false))
}
