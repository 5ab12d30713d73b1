//! Upload sessions: where to send the bytes, and how to go on when the connection breaks.

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use url::Url;

use super::call::{Answer, Call, Caller, Carries, Target};
use super::origin::{Origin, follow, shown};
use super::repository::Repository;
use crate::body::{Body, Chunks, Source};
use crate::descriptor::Descriptor;
use crate::error::{Error, Result};

/// One upload session of one blob.
pub(crate) struct Upload<'u> {
    repository: &'u Repository,
    caller: &'u Caller,
    descriptor: &'u Descriptor,
    /// Where the server wants the next request; it changes with every answer.
    location: Url,
    /// The least number of bytes per part, when the server demands one.
    part_min_bytes: u64,
}

impl<'u> Upload<'u> {
    /// The session that `answer` opened.
    pub(crate) fn new(
        repository: &'u Repository,
        caller: &'u Caller,
        descriptor: &'u Descriptor,
        answer: Answer,
    ) -> Result<Self> {
        let mut upload = Self {
            repository,
            caller,
            descriptor,
            location: answer.url.clone(),
            part_min_bytes: answer
                .header("oci-chunk-min-length")
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
        };
        if answer.header("location").is_none() {
            return Err(Error::document(
                format!("upload of {}", descriptor.digest),
                "registry did not say where to send it",
            ));
        }
        upload.moved(&answer)?;
        Ok(upload)
    }

    /// Sends everything in one request; if that breaks, asks how much arrived and sends the rest
    /// in parts. Returns the answer that acknowledged the whole.
    pub(crate) async fn run(mut self, source: &dyn Source) -> Result<Answer> {
        let size = self.descriptor.size_bytes;
        let cause = match self.finish(source, 0, size).await {
            Ok(answer) if is_stored(answer.status) => return Ok(answer),
            // Too large for one request.
            Ok(answer) if answer.status == StatusCode::PAYLOAD_TOO_LARGE => {
                answer.into_error(&self.repository.client).await
            }
            Ok(answer) => {
                let error = answer.into_error(&self.repository.client).await;
                if !error.is_transient() {
                    return Err(error);
                }
                error
            }
            Err(error) if error.is_transient() => error,
            Err(error) => return Err(error),
        };
        tracing::debug!(digest = %self.descriptor.digest, %cause, "upload broke, resuming");
        self.resume(source, cause).await
    }

    /// Sends what is missing in parts. Gives up with `cause` when the session is gone or no byte
    /// gets through any more.
    async fn resume(&mut self, source: &dyn Source, mut cause: Error) -> Result<Answer> {
        let size = self.descriptor.size_bytes;
        let mut barren = 0;
        let mut offset = 0;
        loop {
            let arrived = match self.arrived().await {
                Some(arrived) => arrived.min(size),
                None => return Err(cause),
            };
            barren = if arrived > offset { 0 } else { barren + 1 };
            if barren > BARREN_MAX {
                return Err(cause);
            }
            offset = arrived;
            tokio::time::sleep(super::retry::backoff(barren)).await;
            match self.parts(source, offset).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_transient() => cause = error,
                Err(Error::Status { status: 416, .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn parts(&mut self, source: &dyn Source, mut offset: u64) -> Result<Answer> {
        let size = self.descriptor.size_bytes;
        let part = self.repository.client.limits.upload_chunk_bytes.max(self.part_min_bytes).max(1);
        while size - offset > part {
            let mut call = self.call(Method::PATCH, self.location.clone());
            let range = format!("{offset}-{}", offset + part - 1);
            call.headers.insert(CONTENT_RANGE, number_header(&range));
            call.carries = Carries::Stream { source, offset, len: part, rest: size - offset };
            let answer = self.caller.send(&call).await?;
            if answer.status != StatusCode::ACCEPTED && answer.status != StatusCode::NO_CONTENT {
                return Err(answer.into_error(&self.repository.client).await);
            }
            self.moved(&answer)?;
            // The server decides how much of it counts.
            let next = arrived(&answer).unwrap_or(offset + part);
            if next <= offset || next > offset + part {
                return Err(Error::document(
                    format!("upload of {}", self.descriptor.digest),
                    format!("registry acknowledged up to byte {next} after byte {offset}"),
                ));
            }
            offset = next;
        }
        let answer = self.finish(source, offset, size - offset).await?;
        if is_stored(answer.status) {
            return Ok(answer);
        }
        Err(answer.into_error(&self.repository.client).await)
    }

    /// The request that ends the session, with the last `len` bytes in it.
    async fn finish(&self, source: &dyn Source, offset: u64, len: u64) -> Result<Answer> {
        let mut url = self.location.clone();
        url.query_pairs_mut().append_pair("digest", self.descriptor.digest.as_str());
        let mut call = self.call(Method::PUT, url);
        if offset > 0 && len > 0 {
            let range = format!("{offset}-{}", offset + len - 1);
            call.headers.insert(CONTENT_RANGE, number_header(&range));
        }
        call.carries = Carries::Stream { source, offset, len, rest: len };
        self.caller.send(&call).await
    }

    /// How many bytes the server has, `None` when it does not know the session.
    async fn arrived(&mut self) -> Option<u64> {
        let mut call = self.call(Method::GET, self.location.clone());
        call.headers = HeaderMap::new();
        let answer = self.caller.send(&call).await.ok()?;
        if !answer.status.is_success() {
            return None;
        }
        self.moved(&answer).ok()?;
        Some(arrived(&answer).unwrap_or(0))
    }

    /// Follows the session to where an answer says it goes on.
    fn moved(&mut self, answer: &Answer) -> Result<()> {
        let Some(location) = answer.header("location") else { return Ok(()) };
        let refuse = |url: &Url, reason| Error::Refused {
            host: self.caller.endpoint.host(),
            url: shown(url),
            reason,
        };
        let mut url =
            follow(&answer.url, location).map_err(|reason| refuse(&answer.url, reason))?;
        if Origin::of(&url) == self.caller.endpoint.origin()
            && let Some(host) = self.caller.endpoint.mirror_of()
            && !url.query_pairs().any(|(name, _)| name == "ns")
        {
            url.query_pairs_mut().append_pair("ns", host);
        }
        self.location = url;
        Ok(())
    }

    fn call(&self, method: Method, url: Url) -> Call<'static> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        Call {
            method,
            target: Target::Url(url),
            headers,
            carries: Carries::Nothing,
            scopes: self.repository.scopes(&["pull", "push"]),
            reference: self.repository.reference.locator(),
            insist: true,
        }
    }
}

/// The first `len` bytes of a body, as a body; fails when there are fewer.
pub(crate) fn limited(body: Body, len: u64) -> Body {
    Body::new("upload", Box::new(Limited { body, left: len }), len)
}

struct Limited {
    body: Body,
    left: u64,
}

#[async_trait]
impl Chunks for Limited {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let chunk = self.body.chunk().await?;
        Ok(chunk.map(|mut bytes| {
            if bytes.len() as u64 > self.left {
                // Shorter than the chunk, whose length fits the type.
                bytes.truncate(self.left as usize);
            }
            self.left -= bytes.len() as u64;
            bytes
        }))
    }
}

fn is_stored(status: StatusCode) -> bool {
    matches!(status, StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT)
}

/// How many bytes a `Range: 0-<last>` of an answer acknowledges. Both `0-0` of an empty session
/// and of one with a single byte look alike; sending that byte again is refused by none.
fn arrived(answer: &Answer) -> Option<u64> {
    let text = answer.header("range")?;
    let (first, last) = text.trim_start_matches("bytes=").split_once('-')?;
    let last: u64 = last.parse().ok()?;
    (first == "0").then_some(if last == 0 { 0 } else { last.checked_add(1)? })
}

fn number_header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// How often an upload goes on without any byte having arrived in between.
const BARREN_MAX: u32 = 3;
