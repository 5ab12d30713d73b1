//! Reading content: ranges, resuming, and several endpoints that may have it.

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::RANGE;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use super::call::{Answer, Call, Caller, Carries, Target};
use super::failure::explain;
use super::origin::shown;
use super::repository::{Failures, Repository, accept, content_length};
use crate::body::{Body, Chunks};
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
struct Shared {
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
            let whole = self.shared.open(descriptor, 0, None).await?;
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
        self.shared.open(descriptor, offset, None).await
    }

    fn distrust(&self, digest: &Digest) -> bool {
        self.shared.distrust(digest)
    }
}

impl Shared {
    /// Opens a body that resumes by itself. `slow` names an endpoint to try last.
    async fn open(
        self: &Arc<Self>,
        descriptor: &Descriptor,
        offset: u64,
        slow: Option<&str>,
    ) -> Result<Body> {
        let bodies = self.repository.client.bodies.clone();
        let permit = bodies.acquire_owned().await.map_err(|_| closed())?;
        let (stream, host) = self.stream(descriptor, offset, slow).await?;
        let chunks = Resuming {
            shared: self.clone(),
            descriptor: descriptor.clone(),
            position: offset,
            stream: Some(stream),
            host,
            barren: 0,
            slowed: false,
            window: Window::new(),
            _permit: permit,
        };
        let what = descriptor.digest.to_string();
        Ok(Body::new(what, Box::new(chunks), descriptor.size_bytes - offset))
    }

    /// Finds an endpoint that has the bytes from `offset` on.
    async fn stream(
        &self,
        descriptor: &Descriptor,
        offset: u64,
        slow: Option<&str>,
    ) -> Result<(Stream, String)> {
        let mut failures = Failures::default();
        if self.repository.client.foreign_urls {
            for url in &descriptor.urls {
                match self.foreign(descriptor, offset, url).await {
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
        callers.sort_by_key(|(caller, _)| slow == Some(caller.endpoint.host().as_str()));
        let count = callers.len();
        for (at, (caller, _)) in callers.iter().enumerate() {
            let path = Repository::path(descriptor);
            let mut call = self.repository.call(Method::GET, &path, at + 1 == count);
            call.headers = accept(&format!("{}, */*", descriptor.media_type));
            match self.ranged(caller, call, descriptor, offset).await {
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

    /// An address out of a document: any host but local ones, and never with anything secret.
    async fn foreign(&self, descriptor: &Descriptor, offset: u64, url: &str) -> Result<Stream> {
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
        self.ranged(caller, call, descriptor, offset).await
    }

    async fn ranged(
        &self,
        caller: &Caller,
        mut call: Call<'_>,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Stream> {
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            // A number between two fixed words is always a header value.
            call.headers.insert(RANGE, range.unwrap_or(HeaderValue::from_static("bytes=0-")));
        }
        let answer = caller.send(&call).await?;
        let wanted = descriptor.size_bytes - offset;
        let skip = match answer.status {
            StatusCode::OK => offset,
            StatusCode::PARTIAL_CONTENT if offset > 0 => {
                check_content_range(&answer, offset, descriptor)?;
                0
            }
            _ => return Err(answer.into_error(&self.repository.client).await),
        };
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
        Ok(Stream { incoming: answer.body, skip })
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

/// An answer's body, of which the first `skip` bytes were not asked for.
struct Stream {
    incoming: Incoming,
    skip: u64,
}

/// A body that opens itself again where it broke.
struct Resuming {
    shared: Arc<Shared>,
    descriptor: Descriptor,
    position: u64,
    stream: Option<Stream>,
    host: String,
    /// Openings since the last byte.
    barren: u32,
    /// Whether it was opened again for being slow.
    slowed: bool,
    window: Window,
    _permit: OwnedSemaphorePermit,
}

/// What came of waiting for the next piece.
enum Piece {
    Bytes(Bytes),
    End,
    Broken(Error),
    Slow,
}

#[async_trait]
impl Chunks for Resuming {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let piece = match &mut self.stream {
                Some(stream) => {
                    let timeouts = &self.shared.repository.client.timeouts;
                    self.window.next(stream, timeouts, &self.host).await
                }
                None => return Ok(None),
            };
            let left = self.descriptor.size_bytes - self.position;
            match piece {
                Piece::Bytes(bytes) => {
                    self.barren = 0;
                    // One byte too many is the body's to report; it counts them.
                    self.position += (bytes.len() as u64).min(left);
                    return Ok(Some(bytes));
                }
                Piece::End if left == 0 => {
                    self.stream = None;
                    return Ok(None);
                }
                Piece::End => {
                    let what = self.descriptor.digest.to_string();
                    let (have, want) = (self.position, self.descriptor.size_bytes);
                    self.reopen(Error::UnexpectedEof { what, have, want }).await?;
                }
                Piece::Broken(error) => self.reopen(error).await?,
                Piece::Slow => {
                    let timeouts = &self.shared.repository.client.timeouts;
                    let (host, limit) = (self.host.clone(), timeouts.rate_window);
                    let error = Error::Timeout { host, step: "a body below the least rate", limit };
                    if self.slowed {
                        self.stream = None;
                        return Err(error);
                    }
                    self.slowed = true;
                    self.reopen(error).await?;
                }
            }
        }
    }
}

impl Resuming {
    /// Opens the rest again; gives up with `cause` after too many openings without a byte.
    async fn reopen(&mut self, cause: Error) -> Result<()> {
        self.stream = None;
        if self.barren == BARREN_MAX {
            return Err(cause);
        }
        self.barren += 1;
        tracing::debug!(
            digest = %self.descriptor.digest, position = self.position, %cause, "resuming"
        );
        tokio::time::sleep(super::retry::backoff(self.barren)).await;
        let slow = matches!(cause, Error::Timeout { .. }).then(|| self.host.clone());
        let opened = self.shared.stream(&self.descriptor, self.position, slow.as_deref()).await;
        match opened {
            Ok((stream, host)) => {
                self.stream = Some(stream);
                self.host = host;
                self.window = Window::new();
                Ok(())
            }
            // What broke first says more than that the way back is closed too, unless the
            // registry explains itself.
            Err(error) if error.is_transient() => Err(cause),
            Err(error) => Err(error),
        }
    }
}

/// Measures how fast a body comes.
struct Window {
    since: Instant,
    bytes: u64,
}

impl Window {
    fn new() -> Self {
        Self { since: Instant::now(), bytes: 0 }
    }

    async fn next(
        &mut self,
        stream: &mut Stream,
        timeouts: &super::options::Timeouts,
        host: &str,
    ) -> Piece {
        loop {
            let limit = timeouts.stall;
            let Ok(frame) = tokio::time::timeout(limit, stream.incoming.frame()).await else {
                let (host, step) = (host.to_owned(), "waiting for the next bytes of a body");
                return Piece::Broken(Error::Timeout { host, step, limit });
            };
            let mut bytes = match frame {
                None => return Piece::End,
                Some(Err(error)) => {
                    let reason = explain(&error, host).1;
                    let url = host.to_owned();
                    return Piece::Broken(Error::Transport { method: "GET", url, reason });
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => bytes,
                    Err(_) => continue,
                },
            };
            self.bytes += bytes.len() as u64;
            let waited = self.since.elapsed();
            if waited >= timeouts.rate_window {
                let least = timeouts.rate_min_bytes as f64 * waited.as_secs_f64();
                if (self.bytes as f64) < least {
                    return Piece::Slow;
                }
                *self = Self::new();
            }
            let skipped = stream.skip.min(bytes.len() as u64);
            stream.skip -= skipped;
            let bytes = bytes.split_off(skipped as usize);
            if !bytes.is_empty() {
                return Piece::Bytes(bytes);
            }
        }
    }
}

/// A part must be the part that was asked for: `bytes first-last/whole`.
fn check_content_range(answer: &Answer, offset: u64, descriptor: &Descriptor) -> Result<()> {
    let text = answer.header("content-range").unwrap_or_default();
    let fits = text.strip_prefix("bytes ").and_then(|rest| {
        let (range, whole) = rest.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let whole = match whole.trim() {
            "*" => descriptor.size_bytes,
            whole => whole.parse().ok()?,
        };
        Some(first == offset && last < whole && whole == descriptor.size_bytes)
    });
    if fits == Some(true) {
        return Ok(());
    }
    let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(Error::document(
        format!("answer for {}", descriptor.digest),
        format!("content range {shown:?} is not the one from {offset} that was asked for"),
    ))
}

fn closed() -> Error {
    Error::Unsupported { what: "fetching after the resolver was closed".into() }
}

/// How often a body is opened again without any byte in between.
const BARREN_MAX: u32 = 3;
