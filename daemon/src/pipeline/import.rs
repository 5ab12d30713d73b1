//! Images out of an archive: everything it holds into the store, as it comes.

use std::sync::Arc;

use bytes::Bytes;
use crated_content::{Commit, Digest, Ingest, Labels, Store, Writer};
use crated_distribution::archive::{ArchiveBlob, ArchiveLimits, ArchiveReader, Contents};
use crated_distribution::{Descriptor, DocumentLimits, ImageConfig};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use super::arrive::{self, QUEUE_LEN_MAX};
use super::fetch::{self, Fetch};
use super::{Error, Result};
use crate::blocking::Panicked;

/// What an archive held, all of it stored.
pub struct Imported {
    /// A document over everything in the archive, where there is one.
    pub index: Option<Descriptor>,
    /// The images, with their names as annotations.
    pub images: Vec<Descriptor>,
}

/// Stores everything that the archive in `stream` holds.
///
/// Blobs whose path promises a digest are held to it; a blob that is stored already is read past.
/// Nothing refers to what was stored when this fails: it goes with the lease of the call.
///
/// # Errors
///
/// [`Error::Registry`] for what the archive holds, [`Error::Content`].
pub async fn import(
    fetch: &Fetch,
    stream: impl AsyncRead + Send + Unpin + 'static,
) -> Result<Imported> {
    let limits = ArchiveLimits::default();
    let documents = limits.documents.clone();
    let mut archive = ArchiveReader::new(stream, limits);
    while let Some(blob) = archive.next().await? {
        store(fetch, blob).await?;
    }
    match archive.finish().await? {
        Contents::Oci(contents) => {
            fetch.document(&contents.descriptor, contents.bytes.clone(), Labels::new()).await?;
            let images = contents.index.manifests;
            Ok(Imported { index: Some(contents.descriptor), images })
        }
        Contents::Docker(found) => {
            let mut images = Vec::new();
            for image in found {
                let config = config(fetch, &image.config, &documents).await?;
                let (manifest, bytes) = image.manifest(&config)?;
                fetch.document(&manifest, bytes, Labels::new()).await?;
                images.extend(image.entries(&manifest));
            }
            Ok(Imported { index: None, images })
        }
    }
}

async fn config(
    fetch: &Fetch,
    descriptor: &Descriptor,
    limits: &DocumentLimits,
) -> Result<ImageConfig> {
    let (store, digest) = (fetch.store.clone(), fetch::digest(&descriptor.digest)?);
    let max = limits.config_bytes_max;
    let read = move || crated_content::read_blob(&*store, &digest, max);
    let bytes = fetch.blocking.quick(read).await?.map_err(Error::content(&descriptor.digest))?;
    Ok(ImageConfig::parse(Bytes::from(bytes), limits)?)
}

/// Stores one blob, and tells the archive what it turned out to be.
async fn store(fetch: &Fetch, mut blob: ArchiveBlob<'_>) -> Result<()> {
    let promised = blob.claimed().map(fetch::digest).transpose()?;
    let Some(open) = open(fetch, promised.clone(), blob.len_bytes()).await? else {
        // The promise is trusted only for what is stored under it already.
        while blob.chunk().await?.is_some() {}
        let claimed = blob.claimed().cloned();
        return match claimed {
            Some(digest) => Ok(blob.stored(digest)?),
            None => Ok(()),
        };
    };
    let (writer, key) = open;
    let (pieces, queue) = mpsc::channel::<Bytes>(QUEUE_LEN_MAX);
    let commit =
        Commit { size_bytes: Some(blob.len_bytes()), digest: promised, labels: Default::default() };
    let (store, blocking) = (fetch.store.clone(), fetch.blocking.clone());
    let stored = tokio::spawn(async move {
        let work = move || arrive::receive_any(&*store, writer, &key, queue, &commit);
        blocking.bulk(work).await
    });
    let sent = send(&mut blob, &pieces).await;
    drop(pieces);
    let stored = stored.await.map_err(|_| Panicked)??;
    match (sent, stored) {
        (Err(error), Ok(_)) => Err(error.into()),
        (_, Err(error)) => Err(error),
        (Ok(()), Ok(None)) => Err(Panicked.into()),
        (Ok(()), Ok(Some(digest))) => {
            super::counters::count(&fetch.shared.counters.blobs_imported);
            let digest = crated_distribution::Digest::parse(digest.as_str())?;
            Ok(blob.stored(digest)?)
        }
    }
}

async fn send(
    blob: &mut ArchiveBlob<'_>,
    pieces: &mpsc::Sender<Bytes>,
) -> crated_distribution::Result<()> {
    while let Some(piece) = blob.chunk().await? {
        if !piece.is_empty() && pieces.send(piece).await.is_err() {
            // The store's refusal closed the queue, and is what the caller reports.
            return Ok(());
        }
    }
    // An empty piece says that the blob is whole; a closed queue alone does not.
    let _ = pieces.send(Bytes::new()).await;
    Ok(())
}

/// A writer for the blob and its reference; nothing when what its path promises is stored.
async fn open(
    fetch: &Fetch,
    promised: Option<Digest>,
    len_bytes: u64,
) -> Result<Option<(Box<dyn Writer>, String)>> {
    // Of its own: an archive cannot be continued where it broke off.
    let key = super::unique("import");
    let mut ingest = Ingest::new(&key).total(len_bytes);
    ingest.expected = promised;
    let store: Arc<dyn Store> = fetch.store.clone();
    let writer = move || {
        let mut writer = store.writer(&ingest)?;
        if writer.status().offset > 0 {
            // Another namespace has the blob. The archive has its bytes too, and shows them.
            writer.truncate()?;
        }
        Ok(writer)
    };
    match fetch.blocking.quick(writer).await? {
        Ok(writer) => Ok(Some((writer, key))),
        Err(crated_content::Error::AlreadyExists(_)) => Ok(None),
        Err(error) => Err(Error::content(key)(error)),
    }
}
