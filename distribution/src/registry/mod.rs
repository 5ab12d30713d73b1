//! Registries over http.

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
mod message;
mod options;
mod origin;
mod push;
mod repository;
mod resolve;
mod retry;
mod tls;
mod token;
mod transport;
mod upload;

use std::sync::Arc;

use async_trait::async_trait;

use self::client::ClientParts;
pub use self::credentials::{Anonymous, Credential, Credentials, Lookup, Secret, Static};
pub use self::docker_config::DockerConfig;
use self::fetch::RegistryFetcher;
pub use self::options::{Hosts, Limits, RegistryOptions, Timeouts};
use self::push::RegistryPusher;
use self::repository::Repository;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::resolver::{Fetcher, Pusher, Resolved, Resolver};

/// A client of registries that speak the distribution specification.
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
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>> {
        self.missing(reference.locator())
    }

    /// The repositories of a registry host (`name[:port]`).
    pub async fn repositories(&self, host: &str) -> Result<Vec<String>> {
        self.missing(host.to_owned())
    }

    /// Deletes the manifest a reference names by digest, or the tag.
    pub async fn delete(&self, reference: &Reference) -> Result<()> {
        self.missing(reference.to_string())
    }

    /// The manifests whose subject is `subject`, of any of the `artifact_types` (all when empty).
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_types: &[&str],
    ) -> Result<Vec<Descriptor>> {
        let _ = artifact_types;
        self.missing(format!("{}@{subject}", reference.locator()))
    }

    fn missing<T>(&self, what: String) -> Result<T> {
        let _ = &self.client;
        Err(Error::NotFound { what })
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
