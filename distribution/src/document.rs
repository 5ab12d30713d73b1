//! Manifests, indexes and configurations, read strictly.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::descriptor::{Descriptor, nullable};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::json::{self, Shape};
use crate::media_type::{self, MediaType};
use crate::platform::Platform;

/// Bounds on documents.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DocumentLimits {
    /// Bytes of a manifest or index.
    pub manifest_bytes_max: u64,
    /// Bytes of an image configuration.
    pub config_bytes_max: u64,
    /// List entries and object keys in one document, over all levels.
    pub items_max: usize,
    /// Nested levels inside one document.
    pub json_depth_max: usize,
    /// Layers of a manifest.
    pub layers_max: usize,
    /// Manifests of an index.
    pub manifests_max: usize,
    /// Indexes inside indexes.
    pub index_depth_max: usize,
    /// Documents of one walk.
    pub documents_max: usize,
}

impl Default for DocumentLimits {
    fn default() -> Self {
        Self {
            // What registries themselves accept, and what other clients refuse beyond.
            manifest_bytes_max: 4 << 20,
            // Configurations carry the whole build history.
            config_bytes_max: 8 << 20,
            items_max: 100_000,
            // Real documents nest five levels; 32 leaves room for extensions.
            json_depth_max: 32,
            // File systems stack 500 layers at most.
            layers_max: 1_000,
            manifests_max: 2_000,
            // An index of indexes exists in practice, deeper ones do not.
            index_depth_max: 4,
            documents_max: 4_000,
        }
    }
}

/// A manifest or an index.
#[allow(clippy::large_enum_variant, reason = "one exists per document, never a list of them")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image or artifact.
    Manifest(Manifest),
    /// A list of them.
    Index(Index),
}

/// One image or artifact: a configuration and layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The document's own idea of its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What kind of artifact it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
    /// What this one is about, for referrers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

/// A list of manifests, usually one per platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The document's own idea of its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What kind of artifact it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests in the order of the document.
    #[serde(default, deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
    /// What this one is about, for referrers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

impl Document {
    /// Parses a manifest or index that came with the media type `media_type`.
    ///
    /// What the document is, is decided by its content alone; the media type it came with, and
    /// the one it names itself, must agree. The same bytes are therefore never a manifest to one
    /// reader and an index to another. An empty `media_type` and the generic ones leave the
    /// decision to the content.
    ///
    /// # Errors
    ///
    /// [`Error::LimitExceeded`] naming the bound; [`Error::InvalidDocument`] when it is malformed,
    /// ambiguous, or not of that type; [`Error::Unsupported`] for schema 1.
    pub fn parse(bytes: &[u8], media_type: &str, limits: &DocumentLimits) -> Result<Self> {
        let keys = json::check("manifest", bytes, limits.shape(limits.manifest_bytes_max))?;
        let kind = kind(&keys)?;
        agree(kind, media_type)?;
        let document = match kind {
            Kind::Manifest => Self::Manifest(read("manifest", bytes)?),
            Kind::Index => Self::Index(read("index", bytes)?),
        };
        agree(kind, document.media_type().unwrap_or_default())?;
        document.check(limits)?;
        Ok(document)
    }

    /// The document's own idea of its type.
    pub fn media_type(&self) -> Option<&str> {
        match self {
            Self::Manifest(manifest) => manifest.media_type.as_deref(),
            Self::Index(index) => index.media_type.as_deref(),
        }
    }

    /// Everything the document points down to: manifests, or configuration and layers.
    pub fn children(&self) -> Vec<&Descriptor> {
        match self {
            Self::Manifest(manifest) => manifest.children().collect(),
            Self::Index(index) => index.manifests.iter().collect(),
        }
    }

    fn check(&self, limits: &DocumentLimits) -> Result<()> {
        let (what, version, count, count_max, subject) = match self {
            Self::Manifest(m) => {
                ("manifest", m.schema_version, m.layers.len(), limits.layers_max, &m.subject)
            }
            Self::Index(i) => {
                ("index", i.schema_version, i.manifests.len(), limits.manifests_max, &i.subject)
            }
        };
        if version != 2 {
            return Err(Error::document(what, format!("schema version {version}, not 2")));
        }
        if count > count_max {
            return Err(Error::LimitExceeded {
                what: format!("{what}: number of entries"),
                limit: count_max as u64,
            });
        }
        self.children().into_iter().chain(subject).try_for_each(Descriptor::check)
    }
}

impl Manifest {
    /// The configuration, then the layers from the lowest.
    pub fn children(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// Whether the configuration says that this is a container image and not another artifact.
    pub fn is_image(&self) -> bool {
        MediaType::of(&self.config.media_type) == MediaType::Config
    }
}

/// What an image's configuration says to whoever unpacks it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageConfig {
    /// What the image runs on.
    pub platform: Platform,
    /// The digests of the layers without compression, lowest first.
    pub diff_ids: Vec<Digest>,
    /// The whole document.
    pub raw: bytes::Bytes,
}

impl ImageConfig {
    /// Parses an image configuration.
    ///
    /// # Errors
    ///
    /// [`Error::LimitExceeded`] naming the bound; [`Error::InvalidDocument`] when it is malformed
    /// or its root file system is not made of layers.
    pub fn parse(bytes: bytes::Bytes, limits: &DocumentLimits) -> Result<Self> {
        json::check("image config", &bytes, limits.shape(limits.config_bytes_max))?;
        let outline: Outline = read("image config", &bytes)?;
        if outline.rootfs.kind != "layers" {
            return Err(Error::document("image config", "rootfs type is not \"layers\""));
        }
        if outline.rootfs.diff_ids.len() > limits.layers_max {
            return Err(Error::LimitExceeded {
                what: "image config: number of diff ids".into(),
                limit: limits.layers_max as u64,
            });
        }
        Ok(Self { platform: outline.platform, diff_ids: outline.rootfs.diff_ids, raw: bytes })
    }

    /// Checks that manifest and configuration speak of the same layers.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDocument`] when their numbers differ.
    pub fn check_layers(&self, manifest: &Manifest) -> Result<()> {
        let layers = manifest.layers.len();
        if layers != self.diff_ids.len() {
            return Err(Error::document(
                "image config",
                format!(
                    "number of layers and diffIDs don't match: {layers} layers, {} diff ids",
                    self.diff_ids.len()
                ),
            ));
        }
        Ok(())
    }

    /// The whole configuration in the types of the image specification.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDocument`] when a field has the wrong type.
    pub fn spec(&self) -> Result<oci_spec::image::ImageConfiguration> {
        read("image config", &self.raw)
    }
}

impl DocumentLimits {
    pub(crate) fn shape(&self, bytes_max: u64) -> Shape {
        Shape { bytes_max, items_max: self.items_max, depth_max: self.json_depth_max }
    }
}

#[derive(Deserialize)]
struct Outline {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "nullable")]
    diff_ids: Vec<Digest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Index,
}

fn kind(keys: &HashSet<String>) -> Result<Kind> {
    // Other readers ignore the case of keys, so what they would see counts too.
    let has = |key: &str| keys.iter().any(|other| other.eq_ignore_ascii_case(key));
    if has("fsLayers") || has("history") && has("signatures") {
        return Err(Error::Unsupported {
            what: "manifest schema 1, no longer supported since v2.0".into(),
        });
    }
    match (has("manifests"), has("config") || has("layers")) {
        (true, true) => Err(Error::document("manifest", "ambiguous: both an index and a manifest")),
        (true, false) => Ok(Kind::Index),
        (false, true) => Ok(Kind::Manifest),
        (false, false) => Err(Error::document("manifest", "neither an index nor a manifest")),
    }
}

/// Checks a claimed media type against the content; claims that say nothing pass.
fn agree(kind: Kind, claimed: &str) -> Result<()> {
    let agrees = match MediaType::of(claimed) {
        MediaType::Manifest => kind == Kind::Manifest,
        MediaType::Index => kind == Kind::Index,
        MediaType::Schema1 => {
            return Err(Error::Unsupported {
                what: "manifest schema 1, no longer supported since v2.0".into(),
            });
        }
        MediaType::Other => matches!(
            media_type::essence(claimed),
            "" | "application/json" | "application/octet-stream" | "text/plain"
        ),
        _ => false,
    };
    if !agrees {
        let shown: String = claimed.chars().take(100).collect();
        return Err(Error::document("manifest", format!("content is not of type {shown:?}")));
    }
    Ok(())
}

fn read<'de, T: Deserialize<'de>>(what: &str, bytes: &'de [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::document(what, error.to_string()))
}
