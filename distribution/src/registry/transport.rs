//! Connections: one pool per trust, limits on time, and errors that say what happened.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::PROXY_AUTHORIZATION;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use url::Url;

use super::failure::{CLOSED, FailureKind, Guarded, explain};
use super::options::Timeouts;
use super::origin::{is_local, names_local, shown};
use super::proxy::Proxies;
use super::tls::TlsOptions;
use super::way::Connector;
use crate::error::{Error, Result};

/// What a request carries.
pub(crate) type Payload = UnsyncBoxBody<Bytes, Error>;

/// How far the other end of a request is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The endpoint the configuration names: any address, our client certificate.
    Own,
    /// A host the configuration names for tokens: any address, no certificate of ours.
    Configured,
    /// A host an answer named: no certificate, and never this machine or its link unless the
    /// registry itself is there.
    Foreign,
}

/// The connections to one endpoint and to wherever it sends us.
pub(crate) struct Transport {
    own: HttpClient,
    configured: HttpClient,
    foreign: HttpClient,
    foreign_guarded: bool,
    timeouts: Timeouts,
    proxies: Proxies,
}

/// A request that got no answer.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) error: Error,
}

impl Transport {
    /// Connections with the TLS settings of an endpoint; `local` says that the endpoint is on
    /// this machine, so that it may send us to others there.
    pub(crate) fn new(
        tls: &TlsOptions,
        local: bool,
        timeouts: &Timeouts,
        proxies: &Proxies,
    ) -> Result<Self> {
        let http = |guarded: bool| {
            let mut http = HttpConnector::new_with_resolver(Lookup { guarded });
            http.enforce_http(false);
            http.set_nodelay(true);
            http.set_keepalive(Some(KEEPALIVE));
            http.set_connect_timeout(Some(timeouts.connect));
            http
        };
        // Reading the system's authorities takes longer than anything else here.
        let plain = tls.config(false)?;
        let own = if tls.client.is_some() { tls.config(true)? } else { plain.clone() };
        let client = |tls: &ClientConfig, guarded: bool| {
            let (direct, to_proxy) = (http(guarded), http(false));
            let connector = Connector { direct, to_proxy, proxies: proxies.clone() };
            let https = HttpsConnectorBuilder::new()
                .with_tls_config(tls.clone())
                .https_or_http()
                .enable_http1()
                .enable_http2()
                .wrap_connector(connector);
            Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
                .http1_max_headers(HEADERS_MAX)
                .http2_max_header_list_size(HEADER_BYTES_MAX)
                .build(https)
        };
        Ok(Self {
            own: client(&own, false),
            configured: client(&plain, false),
            foreign: client(&plain, !local),
            foreign_guarded: !local,
            timeouts: timeouts.clone(),
            proxies: proxies.clone(),
        })
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// `activity` is touched by the payload as it flows, so that only silence counts.
    pub(crate) async fn send(
        &self,
        url: &Url,
        mut request: Request<Payload>,
        trust: Trust,
        activity: &Activity,
    ) -> Result<Response<Incoming>, Failure> {
        let method = method_name(request.method());
        let fail = |kind, reason: String| Failure {
            kind,
            error: Error::Transport { method, url: shown(url), reason },
        };
        let client = match trust {
            Trust::Own => &self.own,
            Trust::Configured => &self.configured,
            Trust::Foreign => {
                if self.foreign_guarded && names_local(url) {
                    return Err(fail(FailureKind::Refusal, Guarded.to_string()));
                }
                &self.foreign
            }
        };
        if let Some(login) = self.proxies.authorization(request.uri()) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, login);
        }
        let proxy = self.proxies.shown(request.uri());
        let limit = self.timeouts.connect + self.timeouts.header;
        let answer = client.request(request);
        tokio::pin!(answer);
        activity.touch();
        loop {
            let left = limit.saturating_sub(activity.idle());
            match tokio::time::timeout(left, &mut answer).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => {
                    let authority = super::origin::Origin::of(url).authority();
                    let (kind, mut reason) = explain(&error, &authority);
                    if url.scheme() == "https" && reason == CLOSED {
                        // With TLS 1.3 the refusal comes after the handshake, and is lost.
                        reason.push_str(", as servers do that want another client certificate");
                    }
                    if let Some(proxy) = &proxy {
                        reason.push_str(&format!(" (through the proxy {proxy})"));
                    }
                    return Err(fail(kind, reason));
                }
                Err(_) if activity.idle() < limit => {}
                Err(_) => {
                    let host = super::origin::Origin::of(url).authority();
                    let error = Error::Timeout { host, step: "waiting for headers", limit };
                    return Err(Failure { kind: FailureKind::Timeout, error });
                }
            }
        }
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("timeouts", &self.timeouts).finish_non_exhaustive()
    }
}

/// When a request last moved a byte of its payload.
#[derive(Debug, Clone)]
pub(crate) struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(crate) fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn idle(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// A payload of nothing.
pub(crate) fn empty() -> Payload {
    full(Bytes::new())
}

/// A payload in memory.
pub(crate) fn full(bytes: Bytes) -> Payload {
    http_body_util::Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A payload that flows, and touches `activity` whenever it does.
pub(crate) fn flowing(body: crate::body::Body, activity: Activity) -> Payload {
    let stream = futures_util::stream::unfold(Some(body), move |state| {
        let activity = activity.clone();
        async move {
            let mut body = state?;
            let chunk = body.chunk().await;
            activity.touch();
            match chunk {
                Ok(Some(bytes)) => Some((Ok(hyper::body::Frame::data(bytes)), Some(body))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        }
    });
    http_body_util::StreamBody::new(stream).boxed_unsync()
}

/// Reads an answer into memory.
///
/// # Errors
///
/// [`Error::LimitExceeded`] after `limit_bytes`, [`Error::Timeout`] after silence.
pub(crate) async fn collect(
    what: &str,
    host: &str,
    mut body: Incoming,
    limit_bytes: u64,
    stall: Duration,
) -> Result<Bytes> {
    let mut whole = Vec::new();
    loop {
        let frame = tokio::time::timeout(stall, body.frame()).await.map_err(|_| {
            Error::Timeout { host: host.to_owned(), step: "reading an answer", limit: stall }
        })?;
        let Some(frame) = frame else { return Ok(whole.into()) };
        let frame = frame.map_err(|error| Error::Transport {
            method: "GET",
            url: what.to_owned(),
            reason: explain(&error, host).1,
        })?;
        if let Some(data) = frame.data_ref() {
            if (whole.len() + data.len()) as u64 > limit_bytes {
                return Err(Error::LimitExceeded { what: what.to_owned(), limit: limit_bytes });
            }
            whole.extend_from_slice(data);
        }
    }
}

/// Methods as the texts of errors name them.
pub(crate) fn method_name(method: &http::Method) -> &'static str {
    match method.as_str() {
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "GET",
    }
}

type HttpClient = Client<HttpsConnector<Connector>, Payload>;

/// Asks DNS; `guarded` drops addresses of this machine and its link, so that a name cannot lead
/// where an address may not, whatever it resolves to at this moment.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    guarded: bool,
}

impl tower::Service<Name> for Lookup {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guarded = self.guarded;
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let known = !found.is_empty();
            let allowed: Vec<SocketAddr> =
                found.into_iter().filter(|found| !guarded || !is_local(found.ip())).collect();
            if known && allowed.is_empty() {
                return Err(io::Error::other(Guarded));
            }
            Ok(allowed.into_iter())
        })
    }
}

/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(30);
/// How often an open connection proves that it lives.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Unused connections kept per host.
const IDLE_CONNECTIONS_MAX: usize = 10;
/// Header lines of one answer; registries send two dozen.
const HEADERS_MAX: usize = 100;
/// Bytes of all headers of one answer over HTTP/2.
const HEADER_BYTES_MAX: u32 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn case_13_strangers_do_not_send_us_to_this_machine() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let timeouts = Timeouts::default();
        let (tls, proxies) = (TlsOptions::default(), Proxies::none());
        let transport = Transport::new(&tls, false, &timeouts, &proxies).unwrap();
        for host in ["127.0.0.1", "[::1]", "localhost", "169.254.169.254", "2130706433", "0"] {
            let url = Url::parse(&format!("http://{host}:{port}/")).unwrap();
            let request = Request::get(url.as_str()).body(empty()).unwrap();
            let failure = transport
                .send(&url, request, Trust::Foreign, &Activity::new())
                .await
                .expect_err("must not be sent");
            assert_eq!(failure.kind, FailureKind::Refusal, "{host}: {}", failure.error);
        }
        // The second lock, behind names that only DNS knows to be local.
        let mut lookup = Lookup { guarded: true };
        let name: Name = "localhost".parse().unwrap();
        let refused = tower::Service::call(&mut lookup, name.clone()).await.unwrap_err();
        let kind = explain(&refused, "localhost").0;
        assert_eq!(kind, FailureKind::Refusal, "{refused}");
        lookup.guarded = false;
        assert!(tower::Service::call(&mut lookup, name).await.unwrap().count() > 0);
    }
}
