//! What a reference means at its registry.

use http::{Method, StatusCode};

use super::call::{Answer, Caller};
use super::repository::{Failures, Repository, accept_documents, content_length};
use super::transport;
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::media_type::{self, MediaType};
use crate::resolver::Resolved;

impl Repository {
    /// Resolves this repository's reference.
    pub(crate) async fn resolve(&self) -> Result<Resolved> {
        let reference = &self.reference;
        let digest = reference.digest();
        let paths = match (digest, reference.tag()) {
            (Some(digest), _) => vec![format!("manifests/{digest}"), format!("blobs/{digest}")],
            (None, Some(tag)) => vec![format!("manifests/{tag}")],
            (None, None) => {
                return Err(Error::InvalidArgument {
                    what: "reference",
                    reason: format!("object required in {reference}"),
                });
            }
        };
        let callers = self.callers(|can| can.pull && (can.resolve || digest.is_some()))?;
        let mut failures = Failures::default();
        for path in &paths {
            // A registry that is merely unwell must not turn a manifest into a blob.
            if path.starts_with("blobs/") && !failures.only_absent() {
                break;
            }
            for (caller, last) in &callers {
                match self.resolve_at(caller, path, *last).await {
                    Ok(descriptor) => return Ok(Resolved::new(reference.clone(), descriptor)),
                    Err(error) => {
                        tracing::debug!(%reference, %error, "endpoint did not resolve");
                        failures.add(error);
                    }
                }
            }
        }
        Err(failures.into_error(&self.name()))
    }

    async fn resolve_at(&self, caller: &Caller, path: &str, insist: bool) -> Result<Descriptor> {
        let mut call = self.call(Method::HEAD, path, insist);
        call.headers = accept_documents();
        let mut answer = caller.send(&call).await?;
        if answer.status == StatusCode::METHOD_NOT_ALLOWED {
            call.method = Method::GET;
            answer = caller.send(&call).await?;
        } else if answer.status == StatusCode::FORBIDDEN {
            // A HEAD has no body, and the reason is in it. Only the reason is wanted.
            call.method = Method::GET;
            answer = caller.send(&call).await?;
            if answer.status.is_success() {
                answer.status = StatusCode::FORBIDDEN;
            }
        }
        if !answer.status.is_success() {
            return Err(answer.into_error(&self.client).await);
        }
        let media_type = media_type_of(&answer);
        let size = content_length(&answer);
        let named = match answer.header("docker-content-digest") {
            Some(text) => Some(Digest::parse(text)?),
            None => None,
        };
        let digest = match (self.reference.digest(), named) {
            (Some(wanted), Some(named)) if wanted.algorithm() == named.algorithm() => {
                if *wanted != named {
                    let (expected, actual) = (wanted.clone(), named);
                    return Err(Error::DigestMismatch { expected, actual });
                }
                Some(named)
            }
            (Some(wanted), _) => Some(wanted.clone()),
            (None, named) => named,
        };
        let descriptor = match (digest, size) {
            (Some(digest), Some(size)) if size > 0 => Descriptor::new(media_type, digest, size),
            _ => self.resolve_by_content(caller, path).await?,
        };
        self.check_size(&descriptor)?;
        if MediaType::of(&descriptor.media_type) == MediaType::Schema1 {
            return Err(Error::Unsupported {
                what: "manifest schema 1, no longer supported since v2.0".into(),
            });
        }
        Ok(descriptor)
    }

    /// For servers whose headers do not tell: reads the content and computes what they left out.
    async fn resolve_by_content(&self, caller: &Caller, path: &str) -> Result<Descriptor> {
        let mut call = self.call(Method::GET, path, true);
        call.headers = accept_documents();
        let answer = caller.send(&call).await?;
        if !answer.status.is_success() {
            return Err(answer.into_error(&self.client).await);
        }
        let media_type = media_type_of(&answer);
        let limit = self.client.limits.documents.manifest_bytes_max;
        let host = caller.endpoint.host();
        let stall = self.client.timeouts.stall;
        let what = format!("{} manifest", self.name());
        let body = transport::collect(&what, &host, answer.body, limit, stall).await?;
        let wanted = self.reference.digest();
        let mut hasher = Hasher::new(wanted.map_or(Algorithm::Sha256, Digest::algorithm));
        hasher.update(&body);
        let actual = hasher.finish();
        match wanted {
            Some(expected) if *expected != actual => {
                Err(Error::DigestMismatch { expected: expected.clone(), actual })
            }
            _ => Ok(Descriptor::new(media_type, actual, body.len() as u64)),
        }
    }

    fn check_size(&self, descriptor: &Descriptor) -> Result<()> {
        let limit = self.client.limits.documents.manifest_bytes_max;
        // Blobs that are asked for by digest may have any size.
        let document = self.reference.digest().is_none()
            || MediaType::of(&descriptor.media_type).is_document();
        if document && descriptor.size_bytes > limit {
            let what =
                format!("{}: rejecting {} byte manifest", self.name(), descriptor.size_bytes);
            return Err(Error::LimitExceeded { what, limit });
        }
        Ok(())
    }
}

/// The media type of an answer; old registries send none for the oldest schema.
fn media_type_of(answer: &Answer) -> String {
    let text = answer.header("content-type").unwrap_or_default();
    match media_type::essence(text) {
        "" | "text/plain" => media_type::DOCKER_SCHEMA1.to_owned(),
        essence => essence.chars().take(255).collect(),
    }
}
