//! Manifests, indexes and configurations, read out of the daemon's content store.

use crated_api::services::content::v1::content_client::ContentClient;
use crated_api::services::content::v1::{InfoRequest, ReadContentRequest};
use crated_api::types::Descriptor;
use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use serde::de::DeserializeOwned;

use crate::connect::{Daemon, client};
use crate::error::{Error, Result};

/// The largest document that is read.
const DOCUMENT_BYTES_MAX: usize = 8 << 20;

/// The parts of one image for one platform.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Bytes of the manifest itself.
    pub(crate) manifest_bytes: u64,
    /// The manifest.
    pub(crate) manifest: ImageManifest,
}

impl Parts {
    /// Bytes of manifest, configuration and layers.
    pub(crate) fn size_bytes(&self) -> u64 {
        let layers: u64 = self.manifest.layers().iter().map(|layer| layer.size()).sum();
        self.manifest_bytes + self.manifest.config().size() + layers
    }
}

/// Whether a media type is one of the two for lists of manifests.
pub(crate) fn is_index(media_type: &str) -> bool {
    media_type == "application/vnd.oci.image.index.v1+json"
        || media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
}

/// The image's parts for `platform`, such as `linux/amd64`.
///
/// # Errors
///
/// [`Error::Refused`] when the index names no such platform; a missing document is the
/// daemon's `not found`.
pub(crate) async fn parts(daemon: &Daemon, target: &Descriptor, platform: &str) -> Result<Parts> {
    let (digest, size) = if is_index(&target.media_type) {
        let index: ImageIndex = document(daemon, &target.digest).await?;
        let chosen = index
            .manifests()
            .iter()
            .find(|manifest| platform_of(manifest).as_deref() == Some(platform))
            .or_else(|| index.manifests().iter().find(|manifest| manifest.platform().is_none()))
            .ok_or_else(|| {
                Error::Refused(format!(
                    "no match for platform in manifest {}: not found",
                    target.digest
                ))
            })?;
        (chosen.digest().to_string(), chosen.size())
    } else {
        (target.digest.clone(), u64::try_from(target.size).unwrap_or_default())
    };
    let manifest = document(daemon, &digest).await?;
    Ok(Parts { manifest_bytes: size, manifest })
}

/// The platforms that an image names, each once, in order.
pub(crate) async fn platforms(daemon: &Daemon, target: &Descriptor) -> Result<Vec<String>> {
    let mut names = Vec::new();
    if is_index(&target.media_type) {
        let index: ImageIndex = document(daemon, &target.digest).await?;
        for manifest in index.manifests() {
            let name = platform_of(manifest).filter(|name| !name.starts_with("unknown"));
            names.extend(name);
        }
    } else {
        let manifest: ImageManifest = document(daemon, &target.digest).await?;
        let config: ImageConfiguration =
            document(daemon, manifest.config().digest().as_ref()).await?;
        names.push(joined(
            &config.os().to_string(),
            &config.architecture().to_string(),
            config.variant().as_deref(),
        ));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The platform that containers of this machine have.
pub(crate) fn host_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    };
    format!("linux/{architecture}")
}

/// Reads and parses a document.
pub(crate) async fn document<T: DeserializeOwned>(daemon: &Daemon, digest: &str) -> Result<T> {
    let bytes = read(daemon, digest).await?;
    serde_json::from_slice(&bytes).map_err(Error::malformed(format!("document {digest}")))
}

/// Whether the daemon has a blob in this namespace.
pub(crate) async fn exists(daemon: &Daemon, digest: &str) -> Result<bool> {
    let request = InfoRequest { digest: digest.to_owned() };
    match client!(daemon, ContentClient).info(request).await.map_err(Error::from) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn read(daemon: &Daemon, digest: &str) -> Result<Vec<u8>> {
    let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    let mut stream = client!(daemon, ContentClient).read(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = stream.message().await? {
        bytes.extend_from_slice(&part.data);
        if bytes.len() > DOCUMENT_BYTES_MAX {
            let reason = format!("document {digest} is larger than {DOCUMENT_BYTES_MAX} bytes");
            return Err(Error::Refused(reason));
        }
    }
    Ok(bytes)
}

fn platform_of(manifest: &oci_spec::image::Descriptor) -> Option<String> {
    let platform = manifest.platform().as_ref()?;
    let variant = platform.variant().as_deref();
    Some(joined(&platform.os().to_string(), &platform.architecture().to_string(), variant))
}

/// `os/architecture[/variant]`, without the variant that every machine of the kind has.
fn joined(os: &str, architecture: &str, variant: Option<&str>) -> String {
    match variant {
        None | Some("") => format!("{os}/{architecture}"),
        Some("v8") if architecture == "arm64" => format!("{os}/{architecture}"),
        Some(variant) => format!("{os}/{architecture}/{variant}"),
    }
}
