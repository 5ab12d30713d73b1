//! What an archive says it holds.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use serde::Deserialize;

use super::docker::full_name;
use super::read::ArchiveLimits;
use super::tar::malformed;
use super::{DOCKER_MANIFEST, INDEX};
use crate::annotation;
use crate::descriptor::{Descriptor, nullable};
use crate::digest::Digest;
use crate::document::{Document, DocumentLimits, ImageConfig, Index, Manifest};
use crate::error::{Error, Result};
use crate::{json, media_type};

/// What was found in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// It is an OCI layout; a docker manifest beside it says the same and was not looked at.
    Oci(Box<OciContents>),
    /// It is an archive of `docker save`: its images, in its order.
    Docker(Vec<DockerImage>),
}

/// The index of an OCI archive. What it names may be missing, since archives can be partial.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OciContents {
    /// `index.json`, parsed.
    pub index: Index,
    /// Its bytes.
    pub bytes: Bytes,
    /// Its descriptor.
    pub descriptor: Descriptor,
}

/// One image of a docker archive, which has no manifest of its own until
/// [`DockerImage::manifest`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DockerImage {
    /// Its whole names, short ones completed as docker does.
    pub names: Vec<String>,
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, lowest first, as they are in the archive. Whoever has the same layers in
    /// another compression may put those descriptors here.
    pub layers: Vec<Descriptor>,
}

impl DockerImage {
    /// The manifest over the configuration and the layers. The descriptor has the platform.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDocument`] when the configuration has another number of layers.
    pub fn manifest(&self, config: &ImageConfig) -> Result<(Descriptor, Bytes)> {
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::DOCKER_MANIFEST.into()),
            artifact_type: None,
            config: self.config.clone(),
            layers: self.layers.clone(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        config.check_layers(&manifest)?;
        let bytes = serialized("manifest", &manifest)?;
        let mut descriptor = Descriptor::of(media_type::DOCKER_MANIFEST, &bytes);
        descriptor.platform = Some(config.platform.clone());
        Ok((descriptor, bytes))
    }

    /// The entries of an index for this image, whose manifest is `manifest`: one per name, one
    /// without a name when there is none.
    pub fn entries(&self, manifest: &Descriptor) -> Vec<Descriptor> {
        if self.names.is_empty() {
            return vec![manifest.clone()];
        }
        self.names.iter().map(|name| named(manifest, name)).collect()
    }
}

/// An index over `manifests`.
///
/// # Errors
///
/// [`Error::InvalidDocument`] for descriptors that cannot be written.
pub(super) fn index_of(manifests: Vec<Descriptor>) -> Result<Bytes> {
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.into()),
        artifact_type: None,
        manifests,
        subject: None,
        annotations: BTreeMap::new(),
    };
    serialized(INDEX, &index)
}

/// A root with its name in the two annotations that readers look for.
pub(super) fn named(root: &Descriptor, name: &str) -> Descriptor {
    let mut root = root.clone();
    root.annotations.insert(annotation::IMAGE_NAME.into(), name.into());
    let object = name.rsplit_once('/').map_or(name, |(_, last)| last);
    let tag = object.split_once('@').map_or(object, |(rest, _)| rest).split_once(':');
    if let Some((_, tag)) = tag {
        root.annotations.insert(annotation::REF_NAME.into(), tag.into());
    }
    root
}

/// An entry of an archive.
#[derive(Debug)]
pub(super) enum Entry {
    Blob {
        /// Known once it was stored.
        digest: Option<Digest>,
        size_bytes: u64,
        first: [u8; 4],
    },
    /// Another path of the archive, none for one that leads out of it.
    Link(Option<String>),
}

/// A path of an archive below the directory `above`, without anything that a file system would
/// have to interpret.
///
/// # Errors
///
/// [`Error::InvalidDocument`] for paths that are absolute, leave the archive, or are not text;
/// [`Error::LimitExceeded`].
pub(super) fn clean(path: &[u8], above: &[&str], bytes_max: usize) -> Result<String> {
    if path.len() > bytes_max {
        let limit = bytes_max as u64;
        return Err(Error::LimitExceeded { what: "archive: bytes of a path".into(), limit });
    }
    let text = std::str::from_utf8(path).map_err(|_| malformed("path is not UTF-8"))?;
    if text.is_empty() || text.starts_with('/') || text.contains('\0') {
        return Err(malformed("path is empty, absolute or holds a NUL"));
    }
    let mut parts: Vec<&str> = above.to_vec();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_some() => {}
            ".." => return Err(malformed("path leaves the archive")),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// The digest that a path promises.
pub(super) fn claimed(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    Digest::parse(&format!("{algorithm}:{hex}")).ok()
}

/// Reads `index.json`.
pub(super) fn oci(bytes: Bytes, limits: &DocumentLimits) -> Result<OciContents> {
    match Document::parse(&bytes, media_type::OCI_INDEX, limits)? {
        Document::Index(index) => {
            let descriptor = Descriptor::of(media_type::OCI_INDEX, &bytes);
            Ok(OciContents { index, bytes, descriptor })
        }
        Document::Manifest(_) => Err(Error::document(INDEX, "not an index")),
    }
}

/// Reads `manifest.json` and finds what it names.
pub(super) fn docker(
    bytes: &[u8],
    entries: &HashMap<String, Entry>,
    limits: &ArchiveLimits,
) -> Result<Contents> {
    let images = parse(bytes, limits)?;
    let images = images.into_iter().map(|image| {
        let config = find(&image.config, entries, limits)?;
        if config.size_bytes > limits.documents.config_bytes_max {
            let limit = limits.documents.config_bytes_max;
            return Err(Error::LimitExceeded { what: "archive: image config".into(), limit });
        }
        let layers = image.layers.iter().map(|path| {
            let layer = find(path, entries, limits)?;
            let kind = match layer.first {
                [0x1f, 0x8b, ..] => media_type::DOCKER_LAYER_GZIP,
                [0x28, 0xb5, 0x2f, 0xfd] => media_type::DOCKER_LAYER_ZSTD,
                _ => media_type::DOCKER_LAYER,
            };
            Ok(Descriptor::new(kind, layer.digest, layer.size_bytes))
        });
        Ok(DockerImage {
            names: image.names.iter().map(|name| full_name(name)).collect::<Result<_>>()?,
            config: Descriptor::new(media_type::DOCKER_CONFIG, config.digest, config.size_bytes),
            layers: layers.collect::<Result<_>>()?,
        })
    });
    Ok(Contents::Docker(images.collect::<Result<_>>()?))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Outline {
    config: String,
    #[serde(default, rename = "RepoTags", deserialize_with = "nullable")]
    names: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    layers: Vec<String>,
}

fn parse(bytes: &[u8], limits: &ArchiveLimits) -> Result<Vec<Outline>> {
    let shape = limits.documents.shape(limits.docker_manifest_bytes_max);
    json::check_list(DOCKER_MANIFEST, bytes, shape)?;
    let wrong = |error: serde_json::Error| Error::document(DOCKER_MANIFEST, error.to_string());
    let objects: Vec<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_slice(bytes).map_err(wrong)?;
    for object in &objects {
        let folded: HashSet<String> = object.keys().map(|key| key.to_ascii_lowercase()).collect();
        if folded.len() != object.len() {
            return Err(Error::document(DOCKER_MANIFEST, "keys that differ only in case"));
        }
    }
    let images: Vec<Outline> = serde_json::from_slice(bytes).map_err(wrong)?;
    if images.iter().any(|image| image.layers.len() > limits.documents.layers_max) {
        let limit = limits.documents.layers_max as u64;
        return Err(Error::LimitExceeded { what: "archive: layers of an image".into(), limit });
    }
    Ok(images)
}

struct Found {
    digest: Digest,
    size_bytes: u64,
    first: [u8; 4],
}

fn find(path: &str, entries: &HashMap<String, Entry>, limits: &ArchiveLimits) -> Result<Found> {
    let missing = || {
        let shown: String = path.chars().take(100).collect();
        Error::not_found(format!("{shown:?} in the archive"))
    };
    let mut at = clean(path.as_bytes(), &[], limits.path_bytes_max)?;
    for _ in 0..LINKS_MAX {
        match entries.get(&at) {
            Some(Entry::Blob { digest: Some(digest), size_bytes, first }) => {
                let (digest, size_bytes, first) = (digest.clone(), *size_bytes, *first);
                return Ok(Found { digest, size_bytes, first });
            }
            Some(Entry::Link(Some(target))) => at.clone_from(target),
            Some(Entry::Link(None)) => return Err(malformed("link leaves the archive")),
            Some(Entry::Blob { digest: None, .. }) | None => return Err(missing()),
        }
    }
    Err(malformed("links lead to links without end"))
}

pub(super) fn serialized(what: &str, value: &impl serde::Serialize) -> Result<Bytes> {
    match serde_json::to_vec(value) {
        Ok(bytes) => Ok(bytes.into()),
        Err(error) => Err(Error::document(what, error.to_string())),
    }
}

/// Writers link a layer to the first copy of it; chains have no use.
const LINKS_MAX: usize = 8;
