//! An archive on disk behind the traits of this crate.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::contents::Contents;
use super::read::{ArchiveLimits, ArchiveReader};
use crate::body::{Body, FileSource, Source as _};
use crate::descriptor::Descriptor;
use crate::digest::{Digest, Hasher};
use crate::document::ImageConfig;
use crate::error::{Error, Result};
use crate::layout;
use crate::reference::Reference;
use crate::resolver::{Fetcher, Pusher, Resolved, Resolver};

/// The images of an archive that is a file, read where they are.
///
/// Opening reads the whole file once and verifies all of it; after that only the blobs asked for
/// are read. Images of a docker archive get the manifests that such an archive does not have.
/// Nothing can be pushed: see [`Export`](super::Export).
#[derive(Debug, Clone)]
pub struct ArchiveResolver {
    archive: Arc<Archive>,
}

#[derive(Debug)]
struct Archive {
    path: PathBuf,
    /// Where each blob begins, and how long it is.
    blobs: HashMap<Digest, (u64, u64)>,
    /// Manifests that were made from what a docker archive says.
    made: HashMap<Digest, Bytes>,
    roots: Vec<Descriptor>,
}

impl ArchiveResolver {
    /// Reads the archive at `path`, which must stay as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when it is compressed, since its blobs cannot be reached then, or
    /// when it is no image archive; those of [`ArchiveReader`]; [`Error::Io`].
    pub async fn open(path: impl Into<PathBuf>, limits: ArchiveLimits) -> Result<Self> {
        let path = path.into();
        let file = tokio::fs::File::open(&path).await.map_err(Error::io("open", &path))?;
        let mut reader = ArchiveReader::new(file, limits.clone());
        let mut archive =
            Archive { path, blobs: HashMap::new(), made: HashMap::new(), roots: Vec::new() };
        while let Some(mut blob) = reader.next().await? {
            let offset = blob.offset_bytes().ok_or_else(|| Error::Unsupported {
                what: "reading blobs out of a compressed archive".into(),
            })?;
            let mut hasher = Hasher::new(blob.algorithm());
            while let Some(bytes) = blob.chunk().await? {
                hasher.update(&bytes);
            }
            let (digest, len) = (hasher.finish(), blob.len_bytes());
            archive.blobs.insert(digest.clone(), (offset, len));
            blob.stored(digest)?;
        }
        match reader.finish().await? {
            Contents::Oci(contents) => archive.roots = contents.index.manifests,
            Contents::Docker(images) => {
                for image in images {
                    let limit = limits.documents.config_bytes_max;
                    let config = archive.body(&image.config, 0).await?.collect(limit).await?;
                    let config = ImageConfig::parse(config, &limits.documents)?;
                    let (root, bytes) = image.manifest(&config)?;
                    archive.roots.extend(image.entries(&root));
                    archive.made.insert(root.digest, bytes);
                }
            }
        }
        Ok(Self { archive: Arc::new(archive) })
    }

    /// The images, in the order of the archive, with their names as annotations.
    pub fn roots(&self) -> &[Descriptor] {
        &self.archive.roots
    }
}

impl Archive {
    async fn body(&self, descriptor: &Descriptor, offset: u64) -> Result<Body> {
        let digest = &descriptor.digest;
        if let Some(bytes) = self.made.get(digest) {
            return bytes.open(offset).await;
        }
        let (start, have) =
            *self.blobs.get(digest).ok_or_else(|| Error::not_found(format!("content {digest}")))?;
        let (what, want) = (digest.to_string(), descriptor.size_bytes);
        if have < want {
            return Err(Error::UnexpectedEof { what, have, want });
        }
        if have > want {
            return Err(Error::Oversized { what, want });
        }
        FileSource::part(&self.path, start, have).open(offset).await
    }
}

#[async_trait]
impl Resolver for ArchiveResolver {
    async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        match layout::find_root(&self.archive.roots, reference)? {
            Some(root) => Ok(Resolved::new(reference.clone(), root.clone())),
            None => Err(Error::not_found(reference.to_string())),
        }
    }

    async fn fetcher(&self, _: &Reference) -> Result<Box<dyn Fetcher>> {
        Ok(Box::new(self.clone()))
    }

    async fn pusher(&self, _: &Reference) -> Result<Box<dyn Pusher>> {
        Err(Error::Unsupported { what: "pushing into an archive".into() })
    }
}

#[async_trait]
impl Fetcher for ArchiveResolver {
    async fn fetch(&self, descriptor: &Descriptor, offset: u64) -> Result<Body> {
        descriptor.check()?;
        if offset > descriptor.size_bytes {
            return Err(Error::InvalidArgument {
                what: "offset",
                reason: format!("{offset} is past the end of {}", descriptor.digest),
            });
        }
        self.archive.body(descriptor, offset).await
    }
}
