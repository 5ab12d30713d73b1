//! An OCI image layout: a directory that holds images the way a registry does.
//!
//! ```text
//! <root>/oci-layout                   {"imageLayoutVersion":"1.0.0"}; also the lock
//! <root>/index.json                   the roots, with their names as annotations
//! <root>/blobs/<algorithm>/<hex>      everything by digest, manifests included
//! <root>/blobs/.incoming-<unique>     being written; a crash leaves it, nothing reads it
//! ```
//!
//! A blob is written aside, verified, made durable, and only then given its name; `index.json` is
//! replaced whole in the same way. After a crash the old or the new index is there, and whatever
//! it names exists.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio::io::AsyncWriteExt as _;

use crate::annotation;
use crate::body::{Body, FileSource, Source};
use crate::descriptor::Descriptor;
use crate::digest::{Digest, Hasher};
use crate::document::{Document, DocumentLimits, Index};
use crate::error::{Error, Result};
use crate::media_type::{self, MediaType};
use crate::reference::Reference;
use crate::resolver::{Fetcher, Pushed, Pusher, Resolved, Resolver};

/// Images in a directory, behind the same traits as a registry.
///
/// Roots are found by their whole name (`io.containerd.image.name`), or, where entries were
/// written by programs that only keep a tag (`org.opencontainers.image.ref.name`), by that.
/// Several processes may write to one layout.
#[derive(Debug, Clone)]
pub struct LayoutResolver {
    layout: Arc<Layout>,
}

#[derive(Debug)]
struct Layout {
    root: PathBuf,
    limits: DocumentLimits,
    unique: AtomicU64,
}

impl LayoutResolver {
    /// Opens the layout at `root`, and makes an empty one where there is nothing.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDocument`] when the directory holds a layout of another version;
    /// [`Error::Io`].
    pub async fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let layout = Layout {
            root: root.into(),
            limits: DocumentLimits::default(),
            unique: AtomicU64::new(0),
        };
        let blobs = layout.root.join("blobs");
        tokio::fs::create_dir_all(&blobs).await.map_err(Error::io("create directory", &blobs))?;
        let marker = layout.root.join(MARKER);
        match tokio::fs::read(&marker).await {
            Ok(text) => check_version(&text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                layout.publish(&marker, VERSION.as_bytes()).await?;
            }
            Err(error) => return Err(Error::io("read", &marker)(error)),
        }
        Ok(Self { layout: Arc::new(layout) })
    }

    /// The roots, in the order of `index.json`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDocument`] and [`Error::LimitExceeded`] for an index that is not one.
    pub async fn roots(&self) -> Result<Vec<Descriptor>> {
        Ok(self.layout.index().await?.manifests)
    }
}

#[async_trait]
impl Resolver for LayoutResolver {
    async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        let roots = self.roots().await?;
        let found = find_root(&roots, reference)?;
        let descriptor = match (found, reference.digest()) {
            (Some(root), _) => root.clone(),
            (None, Some(digest)) => self.layout.describe(digest).await?,
            (None, None) => return Err(Error::not_found(reference.to_string())),
        };
        Ok(Resolved::new(reference.clone(), descriptor))
    }

    async fn fetcher(&self, _: &Reference) -> Result<Box<dyn Fetcher>> {
        Ok(Box::new(LayoutFetcher { layout: self.layout.clone() }))
    }

    async fn pusher(&self, reference: &Reference) -> Result<Box<dyn Pusher>> {
        Ok(Box::new(LayoutPusher { layout: self.layout.clone(), reference: reference.clone() }))
    }
}

#[derive(Debug)]
struct LayoutFetcher {
    layout: Arc<Layout>,
}

#[async_trait]
impl Fetcher for LayoutFetcher {
    async fn fetch(&self, descriptor: &Descriptor, offset: u64) -> Result<Body> {
        descriptor.check()?;
        if offset > descriptor.size_bytes {
            return Err(Error::InvalidArgument {
                what: "offset",
                reason: format!("{offset} is past the end of {}", descriptor.digest),
            });
        }
        let (path, have) = self.layout.stat(&descriptor.digest).await?;
        let (what, want) = (descriptor.digest.to_string(), descriptor.size_bytes);
        if have < want {
            return Err(Error::UnexpectedEof { what, have, want });
        }
        if have > want {
            return Err(Error::Oversized { what, want });
        }
        FileSource::new(path).open(offset).await
    }
}

#[derive(Debug)]
struct LayoutPusher {
    layout: Arc<Layout>,
    reference: Reference,
}

#[async_trait]
impl Pusher for LayoutPusher {
    async fn push(&self, descriptor: &Descriptor, source: &dyn Source) -> Result<Pushed> {
        descriptor.check()?;
        let layout = &self.layout;
        let known = match layout.stat(&descriptor.digest).await {
            Ok((_, size)) => size == descriptor.size_bytes,
            Err(Error::NotFound { .. }) => false,
            Err(error) => return Err(error),
        };
        if !known {
            layout.store(descriptor, source).await?;
        }
        let named = MediaType::of(&descriptor.media_type).is_document()
            && self.reference.has_object()
            && self.reference.digest().is_none_or(|digest| *digest == descriptor.digest)
            && layout.name(&self.reference, descriptor).await?;
        Ok(if known && !named { Pushed::AlreadyExists } else { Pushed::Uploaded })
    }
}

impl Layout {
    fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// Where a blob is and how long. Anything but a regular file is not a blob: a layout may have
    /// come out of an archive, with links to places outside of it.
    async fn stat(&self, digest: &Digest) -> Result<(PathBuf, u64)> {
        let path = self.path(digest);
        match tokio::fs::symlink_metadata(&path).await {
            Ok(found) if found.is_file() => Ok((path, found.len())),
            Ok(_) => Err(Error::document(digest.to_string(), "blob is not a regular file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::not_found(format!("content {digest}")))
            }
            Err(error) => Err(Error::io("stat", path)(error)),
        }
    }

    /// What a blob is that no index entry describes.
    async fn describe(&self, digest: &Digest) -> Result<Descriptor> {
        let (path, size) = self.stat(digest).await?;
        let mut kind = "application/octet-stream".to_owned();
        if size <= self.limits.manifest_bytes_max {
            let bytes = tokio::fs::read(&path).await.map_err(Error::io("read", &path))?;
            if let Ok(document) = Document::parse(&bytes, "", &self.limits) {
                let default = match document {
                    Document::Index(_) => media_type::OCI_INDEX,
                    Document::Manifest(_) => media_type::OCI_MANIFEST,
                };
                kind = document.media_type().unwrap_or(default).to_owned();
            }
        }
        Ok(Descriptor::new(kind, digest.clone(), size))
    }

    async fn index(&self) -> Result<Index> {
        let path = self.root.join(INDEX);
        let file = match tokio::fs::metadata(&path).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(empty_index()),
            Err(error) => return Err(Error::io("stat", path)(error)),
        };
        if file.len() > self.limits.manifest_bytes_max {
            let limit = self.limits.manifest_bytes_max;
            return Err(Error::LimitExceeded { what: path.display().to_string(), limit });
        }
        let bytes = tokio::fs::read(&path).await.map_err(Error::io("read", &path))?;
        match Document::parse(&bytes, media_type::OCI_INDEX, &self.limits)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => Err(Error::document(INDEX, "not an index")),
        }
    }

    /// Enters a root under a name; says whether that changed anything.
    async fn name(&self, reference: &Reference, descriptor: &Descriptor) -> Result<bool> {
        let _lock = self.lock().await?;
        let mut index = self.index().await?;
        let mut entry = descriptor.clone();
        match reference.tag() {
            Some(tag) => {
                let name = format!("{}:{tag}", reference.locator());
                entry.annotations.insert(annotation::IMAGE_NAME.into(), name);
                entry.annotations.insert(annotation::REF_NAME.into(), tag.into());
                index.manifests.retain(|root| *root == entry || !is_named(root, reference));
            }
            None if index.manifests.iter().any(|root| root.digest == entry.digest) => {
                return Ok(false);
            }
            None => {}
        }
        if index.manifests.contains(&entry) {
            return Ok(false);
        }
        index.manifests.push(entry);
        let bytes = serde_json::to_vec(&index)
            .map_err(|error| Error::document(INDEX, error.to_string()))?;
        self.publish(&self.root.join(INDEX), &bytes).await?;
        Ok(true)
    }

    /// Writes a blob aside, verifies it, and gives it its name.
    async fn store(&self, descriptor: &Descriptor, source: &dyn Source) -> Result<()> {
        let mut body = source.open(0).await?;
        if body.len_bytes() != descriptor.size_bytes {
            let have = body.len_bytes();
            return Err(Error::document(
                format!("source of {}", descriptor.digest),
                format!("it has {have} bytes, not the {} promised", descriptor.size_bytes),
            ));
        }
        let draft = Draft::create(self).await?;
        let mut file = tokio::fs::File::options()
            .write(true)
            .open(&draft.path)
            .await
            .map_err(Error::io("open", &draft.path))?;
        let mut hasher = Hasher::new(descriptor.digest.algorithm());
        while let Some(bytes) = body.chunk().await? {
            hasher.update(&bytes);
            file.write_all(&bytes).await.map_err(Error::io("write", &draft.path))?;
        }
        let actual = hasher.finish();
        if actual != descriptor.digest {
            return Err(Error::DigestMismatch { expected: descriptor.digest.clone(), actual });
        }
        file.flush().await.map_err(Error::io("write", &draft.path))?;
        file.sync_all().await.map_err(Error::io("sync", &draft.path))?;
        draft.publish(&self.path(&descriptor.digest)).await
    }

    /// Replaces a small file, or makes it.
    async fn publish(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let draft = Draft::create(self).await?;
        let mut file = tokio::fs::File::options()
            .write(true)
            .open(&draft.path)
            .await
            .map_err(Error::io("open", &draft.path))?;
        file.write_all(bytes).await.map_err(Error::io("write", &draft.path))?;
        file.flush().await.map_err(Error::io("write", &draft.path))?;
        file.sync_all().await.map_err(Error::io("sync", &draft.path))?;
        draft.publish(path).await
    }

    /// Keeps other writers out until dropped, also those of other processes.
    async fn lock(&self) -> Result<std::fs::File> {
        let path = self.root.join(MARKER);
        let locked = tokio::task::spawn_blocking(move || {
            let file = std::fs::File::open(&path).map_err(Error::io("open", &path))?;
            file.lock().map_err(Error::io("lock", &path))?;
            Ok(file)
        });
        locked
            .await
            .map_err(|_| Error::Unsupported { what: "locking while shutting down".into() })?
    }
}

/// A file that is removed again unless it is published.
struct Draft {
    path: PathBuf,
}

impl Draft {
    async fn create(layout: &Layout) -> Result<Self> {
        let dir = layout.root.join("blobs");
        loop {
            let unique = layout.unique.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!(".incoming-{}-{unique}", std::process::id()));
            match tokio::fs::File::create_new(&path).await {
                Ok(_) => return Ok(Self { path }),
                // Left by a process of the same number, or by another opening of this layout.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", path)(error)),
            }
        }
    }

    async fn publish(self, path: &Path) -> Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        tokio::fs::create_dir_all(dir).await.map_err(Error::io("create directory", dir))?;
        tokio::fs::rename(&self.path, path).await.map_err(Error::io("rename", &self.path))?;
        for dir in [Some(dir), dir.parent()].into_iter().flatten() {
            let open = tokio::fs::File::open(dir).await.map_err(Error::io("open", dir))?;
            open.sync_all().await.map_err(Error::io("sync", dir))?;
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After publishing there is nothing left under this name.
        let _ = std::fs::remove_file(&self.path);
    }
}

pub(crate) fn check_version(text: &[u8]) -> Result<()> {
    let layout: oci_spec::image::OciLayout =
        serde_json::from_slice(text).map_err(|error| Error::document(MARKER, error.to_string()))?;
    if layout.image_layout_version() != "1.0.0" {
        return Err(Error::document(MARKER, "layout version is not 1.0.0"));
    }
    Ok(())
}

fn empty_index() -> Index {
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.into()),
        artifact_type: None,
        manifests: Vec::new(),
        subject: None,
        annotations: Default::default(),
    }
}

/// The entry of an index that a reference means: by digest, by whole name, or by tag where that
/// is all an entry has.
pub(crate) fn find_root<'r>(
    roots: &'r [Descriptor],
    reference: &Reference,
) -> Result<Option<&'r Descriptor>> {
    if !reference.has_object() {
        return Err(Error::InvalidArgument {
            what: "reference",
            reason: format!("object required in {reference}"),
        });
    }
    Ok(match reference.digest() {
        Some(digest) => roots.iter().find(|root| root.digest == *digest),
        None => roots
            .iter()
            .find(|root| is_named(root, reference))
            .or_else(|| roots.iter().find(|root| has_only_tag(root, reference))),
    })
}

fn is_named(root: &Descriptor, reference: &Reference) -> bool {
    let name = root.annotations.get(annotation::IMAGE_NAME);
    let tag = reference.tag().unwrap_or_default();
    name.is_some_and(|name| *name == format!("{}:{tag}", reference.locator()))
}

fn has_only_tag(root: &Descriptor, reference: &Reference) -> bool {
    !root.annotations.contains_key(annotation::IMAGE_NAME)
        && root.annotations.get(annotation::REF_NAME).map(String::as_str) == reference.tag()
}

const MARKER: &str = "oci-layout";
const INDEX: &str = "index.json";
const VERSION: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
