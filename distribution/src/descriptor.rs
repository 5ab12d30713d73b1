//! Descriptors: what a piece of content is, how large it is, and its digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::platform::Platform;

/// A pointer to content: media type, digest and size, as in manifests and indexes.
///
/// A value read from a document has passed the checks of [`Descriptor::check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the bytes are.
    pub media_type: String,
    /// The digest of the bytes.
    pub digest: Digest,
    /// The number of bytes.
    #[serde(rename = "size", deserialize_with = "size")]
    pub size_bytes: u64,
    /// Other places that may hold the bytes; from an untrusted document, so off by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub urls: Vec<String>,
    /// Free-form metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    /// What the image behind this descriptor runs on; in indexes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The type of the artifact behind a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The bytes themselves, base64, when a document embeds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

impl Descriptor {
    /// A descriptor with the three fields that must be there.
    pub fn new(media_type: impl Into<String>, digest: Digest, size_bytes: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size_bytes,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
            data: None,
        }
    }

    /// The descriptor of `bytes`.
    pub fn of(media_type: impl Into<String>, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// Checks what a type cannot: a size of nothing names the digest of nothing, a size fits the
    /// signed 64 bits of other implementations, and texts stay within bounds.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDocument`] naming the digest and the field.
    pub fn check(&self) -> Result<()> {
        let refuse = |reason: &str| {
            Err(Error::document(format!("descriptor {}", self.digest), reason.to_owned()))
        };
        if self.size_bytes > i64::MAX as u64 {
            return refuse("size does not fit 63 bits");
        }
        if self.size_bytes == 0 && !is_empty_digest(&self.digest) {
            return refuse("size 0 with the digest of something");
        }
        if self.media_type.len() > MEDIA_TYPE_BYTES_MAX
            || self.media_type.bytes().any(|byte| byte.is_ascii_control())
        {
            return refuse("media type is too long or holds control characters");
        }
        if self.urls.len() > URLS_MAX {
            return refuse("too many urls");
        }
        Ok(())
    }

    /// The embedded bytes, when they are there and are what the digest names.
    pub fn embedded(&self) -> Option<Vec<u8>> {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD.decode(self.data.as_ref()?).ok()?;
        let mut hasher = crate::digest::Hasher::new(self.digest.algorithm());
        hasher.update(&bytes);
        (bytes.len() as u64 == self.size_bytes && hasher.finish() == self.digest).then_some(bytes)
    }
}

impl TryFrom<&oci_spec::image::Descriptor> for Descriptor {
    type Error = Error;

    fn try_from(other: &oci_spec::image::Descriptor) -> Result<Self> {
        let descriptor = Self {
            media_type: other.media_type().to_string(),
            digest: Digest::parse(other.digest().as_ref())?,
            size_bytes: other.size(),
            urls: other.urls().clone().unwrap_or_default(),
            annotations: other.annotations().clone().unwrap_or_default().into_iter().collect(),
            platform: other.platform().as_ref().map(Platform::from),
            artifact_type: other.artifact_type().as_ref().map(ToString::to_string),
            data: other.data().clone(),
        };
        descriptor.check()?;
        Ok(descriptor)
    }
}

impl TryFrom<&Descriptor> for oci_spec::image::Descriptor {
    type Error = Error;

    fn try_from(own: &Descriptor) -> Result<Self> {
        let digest: oci_spec::image::Digest =
            own.digest.as_str().parse().map_err(|_| Error::InvalidDigest {
                input: own.digest.to_string(),
                reason: "unknown to the image specification's types",
            })?;
        let mut other = Self::new(own.media_type.as_str().into(), own.size_bytes, digest);
        if !own.urls.is_empty() {
            other.set_urls(Some(own.urls.clone()));
        }
        if !own.annotations.is_empty() {
            other.set_annotations(Some(own.annotations.clone().into_iter().collect()));
        }
        other.set_platform(own.platform.as_ref().map(oci_spec::image::Platform::from));
        other.set_artifact_type(own.artifact_type.as_deref().map(Into::into));
        other.set_data(own.data.clone());
        Ok(other)
    }
}

fn is_empty_digest(digest: &Digest) -> bool {
    crate::digest::Hasher::new(digest.algorithm()).finish() == *digest
}

/// Sizes are signed in the documents; negative ones and ones past 63 bits are refused.
fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = i64::deserialize(deserializer)?;
    u64::try_from(size).map_err(|_| serde::de::Error::custom("size is negative"))
}

/// Go programs write `null` for empty lists and maps.
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Media types are registered names of two dozen characters; RFC 6838 allows 127 on each side.
const MEDIA_TYPE_BYTES_MAX: usize = 255;
/// Each url may cost a connection, so a list of thousands is an attack.
const URLS_MAX: usize = 16;
