//! Media types of images, in the words of both specifications.

use std::fmt;

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, not compressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// The two bytes `{}` as the configuration of an artifact.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Docker manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, not compressed.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
/// Docker manifest, schema 1: recognised in order to be refused.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// What a media type means to an image client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MediaType {
    /// A list of manifests for several platforms.
    Index,
    /// A manifest.
    Manifest,
    /// An image configuration.
    Config,
    /// A file system layer.
    Layer {
        /// Its compression.
        compression: Compression,
        /// False for layers that must not be pushed elsewhere.
        distributable: bool,
    },
    /// A manifest of the first Docker schema, which no longer has any support.
    Schema1,
    /// An in-toto attestation.
    Attestation,
    /// Anything else.
    Other,
}

impl MediaType {
    /// Classifies a media type; parameters after `;` do not matter.
    pub fn of(text: &str) -> Self {
        let text = essence(text);
        match text {
            OCI_INDEX | DOCKER_INDEX => Self::Index,
            OCI_MANIFEST | DOCKER_MANIFEST => Self::Manifest,
            OCI_CONFIG | DOCKER_CONFIG => Self::Config,
            DOCKER_SCHEMA1 | "application/vnd.docker.distribution.manifest.v1+json" => {
                Self::Schema1
            }
            "application/vnd.in-toto+json" => Self::Attestation,
            _ => layer(text),
        }
    }

    /// Whether the bytes are a manifest or an index, which registries keep apart from blobs.
    pub fn is_document(self) -> bool {
        matches!(self, Self::Index | Self::Manifest | Self::Schema1)
    }

    /// Whether the bytes are a layer.
    pub fn is_layer(self) -> bool {
        matches!(self, Self::Layer { .. })
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Index => "index",
            Self::Manifest => "manifest",
            Self::Config => "config",
            Self::Layer { .. } => "layer",
            Self::Schema1 => "schema 1 manifest",
            Self::Attestation => "attestation",
            Self::Other => "unknown",
        })
    }
}

/// A media type without its parameters.
pub fn essence(text: &str) -> &str {
    text.split(';').next().unwrap_or_default().trim()
}

fn layer(text: &str) -> MediaType {
    let (rest, distributable) = match text {
        "application/vnd.docker.image.rootfs.foreign.diff.tar" => (".tar", false),
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => (".tar.gzip", false),
        "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd" => (".tar.zstd", false),
        _ => {
            if let Some(rest) =
                text.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1")
            {
                (rest, false)
            } else if let Some(rest) = text
                .strip_prefix("application/vnd.oci.image.layer.v1")
                .or_else(|| text.strip_prefix("application/vnd.docker.image.rootfs.diff"))
            {
                (rest, true)
            } else {
                return MediaType::Other;
            }
        }
    };
    let compression = match rest {
        ".tar" => Compression::None,
        ".tar+gzip" | ".tar.gzip" => Compression::Gzip,
        ".tar+zstd" | ".tar.zstd" => Compression::Zstd,
        _ => return MediaType::Other,
    };
    MediaType::Layer { compression, distributable }
}
