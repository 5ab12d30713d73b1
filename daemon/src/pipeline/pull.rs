//! An image from a registry: every document, the chosen layers, and the snapshots they make.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use crated_content::{LabelUpdate, Labels};
use crated_distribution::walk;
use crated_distribution::{
    Descriptor, Document, DocumentLimits, ImageConfig, Index, Manifest, Matcher, MediaType,
    Progress, Reference,
};
use tokio::task::JoinSet;

use super::chain::Chain;
use super::counters::count;
use super::fetch::{self, Fetch};
use super::unpack::{self, Layer, Unpack};
use super::{Error, Result};
use crate::blocking::{Blocking, Panicked};

/// Prefix of the labels that keep the parts of a document.
const LABEL_CHILD: &str = "containerd.io/gc.ref.content";
/// Prefix of the label that says which repositories a blob came from.
pub const LABEL_SOURCE: &str = "containerd.io/distribution.source";
/// Bytes that a label may have with its key.
const LABEL_LEN_MAX: usize = 4096;

/// What to pull of an image.
#[derive(Clone)]
pub struct Choice {
    /// The platforms whose images are fetched.
    pub platforms: Arc<dyn Matcher>,
    /// How many manifests of an index, best first; none for all that match.
    pub manifests_max: Option<usize>,
    /// Whether manifests and configurations of other platforms are fetched too.
    pub all_metadata: bool,
    /// Where images are unpacked, and for which platform.
    pub unpack: Vec<Target>,
}

/// A snapshotter that images of some platform are unpacked into.
#[derive(Clone)]
pub struct Target {
    /// Which images.
    pub platforms: Arc<dyn Matcher>,
    /// The snapshotter's name, as labels have it.
    pub snapshotter: String,
    /// What does it.
    pub unpack: Unpack,
}

/// Pulls images.
#[derive(Clone)]
pub struct Pull {
    /// Brings blobs in.
    pub fetch: Fetch,
    /// Where the image comes from; nothing when it is stored already.
    pub reference: Option<Reference>,
    /// Bounds on documents.
    pub limits: DocumentLimits,
    /// For whom: two namespaces never share a snapshot.
    pub namespace: String,
}

impl Pull {
    /// Fetches everything below `root` that `choice` asks for and unpacks it.
    ///
    /// # Errors
    ///
    /// The first one that any part meets; the other parts are stopped.
    pub async fn run(&self, root: &Descriptor, choice: &Choice) -> Result<()> {
        let pulled = self.everything(root, choice).await;
        if pulled.is_err() {
            count(&self.fetch.shared.counters.failures);
        }
        pulled
    }

    async fn everything(&self, root: &Descriptor, choice: &Choice) -> Result<()> {
        let mut images = Vec::new();
        let mut queue = vec![(root.clone(), Vec::new(), 0_usize)];
        let mut seen = BTreeSet::new();
        while let Some((descriptor, parents, depth)) = queue.pop() {
            if !seen.insert(descriptor.digest.clone()) {
                continue;
            }
            self.bound("documents of one image", seen.len(), self.limits.documents_max)?;
            self.bound("indexes inside indexes", depth, self.limits.index_depth_max + 1)?;
            let key = walk::reference_key(&descriptor);
            self.progress().add(&key, &parents, descriptor.size_bytes);
            let (document, bytes) = self.document(&descriptor).await?;
            match document {
                Document::Index(index) => {
                    let (wanted, labels) = self.children_of_index(&index, choice)?;
                    self.store(&descriptor, bytes, labels).await?;
                    let parents = vec![key];
                    let below = wanted.into_iter().rev();
                    queue.extend(below.map(|child| (child, parents.clone(), depth + 1)));
                }
                Document::Manifest(manifest) => {
                    self.store(&descriptor, bytes, labels_of_manifest(&manifest)).await?;
                    images.push((descriptor, manifest));
                }
            }
        }
        for (descriptor, manifest) in images {
            self.image(&descriptor, &manifest, choice).await?;
        }
        Ok(())
    }

    /// One manifest's configuration and, if its platform is wanted, its layers.
    async fn image(
        &self,
        descriptor: &Descriptor,
        manifest: &Manifest,
        choice: &Choice,
    ) -> Result<()> {
        let parents = vec![walk::reference_key(descriptor)];
        for child in manifest.children() {
            self.progress().add(&walk::reference_key(child), &parents, child.size_bytes);
        }
        if !manifest.is_image() {
            return self.blobs(manifest.children()).await;
        }
        let config = self.config(manifest).await?;
        let platform = descriptor.platform.as_ref().unwrap_or(&config.platform);
        if !choice.platforms.matches(platform) {
            let wanted = choice.all_metadata || descriptor.platform.is_some();
            if wanted {
                return Ok(());
            }
            return Err(crated_distribution::Error::NotFound {
                what: format!("image for {platform} does not match the specified platform"),
            }
            .into());
        }
        let targets: Vec<&Target> =
            choice.unpack.iter().filter(|target| target.platforms.matches(platform)).collect();
        if targets.is_empty() {
            return self.blobs(manifest.layers.iter()).await;
        }
        let layers = unpack::layers(&manifest.layers, &config.diff_ids);
        for target in targets {
            self.unpack(&layers, target).await?;
            if let Some(top) = layers.last() {
                let unpack = target.unpack.clone();
                let settling = self.fetch.shared.metrics.stage("settle");
                self.blocking().bulk(move || unpack.settle()).await??;
                drop(settling);
                let (store, name) = (self.fetch.store.clone(), target.snapshotter.clone());
                let (digest, top) = (manifest.config.digest.clone(), top.chain_id.clone());
                self.blocking()
                    .quick(move || unpack::keep_snapshot(&*store, &digest, &name, &top))
                    .await??;
            }
        }
        Ok(())
    }

    async fn unpack(&self, layers: &[Layer], target: &Target) -> Result<()> {
        let place = format!("{}/{}", self.namespace, target.snapshotter);
        let (fetch, unpack) = (self.fetch.clone(), target.unpack.clone());
        Chain::run(fetch, unpack, place, self.source_label(), layers).await
    }

    /// Blobs that are only stored.
    async fn blobs<'d>(&self, blobs: impl Iterator<Item = &'d Descriptor>) -> Result<()> {
        let blobs: Vec<Descriptor> = blobs.cloned().collect();
        let mut fetches = JoinSet::new();
        for blob in blobs {
            let pull = self.clone();
            let permits = Arc::clone(&self.fetch.shared.fetching);
            fetches.spawn(async move {
                let _permit = permits.acquire_owned().await;
                pull.blob(&blob).await
            });
        }
        while let Some(fetched) = fetches.join_next().await {
            fetched.map_err(|_| Panicked)??;
        }
        Ok(())
    }

    async fn blob(&self, descriptor: &Descriptor) -> Result<()> {
        descriptor.check()?;
        self.fetch.blob(descriptor, self.source_label()).await
    }

    /// A document from the store, or from the registry.
    async fn document(&self, descriptor: &Descriptor) -> Result<(Document, Bytes)> {
        if let Some(bytes) = self.stored(descriptor).await? {
            let document = Document::parse(&bytes, &descriptor.media_type, &self.limits)?;
            return Ok((document, bytes));
        }
        Ok(walk::fetch_document(&*self.fetch.fetcher, descriptor, &self.limits).await?)
    }

    /// The configuration of an image, stored and checked.
    async fn config(&self, manifest: &Manifest) -> Result<ImageConfig> {
        let descriptor = &manifest.config;
        let bytes = match self.stored(descriptor).await? {
            Some(bytes) => bytes,
            None => {
                let limit = self.limits.config_bytes_max;
                walk::fetch_bytes(&*self.fetch.fetcher, descriptor, limit).await?
            }
        };
        let config = ImageConfig::parse(bytes.clone(), &self.limits)?;
        config.check_layers(manifest)?;
        self.store(descriptor, bytes, Labels::new()).await?;
        Ok(config)
    }

    /// The bytes of a document that this namespace has.
    async fn stored(&self, descriptor: &Descriptor) -> Result<Option<Bytes>> {
        if descriptor.size_bytes > self.limits.config_bytes_max {
            return Ok(None);
        }
        let (store, digest) = (self.fetch.store.clone(), fetch::digest(&descriptor.digest)?);
        let limit = self.limits.config_bytes_max;
        self.blocking()
            .quick(move || match crated_content::read_blob(&*store, &digest, limit) {
                Ok(bytes) => Ok(Some(Bytes::from(bytes))),
                Err(crated_content::Error::NotFound(_)) => Ok(None),
                Err(error) => Err(Error::content(&digest)(error)),
            })
            .await?
    }

    /// Stores a document and makes sure that it has its labels, also when it was there before.
    async fn store(&self, descriptor: &Descriptor, bytes: Bytes, labels: Labels) -> Result<()> {
        let mut all = self.source_label();
        all.extend(labels);
        self.fetch.document(descriptor, bytes, all.clone()).await?;
        let (store, digest) = (self.fetch.store.clone(), fetch::digest(&descriptor.digest)?);
        self.blocking()
            .quick(move || {
                let info = store.info(&digest).map_err(Error::content(&digest))?;
                let missing: BTreeMap<_, _> = all
                    .into_iter()
                    .filter(|(key, value)| info.labels.get(key) != Some(value))
                    .map(|(key, value)| (key, Some(value)))
                    .collect();
                if !missing.is_empty() {
                    let update = LabelUpdate::Merge(missing);
                    store.update(&digest, &update).map_err(Error::content(&digest))?;
                }
                Ok(())
            })
            .await?
    }

    /// The manifests of an index that are fetched, and the labels that keep them.
    fn children_of_index(
        &self,
        index: &Index,
        choice: &Choice,
    ) -> Result<(Vec<Descriptor>, Labels)> {
        let chosen = walk::select(index, &*choice.platforms, choice.manifests_max)?;
        let wanted: Vec<Descriptor> = if choice.all_metadata {
            index.manifests.clone()
        } else {
            chosen.into_iter().cloned().collect()
        };
        let labels = index.manifests.iter().filter(|child| wanted.contains(child)).enumerate();
        let labels = labels
            .map(|(number, child)| (format!("{LABEL_CHILD}.m.{number}"), child.digest.to_string()))
            .collect();
        Ok((wanted, labels))
    }

    /// Where a blob came from, for mounting it between repositories when it is pushed.
    fn source_label(&self) -> Labels {
        let Some(reference) = &self.reference else { return Labels::new() };
        let key = format!("{LABEL_SOURCE}.{}", reference.host());
        let repository = reference.repository();
        if key.len() + repository.len() > LABEL_LEN_MAX {
            return Labels::new();
        }
        Labels::from([(key, repository.to_owned())])
    }

    fn bound(&self, what: &str, count: usize, count_max: usize) -> Result<()> {
        if count > count_max {
            let (what, limit) = (what.to_owned(), count_max as u64);
            return Err(crated_distribution::Error::LimitExceeded { what, limit }.into());
        }
        Ok(())
    }

    fn progress(&self) -> &Progress {
        &self.fetch.progress
    }

    fn blocking(&self) -> &Blocking {
        &self.fetch.blocking
    }
}

/// The labels that keep a manifest's configuration and layers.
fn labels_of_manifest(manifest: &Manifest) -> Labels {
    let mut labels =
        Labels::from([(format!("{LABEL_CHILD}.config"), manifest.config.digest.to_string())]);
    let is_layer = |child: &&Descriptor| MediaType::of(&child.media_type).is_layer();
    for (number, layer) in manifest.layers.iter().filter(is_layer).enumerate() {
        labels.insert(format!("{LABEL_CHILD}.l.{number}"), layer.digest.to_string());
    }
    let others = manifest.layers.iter().filter(|child| !is_layer(child));
    for (number, other) in others.enumerate() {
        labels.insert(format!("{LABEL_CHILD}.{number}"), other.digest.to_string());
    }
    labels
}
