use std::io::{self, Read, Seek, SeekFrom};

use crate::error::{Error, Result};
use crate::{Digest, Provider, ReaderAt};

/// A sequential, seekable view of a [`ReaderAt`].
///
/// ```
/// use std::io::Read;
/// use crated_content::{Digest, MemoryStore, Provider, reader, write_blob};
///
/// let store = MemoryStore::new();
/// let digest = write_blob(&store, "greeting", b"hello")?;
/// let mut text = String::new();
/// reader(store.reader(&digest)?).read_to_string(&mut text)?;
/// assert_eq!(text, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ReadFrom {
    blob: Box<dyn ReaderAt>,
    offset: u64,
}

/// Reads `blob` from its first byte.
pub fn reader(blob: Box<dyn ReaderAt>) -> ReadFrom {
    ReadFrom { blob, offset: 0 }
}

/// The whole blob in memory: for manifests and configs, not for layers.
///
/// The bytes are checked against the digest.
///
/// # Errors
///
/// As [`Provider::reader`]; [`Error::InvalidArgument`] when the blob is larger than
/// `size_bytes_max`; [`Error::Corrupt`] when the bytes are not the ones the digest names.
pub fn read_blob(
    provider: &(impl Provider + ?Sized),
    digest: &Digest,
    size_bytes_max: u64,
) -> Result<Vec<u8>> {
    let blob = provider.reader(digest)?;
    let size_bytes = blob.size_bytes();
    if size_bytes > size_bytes_max {
        return Err(Error::InvalidArgument {
            what: "blob",
            reason: format!("{digest} has {size_bytes} bytes, more than {size_bytes_max}"),
        });
    }
    let mut bytes = Vec::new();
    let corrupt = |reason: String| Error::Corrupt { digest: digest.clone(), reason };
    reader(blob).read_to_end(&mut bytes).map_err(|error| corrupt(error.to_string()))?;
    if Digest::of_with(digest.algorithm(), &bytes) != *digest {
        return Err(corrupt("bytes do not match the digest".to_owned()));
    }
    Ok(bytes)
}

impl ReadFrom {
    /// Reads `blob` from `offset`, in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] when `offset` lies behind the end; the end itself is allowed.
    pub fn new(blob: Box<dyn ReaderAt>, offset: u64) -> Result<Self> {
        let size_bytes = blob.size_bytes();
        if offset > size_bytes {
            return Err(Error::OutOfRange { offset, size_bytes });
        }
        Ok(Self { blob, offset })
    }

    /// Length of the whole blob in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.blob.size_bytes()
    }
}

impl Read for ReadFrom {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read_at(buf, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl Seek for ReadFrom {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let offset = match target {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.blob.size_bytes().checked_add_signed(delta),
            SeekFrom::Current(delta) => self.offset.checked_add_signed(delta),
        };
        self.offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.offset)
    }
}

impl std::fmt::Debug for ReadFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadFrom")
            .field("offset", &self.offset)
            .field("size_bytes", &self.size_bytes())
            .finish()
    }
}
