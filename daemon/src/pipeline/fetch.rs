//! One blob from a registry into the content store.
//!
//! The network side is async, the store blocks; a short queue joins them, so that the bytes in
//! flight are bounded whatever the blob's size. The store verifies size and digest at commit.

use std::sync::Arc;

use bytes::Bytes;
use crated_content::{Commit, Ingest, Labels, Store, Writer};
use crated_distribution::{Descriptor, Fetcher, Progress, State, walk};
use tokio::sync::mpsc;

use super::{Error, Result};
use crate::blocking::Blocking;

/// Pieces between the network and the store. A piece is what one read of a socket brings, at most
/// some hundred KiB.
const QUEUE_LEN_MAX: usize = 16;

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
        let key = walk::reference_key(descriptor);
        let Some(writer) = self.open(descriptor, &key).await? else {
            self.progress.state(&key, State::Exists);
            return Ok(());
        };
        let outcome = self.transfer(descriptor, &key, writer, labels).await;
        let state = if outcome.is_ok() { State::Complete } else { State::Failed };
        self.progress.state(&key, state);
        outcome
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
        let key = walk::reference_key(descriptor);
        let Some(mut writer) = self.open(descriptor, &key).await? else {
            self.progress.state(&key, State::Exists);
            return Ok(());
        };
        let commit = terms(descriptor, labels)?;
        let (store, name) = (self.store.clone(), key.clone());
        self.blocking
            .bulk(move || {
                writer.truncate().map_err(Error::content(&name))?;
                write(&mut *writer, &name, &bytes)?;
                finish(&*store, writer, &name, &commit)
            })
            .await??;
        self.progress.state(&key, State::Complete);
        Ok(())
    }

    /// A writer for the blob, or nothing when the blob is there.
    async fn open(&self, descriptor: &Descriptor, key: &str) -> Result<Option<Box<dyn Writer>>> {
        let ingest =
            Ingest::new(key).total(descriptor.size_bytes).expected(digest(&descriptor.digest)?);
        let (store, name) = (self.store.clone(), key.to_owned());
        let opened = self.blocking.quick(move || store.writer(&ingest)).await?;
        match opened {
            Ok(writer) => Ok(Some(writer)),
            Err(crated_content::Error::AlreadyExists(_)) => Ok(None),
            Err(error) => Err(Error::content(name)(error)),
        }
    }

    async fn transfer(
        &self,
        descriptor: &Descriptor,
        key: &str,
        writer: Box<dyn Writer>,
        labels: Labels,
    ) -> Result<()> {
        let offset = writer.status().offset.min(descriptor.size_bytes);
        let (pieces, queue) = mpsc::channel::<Bytes>(QUEUE_LEN_MAX);
        let commit = terms(descriptor, labels)?;
        let (store, name) = (self.store.clone(), key.to_owned());
        let stored = tokio::spawn({
            let blocking = self.blocking.clone();
            async move { blocking.bulk(move || receive(&*store, writer, name, queue, &commit)).await }
        });
        let sent = self.send(descriptor, key, offset, &pieces).await;
        let complete = sent.is_ok();
        if complete {
            // An empty piece says that the body is whole; a closed queue alone does not.
            let _ = pieces.send(Bytes::new()).await;
        }
        drop(pieces);
        let stored = stored.await.map_err(|_| crate::blocking::Panicked)??;
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
            if !piece.is_empty() {
                pieces.send(piece).await.map_err(|_| None)?;
            }
        }
        Ok(())
    }
}

/// Writes what arrives; commits when the body was whole, keeps it for later when it was not.
fn receive(
    store: &dyn Store,
    mut writer: Box<dyn Writer>,
    key: String,
    mut queue: mpsc::Receiver<Bytes>,
    commit: &Commit,
) -> Result<()> {
    while let Some(piece) = queue.blocking_recv() {
        if piece.is_empty() {
            return finish(store, writer, &key, commit);
        }
        write(&mut *writer, &key, &piece)?;
    }
    Ok(())
}

fn write(writer: &mut dyn Writer, key: &str, bytes: &[u8]) -> Result<()> {
    writer.write_all(bytes).map_err(|source| {
        Error::content(key)(crated_content::Error::Io { op: "write", path: key.into(), source })
    })
}

/// Commits. Bytes that turn out to be wrong are dropped, so that nobody resumes from them.
fn finish(store: &dyn Store, writer: Box<dyn Writer>, key: &str, commit: &Commit) -> Result<()> {
    use crated_content::Error::{AlreadyExists, DigestMismatch, SizeMismatch};
    match writer.commit(commit) {
        Ok(_) | Err(AlreadyExists(_)) => Ok(()),
        Err(error @ (DigestMismatch { .. } | SizeMismatch { .. })) => {
            if let Err(left) = store.abort(key) {
                tracing::warn!(ingest = key, error = %left, "wrong bytes were not dropped");
            }
            Err(Error::content(key)(error))
        }
        Err(error) => Err(Error::content(key)(error)),
    }
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
