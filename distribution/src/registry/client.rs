//! What all requests of one resolver share.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::Semaphore;

use super::credentials::Credentials;
use super::endpoint::{Endpoint, Endpoints};
use super::hosts;
use super::options::{Hosts, Limits, RegistryOptions, Timeouts};
use crate::error::{Error, Result};

/// The shared state of a resolver and everything it hands out.
pub(crate) struct ClientParts {
    pub(crate) credentials: Arc<dyn Credentials>,
    pub(crate) user_agent: HeaderValue,
    pub(crate) trusted_realms: Vec<String>,
    pub(crate) foreign_urls: bool,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    /// One permit per open body.
    pub(crate) bodies: Arc<Semaphore>,
    headers: HeaderMap,
    hosts: Hosts,
    ca_pem: Vec<Vec<u8>>,
    endpoints: Mutex<HashMap<String, Endpoints>>,
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
            bodies: Arc::new(Semaphore::new(options.limits.open_bodies_max.max(1))),
            limits: options.limits,
            timeouts: options.timeouts,
            headers,
            hosts: options.hosts,
            ca_pem: options.ca_pem,
            endpoints: Mutex::default(),
        })
    }

    /// The endpoints of a host of references, made once.
    pub(crate) async fn endpoints(self: &Arc<Self>, host: &str) -> Result<Endpoints> {
        if let Some(known) = self.cache().get(host) {
            return Ok(known.clone());
        }
        let (parts, name) = (self.clone(), host.to_owned());
        // Reads configuration and certificates from disk.
        let made = tokio::task::spawn_blocking(move || {
            hosts::endpoints(&parts.hosts, &name, &parts.ca_pem)?
                .into_iter()
                .map(|options| {
                    let endpoint = Endpoint::new(options, &name, &parts.headers, &parts.timeouts)?;
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
        Ok(cache.entry(host.to_owned()).or_insert_with(|| Arc::new(made)).clone())
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, HashMap<String, Endpoints>> {
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
