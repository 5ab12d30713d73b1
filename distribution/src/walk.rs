//! From a root to everything below it: documents, the platforms chosen, the blobs they need.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::annotation;
use crate::body::FetchSource;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::document::{Document, DocumentLimits, ImageConfig, Index, Manifest};
use crate::error::{Error, Result};
use crate::media_type::MediaType;
use crate::platform::{All, Matcher, Platform};
use crate::progress::{Progress, State};
use crate::resolver::{Fetcher, Pushed, Pusher};
use crate::verify::Verifier;

/// What a walk visits.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WalkOptions {
    /// The platforms wanted, and which of them is best.
    pub platforms: Arc<dyn Matcher>,
    /// How many manifests of each index, best first; `None` for all that match.
    pub manifests_max: Option<usize>,
    /// Bounds on the documents.
    pub limits: DocumentLimits,
}

impl WalkOptions {
    /// Everything, for every platform.
    pub fn all() -> Self {
        Self { platforms: Arc::new(All), manifests_max: None, limits: DocumentLimits::default() }
    }

    /// The one best image for `platforms`.
    pub fn best(platforms: impl Matcher + 'static) -> Self {
        Self { platforms: Arc::new(platforms), manifests_max: Some(1), ..Self::all() }
    }
}

/// One object of a walk.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Node {
    /// What it is.
    pub descriptor: Descriptor,
    /// Manifests and indexes, parsed.
    pub document: Option<Document>,
    /// The bytes of manifests and indexes, verified.
    pub bytes: Option<Bytes>,
    /// The object that named it first; none for the root.
    pub parent: Option<Digest>,
}

/// Fetches and verifies one manifest or index.
///
/// # Errors
///
/// Those of [`Fetcher::fetch`], [`Verifier`] and [`Document::parse`].
pub async fn fetch_document(
    fetcher: &dyn Fetcher,
    descriptor: &Descriptor,
    limits: &DocumentLimits,
) -> Result<(Document, Bytes)> {
    let bytes = fetch_bytes(fetcher, descriptor, limits.manifest_bytes_max).await?;
    let document = Document::parse(&bytes, &descriptor.media_type, limits)?;
    Ok((document, bytes))
}

/// Fetches, verifies and checks the configuration of an image manifest.
///
/// # Errors
///
/// Those of [`Fetcher::fetch`], [`Verifier`], [`ImageConfig::parse`] and
/// [`ImageConfig::check_layers`].
pub async fn fetch_config(
    fetcher: &dyn Fetcher,
    manifest: &Manifest,
    limits: &DocumentLimits,
) -> Result<ImageConfig> {
    let bytes = fetch_bytes(fetcher, &manifest.config, limits.config_bytes_max).await?;
    let config = ImageConfig::parse(bytes, limits)?;
    config.check_layers(manifest)?;
    Ok(config)
}

/// Fetches and verifies anything that fits in memory; embedded data saves the request.
///
/// # Errors
///
/// [`Error::LimitExceeded`] without a request when it is longer than `limit_bytes`; otherwise
/// those of [`Fetcher::fetch`] and [`Verifier`].
pub async fn fetch_bytes(
    fetcher: &dyn Fetcher,
    descriptor: &Descriptor,
    limit_bytes: u64,
) -> Result<Bytes> {
    if descriptor.size_bytes > limit_bytes {
        return Err(Error::LimitExceeded {
            what: format!("{} of {} bytes", descriptor.digest, descriptor.size_bytes),
            limit: limit_bytes,
        });
    }
    if let Some(bytes) = descriptor.embedded() {
        return Ok(bytes.into());
    }
    loop {
        let body = fetcher.fetch(descriptor, 0).await?;
        match Verifier::new(body, descriptor)?.collect(limit_bytes).await {
            // Another mirror may have the right bytes; each is asked once.
            Err(Error::DigestMismatch { .. }) if fetcher.distrust(&descriptor.digest) => {}
            found => return found,
        }
    }
}

/// The manifests of an index that `platforms` wants, best first.
///
/// Manifests without a platform could be anything: they match, and come last. Attestations are
/// for `unknown/unknown` and match only when everything does.
///
/// # Errors
///
/// [`Error::NotFound`] when none matches.
pub fn select<'i>(
    index: &'i Index,
    platforms: &dyn Matcher,
    manifests_max: Option<usize>,
) -> Result<Vec<&'i Descriptor>> {
    let mut chosen: Vec<&Descriptor> = index
        .manifests
        .iter()
        .filter(|manifest| match &manifest.platform {
            Some(platform) => platforms.matches(platform),
            None => true,
        })
        .collect();
    chosen.sort_by(|a, b| match (&a.platform, &b.platform) {
        (Some(a), Some(b)) => platforms.compare(a, b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    });
    if chosen.is_empty() && !index.manifests.is_empty() {
        return Err(Error::not_found("no match for platform in manifest"));
    }
    chosen.truncate(manifests_max.unwrap_or(usize::MAX));
    Ok(chosen)
}

/// Visits everything below `root` once, parents before children. Documents are fetched and
/// verified; configurations and layers are only named.
///
/// # Errors
///
/// [`Error::LimitExceeded`] when indexes nest too deeply or there are too many documents;
/// [`Error::NotFound`] when nothing matches the platform; and those of [`fetch_document`].
pub async fn walk(
    fetcher: &dyn Fetcher,
    root: &Descriptor,
    options: &WalkOptions,
) -> Result<Vec<Node>> {
    let limits = &options.limits;
    let mut nodes = Vec::new();
    let mut seen = HashSet::new();
    let mut documents = 0;
    let mut queue = VecDeque::from([(root.clone(), None, 0)]);
    while let Some((descriptor, parent, depth)) = queue.pop_front() {
        if !seen.insert(descriptor.digest.clone()) {
            continue;
        }
        if !MediaType::of(&descriptor.media_type).is_document() {
            nodes.push(Node { descriptor, document: None, bytes: None, parent });
            continue;
        }
        documents += 1;
        bound("documents below one root", documents, limits.documents_max)?;
        let (document, bytes) = fetch_document(fetcher, &descriptor, limits).await?;
        let children: Vec<Descriptor> = match &document {
            Document::Manifest(manifest) => {
                if nodes.is_empty() && descriptor.platform.is_none() {
                    check_platform(fetcher, manifest, options).await?;
                }
                manifest.children().cloned().collect()
            }
            Document::Index(index) => {
                bound("indexes inside indexes", depth + 1, limits.index_depth_max)?;
                let chosen = select(index, &*options.platforms, options.manifests_max)?;
                chosen.into_iter().cloned().collect()
            }
        };
        let digest = descriptor.digest.clone();
        queue.extend(children.into_iter().map(|child| (child, Some(digest.clone()), depth + 1)));
        let (document, bytes) = (Some(document), Some(bytes));
        nodes.push(Node { descriptor, document, bytes, parent });
    }
    Ok(nodes)
}

/// Copies everything below `root`, children before parents and the root last, so that whatever
/// is visible at the destination is complete.
///
/// # Errors
///
/// Those of [`walk`], and those of the first push that fails.
pub async fn copy(
    fetcher: Arc<dyn Fetcher>,
    pusher: &dyn Pusher,
    root: &Descriptor,
    options: &WalkOptions,
    progress: &Progress,
) -> Result<()> {
    let nodes = walk(&*fetcher, root, options).await?;
    let mut keys = HashMap::new();
    for node in &nodes {
        let key = reference_key(&node.descriptor);
        let parent = node.parent.as_ref().and_then(|parent| keys.get(parent));
        let parents: Vec<String> = parent.into_iter().cloned().collect();
        progress.add(&key, &parents, node.descriptor.size_bytes);
        keys.insert(node.descriptor.digest.clone(), key);
    }
    for node in nodes.iter().rev() {
        let key = reference_key(&node.descriptor);
        if matches!(
            MediaType::of(&node.descriptor.media_type),
            MediaType::Layer { distributable: false, .. }
        ) {
            progress.state(&key, State::Exists);
            continue;
        }
        let pushed = match &node.bytes {
            Some(bytes) => pusher.push(&node.descriptor, &progress.source(&key, bytes)).await,
            None => {
                let source = FetchSource::new(fetcher.clone(), node.descriptor.clone());
                pusher.push(&node.descriptor, &progress.source(&key, &source)).await
            }
        };
        match pushed {
            Ok(Pushed::Uploaded) => progress.state(&key, State::Complete),
            Ok(_) => progress.state(&key, State::Exists),
            Err(error) => {
                progress.state(&key, State::Failed);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// The name of an object in progress reports and of its ingest: what kind it is and its digest.
pub fn reference_key(descriptor: &Descriptor) -> String {
    let kind = match MediaType::of(&descriptor.media_type) {
        MediaType::Index => "index",
        MediaType::Manifest | MediaType::Schema1 => "manifest",
        MediaType::Config => "config",
        MediaType::Layer { .. } => "layer",
        MediaType::Attestation => "attestation",
        MediaType::Other => "unknown",
    };
    match descriptor.annotations.get(annotation::REF_NAME) {
        Some(name) => format!("{kind}-{name}@{}", descriptor.digest),
        None => format!("{kind}-{}", descriptor.digest),
    }
}

/// A manifest that stands alone says only in its configuration what it runs on.
async fn check_platform(
    fetcher: &dyn Fetcher,
    manifest: &Manifest,
    options: &WalkOptions,
) -> Result<()> {
    if !manifest.is_image() || options.platforms.matches(&Platform::new("unknown", "unknown")) {
        return Ok(());
    }
    let config = fetch_config(fetcher, manifest, &options.limits).await?;
    if !options.platforms.matches(&config.platform) {
        return Err(Error::not_found(format!(
            "image for {} does not match the specified platform",
            config.platform
        )));
    }
    Ok(())
}

fn bound(what: &str, count: usize, count_max: usize) -> Result<()> {
    if count > count_max {
        return Err(Error::LimitExceeded { what: what.into(), limit: count_max as u64 });
    }
    Ok(())
}
