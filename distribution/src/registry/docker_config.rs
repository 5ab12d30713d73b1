//! Credentials from the configuration that container command lines share.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use super::credentials::{Credential, Credentials, Lookup};
use crate::error::Result;

/// The `config.json` of docker: stored logins and credential helpers.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    path: PathBuf,
    deadline: Duration,
}

impl DockerConfig {
    /// The configuration file at `path`; helpers are given `deadline`.
    pub fn new(path: impl Into<PathBuf>, deadline: Duration) -> Self {
        Self { path: path.into(), deadline }
    }

    /// The user's own file: below `DOCKER_CONFIG`, else `.docker` in the home directory.
    pub fn of_user(deadline: Duration) -> Option<Self> {
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
        let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(home)?;
        Some(Self::new(dir.join("config.json"), deadline))
    }
}

#[async_trait]
impl Credentials for DockerConfig {
    async fn lookup(&self, _lookup: Lookup<'_>) -> Result<Option<Credential>> {
        let _ = (&self.path, self.deadline);
        Ok(None)
    }
}
