//! What all requests of one resolver share.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::credentials::Credentials;
use super::endpoint::{Endpoint, Endpoints};
use super::hosts::{self, Version};
use super::options::{Hosts, Limits, RegistryOptions, Timeouts};
use super::proxy::Proxies;
use super::quota::Quota;
use crate::error::{Error, Result};

/// Endpoints by host, with the version of the files they were made from.
type Cache = HashMap<String, (Endpoints, Version)>;

/// The shared state of a resolver and everything it hands out.
pub(crate) struct ClientParts {
    pub(crate) credentials: Arc<dyn Credentials>,
    pub(crate) user_agent: HeaderValue,
    pub(crate) trusted_realms: Vec<String>,
    pub(crate) foreign_urls: bool,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) proxies: Proxies,
    pub(crate) quota: Quota,
    pub(crate) headers: HeaderMap,
    hosts: Hosts,
    ca_pem: Vec<Vec<u8>>,
    endpoints: Mutex<Cache>,
}

impl ClientParts {
    pub(crate) fn new(options: RegistryOptions) -> Result<Self> {
        let invalid = |what, reason: &str| Error::InvalidArgument { what, reason: reason.into() };
        let mut headers = HeaderMap::new();
        for (name, value) in &options.headers {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| invalid("header", "malformed name"))?;
            if name == http::header::AUTHORIZATION {
                let reason = "authorization belongs to the credentials, not to the headers";
                return Err(invalid("header", reason));
            }
            let value =
                HeaderValue::from_str(value).map_err(|_| invalid("header", "malformed value"))?;
            headers.append(name, value);
        }
        let user_agent = HeaderValue::from_str(&options.user_agent)
            .map_err(|_| invalid("user agent", "malformed"))?;
        Ok(Self {
            credentials: options.credentials,
            user_agent,
            trusted_realms: options.trusted_realms,
            foreign_urls: options.foreign_urls,
            quota: options.quota.unwrap_or_else(|| Quota::new(&options.limits)),
            limits: options.limits,
            timeouts: options.timeouts,
            proxies: options.proxies,
            headers,
            hosts: options.hosts,
            ca_pem: options.ca_pem,
            endpoints: Mutex::default(),
        })
    }

    /// The endpoints of a host of references, made once and again whenever the files change that
    /// describe it.
    pub(crate) async fn endpoints(self: &Arc<Self>, host: &str) -> Result<Endpoints> {
        let version = self.version(host).await?;
        if let Some((known, at)) = self.cache().get(host)
            && *at == version
        {
            return Ok(known.clone());
        }
        let (parts, name) = (self.clone(), host.to_owned());
        // Reads configuration and certificates from disk.
        let made = tokio::task::spawn_blocking(move || {
            hosts::endpoints(&parts.hosts, &name, &parts.ca_pem)?
                .into_iter()
                .map(|options| {
                    let endpoint = Endpoint::new(options, &name, &parts)?;
                    Ok(Arc::new(endpoint))
                })
                .collect::<Result<Vec<_>>>()
        })
        .await
        .map_err(|error| Error::InvalidArgument {
            what: "registry host",
            reason: error.to_string(),
        })??;
        let mut cache = self.cache();
        if cache.len() >= HOSTS_MAX {
            cache.clear();
        }
        match cache.get(host) {
            // Another task was faster; connections and tokens are shared through its endpoints.
            Some((known, at)) if *at == version => Ok(known.clone()),
            _ => {
                let made = Arc::new(made);
                cache.insert(host.to_owned(), (made.clone(), version));
                Ok(made)
            }
        }
    }

    /// What the files that describe a host look like now.
    async fn version(self: &Arc<Self>, host: &str) -> Result<Version> {
        if self.hosts.directories.is_empty() {
            return Ok(Version::default());
        }
        let (parts, host) = (self.clone(), host.to_owned());
        tokio::task::spawn_blocking(move || hosts::version(&parts.hosts, &host)).await.map_err(
            |error| Error::InvalidArgument { what: "registry host", reason: error.to_string() },
        )
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        // The map is whole between any two calls, whatever panicked elsewhere.
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ClientParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientParts").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Hosts whose connections and tokens are kept; a machine talks to a handful.
const HOSTS_MAX: usize = 64;
