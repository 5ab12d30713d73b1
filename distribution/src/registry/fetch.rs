//! Reading content from whichever endpoint has it.

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::RANGE;
use http::{HeaderValue, Method, StatusCode};

use super::call::{Answer, Call, Caller, Carries, Target};
use super::client::ClientParts;
use super::origin::shown;
use super::ranged::Ranged;
use super::repository::{Failures, Repository, accept, content_length};
use super::stream::{Span, Stream};
use crate::body::Body;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media_type::MediaType;
use crate::resolver::Fetcher;
use crate::verify::Verifier;

/// Reads the content of one repository.
#[derive(Debug)]
pub(crate) struct RegistryFetcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    repository: Repository,
    /// Digests and the endpoints that sent something else for them.
    distrusted: Mutex<HashSet<(Digest, String)>>,
}

impl RegistryFetcher {
    pub(crate) fn new(repository: Repository) -> Self {
        Self { shared: Arc::new(Shared { repository, distrusted: Mutex::default() }) }
    }

    /// A manifest or index: read whole, so that an endpoint that has another one is passed over.
    async fn document(&self, descriptor: &Descriptor, offset: u64) -> Result<Body> {
        let limit = self.shared.repository.client.limits.documents.manifest_bytes_max;
        loop {
            let whole = self.shared.open(descriptor, 0).await?;
            match Verifier::new(whole, descriptor)?.collect(limit).await {
                Ok(bytes) => {
                    let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                    return Ok(Body::from_bytes(bytes.slice(offset..)));
                }
                Err(error @ Error::DigestMismatch { .. }) => {
                    if !self.distrust(&descriptor.digest) {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[async_trait]
impl Fetcher for RegistryFetcher {
    async fn fetch(&self, descriptor: &Descriptor, offset: u64) -> Result<Body> {
        descriptor.check()?;
        if offset > descriptor.size_bytes {
            return Err(Error::InvalidArgument {
                what: "offset",
                reason: format!("{offset} is past the end of {}", descriptor.digest),
            });
        }
        if let Some(bytes) = descriptor.embedded() {
            // The check above bounds it by a document, so it fits in memory.
            return Ok(Body::from_bytes(Bytes::from(bytes).slice(offset as usize..)));
        }
        if offset == descriptor.size_bytes {
            return Ok(Body::from_bytes(Bytes::new()));
        }
        if MediaType::of(&descriptor.media_type).is_document() {
            return self.document(descriptor, offset).await;
        }
        self.shared.open(descriptor, offset).await
    }

    fn distrust(&self, digest: &Digest) -> bool {
        self.shared.distrust(digest)
    }
}

impl Shared {
    /// Opens a body that resumes by itself, over several connections if it is large.
    async fn open(self: &Arc<Self>, descriptor: &Descriptor, offset: u64) -> Result<Body> {
        let permit = self.repository.client.quota.body().await?;
        let chunks = Ranged::open(self.clone(), descriptor.clone(), offset, permit).await?;
        let what = descriptor.digest.to_string();
        Ok(Body::new(what, Box::new(chunks), descriptor.size_bytes - offset))
    }

    /// Finds an endpoint that has the bytes of `span`. Those in `slow` are tried last.
    pub(super) async fn stream(
        &self,
        descriptor: &Descriptor,
        span: &Span,
        slow: &[String],
    ) -> Result<(Stream, String)> {
        let mut failures = Failures::default();
        if self.repository.client.foreign_urls {
            for url in &descriptor.urls {
                match self.foreign(descriptor, span, url).await {
                    Ok(stream) => return Ok((stream, String::new())),
                    Err(error) if error.is_not_found() => failures.add(error),
                    Err(error) => return Err(error),
                }
            }
        }
        let mut callers = self.repository.callers(|can| can.pull)?;
        let trusted: Vec<_> = callers
            .iter()
            .filter(|(caller, _)| !self.is_distrusted(&descriptor.digest, caller))
            .cloned()
            .collect();
        if !trusted.is_empty() {
            callers = trusted;
        }
        callers.sort_by_key(|(caller, _)| slow.contains(&caller.endpoint.host()));
        let count = callers.len();
        for (at, (caller, _)) in callers.iter().enumerate() {
            let path = Repository::path(descriptor);
            let mut call = self.repository.call(Method::GET, &path, at + 1 == count);
            call.headers = accept(&format!("{}, */*", descriptor.media_type));
            match self.ranged(caller, call, descriptor, span).await {
                Ok(stream) => return Ok((stream, caller.endpoint.host())),
                Err(error) => {
                    tracing::debug!(digest = %descriptor.digest, %error, "endpoint did not serve");
                    failures.add(error);
                }
            }
        }
        let what = format!("could not fetch content descriptor {}", descriptor.digest);
        Err(failures.into_error(&what))
    }

    /// How many endpoints may serve content.
    pub(super) fn endpoints(&self) -> usize {
        self.repository.callers(|can| can.pull).map_or(0, |callers| callers.len())
    }

    /// What requests of this client share.
    pub(super) fn client(&self) -> &ClientParts {
        &self.repository.client
    }

    /// An address out of a document: any host but local ones, and never with anything secret.
    async fn foreign(&self, descriptor: &Descriptor, span: &Span, url: &str) -> Result<Stream> {
        let callers = self.repository.callers(|can| can.pull)?;
        let caller = &callers[0].0;
        let refuse = |reason| Error::Refused {
            host: self.repository.reference.host().to_owned(),
            url: url::Url::parse(url).map_or_else(|_| "descriptor url".into(), |url| shown(&url)),
            reason,
        };
        let url = super::origin::follow(&caller.endpoint.base(), url).map_err(refuse)?;
        if super::origin::Origin::of(&url) == caller.endpoint.origin() {
            return Err(refuse("leads back to the registry"));
        }
        let call = Call {
            method: Method::GET,
            target: Target::Url(url),
            headers: accept("*/*"),
            carries: Carries::Nothing,
            scopes: BTreeSet::new(),
            reference: String::new(),
            insist: false,
        };
        self.ranged(caller, call, descriptor, span).await
    }

    /// Asks one endpoint for the bytes of `span`. Servers that take no part of a blob are asked
    /// for the whole, once and for as long as the endpoint is known.
    async fn ranged(
        &self,
        caller: &Caller,
        mut call: Call<'_>,
        descriptor: &Descriptor,
        span: &Span,
    ) -> Result<Stream> {
        let connections = caller.endpoint.connections.clone();
        let connection = connections.acquire_owned().await.map_err(|_| closed())?;
        // What another server does says nothing about the endpoint.
        let elsewhere = AtomicBool::new(false);
        let refused = match call.target {
            Target::Path(..) => &caller.endpoint.refuses_ranges,
            Target::Url(_) => &elsewhere,
        };
        let part = span.end < descriptor.size_bytes;
        let asks = !refused.load(Ordering::Relaxed) && (span.position > 0 || part);
        if asks {
            let last = if part { (span.end - 1).to_string() } else { String::new() };
            let range = HeaderValue::from_str(&format!("bytes={}-{last}", span.position));
            // Numbers between fixed words are always a header value.
            call.headers.insert(RANGE, range.unwrap_or(HeaderValue::from_static("bytes=0-")));
        }
        let mut answer = caller.send(&call).await?;
        if asks && matches!(answer.status.as_u16(), 400 | 416 | 501) {
            refused.store(true, Ordering::Relaxed);
            call.headers.remove(RANGE);
            answer = caller.send(&call).await?;
        }
        let (skip, end) = match answer.status {
            StatusCode::OK => {
                if asks {
                    refused.store(true, Ordering::Relaxed);
                }
                (span.position, descriptor.size_bytes)
            }
            StatusCode::PARTIAL_CONTENT if asks => {
                check_content_range(&answer, span, descriptor)?;
                (0, span.end)
            }
            _ => return Err(answer.into_error(&self.repository.client).await),
        };
        let wanted = end - span.position;
        let length = content_length(&answer);
        if let Some(encoding) = answer.header("content-encoding") {
            // What was asked for is the stored bytes; a server that only labels them so sends
            // exactly as many as there are.
            if !encoding.eq_ignore_ascii_case("identity") && length != Some(wanted + skip) {
                let shown: String = encoding.chars().take(40).collect();
                return Err(Error::Unsupported {
                    what: format!("content encoding {shown:?} of {}", descriptor.digest),
                });
            }
        }
        if length.is_some_and(|length| length > wanted + skip) {
            return Err(Error::Oversized { what: descriptor.digest.to_string(), want: wanted });
        }
        Ok(Stream { incoming: answer.body, skip, end, _connection: connection })
    }

    fn distrust(&self, digest: &Digest) -> bool {
        let Ok(callers) = self.repository.callers(|can| can.pull) else { return false };
        let next = callers.iter().find(|(caller, _)| !self.is_distrusted(digest, caller));
        if let Some((caller, _)) = next {
            let mut distrusted = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
            distrusted.insert((digest.clone(), caller.endpoint.host()));
        }
        callers.iter().any(|(caller, _)| !self.is_distrusted(digest, caller))
    }

    fn is_distrusted(&self, digest: &Digest, caller: &Caller) -> bool {
        let distrusted = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
        distrusted.contains(&(digest.clone(), caller.endpoint.host()))
    }
}

/// A part must be the part that was asked for, or its beginning: `bytes first-last/whole`.
fn check_content_range(answer: &Answer, span: &Span, descriptor: &Descriptor) -> Result<()> {
    let text = answer.header("content-range").unwrap_or_default();
    let fits = text.strip_prefix("bytes ").and_then(|rest| {
        let (range, whole) = rest.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let whole = match whole.trim() {
            "*" => descriptor.size_bytes,
            whole => whole.parse().ok()?,
        };
        let within = first == span.position && first <= last && last < span.end;
        Some(within && whole == descriptor.size_bytes)
    });
    if fits == Some(true) {
        return Ok(());
    }
    let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
    let (from, to) = (span.position, span.end);
    Err(Error::document(
        format!("answer for {}", descriptor.digest),
        format!("content range {shown:?} is not the one from {from} to {to} that was asked for"),
    ))
}

pub(super) fn closed() -> Error {
    Error::Unsupported { what: "fetching after the resolver was closed".into() }
}
