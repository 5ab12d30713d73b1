//! The writer of a namespace: either one of the store below, or none at all because the bytes are
//! there already.

use std::io;
use std::time::SystemTime;

use crated_content::{Commit, Digest, Info, Status, Writer, reader};

use super::ingest::client_reference;
use super::records::publish;
use super::{NamespacedStore, OpenIngest, into_content};
use crate::metadata::holders::Held;
use crate::metadata::{Error, Object, Result, validate};

/// Where the bytes come from.
pub(super) enum Source {
    /// The caller sends them.
    Own(Box<dyn Writer>),
    /// They are in the store below, sent by another namespace.
    Shared { digest: Digest, size_bytes: u64 },
    /// Nowhere: the writer is spent, or opening the store below failed.
    Spent,
}

/// What the ingest is called, by the client and below.
pub(super) struct Names {
    pub(super) reference: String,
    pub(super) backend: String,
}

/// See the module.
pub(super) struct NamespacedWriter {
    // Dropped in this order: the store below lets go before the reference becomes free.
    source: Source,
    store: NamespacedStore,
    names: Names,
    expected: Option<Digest>,
    total: Option<u64>,
    started_at: SystemTime,
    _held: (OpenIngest, Held),
}

impl NamespacedWriter {
    pub(super) fn new(
        store: NamespacedStore,
        names: Names,
        source: Source,
        held: (OpenIngest, Held),
    ) -> Self {
        let started_at = SystemTime::now();
        Self { source, store, names, expected: None, total: None, started_at, _held: held }
    }

    pub(super) fn announce(
        &mut self,
        expected: Option<Digest>,
        total: Option<u64>,
        started_at: SystemTime,
    ) {
        (self.expected, self.total, self.started_at) = (expected, total, started_at);
    }

    /// The writer of the store below; a shared blob becomes its first bytes if `keep`.
    fn own(&mut self, keep: bool) -> Result<&mut Box<dyn Writer>> {
        if let Source::Shared { digest, .. } = &self.source {
            let digest = digest.clone();
            let mut writer = self.store.open_backend(&self.names.backend, None, None)?;
            writer.truncate()?;
            if keep {
                let blob = self.store.backend().reader(&digest)?;
                io::copy(&mut reader(blob), &mut writer)
                    .map_err(|source| copying(&self.names.reference, source))?;
            }
            self.store.record_unshared(&self.names.reference, &self.names.backend)?;
            self.source = Source::Own(writer);
        }
        match &mut self.source {
            Source::Own(writer) => Ok(writer),
            _ => Err(Error::not_found(Object::Ingest, &self.names.reference)),
        }
    }

    fn publish(mut self, commit: &Commit) -> Result<Info> {
        let mut labels = commit.labels.clone();
        labels.retain(|_, value| !value.is_empty());
        validate::labels(&labels)?;
        self.check_lease()?;
        let source = std::mem::replace(&mut self.source, Source::Spent);
        // Whatever digest the blob ends up under is held from before it is published until the
        // record is durable.
        let mut held = Vec::with_capacity(2);
        held.extend(commit.digest.as_ref().map(|digest| self.store.hold_blob(digest)));
        let blob = match source {
            Source::Own(mut writer) => {
                held.push(self.store.hold_blob(&writer.digest()?));
                self.commit_own(writer, commit)?
            }
            Source::Shared { digest, size_bytes } => {
                held.push(self.store.hold_blob(&digest));
                self.commit_shared(digest, size_bytes, commit)?
            }
            Source::Spent => return Err(Error::not_found(Object::Ingest, &self.names.reference)),
        };
        let (scope, reference, backend) =
            (self.store.scope.clone(), self.names.reference.clone(), self.names.backend.clone());
        let (info, existed) = self
            .store
            .db()
            .write(move |tx| publish(tx, &scope, &blob, &labels, (&reference, &backend)))?;
        if existed {
            return Err(Error::already_exists(Object::Content, info.digest.as_str()));
        }
        Ok(info)
    }

    /// A lease that is gone is found out before the blob is published, not after.
    fn check_lease(&self) -> Result<()> {
        use crate::metadata::schema::Table;
        use crate::metadata::txn::View;
        let scope = &self.store.scope;
        let Some(lease) = &scope.lease else { return Ok(()) };
        let at = crate::metadata::rows::address(&scope.namespace, &[lease]);
        if self.store.db().read()?.has(Table::Leases, &at)? {
            return Ok(());
        }
        Err(Error::LeaseNotFound { id: lease.clone() })
    }

    /// Publishes below what was written.
    fn commit_own(&self, writer: Box<dyn Writer>, commit: &Commit) -> Result<(Digest, u64)> {
        let below = Commit {
            size_bytes: commit.size_bytes,
            digest: commit.digest.clone(),
            ..Commit::default()
        };
        match writer.commit(&below) {
            Ok(info) => Ok((info.digest, info.size_bytes)),
            Err(crated_content::Error::AlreadyExists(digest)) => {
                let size_bytes = self.store.backend().info(&digest)?.size_bytes;
                Ok((digest, size_bytes))
            }
            Err(crated_content::Error::IngestNotFound(_)) => {
                Err(Error::not_found(Object::Ingest, &self.names.reference))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Checks the promise against what is below, and that it is still there.
    fn commit_shared(
        &self,
        digest: Digest,
        size_bytes: u64,
        commit: &Commit,
    ) -> Result<(Digest, u64)> {
        if let Some(expected) = commit.size_bytes
            && expected != size_bytes
        {
            let actual = size_bytes;
            return Err(crated_content::Error::SizeMismatch { expected, actual }.into());
        }
        if let Some(expected) = &commit.digest
            && *expected != digest
        {
            let (expected, actual) = (expected.clone(), digest);
            return Err(crated_content::Error::DigestMismatch { expected, actual }.into());
        }
        let info = self.store.backend().info(&digest)?;
        // Bytes sent before the blob turned out to be there are of no use any more.
        match self.store.backend().abort(&self.names.backend) {
            Ok(()) | Err(crated_content::Error::IngestNotFound(_)) => {}
            Err(error) => tracing::warn!(%error, ingest = self.names.backend, "left-over ingest"),
        }
        Ok((digest, info.size_bytes))
    }
}

impl Writer for NamespacedWriter {
    fn status(&self) -> Status {
        match &self.source {
            Source::Own(writer) => {
                let status = writer.status();
                Status {
                    reference: self.names.reference.clone(),
                    total: status.total.or(self.total),
                    expected: self.expected.clone(),
                    ..status
                }
            }
            Source::Shared { digest, size_bytes } => Status {
                reference: self.names.reference.clone(),
                offset: *size_bytes,
                total: Some(*size_bytes),
                expected: Some(digest.clone()),
                started_at: self.started_at,
                updated_at: self.started_at,
            },
            Source::Spent => Status {
                reference: client_reference(&self.names.backend).to_owned(),
                offset: 0,
                total: self.total,
                expected: self.expected.clone(),
                started_at: self.started_at,
                updated_at: self.started_at,
            },
        }
    }

    fn digest(&mut self) -> crated_content::Result<Digest> {
        match &mut self.source {
            Source::Own(writer) => writer.digest(),
            Source::Shared { digest, .. } => Ok(digest.clone()),
            Source::Spent => {
                Err(crated_content::Error::IngestNotFound(self.names.reference.clone()))
            }
        }
    }

    fn truncate(&mut self) -> crated_content::Result<()> {
        self.own(false).map_err(into_content)?.truncate()
    }

    fn commit(self: Box<Self>, commit: &Commit) -> crated_content::Result<Info> {
        self.publish(commit).map_err(into_content)
    }
}

impl io::Write for NamespacedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let written = self.own(true).map_err(io::Error::other)?.write(bytes)?;
        self.store.content.inner.ingested.inc_by(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.source {
            Source::Own(writer) => writer.flush(),
            _ => Ok(()),
        }
    }
}

fn copying(reference: &str, source: io::Error) -> Error {
    Error::Io { op: "copying shared content for", path: reference.into(), source }
}
