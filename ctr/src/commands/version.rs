//! `ctr version`

use crated_api::services::introspection::v1::introspection_client::IntrospectionClient;
use crated_api::services::version::v1::version_client::VersionClient;

use crate::connect::{Daemon, client};
use crate::error::Result;
use crate::output;

/// Prints what this program and the daemon are.
pub(crate) async fn run(daemon: &Daemon) -> Result<()> {
    output::line("Client:");
    output::line(format!("  Version:  {}\n", env!("CARGO_PKG_VERSION")));
    let version = client!(daemon, VersionClient).version(()).await?.into_inner();
    let server = client!(daemon, IntrospectionClient).server(()).await?.into_inner();
    output::line("Server:");
    output::line(format!("  Version:  {}", version.version));
    output::line(format!("  Revision: {}", version.revision));
    output::line(format!("  UUID: {}", server.uuid));
    Ok(())
}
