//! Registries over http and https.
//!
//! A host of a reference is served by an ordered list of *endpoints*: mirrors first, the host
//! itself last. Every endpoint has its own connections, TLS settings and tokens, so nothing that
//! belongs to one can reach another:
//!
//! ```text
//! Reference -> Hosts -> [Endpoint, ...]      which servers may answer
//!                          |
//!                         Call               one request as a caller means it:
//!                          |                 retries around authorization around redirects
//!               Authorizer | Transport       header for the endpoint's own origin; connections
//! ```
//!
//! A redirect, upload location or page that leads to another origin is followed without
//! credentials, headers or client certificate, never from https to http, and never to this
//! machine or its link unless the registry is there itself.

mod auth;
mod call;
pub mod challenge;
mod client;
mod credentials;
mod docker_config;
mod endpoint;
mod failure;
mod fetch;
mod hosts;
mod hosts_toml;
mod list;
mod message;
mod options;
mod origin;
mod proxy;
mod push;
mod quota;
mod ranged;
mod repository;
mod resolve;
mod retry;
mod stream;
mod tls;
mod token;
mod transport;
mod upload;
mod way;

use std::sync::Arc;

use async_trait::async_trait;

use self::client::ClientParts;
pub use self::credentials::{Anonymous, Credential, Credentials, Lookup, Secret, Static};
pub use self::docker_config::DockerConfig;
use self::fetch::RegistryFetcher;
pub use self::options::{Hosts, Limits, RegistryOptions, Timeouts};
pub use self::proxy::Proxies;
use self::push::RegistryPusher;
pub use self::quota::Quota;
use self::repository::Repository;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::reference::Reference;
use crate::resolver::{Fetcher, Pusher, Resolved, Resolver};

/// A client of registries that speak the distribution specification.
///
/// Cheap to clone; clones share connections, tokens and limits. Whatever it hands out keeps
/// working after it was dropped.
#[derive(Debug, Clone)]
pub struct RegistryResolver {
    client: Arc<ClientParts>,
}

impl RegistryResolver {
    /// A resolver; nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for headers or certificates that are not.
    pub fn new(options: RegistryOptions) -> Result<Self> {
        Ok(Self { client: Arc::new(ClientParts::new(options)?) })
    }

    /// The tags of the repository of `reference`, as the registry orders them.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without such a repository; [`Error::LimitExceeded`] when the list does
    /// not end within the limits.
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>> {
        Repository::new(&self.client, reference).await?.tags().await
    }

    /// The repositories of a registry host (`name[:port]`).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidReference`] when it is not a host; [`Error::LimitExceeded`] when the list
    /// does not end within the limits.
    pub async fn repositories(&self, host: &str) -> Result<Vec<String>> {
        // Any repository will do; only the host is used.
        let reference = Reference::parse(&format!("{host}/catalog"))?;
        Repository::new(&self.client, &reference).await?.repositories().await
    }

    /// Deletes the manifest a reference names by digest, or the tag.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Unsupported`] where the registry deletes nothing.
    pub async fn delete(&self, reference: &Reference) -> Result<()> {
        Repository::new(&self.client, reference).await?.delete().await
    }

    /// The manifests whose subject is `subject`, of any of the `artifact_types` (all when empty).
    /// A registry that knows of none, or of no such thing, gives an empty list.
    ///
    /// # Errors
    ///
    /// [`Error::LimitExceeded`] when the list does not end within the limits; [`Error::Refused`]
    /// when it goes on at another host.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_types: &[&str],
    ) -> Result<Vec<Descriptor>> {
        let repository = Repository::new(&self.client, reference).await?;
        repository.referrers(subject, artifact_types).await
    }
}

#[async_trait]
impl Resolver for RegistryResolver {
    async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        Repository::new(&self.client, reference).await?.resolve().await
    }

    async fn fetcher(&self, reference: &Reference) -> Result<Box<dyn Fetcher>> {
        let repository = Repository::new(&self.client, reference).await?;
        Ok(Box::new(RegistryFetcher::new(repository)))
    }

    async fn pusher(&self, reference: &Reference) -> Result<Box<dyn Pusher>> {
        let repository = Repository::new(&self.client, reference).await?;
        Ok(Box::new(RegistryPusher::new(repository)))
    }
}
