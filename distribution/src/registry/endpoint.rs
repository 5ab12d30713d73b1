//! One server that may answer for a host.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use http::HeaderMap;
use tokio::sync::Semaphore;
use url::Url;

use super::auth::Authorizer;
use super::client::ClientParts;
use super::origin::{Origin, names_local};
use super::tls::TlsOptions;
use super::transport::Transport;
use crate::error::{Error, Result};

/// What an endpoint may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) push: bool,
    pub(crate) referrers: bool,
}

impl Capabilities {
    pub(crate) const ALL: Self = Self { pull: true, resolve: true, push: true, referrers: true };
}

/// What the configuration says about one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct EndpointOptions {
    /// Scheme, host, port and the path before repository names, without a slash at its end.
    pub(crate) base: Url,
    pub(crate) capabilities: Capabilities,
    /// Headers for this endpoint alone.
    pub(crate) headers: HeaderMap,
    pub(crate) tls: TlsOptions,
    /// Whether http is tried when https is not spoken: loopback hosts without a configuration.
    pub(crate) http_fallback: bool,
    pub(crate) connect: Option<std::time::Duration>,
}

/// An endpoint, ready for requests. Its connections and tokens live as long as it does.
#[derive(Debug)]
pub(crate) struct Endpoint {
    base: Url,
    /// One of [`SETTLED`], [`OPEN`] and [`FALLEN_BACK`].
    scheme: AtomicU8,
    /// The host that references name, when this endpoint is another one.
    mirror_of: Option<String>,
    pub(crate) capabilities: Capabilities,
    pub(crate) headers: HeaderMap,
    pub(crate) transport: Transport,
    pub(crate) auth: Authorizer,
    /// One permit per open body.
    pub(crate) connections: Arc<Semaphore>,
    /// Whether it once answered to a range with something else.
    pub(crate) refuses_ranges: AtomicBool,
}

impl Endpoint {
    /// An endpoint for references to `reference_host`.
    pub(crate) fn new(
        options: EndpointOptions,
        reference_host: &str,
        client: &ClientParts,
    ) -> Result<Self> {
        let mut timeouts = client.timeouts.clone();
        timeouts.connect = options.connect.unwrap_or(timeouts.connect);
        let local = names_local(&options.base);
        let transport = Transport::new(&options.tls, local, &timeouts, &client.proxies)?;
        let own = super::hosts::address_of(reference_host);
        let authority = Origin::of(&options.base).authority();
        let is_mirror = !authority.eq_ignore_ascii_case(own)
            && !host_and_port(&options.base).eq_ignore_ascii_case(own);
        let mut headers = client.headers.clone();
        for (name, value) in &options.headers {
            headers.insert(name, value.clone());
        }
        Ok(Self {
            auth: Authorizer::new(),
            base: options.base,
            scheme: AtomicU8::new(if options.http_fallback { OPEN } else { SETTLED }),
            mirror_of: is_mirror.then(|| reference_host.to_owned()),
            capabilities: options.capabilities,
            headers,
            transport,
            connections: Arc::new(Semaphore::new(client.limits.host_bodies_max.max(1))),
            refuses_ranges: AtomicBool::new(false),
        })
    }

    /// The host and port as credentials are filed under.
    pub(crate) fn host(&self) -> String {
        Origin::of(&self.base).authority()
    }

    pub(crate) fn origin(&self) -> Origin {
        Origin::of(&self.base())
    }

    /// The base address over the scheme that this endpoint turned out to speak.
    pub(crate) fn base(&self) -> Url {
        let mut base = self.base.clone();
        if self.scheme.load(Ordering::Acquire) == FALLEN_BACK {
            // Only fails for schemes without hosts, and both of these have one.
            let _ = base.set_scheme("http");
        }
        base
    }

    /// Goes on over http if the configuration leaves that open; says whether it changed anything.
    pub(crate) fn fall_back(&self) -> bool {
        self.settle_as(FALLEN_BACK)
    }

    /// An answer came: the scheme works, and stays what it is whatever breaks later.
    pub(crate) fn settle(&self) {
        self.settle_as(SETTLED);
    }

    fn settle_as(&self, state: u8) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.scheme.compare_exchange(OPEN, state, success, failure).is_ok()
    }

    /// Whether the port is the scheme's own, so that the other scheme would be on another port.
    pub(crate) fn default_port(&self) -> bool {
        self.base.port().is_none()
    }

    /// The address of `path` below the base, with the query a mirror needs.
    pub(crate) fn url(&self, path: &str, query: &[(String, String)]) -> Result<Url> {
        let mut url = self.base();
        let whole = format!("{}/{path}", url.path().trim_end_matches('/'));
        url.set_path(&whole);
        if url.path() != whole {
            // Everything that reaches here is made of checked parts; this is the second lock.
            return Err(Error::InvalidArgument {
                what: "request path",
                reason: "needs characters that addresses cannot hold".into(),
            });
        }
        if self.mirror_of.is_some() || !query.is_empty() {
            let mut pairs = url.query_pairs_mut();
            for (name, value) in query {
                pairs.append_pair(name, value);
            }
            if let Some(host) = &self.mirror_of {
                pairs.append_pair("ns", host);
            }
        }
        Ok(url)
    }

    /// The parameter a mirror needs on addresses that the server named itself.
    pub(crate) fn mirror_of(&self) -> Option<&str> {
        self.mirror_of.as_deref()
    }
}

/// The scheme of the configuration is the one to use.
const SETTLED: u8 = 0;
/// It is not known yet whether https is spoken.
const OPEN: u8 = 1;
/// It is not; http is used.
const FALLEN_BACK: u8 = 2;

/// An ordered list of endpoints.
pub(crate) type Endpoints = Arc<Vec<Arc<Endpoint>>>;

fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    format!("{host}:{}", url.port_or_known_default().unwrap_or_default())
}
