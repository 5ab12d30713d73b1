//! Who we are: credentials per registry host, and a type for secrets that cannot be printed.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;

use crate::error::Result;

/// A text that never appears in logs: it has no `Display`, and `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to keep secret.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What proves who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credential {
    /// A user name and password, or access token in place of the password.
    Basic {
        /// The user name.
        username: String,
        /// The password.
        secret: Secret,
    },
    /// A refresh token, exchanged at the token server for short-lived ones.
    RefreshToken(Secret),
    /// A complete `Authorization` header value, sent as it is.
    Header(Secret),
}

impl Credential {
    /// User name and password; an empty user name makes the secret a refresh token.
    pub fn new(username: impl Into<String>, secret: impl Into<String>) -> Self {
        let (username, secret) = (username.into(), Secret::new(secret));
        if username.is_empty() {
            Self::RefreshToken(secret)
        } else {
            Self::Basic { username, secret }
        }
    }
}

/// What a lookup is for.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Lookup<'a> {
    /// The host and port that asked, as requests address it (`registry-1.docker.io` for Docker
    /// Hub, not `docker.io`).
    pub host: &'a str,
    /// `host/repository` of the reference being worked on; empty for whole-registry requests.
    pub reference: &'a str,
    /// The `WWW-Authenticate` values the host sent; untrusted text.
    pub challenges: &'a [String],
}

/// Knows the credentials of hosts.
///
/// Called only after a host asked for authorization, at most once per challenge.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// The credential for `lookup.host`, `None` to go on anonymously.
    ///
    /// # Errors
    ///
    /// Whatever keeps the answer from being known; it fails the request for this host and never
    /// makes another host's credential be used.
    async fn lookup(&self, lookup: Lookup<'_>) -> Result<Option<Credential>>;
}

/// No credentials for anyone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    async fn lookup(&self, _: Lookup<'_>) -> Result<Option<Credential>> {
        Ok(None)
    }
}

/// A fixed table of hosts.
#[derive(Debug, Clone, Default)]
pub struct Static {
    hosts: BTreeMap<String, Credential>,
}

impl Static {
    /// One host and its credential; the host is `name[:port]` exactly as in references, with
    /// `docker.io` standing for Docker Hub.
    pub fn new(host: impl Into<String>, credential: Credential) -> Self {
        Self::default().with(host, credential)
    }

    /// Adds a host.
    #[must_use]
    pub fn with(mut self, host: impl Into<String>, credential: Credential) -> Self {
        self.hosts.insert(host.into(), credential);
        self
    }
}

#[async_trait]
impl Credentials for Static {
    async fn lookup(&self, lookup: Lookup<'_>) -> Result<Option<Credential>> {
        let known = self.hosts.get(lookup.host);
        let hub = || {
            (lookup.host == super::hosts::HUB_ENDPOINT)
                .then(|| self.hosts.get(super::hosts::HUB_HOST))
                .flatten()
        };
        Ok(known.or_else(hub).cloned())
    }
}

pub(crate) fn lookup<'a>(
    host: &'a str,
    reference: &'a str,
    challenges: &'a [String],
) -> Lookup<'a> {
    Lookup { host, reference, challenges }
}
