//! One blob from a registry into the content store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crated_content::{Commit, Ingest, Labels, Store, Writer};
use crated_distribution::{Descriptor, Fetcher, Progress, State, walk};
use tokio::sync::mpsc;

use super::arrive::{self, QUEUE_LEN_MAX, Tee};
use super::counters::{count, count_by};
use super::flight::Flight;
use super::{Error, Result, Shared};
use crate::blocking::{Blocking, Panicked};

/// How long to wait before looking again whether a client still writes the same blob.
const LOCKED_WAIT_MIN: Duration = Duration::from_millis(20);
const LOCKED_WAIT_MAX: Duration = Duration::from_millis(500);

/// Where blobs come from and go to.
#[derive(Clone)]
pub struct Fetch {
    /// The source.
    pub fetcher: Arc<dyn Fetcher>,
    /// The destination, as one namespace and lease see it.
    pub store: Arc<dyn Store>,
    /// Where writing runs.
    pub blocking: Blocking,
    /// Told of every step.
    pub progress: Progress,
    /// What all pulls of the daemon have in common.
    pub shared: Arc<Shared>,
}

/// A blob that has to be fetched; nobody else fetches it meanwhile.
pub(super) struct Missing {
    writer: Box<dyn Writer>,
    key: String,
    _flight: Flight,
}

impl Missing {
    /// How many bytes need not be fetched: an earlier attempt, or another namespace, has them.
    pub(super) fn offset(&self) -> u64 {
        self.writer.status().offset
    }
}

impl Fetch {
    /// Brings `descriptor` into the store with `labels`; success also when it was there.
    ///
    /// An ingest that an earlier attempt left is continued. Of a body that turns out to be wrong
    /// nothing is kept.
    ///
    /// # Errors
    ///
    /// [`Error::Registry`], [`Error::Content`].
    pub async fn blob(&self, descriptor: &Descriptor, labels: Labels) -> Result<()> {
        match self.missing(descriptor).await? {
            Some(missing) => self.arrive(descriptor, missing, labels, None).await.map(drop),
            None => Ok(()),
        }
    }

    /// Stores a document that is in memory already.
    ///
    /// # Errors
    ///
    /// [`Error::Content`].
    pub async fn document(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
        labels: Labels,
    ) -> Result<()> {
        let Some(missing) = self.missing(descriptor).await? else { return Ok(()) };
        let Missing { mut writer, key, _flight } = missing;
        let commit = terms(descriptor, labels)?;
        let (store, name) = (self.store.clone(), key.clone());
        self.blocking
            .bulk(move || {
                writer.truncate().map_err(Error::content(&name))?;
                arrive::write(&mut *writer, &name, &bytes)?;
                arrive::finish(&*store, writer, &name, &commit)
            })
            .await??;
        count(&self.shared.counters.blobs_fetched);
        self.progress.state(&key, State::Complete);
        Ok(())
    }

    /// Whether the blob has to be fetched. Waits for whoever fetches it already.
    pub(super) async fn missing(&self, descriptor: &Descriptor) -> Result<Option<Missing>> {
        let key = walk::reference_key(descriptor);
        let flight = self.shared.fetches.enter(descriptor.digest.as_str()).await;
        if flight.waited() {
            count(&self.shared.counters.fetches_awaited);
        }
        match self.open(descriptor, &key).await? {
            Some(writer) => Ok(Some(Missing { writer, key, _flight: flight })),
            None => {
                count(&self.shared.counters.blobs_found);
                self.progress.state(&key, State::Exists);
                Ok(None)
            }
        }
    }

    /// Fetches what is missing into the store, and into `tee`.
    ///
    /// When another place has the blob too and this one sent something else, it is fetched again
    /// from there, though not for the tee: that has seen the wrong bytes. Says whether it has
    /// seen the right ones.
    pub(super) async fn arrive(
        &self,
        descriptor: &Descriptor,
        missing: Missing,
        labels: Labels,
        tee: Option<Tee>,
    ) -> Result<bool> {
        let Missing { writer, key, _flight } = missing;
        let _timer = self.shared.metrics.stage("fetch");
        let mut outcome = self.transfer(descriptor, &key, writer, labels.clone(), tee).await;
        let mut at_once = true;
        while is_wrong(&outcome) && self.fetcher.distrust(&descriptor.digest) {
            tracing::warn!(digest = %descriptor.digest, "wrong bytes, asking elsewhere");
            let Some(writer) = self.open(descriptor, &key).await? else { break };
            outcome = self.transfer(descriptor, &key, writer, labels.clone(), None).await;
            at_once = false;
        }
        let state = if outcome.is_ok() { State::Complete } else { State::Failed };
        if outcome.is_ok() {
            count(&self.shared.counters.blobs_fetched);
        }
        self.progress.state(&key, state);
        outcome.map(|()| at_once)
    }

    /// A writer for the blob, or nothing when the blob is there. A client that writes the same
    /// blob is waited for.
    async fn open(&self, descriptor: &Descriptor, key: &str) -> Result<Option<Box<dyn Writer>>> {
        let ingest =
            Ingest::new(key).total(descriptor.size_bytes).expected(digest(&descriptor.digest)?);
        let mut wait = LOCKED_WAIT_MIN;
        loop {
            let (store, ingest) = (self.store.clone(), ingest.clone());
            match self.blocking.quick(move || store.writer(&ingest)).await? {
                Ok(writer) => return Ok(Some(writer)),
                Err(crated_content::Error::AlreadyExists(_)) => return Ok(None),
                Err(crated_content::Error::Locked { .. }) => tokio::time::sleep(wait).await,
                Err(error) => return Err(Error::content(key)(error)),
            }
            wait = (wait * 2).min(LOCKED_WAIT_MAX);
        }
    }

    async fn transfer(
        &self,
        descriptor: &Descriptor,
        key: &str,
        writer: Box<dyn Writer>,
        labels: Labels,
        tee: Option<Tee>,
    ) -> Result<()> {
        let offset = writer.status().offset.min(descriptor.size_bytes);
        let (pieces, queue) = mpsc::channel::<Bytes>(QUEUE_LEN_MAX);
        let commit = terms(descriptor, labels)?;
        let (store, name, blocking) = (self.store.clone(), key.to_owned(), self.blocking.clone());
        let stored = tokio::spawn(async move {
            let work = move || arrive::receive(&*store, writer, &name, queue, &commit, tee);
            blocking.bulk(work).await
        });
        let sent = self.send(descriptor, key, offset, &pieces).await;
        if sent.is_ok() {
            // An empty piece says that the body is whole; a closed queue alone does not.
            let _ = pieces.send(Bytes::new()).await;
        }
        drop(pieces);
        let stored = stored.await.map_err(|_| Panicked)??;
        match (sent, stored) {
            // The store's refusal closed the queue, and is the cause.
            (_, Err(error)) => Err(error),
            (Err(Some(error)), _) => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads the body into the queue. `Err(None)` when the queue was closed.
    async fn send(
        &self,
        descriptor: &Descriptor,
        key: &str,
        offset: u64,
        pieces: &mpsc::Sender<Bytes>,
    ) -> Result<(), Option<Error>> {
        let failed = |error: crated_distribution::Error| Some(Error::from(error));
        if offset == descriptor.size_bytes {
            return Ok(());
        }
        let body = self.fetcher.fetch(descriptor, offset).await.map_err(failed)?;
        let mut body = self.progress.body(key, body, offset);
        while let Some(piece) = body.chunk().await.map_err(failed)? {
            count_by(&self.shared.counters.bytes_fetched, piece.len() as u64);
            if !piece.is_empty() {
                pieces.send(piece).await.map_err(|_| None)?;
            }
        }
        Ok(())
    }
}

fn is_wrong(outcome: &Result<()>) -> bool {
    use crated_content::Error::{DigestMismatch, SizeMismatch};
    matches!(
        outcome,
        Err(Error::Content { source: DigestMismatch { .. } | SizeMismatch { .. }, .. })
    )
}

fn terms(descriptor: &Descriptor, labels: Labels) -> Result<Commit> {
    Ok(Commit {
        size_bytes: Some(descriptor.size_bytes),
        digest: Some(digest(&descriptor.digest)?),
        labels,
    })
}

/// The store's type of a registry's digest. Both parse the same text.
pub fn digest(digest: &crated_distribution::Digest) -> Result<crated_content::Digest> {
    digest.as_str().parse().map_err(Error::content(digest))
}
