//! Ingests: opening, looking at and dropping blobs on their way in.

use std::time::{Duration, SystemTime};

use crated_content::{Digest, Ingest, REFERENCE_LEN_MAX, Status};

use super::writer::{NamespacedWriter, Source};
use super::{NamespacedStore, OpenIngest, Sharing};
use crate::metadata::gc::Node;
use crate::metadata::holders::Object as Held;
use crate::metadata::leases::{attach, detach};
use crate::metadata::record::{IngestRow, NamespaceRow, stamp, time};
use crate::metadata::schema::Table;
use crate::metadata::txn::{View, WriteTx};
use crate::metadata::{Error, Object, Result, Scope, rows};

/// What opening an ingest found.
enum Opened {
    /// The namespace has the blob; it is attached to the lease.
    Exists(Digest),
    /// The ingest is recorded under this reference of the store below.
    Recorded { backend: String, started_at: SystemTime },
}

impl NamespacedStore {
    pub(super) fn open_writer(&self, ingest: &Ingest) -> Result<NamespacedWriter> {
        check_reference(&ingest.reference)?;
        let open = OpenIngest::take(self, &ingest.reference)?;
        // Held until the ingest is recorded: from then on the record keeps the blob.
        let _blob = ingest.expected.as_ref().map(|digest| self.hold_blob(digest));
        let stored = self.stored(ingest.expected.as_ref())?;
        let shared = match stored {
            Some((ref digest, size_bytes)) => {
                ingest.total.is_none_or(|total| total == size_bytes) && self.may_share(digest)?
            }
            None => false,
        };
        let opened = {
            let (scope, ingest) = (self.scope.clone(), ingest.clone());
            let (exists, size_bytes) = (stored.is_some(), stored.as_ref().map_or(0, |blob| blob.1));
            self.db().write(move |tx| record(tx, &scope, &ingest, exists, shared, size_bytes))?
        };
        let (backend, started_at) = match opened {
            Opened::Exists(digest) => {
                return Err(Error::already_exists(Object::Content, digest.as_str()));
            }
            Opened::Recorded { backend, started_at } => (backend, started_at),
        };
        let held = self.db().inner().holders.share(Held::Ingest(backend.clone()));
        let source = match stored {
            Some((digest, size_bytes)) if shared => Source::Shared { digest, size_bytes },
            _ => Source::Own(self.open_backend(&backend, ingest.total, ingest.expected.clone())?),
        };
        let (reference, expected) = (ingest.reference.clone(), ingest.expected.clone());
        let total = ingest.total;
        let names = super::writer::Names { reference, backend };
        let mut writer = NamespacedWriter::new(self.clone(), names, source, (open, held));
        writer.announce(expected, total, started_at);
        Ok(writer)
    }

    /// Opens the ingest of the store below. A digest that is stored there already is kept from
    /// it: it would refuse what it has, although this namespace has not.
    pub(super) fn open_backend(
        &self,
        backend: &str,
        total: Option<u64>,
        expected: Option<Digest>,
    ) -> Result<Box<dyn crated_content::Writer>> {
        use crated_content::Error as Content;
        let mut ingest = Ingest { reference: backend.to_owned(), total, expected };
        let mut opened = self.backend().writer(&ingest);
        if matches!(opened, Err(Content::AlreadyExists(_))) {
            ingest.expected = None;
            opened = self.backend().writer(&ingest);
        }
        opened.map_err(|error| match error {
            Content::Locked { since, .. } => {
                let reference = client_reference(backend).to_owned();
                Content::Locked { reference, since }.into()
            }
            other => other.into(),
        })
    }

    pub(super) fn hold_blob(&self, digest: &Digest) -> crate::metadata::holders::Held {
        self.db().inner().holders.share(Held::Blob(digest.to_string()))
    }

    /// The blob and its size in bytes, when the store below has it and it is sound.
    pub(super) fn stored(&self, digest: Option<&Digest>) -> Result<Option<(Digest, u64)>> {
        use crated_content::Error as Content;
        let Some(digest) = digest else { return Ok(None) };
        match self.backend().info(digest) {
            Ok(info) => Ok(Some((digest.clone(), info.size_bytes))),
            Err(Content::NotFound(_) | Content::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn may_share(&self, digest: &Digest) -> Result<bool> {
        if self.content.inner.sharing == Sharing::Shared {
            return Ok(true);
        }
        let view = self.db().read()?;
        let shareable = rows::collect(&view, Table::Namespaces, &[], |name, row: NamespaceRow| {
            Ok((row.labels.get(LABEL_SHAREABLE).is_some_and(|value| value == "true"))
                .then_some(name))
        })?;
        for namespace in shareable {
            let at = crate::metadata::key::join(&[&namespace, digest.as_str()]);
            if view.has(Table::Blobs, &at)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn ingest_status(&self, reference: &str) -> Result<Status> {
        let view = self.db().read()?;
        let row = rows::load(&view, Table::Ingests, &[self.scope.namespace.as_str(), reference])?
            .ok_or_else(|| Error::not_found(Object::Ingest, reference))?;
        self.status_of(reference, row)
    }

    pub(super) fn ingest_statuses(&self) -> Result<Vec<Status>> {
        let view = self.db().read()?;
        let namespace = self.scope.namespace.as_str();
        let ingests = rows::collect(&view, Table::Ingests, &[namespace], |reference, row| {
            Ok(Some((reference, row)))
        })?;
        drop(view);
        let mut statuses = Vec::with_capacity(ingests.len());
        for (reference, row) in ingests {
            match self.status_of(&reference, row) {
                Ok(status) => statuses.push(status),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(statuses)
    }

    fn status_of(&self, reference: &str, row: IngestRow) -> Result<Status> {
        if let Some(digest) = row.expected {
            let started_at = time(row.started_at);
            return Ok(Status {
                reference: reference.to_owned(),
                offset: row.size_bytes,
                total: Some(row.size_bytes),
                expected: Some(digest.parse()?),
                started_at,
                updated_at: started_at,
            });
        }
        match self.backend().status(&row.backend) {
            Ok(status) => Ok(Status { reference: reference.to_owned(), ..status }),
            Err(crated_content::Error::IngestNotFound(_)) => {
                Err(Error::not_found(Object::Ingest, reference))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn abort_ingest(&self, reference: &str) -> Result<()> {
        let (scope, reference) = (self.scope.clone(), reference.to_owned());
        let backend = self.db().write(move |tx| {
            let row: IngestRow =
                rows::load(tx, Table::Ingests, &[scope.namespace.as_str(), &reference])?
                    .ok_or_else(|| Error::not_found(Object::Ingest, &reference))?;
            tx.remove(Table::Ingests, rows::address(&scope.namespace, &[&reference]));
            detach(tx, &scope, "ingests", &reference)?;
            // Should the next step fail, the collector does it.
            tx.effects.dirty_content = true;
            Ok(row.backend)
        })?;
        match self.backend().abort(&backend) {
            Ok(()) | Err(crated_content::Error::IngestNotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Records that the ingest receives bytes of its own from now on.
    pub(super) fn record_unshared(&self, reference: &str, backend: &str) -> Result<()> {
        let (namespace, reference, backend) =
            (self.scope.namespace.clone(), reference.to_owned(), backend.to_owned());
        self.db().write(move |tx| {
            let at = [namespace.as_str(), reference.as_str()];
            let row = rows::load::<IngestRow>(tx, Table::Ingests, &at)?;
            if let Some(mut row) = row.filter(|row| row.backend == backend) {
                (row.expected, row.size_bytes) = (None, 0);
                rows::store(tx, Table::Ingests, &namespace, &[&reference], &row)?;
            }
            Ok(())
        })
    }
}

/// Records the ingest, new or again, or finds that it is not needed.
fn record(
    tx: &mut WriteTx<'_, '_>,
    scope: &Scope,
    ingest: &Ingest,
    stored: bool,
    shared: bool,
    size_bytes: u64,
) -> Result<Opened> {
    let namespace = &scope.namespace;
    if let Some(digest) = &ingest.expected
        && stored
        && tx.has(Table::Blobs, &rows::address(namespace, &[digest.as_str()]))?
    {
        attach(tx, scope, "content", digest.as_str())?;
        return Ok(Opened::Exists(digest.clone()));
    }
    attach(tx, scope, "ingests", &ingest.reference)?;
    let at = [namespace.as_str(), ingest.reference.as_str()];
    let now = SystemTime::now();
    let mut row = match rows::load::<IngestRow>(tx, Table::Ingests, &at)? {
        Some(row) => row,
        None => {
            let number = rows::next_number(tx, &["ingests", namespace.as_str()])?;
            let backend = backend_reference(namespace.as_str(), number, &ingest.reference);
            IngestRow { backend, started_at: stamp(now), ..IngestRow::default() }
        }
    };
    row.expires_at = match scope.lease {
        Some(_) => None,
        None => stamp(now + INGEST_LIFETIME),
    };
    row.expected = match &ingest.expected {
        Some(digest) if shared => Some(digest.to_string()),
        _ => None,
    };
    row.size_bytes = if shared { size_bytes } else { 0 };
    tx.touch(namespace, Node::Ingest(ingest.reference.clone()));
    rows::store(tx, Table::Ingests, namespace, &[&ingest.reference], &row)?;
    Ok(Opened::Recorded { started_at: time(row.started_at), backend: row.backend })
}

fn check_reference(reference: &str) -> Result<()> {
    let reason = if reference.is_empty() {
        "must not be empty".to_owned()
    } else if reference.len() > REFERENCE_LEN_MAX {
        format!("longer than {REFERENCE_LEN_MAX} bytes")
    } else if reference.contains('\0') {
        "holds a NUL".to_owned()
    } else {
        return Ok(());
    };
    Err(crated_content::Error::InvalidArgument { what: "reference", reason }.into())
}

/// How the store below calls an ingest. A reference as long as the store allows leaves no room
/// for what is put in front, so such a one is replaced by its digest.
fn backend_reference(namespace: &str, number: u64, reference: &str) -> String {
    let plain = format!("{namespace}/{number}/{reference}");
    if plain.len() <= REFERENCE_LEN_MAX {
        return plain;
    }
    format!("{namespace}/{number}/{}", Digest::of(reference.as_bytes()))
}

/// What the client calls the ingest that the store below calls `backend`.
pub(super) fn client_reference(backend: &str) -> &str {
    backend.splitn(3, '/').nth(2).unwrap_or(backend)
}

/// How long an ingest without lease is kept for its client to come back.
const INGEST_LIFETIME: Duration = Duration::from_secs(24 * 3600);

const LABEL_SHAREABLE: &str = "containerd.io/namespace.shareable";
