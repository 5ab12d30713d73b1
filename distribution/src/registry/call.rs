//! One request as a caller means it: with authorization, redirects and retries inside.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, LOCATION, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use url::Url;

use super::auth::{AuthContext, denied};
use super::challenge;
use super::client::ClientParts;
use super::endpoint::Endpoint;
use super::failure::FailureKind;
use super::origin::{Origin, follow, shown};
use super::retry::{self, ATTEMPTS_MAX};
use super::transport::{self, Activity, Failure, Payload, Trust, method_name};
use crate::body::Source;
use crate::error::{Error, Result};

/// What to send.
pub(crate) struct Call<'c> {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) headers: HeaderMap,
    pub(crate) carries: Carries<'c>,
    /// What a token must allow.
    pub(crate) scopes: BTreeSet<String>,
    /// For credentials that are kept by repository.
    pub(crate) reference: String,
    /// Whether no other endpoint can answer instead, so that it is worth insisting.
    pub(crate) insist: bool,
}

/// Where to send it.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Below the endpoint's base.
    Path(String, Vec<(String, String)>),
    /// An address that the endpoint named for an upload.
    Url(Url),
}

/// The payload of a call.
pub(crate) enum Carries<'c> {
    Nothing,
    Bytes(Bytes),
    /// `len` of the `rest` bytes that a source has from `offset` on.
    Stream {
        source: &'c dyn Source,
        offset: u64,
        len: u64,
        rest: u64,
    },
}

/// An answer that is not a redirect and not a request for authorization.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Incoming,
    pub(crate) method: &'static str,
    /// The address that answered, after redirects.
    pub(crate) url: Url,
}

/// Sends calls to one endpoint.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) client: Arc<ClientParts>,
    pub(crate) endpoint: Arc<Endpoint>,
}

impl Caller {
    /// Sends a call until there is an answer or nothing is left to try. Any status but those of
    /// redirects and missing authorization is an answer.
    pub(crate) async fn send(&self, call: &Call<'_>) -> Result<Answer> {
        let mut attempt = 1;
        loop {
            let failure = match self.authorized(call).await {
                Ok(answer) => {
                    self.endpoint.settle();
                    let again = attempt < ATTEMPTS_MAX && self.worth_repeating(call, &answer);
                    if !again {
                        return Ok(answer);
                    }
                    let asked = retry::retry_after(&answer.headers, SystemTime::now());
                    self.pause(asked, attempt).await;
                    attempt += 1;
                    continue;
                }
                Err(failure) => failure,
            };
            let repeat = match failure.kind {
                FailureKind::NotTls if self.endpoint.fall_back() => {
                    tracing::debug!(host = self.endpoint.host(), "no https, using http");
                    continue;
                }
                FailureKind::Refused
                    if self.endpoint.default_port() && self.endpoint.fall_back() =>
                {
                    continue;
                }
                FailureKind::Broken => call.insist && call.repeatable(),
                FailureKind::Timeout => call.insist && call.repeatable() && attempt < 2,
                _ => false,
            };
            if !repeat || attempt >= ATTEMPTS_MAX {
                return Err(failure.error);
            }
            self.pause(None, attempt).await;
            attempt += 1;
        }
    }

    async fn pause(&self, asked: Option<std::time::Duration>, attempt: u32) {
        let wait = retry::wait(asked, attempt, self.client.timeouts.retry_after_max);
        tracing::debug!(host = self.endpoint.host(), attempt, ?wait, "trying again");
        tokio::time::sleep(wait).await;
    }

    fn worth_repeating(&self, call: &Call<'_>, answer: &Answer) -> bool {
        let insist = call.insist && call.repeatable();
        match answer.status.as_u16() {
            408 => call.repeatable(),
            // Another endpoint may be less busy, so the caller moves on to it first.
            429 | 500 | 502 | 503 | 504 => insist,
            _ => false,
        }
    }

    /// Sends a call with whatever authorization the endpoint asks for.
    async fn authorized(&self, call: &Call<'_>) -> Result<Answer, Failure> {
        let context = AuthContext {
            client: &self.client,
            endpoint: &self.endpoint,
            reference: &call.reference,
            scopes: &call.scopes,
        };
        let mut rounds = 0;
        loop {
            let header = self.endpoint.auth.header(&context).await.map_err(lasting)?;
            let (answer, own) = self.redirected(call, header.as_ref()).await?;
            if answer.status != StatusCode::UNAUTHORIZED || !own {
                return Ok(answer);
            }
            if rounds == AUTH_ROUNDS_MAX {
                let reason = "authorization failed: unauthorized after repeated attempts";
                return Err(lasting(denied(self.endpoint.host(), reason)));
            }
            rounds += 1;
            let values = answer.headers.get_all(WWW_AUTHENTICATE);
            let challenges =
                challenge::parse(values.iter().map(HeaderValue::as_bytes)).map_err(|reason| {
                    let reason = format!("unusable authorization challenge: {reason}");
                    lasting(denied(self.endpoint.host(), reason))
                })?;
            if challenges.is_empty() {
                return Ok(answer);
            }
            let texts: Vec<String> = values
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                .collect();
            let auth = &self.endpoint.auth;
            auth.challenged(&context, &challenges, &texts, header.as_ref())
                .await
                .map_err(lasting)?;
        }
    }

    /// Sends a call and follows redirects. The second part of the answer says whether it came
    /// from the endpoint itself. Once another origin was involved, nothing secret is sent again,
    /// not even after coming back.
    async fn redirected(
        &self,
        call: &Call<'_>,
        header: Option<&HeaderValue>,
    ) -> Result<(Answer, bool), Failure> {
        let mut url = self.address(call).map_err(lasting)?;
        let mut own = Origin::of(&url) == self.endpoint.origin();
        let mut hops = 0;
        loop {
            let request = self.request(call, &url, header.filter(|_| own), own).await;
            let (request, activity) = request.map_err(lasting)?;
            let trust = if own { Trust::Own } else { Trust::Foreign };
            let answer = self.endpoint.transport.send(&url, request, trust, &activity).await?;
            let location = answer.headers().get(LOCATION).filter(|_| is_redirect(call, &answer));
            let Some(location) = location else {
                let (head, body) = answer.into_parts();
                let method = method_name(&call.method);
                let (status, headers) = (head.status, head.headers);
                return Ok((Answer { status, headers, body, method, url }, own));
            };
            let refuse = |url: &Url, reason| {
                let (host, url) = (self.endpoint.host(), shown(url));
                lasting(Error::Refused { host, url, reason })
            };
            hops += 1;
            if hops > REDIRECTS_MAX {
                return Err(refuse(&url, "stopped after 10 redirects"));
            }
            let location = location.to_str().map_err(|_| refuse(&url, "malformed address"))?;
            url = follow(&url, location).map_err(|reason| refuse(&url, reason))?;
            own = own && Origin::of(&url) == self.endpoint.origin();
        }
    }

    fn address(&self, call: &Call<'_>) -> Result<Url> {
        match &call.target {
            Target::Path(path, query) => self.endpoint.url(path, query),
            Target::Url(url) => Ok(url.clone()),
        }
    }

    async fn request(
        &self,
        call: &Call<'_>,
        url: &Url,
        authorization: Option<&HeaderValue>,
        own: bool,
    ) -> Result<(Request<Payload>, Activity)> {
        let activity = Activity::new();
        let mut builder = Request::builder().method(call.method.clone()).uri(url.as_str());
        if let Some(headers) = builder.headers_mut() {
            headers.insert(USER_AGENT, self.client.user_agent.clone());
            // Blobs are compressed already, and a digest names bytes as they are stored.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if own {
                headers.extend(self.endpoint.headers.clone());
            }
            headers.extend(call.headers.clone());
            if let Some(authorization) = authorization {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            if let Some(len) = call.carries.len() {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
            }
        }
        let payload = match &call.carries {
            Carries::Nothing => transport::empty(),
            Carries::Bytes(bytes) => transport::full(bytes.clone()),
            Carries::Stream { source, offset, len, rest } => {
                let body = source.open(*offset).await?;
                if body.len_bytes() != *rest {
                    let have = offset + body.len_bytes();
                    return Err(Error::document(
                        "source of an upload",
                        format!("it has {have} bytes, not the {} promised", offset + rest),
                    ));
                }
                transport::flowing(super::upload::limited(body, *len), activity.clone())
            }
        };
        let request = builder.body(payload).map_err(|error| Error::InvalidArgument {
            what: "request",
            reason: error.to_string(),
        })?;
        Ok((request, activity))
    }
}

impl Call<'_> {
    /// Whether sending it twice does no more than sending it once.
    fn repeatable(&self) -> bool {
        matches!(self.carries, Carries::Nothing | Carries::Bytes(_)) && self.method != Method::PATCH
    }
}

impl Carries<'_> {
    fn len(&self) -> Option<u64> {
        match self {
            Self::Nothing => None,
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Stream { len, .. } => Some(*len),
        }
    }
}

impl Answer {
    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Turns an answer that means failure into an error with what the registry says about it.
    pub(crate) async fn into_error(self, client: &ClientParts) -> Error {
        let host = Origin::of(&self.url).authority();
        let url = shown(&self.url);
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            let retry_after = retry::retry_after(&self.headers, SystemTime::now());
            return Error::TooManyRequests { host, retry_after };
        }
        let stall = client.timeouts.stall;
        let body = transport::collect(&url, &host, self.body, ERROR_BYTES_MAX, stall).await;
        let phrase = self.status.canonical_reason().unwrap_or("unknown status");
        let message = format!(" {phrase}{}", super::message::of(&body.unwrap_or_default()));
        Error::Status { method: self.method, url, status: self.status.as_u16(), message }
    }
}

fn is_redirect<B>(call: &Call<'_>, answer: &Response<B>) -> bool {
    match answer.status().as_u16() {
        307 | 308 => true,
        // These turn anything else into a GET, which is never what a write means.
        301..=303 => matches!(call.method, Method::GET | Method::HEAD),
        _ => false,
    }
}

fn lasting(error: Error) -> Failure {
    Failure { kind: FailureKind::Refusal, error }
}

/// Challenges answered for one request.
const AUTH_ROUNDS_MAX: u32 = 2;
/// Redirects followed for one request.
const REDIRECTS_MAX: u32 = 10;
/// How much of an error answer is read.
const ERROR_BYTES_MAX: u64 = 64 * 1024;
