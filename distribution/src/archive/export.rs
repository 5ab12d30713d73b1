//! Writing an archive.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::contents::{index_of, named, serialized};
use super::docker::familiar_name;
use super::{DOCKER_MANIFEST, INDEX, LAYOUT, LAYOUT_VERSION, tar};
use crate::annotation;
use crate::body::Body;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::document::{Document, Manifest};
use crate::error::{Error, Result};
use crate::media_type::MediaType;
use crate::platform::{Matcher, Only, Platform};
use crate::progress::{Progress, State};
use crate::resolver::Fetcher;
use crate::verify::Verifier;
use crate::walk::{self, Node, WalkOptions, reference_key};

/// Images to be written as one archive.
///
/// The archive is an OCI layout and, with `manifest.json`, one that `docker load` takes. Entries
/// are sorted and have neither times nor owners: the same images give the same bytes.
///
/// ```no_run
/// use crated_distribution::archive::Export;
/// use crated_distribution::walk::WalkOptions;
/// use crated_distribution::{Progress, RegistryOptions, RegistryResolver, Resolver};
///
/// # async fn save() -> crated_distribution::Result<()> {
/// let resolver = RegistryResolver::new(RegistryOptions::new())?;
/// let reference = "registry.example/library/redis:7".parse()?;
/// let image = resolver.resolve(&reference).await?.descriptor;
/// let fetcher = resolver.fetcher(&reference).await?;
/// let mut file = tokio::fs::File::create("redis.tar").await.unwrap();
/// let mut export = Export::new(WalkOptions::all());
/// export.image(Some(&reference.to_string()), &image);
/// export.write(&*fetcher, &mut file, &Progress::new()).await
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Export {
    /// The platforms of indexes whose images are written. The index itself stays as it is, so it
    /// may name images that the archive does not have.
    pub options: WalkOptions,
    /// Whether `manifest.json` is written.
    pub docker_manifest: bool,
    /// Which image of an index `manifest.json` names; it cannot name more than one. An index
    /// without such an image is left out of it.
    pub docker_platform: Arc<dyn Matcher>,
    /// Whether the files of an OCI layout are written. Without them the archive is one of
    /// `docker save` alone, and has nothing of images that `manifest.json` cannot name.
    pub layout: bool,
    /// Whether layers are left out that must not be distributed.
    pub skip_non_distributable: bool,
    roots: Vec<Descriptor>,
}

impl Export {
    /// Nothing yet; of what comes, what `options` want.
    pub fn new(options: WalkOptions) -> Self {
        Self {
            options,
            docker_manifest: true,
            docker_platform: Arc::new(Only::new(&Platform::host())),
            layout: true,
            skip_non_distributable: false,
            roots: Vec::new(),
        }
    }

    /// Adds an image, under a name or by its digest alone. One image may have several names.
    pub fn image(&mut self, name: Option<&str>, root: &Descriptor) -> &mut Self {
        self.roots.push(match name {
            Some(name) => named(root, name),
            None => root.clone(),
        });
        self
    }

    /// Writes the archive; every blob is read through `fetcher` once and verified on the way.
    ///
    /// After an error what was written is not a whole archive, and no reader takes it for one.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when an image is neither a manifest nor an index;
    /// [`Error::NotFound`] when something is missing or no platform matches;
    /// [`Error::Io`] of the writer; and those of the fetcher and [`Verifier`].
    pub async fn write(
        &self,
        fetcher: &dyn Fetcher,
        out: &mut (dyn AsyncWrite + Send + Unpin),
        progress: &Progress,
    ) -> Result<()> {
        let files = self.plan(fetcher, progress).await?;
        for (path, file) in &files {
            match file {
                File::Directory => write(out, &tar::entry(path, 0o755, true, 0)).await?,
                File::Document(bytes) => {
                    let len = bytes.len() as u64;
                    write(out, &tar::entry(path, 0o444, false, len)).await?;
                    write(out, bytes).await?;
                    write(out, &tar::filling(len)).await?;
                }
                File::Blob(node) => {
                    let key = reference_key(&node.descriptor);
                    let written = blob(fetcher, out, path, node, progress).await;
                    let state = if written.is_ok() { State::Complete } else { State::Failed };
                    progress.state(&key, state);
                    written?;
                }
            }
        }
        write(out, &tar::end()).await?;
        out.flush().await.map_err(Error::io("flush", "archive"))
    }

    /// Everything the archive will hold, sorted by path.
    async fn plan(
        &self,
        fetcher: &dyn Fetcher,
        progress: &Progress,
    ) -> Result<BTreeMap<String, File>> {
        let mut files = BTreeMap::new();
        let mut docker: Vec<DockerEntry> = Vec::new();
        for root in &self.roots {
            let nodes = self.nodes(fetcher, root).await?;
            if self.docker_manifest {
                self.enter(root, &nodes, &mut docker)?;
            }
            for node in nodes {
                let kind = MediaType::of(&node.descriptor.media_type);
                let bound = matches!(kind, MediaType::Layer { distributable: false, .. });
                if bound && self.skip_non_distributable {
                    continue;
                }
                let digest = &node.descriptor.digest;
                files.insert("blobs/".to_owned(), File::Directory);
                files.insert(format!("blobs/{}/", digest.algorithm().name()), File::Directory);
                progress.add(&reference_key(&node.descriptor), &[], node.descriptor.size_bytes);
                files.insert(blob_path(digest), File::Blob(Box::new(node)));
            }
        }
        if self.layout {
            files.insert(
                LAYOUT.into(),
                File::Document(Bytes::from_static(LAYOUT_VERSION.as_bytes())),
            );
            files.insert(INDEX.into(), File::Document(index_of(self.roots.clone())?));
        }
        if !docker.is_empty() {
            let bytes = serialized(DOCKER_MANIFEST, &docker)?;
            files.insert(DOCKER_MANIFEST.into(), File::Document(bytes));
        }
        Ok(files)
    }

    async fn nodes(&self, fetcher: &dyn Fetcher, root: &Descriptor) -> Result<Vec<Node>> {
        match MediaType::of(&root.media_type) {
            MediaType::Index => walk::walk(fetcher, root, &self.options).await,
            // Who names a manifest wants it, whatever it is for.
            MediaType::Manifest => {
                let mut options = WalkOptions::all();
                options.limits = self.options.limits.clone();
                walk::walk(fetcher, root, &options).await
            }
            _ => Err(Error::InvalidArgument {
                what: "image to export",
                reason: format!("{} is neither a manifest nor an index", root.digest),
            }),
        }
    }

    /// Enters the one image of `root` that docker can know.
    fn enter(
        &self,
        root: &Descriptor,
        nodes: &[Node],
        docker: &mut Vec<DockerEntry>,
    ) -> Result<()> {
        let Some((digest, manifest)) = self.docker_image(nodes) else { return Ok(()) };
        let name = root.annotations.get(annotation::IMAGE_NAME).map(|name| familiar_name(name));
        let at = match docker.iter().position(|entry| entry.manifest == *digest) {
            Some(at) => at,
            None => {
                docker.push(DockerEntry {
                    manifest: digest.clone(),
                    config: blob_path(&manifest.config.digest),
                    names: Vec::new(),
                    layers: manifest.layers.iter().map(|l| blob_path(&l.digest)).collect(),
                });
                docker.len() - 1
            }
        };
        let names = &mut docker[at].names;
        names.extend(name.filter(|name| !names.contains(name)));
        Ok(())
    }

    fn docker_image<'n>(&self, nodes: &'n [Node]) -> Option<(&'n Digest, &'n Manifest)> {
        let digest = match nodes.first()?.document.as_ref()? {
            Document::Manifest(_) => &nodes.first()?.descriptor.digest,
            Document::Index(index) => {
                let chosen = walk::select(index, &*self.docker_platform, Some(1)).ok()?;
                &chosen.first()?.digest
            }
        };
        let node = nodes.iter().find(|node| node.descriptor.digest == *digest)?;
        match node.document.as_ref()? {
            Document::Manifest(manifest) if manifest.is_image() => {
                Some((&node.descriptor.digest, manifest))
            }
            _ => None,
        }
    }
}

enum File {
    Directory,
    Document(Bytes),
    Blob(Box<Node>),
}

/// One image of `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    #[serde(skip)]
    manifest: Digest,
    config: String,
    #[serde(rename = "RepoTags")]
    names: Vec<String>,
    layers: Vec<String>,
}

async fn blob(
    fetcher: &dyn Fetcher,
    out: &mut (dyn AsyncWrite + Send + Unpin),
    path: &str,
    node: &Node,
    progress: &Progress,
) -> Result<()> {
    let descriptor = &node.descriptor;
    let body = match &node.bytes {
        Some(bytes) => Body::from_bytes(bytes.clone()),
        None => fetcher.fetch(descriptor, 0).await?,
    };
    let body = progress.body(&reference_key(descriptor), body, 0);
    let mut body = Verifier::new(body, descriptor)?;
    write(out, &tar::entry(path, 0o444, false, descriptor.size_bytes)).await?;
    while let Some(bytes) = body.chunk().await? {
        write(out, &bytes).await?;
    }
    write(out, &tar::filling(descriptor.size_bytes)).await
}

async fn write(out: &mut (dyn AsyncWrite + Send + Unpin), bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).await.map_err(Error::io("write", "archive"))
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}
