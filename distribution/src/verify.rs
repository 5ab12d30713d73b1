//! Checking every byte against the descriptor that promised it.

use bytes::Bytes;

use crate::body::Body;
use crate::descriptor::Descriptor;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};

/// A whole body whose bytes are hashed as they pass.
///
/// The last [`Verifier::chunk`] reports the verdict, so whoever reads until `None` has read
/// exactly the bytes the descriptor names. Nothing read before that may be published.
#[derive(Debug)]
pub struct Verifier {
    body: Body,
    hasher: Option<Hasher>,
    expected: Digest,
}

impl Verifier {
    /// Verifies `body`, which must start at the first byte of the content.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the body is not as long as the descriptor says.
    pub fn new(body: Body, descriptor: &Descriptor) -> Result<Self> {
        if body.len_bytes() != descriptor.size_bytes || body.position_bytes() != 0 {
            return Err(Error::InvalidArgument {
                what: "body to verify",
                reason: format!("not the whole content of {}", descriptor.digest),
            });
        }
        let hasher = Some(Hasher::new(descriptor.digest.algorithm()));
        Ok(Self { body, hasher, expected: descriptor.digest.clone() })
    }

    /// Continues a body that was read before up to where `hasher` stands.
    pub fn resume(body: Body, hasher: Hasher, descriptor: &Descriptor) -> Self {
        Self { body, hasher: Some(hasher), expected: descriptor.digest.clone() }
    }

    /// The next piece, `None` once the whole content has arrived and is what it should be.
    ///
    /// # Errors
    ///
    /// [`Error::DigestMismatch`] when the last byte arrived and the digest is another; and
    /// everything [`Body::chunk`] reports.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        if let Some(bytes) = self.body.chunk().await? {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&bytes);
            }
            return Ok(Some(bytes));
        }
        if let Some(hasher) = self.hasher.take() {
            let actual = hasher.finish();
            if actual != self.expected {
                return Err(Error::DigestMismatch { expected: self.expected.clone(), actual });
            }
        }
        Ok(None)
    }

    /// Reads and verifies everything into memory.
    ///
    /// # Errors
    ///
    /// [`Error::LimitExceeded`] before anything is read when it is longer than `limit_bytes`;
    /// otherwise as [`Verifier::chunk`].
    pub async fn collect(mut self, limit_bytes: u64) -> Result<Bytes> {
        if self.body.len_bytes() > limit_bytes {
            return Err(Error::LimitExceeded {
                what: self.expected.to_string(),
                limit: limit_bytes,
            });
        }
        let mut whole = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.into())
    }
}
