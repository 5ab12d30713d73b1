//! The content store as one namespace sees it.
//!
//! Bytes are kept once, in the store below, whoever sent them. Which of them a namespace sees, and
//! under which labels, is recorded here, and so are the ingests under way in it. An ingest called
//! `ref` is kept below as `<namespace>/<number>/<ref>`, so namespaces never meet.
//!
//! A blob is published below before it is recorded, and stays held until the record is durable:
//! a crash in between leaves bytes that nobody knows, which the collector removes, and never a
//! record without bytes.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crated_content::{
    Digest, Info, Ingest, IngestManager, Ingester, LabelUpdate, Manager, Provider, ReaderAt,
    Status, Store, Writer,
};

use super::batch::lock;
use super::record::{BlobRow, time};
use super::schema::Table;
use crate::metrics::Counter;

use super::{Db, Error, Namespace, Object, Result, Scope, key, rows};

mod ingest;
mod records;
mod writer;

/// Whether a namespace may use bytes that another one brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Naming a digest is enough: what is in the store need not be sent again.
    #[default]
    Shared,
    /// Each namespace has to send its bytes, except those recorded in a namespace labelled
    /// `containerd.io/namespace.shareable=true`.
    Isolated,
}

/// The content store of all namespaces.
#[derive(Clone)]
pub struct Content {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    backend: Arc<dyn Store>,
    sharing: Sharing,
    /// Bytes that clients sent.
    ingested: Counter,
    /// Ingests with a live writer, and since when.
    open: Mutex<HashMap<(Namespace, String), SystemTime>>,
}

impl Content {
    /// Puts namespaces over `backend`. Nobody else may write to `backend` from now on.
    pub fn new(db: &Db, backend: Arc<dyn Store>, sharing: Sharing) -> Self {
        let (open, ingested) = (Mutex::default(), Counter::default());
        Self { inner: Arc::new(Inner { db: db.clone(), backend, sharing, ingested, open }) }
    }

    /// Adds the bytes that come in to `ingested`. For the one who has just made the store.
    #[must_use]
    pub fn counting(mut self, ingested: Counter) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.ingested = ingested;
        }
        self
    }

    /// The store as `scope` sees it.
    pub fn scoped(&self, scope: Scope) -> NamespacedStore {
        NamespacedStore { content: self.clone(), scope }
    }

    pub(super) fn backend(&self) -> &Arc<dyn Store> {
        &self.inner.backend
    }

    fn db(&self) -> &Db {
        &self.inner.db
    }
}

/// The content store of one namespace; everything taken in is attached to the lease of the scope.
///
/// Errors that the store's vocabulary has no word for, such as a missing lease, travel inside
/// [`crated_content::Error::Io`]; converting to [`Error`] brings them back.
#[derive(Clone)]
pub struct NamespacedStore {
    pub(super) content: Content,
    scope: Scope,
}

impl NamespacedStore {
    /// On whose behalf the store works.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Attaches a blob to the lease of the scope, and says whether the namespace has it at all.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseNotFound`].
    pub fn attach(&self, digest: &Digest) -> Result<bool> {
        let (scope, digest) = (self.scope.clone(), digest.clone());
        let view = self.content.db().read()?;
        let at = [scope.namespace.as_str(), digest.as_str()];
        if rows::load::<BlobRow>(&view, Table::Blobs, &at)?.is_none() {
            return Ok(false);
        }
        if super::leases::attached(&view, &scope, "content", digest.as_str())? {
            return Ok(true);
        }
        self.content.db().write(move |tx| {
            use super::txn::View;
            if !tx.has(Table::Blobs, &rows::address(&scope.namespace, &[digest.as_str()]))? {
                return Ok(false);
            }
            super::leases::attach(tx, &scope, "content", digest.as_str())?;
            Ok(true)
        })
    }

    fn db(&self) -> &Db {
        self.content.db()
    }

    fn backend(&self) -> &dyn Store {
        &*self.content.inner.backend
    }

    fn not_found(digest: &Digest) -> Error {
        Error::not_found(Object::Content, digest.as_str())
    }

    fn open_reader(&self, digest: &Digest) -> Result<Box<dyn ReaderAt>> {
        self.load(digest)?;
        Ok(self.backend().reader(digest)?)
    }

    fn walk_pages(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        let prefix = key::prefix(&[self.scope.namespace.as_str()]);
        let mut after = None;
        loop {
            // No view stays open while the visitor works, however long it takes.
            let page = self.db().read()?.page(Table::Blobs, &prefix, after.as_deref())?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (at, value) in page {
                let digest = String::from_utf8_lossy(&at[prefix.len()..]).parse::<Digest>()?;
                if visit(info(digest, super::record::Record::load(&value)?)).is_break() {
                    return Ok(());
                }
            }
        }
    }
}

impl Provider for NamespacedStore {
    fn info(&self, digest: &Digest) -> crated_content::Result<Info> {
        self.load(digest).map_err(into_content)
    }

    fn reader(&self, digest: &Digest) -> crated_content::Result<Box<dyn ReaderAt>> {
        self.open_reader(digest).map_err(into_content)
    }
}

impl Ingester for NamespacedStore {
    fn writer(&self, ingest: &Ingest) -> crated_content::Result<Box<dyn Writer>> {
        let writer = self.open_writer(ingest).map_err(into_content)?;
        Ok(Box::new(writer))
    }
}

impl IngestManager for NamespacedStore {
    fn status(&self, reference: &str) -> crated_content::Result<Status> {
        self.ingest_status(reference).map_err(into_content)
    }

    fn statuses(&self) -> crated_content::Result<Vec<Status>> {
        self.ingest_statuses().map_err(into_content)
    }

    fn abort(&self, reference: &str) -> crated_content::Result<()> {
        self.abort_ingest(reference).map_err(into_content)
    }
}

impl Manager for NamespacedStore {
    fn update(&self, digest: &Digest, update: &LabelUpdate) -> crated_content::Result<Info> {
        self.change_labels(digest, update).map_err(into_content)
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> crated_content::Result<()> {
        self.walk_pages(visit).map_err(into_content)
    }

    fn delete(&self, digest: &Digest) -> crated_content::Result<()> {
        self.forget(digest).map_err(into_content)
    }
}

/// The lock of an ingest's reference, given back on drop.
struct OpenIngest {
    content: Content,
    of: (Namespace, String),
}

impl OpenIngest {
    fn take(store: &NamespacedStore, reference: &str) -> Result<Self> {
        let of = (store.scope.namespace.clone(), reference.to_owned());
        let mut open = lock(&store.content.inner.open);
        if let Some(&since) = open.get(&of) {
            let reference = reference.to_owned();
            return Err(crated_content::Error::Locked { reference, since }.into());
        }
        open.insert(of.clone(), SystemTime::now());
        drop(open);
        Ok(Self { content: store.content.clone(), of })
    }
}

impl Drop for OpenIngest {
    fn drop(&mut self) {
        lock(&self.content.inner.open).remove(&self.of);
    }
}

fn info(digest: Digest, row: BlobRow) -> Info {
    Info {
        digest,
        size_bytes: row.size_bytes,
        created_at: time(row.created_at),
        updated_at: time(row.updated_at),
        labels: row.labels,
    }
}

/// The same failure in the words of the content store.
fn into_content(error: Error) -> crated_content::Error {
    use crated_content::Error as Content;
    match error {
        Error::Content(error) => error,
        Error::NotFound { object: Object::Content, id } => match id.parse() {
            Ok(digest) => Content::NotFound(digest),
            Err(error) => error,
        },
        Error::AlreadyExists { object: Object::Content, id } => match id.parse() {
            Ok(digest) => Content::AlreadyExists(digest),
            Err(error) => error,
        },
        Error::NotFound { object: Object::Ingest, id } => Content::IngestNotFound(id),
        Error::InvalidArgument { what, reason } => Content::InvalidArgument {
            what: if what.starts_with("label") { "label" } else { "content request" },
            reason: format!("{what}: {reason}"),
        },
        other => Content::Io {
            op: "recording in",
            path: "metadata".into(),
            source: std::io::Error::other(other),
        },
    }
}
