//! Reading an archive front to back.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use bytes::Bytes;
use tokio::io::AsyncRead;

use super::contents::{self, Contents, Entry};
use super::input::Input;
use super::tar::{Header, Kind, Reader, malformed};
use super::{DOCKER_MANIFEST, INDEX, LAYOUT};
use crate::digest::Digest;
use crate::document::DocumentLimits;
use crate::error::{Error, Result};

/// Bounds on what an archive may make us hold or read. Each is an error when passed.
///
/// Time is bounded by whoever owns the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArchiveLimits {
    /// Bounds on the documents.
    pub documents: DocumentLimits,
    /// Bytes of `manifest.json`.
    pub docker_manifest_bytes_max: u64,
    /// Entries, directories and links included.
    pub entries_max: usize,
    /// Bytes of one path or link target.
    pub path_bytes_max: usize,
    /// Bytes of one blob.
    pub blob_bytes_max: u64,
    /// Bytes of the whole archive, after inflating.
    pub total_bytes_max: u64,
}

impl Default for ArchiveLimits {
    fn default() -> Self {
        Self {
            documents: DocumentLimits::default(),
            // What other readers accept.
            docker_manifest_bytes_max: 20 << 20,
            // A hundred images of fifty layers, with three entries for each layer.
            entries_max: 20_000,
            path_bytes_max: 1024,
            // No disk that unpacks it holds more in one file.
            blob_bytes_max: 1 << 40,
            total_bytes_max: 4 << 40,
        }
    }
}

/// An archive that is being read.
///
/// ```
/// use crated_distribution::archive::{ArchiveLimits, ArchiveReader, Contents};
/// use crated_distribution::{Algorithm, Hasher};
///
/// # async fn import(stream: tokio::fs::File) -> crated_distribution::Result<()> {
/// let mut archive = ArchiveReader::new(stream, ArchiveLimits::default());
/// while let Some(mut blob) = archive.next().await? {
///     let mut hasher = Hasher::new(blob.algorithm());
///     while let Some(bytes) = blob.chunk().await? {
///         hasher.update(&bytes); // and keep them
///     }
///     blob.stored(hasher.finish())?;
/// }
/// match archive.finish().await? {
///     Contents::Oci(contents) => println!("{} images", contents.index.manifests.len()),
///     Contents::Docker(images) => println!("{} images", images.len()),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ArchiveReader {
    tar: Reader,
    limits: ArchiveLimits,
    entries: HashMap<String, Entry>,
    count: usize,
    documents: Documents,
}

/// The documents met so far.
#[derive(Debug, Default)]
struct Documents {
    layout: Option<Bytes>,
    index: Option<Bytes>,
    docker: Option<Bytes>,
}

impl ArchiveReader {
    /// An archive out of a stream; nothing is read yet.
    pub fn new(stream: impl AsyncRead + Send + Unpin + 'static, limits: ArchiveLimits) -> Self {
        let input = Input::new(Box::new(stream), limits.total_bytes_max);
        let (entries, documents) = (HashMap::new(), Documents::default());
        Self { tar: Reader::new(input), limits, entries, count: 0, documents }
    }

    /// The next blob, `None` after the last. What was not read of the one before is skipped.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDocument`] for an archive that is malformed, names something twice or
    /// names something outside of itself; [`Error::UnexpectedEof`] for one that was cut off;
    /// [`Error::LimitExceeded`].
    pub async fn next(&mut self) -> Result<Option<ArchiveBlob<'_>>> {
        while let Some(header) = self.tar.next().await? {
            self.count += 1;
            bound("entries", self.count as u64, self.limits.entries_max as u64)?;
            let path = contents::clean(&header.path, &[], self.limits.path_bytes_max)?;
            if self.enter(&header, path.clone()).await? {
                return Ok(Some(ArchiveBlob::new(self, path, header.size_bytes)));
            }
        }
        Ok(None)
    }

    /// What the archive holds, after its last blob. Reads the stream to its end.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when it holds neither an index nor a docker manifest;
    /// [`Error::NotFound`] when a docker manifest names something that is not there or was not
    /// reported as stored; and those of [`ArchiveReader::next`].
    pub async fn finish(mut self) -> Result<Contents> {
        while self.next().await?.is_some() {}
        self.tar.finish().await?;
        let Documents { layout, index, docker } = self.documents;
        if let Some(layout) = layout {
            crate::layout::check_version(&layout)?;
            let index = index.ok_or_else(|| Error::not_found(INDEX))?;
            let contents = contents::oci(index, &self.limits.documents)?;
            return Ok(Contents::Oci(Box::new(contents)));
        }
        match docker {
            Some(docker) => contents::docker(&docker, &self.entries, &self.limits),
            None => Err(Error::Unsupported { what: "unrecognized image format".into() }),
        }
    }

    /// Takes note of an entry; says whether it is a blob.
    async fn enter(&mut self, header: &Header, path: String) -> Result<bool> {
        let max = self.limits.path_bytes_max;
        let entry = match &header.kind {
            Kind::Directory | Kind::Special => return Ok(false),
            // A link is only looked at when a manifest goes through it, so one that leads
            // nowhere does no harm.
            Kind::Symlink(target) => {
                let above: Vec<&str> = path.split('/').collect();
                Entry::Link(contents::clean(target, &above[..above.len() - 1], max).ok())
            }
            Kind::Hardlink(target) => Entry::Link(contents::clean(target, &[], max).ok()),
            Kind::File => {
                Entry::Blob { digest: None, size_bytes: header.size_bytes, first: [0; 4] }
            }
        };
        if path.is_empty() {
            return Err(malformed("a file or link that is the archive itself"));
        }
        let is_file = header.kind == Kind::File;
        let document = match path.as_str() {
            LAYOUT => Some((self.limits.documents.manifest_bytes_max, 0)),
            INDEX => Some((self.limits.documents.manifest_bytes_max, 1)),
            DOCKER_MANIFEST => Some((self.limits.docker_manifest_bytes_max, 2)),
            _ => None,
        };
        match self.entries.entry(path) {
            Slot::Occupied(slot) => {
                return Err(malformed(&format!("{:?} is there twice", slot.key())));
            }
            Slot::Vacant(slot) => slot.insert(entry),
        };
        let Some((limit, which)) = document else {
            if is_file {
                bound("bytes of a blob", header.size_bytes, self.limits.blob_bytes_max)?;
            }
            return Ok(is_file);
        };
        if !is_file {
            return Err(malformed("a document that is a link"));
        }
        bound("bytes of a document", header.size_bytes, limit)?;
        let mut whole = Vec::new();
        while let Some(bytes) = self.tar.chunk().await? {
            whole.extend_from_slice(&bytes);
        }
        let Documents { layout, index, docker } = &mut self.documents;
        *[layout, index, docker][which] = Some(whole.into());
        Ok(false)
    }
}

/// A blob on its way out of an archive.
#[derive(Debug)]
pub struct ArchiveBlob<'a> {
    archive: &'a mut ArchiveReader,
    path: String,
    claimed: Option<Digest>,
    size_bytes: u64,
    position_bytes: u64,
    first: [u8; 4],
}

impl<'a> ArchiveBlob<'a> {
    fn new(archive: &'a mut ArchiveReader, path: String, size_bytes: u64) -> Self {
        let claimed = contents::claimed(&path);
        Self { archive, path, claimed, size_bytes, position_bytes: 0, first: [0; 4] }
    }

    /// Where it is in the archive: relative, without `.` and `..`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its length.
    pub fn len_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Where its first byte is in the stream; none if that is compressed, or once reading began.
    pub fn offset_bytes(&self) -> Option<u64> {
        self.archive.tar.offset().filter(|_| self.position_bytes == 0)
    }

    /// The digest that its path promises, if it is one of `blobs/<algorithm>/<hex>`.
    pub fn claimed(&self) -> Option<&Digest> {
        self.claimed.as_ref()
    }

    /// The algorithm to hash it with.
    pub fn algorithm(&self) -> crate::Algorithm {
        self.claimed.as_ref().map_or(crate::Algorithm::Sha256, Digest::algorithm)
    }

    /// The next piece, `None` after the last.
    ///
    /// # Errors
    ///
    /// Those of [`ArchiveReader::next`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let Some(bytes) = self.archive.tar.chunk().await? else { return Ok(None) };
        let have = usize::try_from(self.position_bytes).unwrap_or(usize::MAX).min(4);
        let more = bytes.len().min(4 - have);
        self.first[have..have + more].copy_from_slice(&bytes[..more]);
        self.position_bytes += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// Tells the archive what the blob turned out to be, after all of it was read. Docker
    /// archives name blobs by path, so only this connects the two.
    ///
    /// # Errors
    ///
    /// [`Error::DigestMismatch`] when the path promises another digest; discard the bytes.
    /// [`Error::InvalidArgument`] when it was not read to its end.
    pub fn stored(self, digest: Digest) -> Result<()> {
        if self.position_bytes != self.size_bytes {
            let reason = format!("{} was not read to its end", self.path);
            return Err(Error::InvalidArgument { what: "blob of an archive", reason });
        }
        if let Some(expected) = self.claimed
            && expected.algorithm() == digest.algorithm()
            && expected != digest
        {
            return Err(Error::DigestMismatch { expected, actual: digest });
        }
        let (size_bytes, first) = (self.size_bytes, self.first);
        let entry = Entry::Blob { digest: Some(digest), size_bytes, first };
        self.archive.entries.insert(self.path, entry);
        Ok(())
    }
}

fn bound(what: &str, value: u64, limit: u64) -> Result<()> {
    if value > limit {
        return Err(Error::LimitExceeded { what: format!("archive: {what}"), limit });
    }
    Ok(())
}
