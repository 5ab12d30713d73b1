//! Which endpoints stand for a host.

/// The name of Docker Hub in references and configuration.
pub(crate) const HUB_HOST: &str = "docker.io";
/// Where Docker Hub answers.
pub(crate) const HUB_ENDPOINT: &str = "registry-1.docker.io";
