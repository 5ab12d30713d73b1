//! `ctr images push`

use crated_api::any;
use crated_api::types::transfer::ImageStore;

use crate::connect::Daemon;
use crate::error::Result;
use crate::transfer::{self, PlatformArguments, RegistryArguments};

/// What to push and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    registry: RegistryArguments,
    /// Push only these platforms of an index; all otherwise.
    #[arg(long)]
    platform: Vec<String>,
    /// Taken for other clients' sake: the daemon bounds this by itself.
    #[arg(long, hide = true)]
    #[allow(dead_code, reason = "taken for other clients' sake")]
    max_concurrent_uploaded_layers: Option<u32>,
    /// Taken for other clients' sake: this is how it always works.
    #[arg(long, hide = true)]
    #[allow(dead_code, reason = "taken for other clients' sake")]
    local: bool,
    /// The name in the registry.
    remote: String,
    /// The image; the one of the same name otherwise.
    image: Option<String>,
}

/// Pushes one image.
pub(crate) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<()> {
    let registry = arguments.registry.registry(daemon, &arguments.remote).await?;
    let all_platforms = arguments.platform.is_empty();
    let platforms = PlatformArguments { platform: arguments.platform, all_platforms }.wanted()?;
    let source = ImageStore {
        name: arguments.image.unwrap_or(arguments.remote),
        platforms,
        ..ImageStore::default()
    };
    transfer::run(daemon, any::pack(&source), any::pack(&registry.message), true).await?;
    Ok(())
}
