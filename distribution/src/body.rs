//! Bytes on their way: bodies that come out of fetchers, sources that go into pushers.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use crate::descriptor::Descriptor;
use crate::error::{Error, Result};
use crate::resolver::Fetcher;

/// Something that yields bytes in order, in pieces of its own choosing.
#[async_trait]
pub trait Chunks: Send {
    /// The next piece, `None` after the last one. Never an empty piece.
    async fn chunk(&mut self) -> Result<Option<Bytes>>;

    /// Where they come from right now, when that is a host.
    fn whence(&self) -> Option<Whence> {
        None
    }
}

/// Where a body comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Whence {
    /// The host that served it last.
    pub host: Arc<str>,
    /// How often it had to be opened again, because it broke or was too slow.
    pub resumes: u32,
}

/// A body of known length.
///
/// It ends successfully only after exactly [`Body::len_bytes`] bytes; a shorter one fails with
/// [`Error::UnexpectedEof`], a longer one with [`Error::Oversized`]. The *content* is checked by
/// [`Verifier`](crate::Verifier), since a body may begin in the middle of a blob.
///
/// Dropping a body closes what is behind it.
pub struct Body {
    chunks: Box<dyn Chunks>,
    what: String,
    len_bytes: u64,
    position_bytes: u64,
    done: bool,
}

impl Body {
    /// A body of `len_bytes` bytes out of `chunks`; `what` names it in errors.
    pub fn new(what: impl Into<String>, chunks: Box<dyn Chunks>, len_bytes: u64) -> Self {
        Self { chunks, what: what.into(), len_bytes, position_bytes: 0, done: false }
    }

    /// A body that is in memory already.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let len_bytes = bytes.len() as u64;
        Self::new("bytes in memory", Box::new(Once(Some(bytes))), len_bytes)
    }

    /// How many bytes the whole body has, counted from where it was opened.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Where it comes from right now, when that is a host.
    pub fn whence(&self) -> Option<Whence> {
        self.chunks.whence()
    }

    /// How many bytes were handed out.
    pub fn position_bytes(&self) -> u64 {
        self.position_bytes
    }

    /// The next piece, `None` once the promised length was reached.
    ///
    /// # Errors
    ///
    /// [`Error::UnexpectedEof`] and [`Error::Oversized`] for a wrong length, and whatever the
    /// transport reports after it gave up resuming. After an error the body yields nothing more.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        if self.done {
            return Ok(None);
        }
        match self.chunks.chunk().await {
            Ok(Some(bytes)) => {
                let next = self.position_bytes + bytes.len() as u64;
                if next > self.len_bytes {
                    self.done = true;
                    return Err(Error::Oversized { what: self.what.clone(), want: self.len_bytes });
                }
                self.position_bytes = next;
                Ok(Some(bytes))
            }
            Ok(None) => {
                self.done = true;
                if self.position_bytes < self.len_bytes {
                    return Err(Error::UnexpectedEof {
                        what: self.what.clone(),
                        have: self.position_bytes,
                        want: self.len_bytes,
                    });
                }
                Ok(None)
            }
            Err(error) => {
                self.done = true;
                Err(error)
            }
        }
    }

    /// Reads the rest into memory.
    ///
    /// # Errors
    ///
    /// [`Error::LimitExceeded`] before anything is read when the length is above `limit_bytes`;
    /// otherwise as [`Body::chunk`].
    pub async fn collect(mut self, limit_bytes: u64) -> Result<Bytes> {
        if self.len_bytes > limit_bytes {
            return Err(Error::LimitExceeded { what: self.what, limit: limit_bytes });
        }
        let mut whole = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.into())
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("what", &self.what)
            .field("len_bytes", &self.len_bytes)
            .field("position_bytes", &self.position_bytes)
            .finish_non_exhaustive()
    }
}

/// Where a pusher takes bytes from. It may be opened more than once: an upload that breaks is
/// resumed, one that the registry asks to repeat with credentials starts again.
#[async_trait]
pub trait Source: Send + Sync {
    /// The bytes from `offset` to the end.
    async fn open(&self, offset: u64) -> Result<Body>;
}

#[async_trait]
impl Source for Bytes {
    async fn open(&self, offset: u64) -> Result<Body> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        Ok(Body::from_bytes(self.slice(offset..)))
    }
}

/// A file as a source, read from its path at every opening.
#[derive(Debug, Clone)]
pub struct FileSource {
    path: PathBuf,
    start: u64,
    /// None for what the file has when it is opened.
    len: Option<u64>,
}

impl FileSource {
    /// The file at `path`, which must stay as it is while it is being pushed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), start: 0, len: None }
    }

    /// `len` bytes of the file at `path`, from `start` on.
    pub(crate) fn part(path: impl Into<PathBuf>, start: u64, len: u64) -> Self {
        Self { path: path.into(), start, len: Some(len) }
    }
}

#[async_trait]
impl Source for FileSource {
    async fn open(&self, offset: u64) -> Result<Body> {
        let mut file =
            tokio::fs::File::open(&self.path).await.map_err(Error::io("open", &self.path))?;
        let len = match self.len {
            Some(len) => len,
            None => file.metadata().await.map_err(Error::io("stat", &self.path))?.len(),
        };
        let start = std::io::SeekFrom::Start(self.start.saturating_add(offset));
        file.seek(start).await.map_err(Error::io("seek", &self.path))?;
        let what = self.path.display().to_string();
        let left = len.saturating_sub(offset);
        // A whole file is read one byte beyond, so that one that grew is noticed.
        let most = if self.len.is_some() { left } else { u64::MAX };
        let chunks = FileChunks { file: file.take(most), path: self.path.clone() };
        Ok(Body::new(what, Box::new(chunks), left))
    }
}

/// A blob behind a fetcher as a source: what copying between two registries needs.
pub struct FetchSource {
    fetcher: Arc<dyn Fetcher>,
    descriptor: Descriptor,
}

impl FetchSource {
    /// The content of `descriptor`, read through `fetcher`.
    pub fn new(fetcher: Arc<dyn Fetcher>, descriptor: Descriptor) -> Self {
        Self { fetcher, descriptor }
    }
}

impl fmt::Debug for FetchSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FetchSource").field(&self.descriptor.digest).finish()
    }
}

#[async_trait]
impl Source for FetchSource {
    async fn open(&self, offset: u64) -> Result<Body> {
        self.fetcher.fetch(&self.descriptor, offset).await
    }
}

struct Once(Option<Bytes>);

#[async_trait]
impl Chunks for Once {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.take().filter(|bytes| !bytes.is_empty()))
    }
}

struct FileChunks {
    file: tokio::io::Take<tokio::fs::File>,
    path: PathBuf,
}

#[async_trait]
impl Chunks for FileChunks {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let mut buffer = bytes::BytesMut::with_capacity(FILE_CHUNK_BYTES);
        let read = self.file.read_buf(&mut buffer).await.map_err(Error::io("read", &self.path))?;
        Ok((read > 0).then(|| buffer.freeze()))
    }
}

/// Large enough to make the hop to the blocking pool cheap.
const FILE_CHUNK_BYTES: usize = 256 * 1024;
