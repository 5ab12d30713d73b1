//! What is stored, as something that can be fetched: the source of exports, of pushes and of
//! images that came in an archive.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use crated_content::{ReaderAt, Store};
use crated_distribution::{Body, Chunks, Descriptor, Error, Fetcher, Result};
use tokio::task::JoinHandle;

use crate::blocking::Blocking;

/// Bytes of one read: large enough to make the hop to another thread cheap.
const CHUNK_BYTES: u64 = 512 << 10;

/// Reads blobs of one namespace.
pub struct Stored {
    /// Where they are.
    pub store: Arc<dyn Store>,
    /// Where reading runs.
    pub blocking: Blocking,
}

#[async_trait]
impl Fetcher for Stored {
    async fn fetch(&self, descriptor: &Descriptor, offset: u64) -> Result<Body> {
        let what = descriptor.digest.to_string();
        let digest = super::fetch::digest(&descriptor.digest)
            .map_err(|_| Error::NotFound { what: what.clone() })?;
        let store = self.store.clone();
        let opened = self.blocking.quick(move || store.reader(&digest)).await;
        let blob: Arc<dyn ReaderAt> = match opened.map_err(|error| failed(&what, error))? {
            Ok(blob) => blob.into(),
            Err(crated_content::Error::NotFound(_)) => {
                return Err(Error::NotFound { what: format!("content {what}") });
            }
            Err(error) => return Err(failed(&what, error)),
        };
        let end = blob.size_bytes();
        if end != descriptor.size_bytes {
            let reason = format!("has {end} bytes, its descriptor says {}", descriptor.size_bytes);
            return Err(Error::InvalidDocument { what, reason });
        }
        if offset > end {
            let reason = format!("{offset} is behind the end of {what}");
            return Err(Error::InvalidArgument { what: "offset", reason });
        }
        let mut chunks = Reading {
            blob,
            what: what.clone(),
            offset,
            end,
            blocking: self.blocking.clone(),
            ahead: None,
        };
        chunks.read_ahead();
        Ok(Body::new(what, Box::new(chunks), end - offset))
    }
}

/// A blob that is being read, one piece ahead.
struct Reading {
    blob: Arc<dyn ReaderAt>,
    what: String,
    offset: u64,
    end: u64,
    blocking: Blocking,
    ahead: Option<JoinHandle<Result<Bytes>>>,
}

impl Reading {
    fn read_ahead(&mut self) {
        let (offset, length) = (self.offset, CHUNK_BYTES.min(self.end - self.offset));
        if length == 0 {
            return;
        }
        self.offset += length;
        let (blob, what) = (Arc::clone(&self.blob), self.what.clone());
        let blocking = self.blocking.clone();
        self.ahead = Some(tokio::spawn(async move {
            let named = what.clone();
            let read = move || {
                let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
                let mut filled = 0;
                while filled < bytes.len() {
                    match blob.read_at(&mut bytes[filled..], offset + filled as u64) {
                        Ok(0) => {
                            let have = offset + filled as u64;
                            let want = offset + length;
                            return Err(Error::UnexpectedEof { what: named, have, want });
                        }
                        Ok(count) => filled += count,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(failed(&named, error)),
                    }
                }
                Ok(bytes.into())
            };
            blocking.bulk(read).await.map_err(|error| failed(&what, error))?
        }));
    }
}

#[async_trait]
impl Chunks for Reading {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let Some(ahead) = self.ahead.take() else { return Ok(None) };
        let bytes = ahead.await.map_err(|error| failed(&self.what, error))??;
        self.read_ahead();
        Ok(Some(bytes))
    }
}

fn failed(what: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Io { op: "read", path: what.into(), source: std::io::Error::other(error) }
}
