//! `ctr images pull`, and `ctr content fetch`.

use std::collections::BTreeMap;

use crated_api::any;
use crated_api::types::transfer::ImageStore;

use crate::connect::Daemon;
use crate::documents;
use crate::error::{Error, Result};
use crate::spec::split_pair;
use crate::transfer::{self, PlatformArguments, RegistryArguments};

/// The snapshotter that images are unpacked into unless told otherwise.
pub(crate) const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// What to pull and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The snapshotter to unpack into.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = DEFAULT_SNAPSHOTTER)]
    snapshotter: String,
    #[command(flatten)]
    fetch: FetchArguments,
}

/// What to fetch and how.
#[derive(Debug, clap::Args)]
pub(crate) struct FetchArguments {
    #[command(flatten)]
    registry: RegistryArguments,
    #[command(flatten)]
    platforms: PlatformArguments,
    /// Fetch manifests and configurations of all platforms.
    #[arg(long)]
    all_metadata: bool,
    /// Taken for other clients' sake: the daemon bounds this by itself.
    #[arg(long, hide = true)]
    #[allow(dead_code, reason = "taken for other clients' sake")]
    max_concurrent_downloads: Option<u32>,
    /// Taken for other clients' sake: this is how it always works.
    #[arg(long, hide = true)]
    #[allow(dead_code, reason = "taken for other clients' sake")]
    local: bool,
    /// Labels of the image, given as KEY=VALUE.
    #[arg(long)]
    label: Vec<String>,
    /// The image.
    reference: String,
}

/// Pulls one image and unpacks it.
pub(crate) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<()> {
    let unpack = arguments.fetch.platforms.unpack_into(&arguments.snapshotter)?;
    let store = ImageStore { unpacks: vec![unpack], ..ImageStore::default() };
    transfer(daemon, &arguments.fetch, store).await?;
    if lacks_layers(daemon, &arguments.fetch).await? {
        // Unpacking fetches no layer whose snapshot is there. Who pulls may want to push, too.
        transfer(daemon, &arguments.fetch, ImageStore::default()).await?;
    }
    Ok(())
}

async fn lacks_layers(daemon: &Daemon, arguments: &FetchArguments) -> Result<bool> {
    let target = super::get(daemon, &arguments.reference).await?.target.unwrap_or_default();
    for platform in arguments.platforms.names() {
        let parts = match documents::parts(daemon, &target, &platform).await {
            Ok(parts) => parts,
            // Written otherwise in the image, or none of an image.
            Err(Error::Refused(_) | Error::Malformed { .. }) => continue,
            Err(error) => return Err(error),
        };
        for layer in parts.manifest.layers() {
            if !documents::exists(daemon, layer.digest().as_ref()).await? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Fetches one image and leaves it packed.
pub(crate) async fn fetch(daemon: &Daemon, arguments: FetchArguments) -> Result<()> {
    transfer(daemon, &arguments, ImageStore::default()).await
}

async fn transfer(daemon: &Daemon, arguments: &FetchArguments, store: ImageStore) -> Result<()> {
    let labels: BTreeMap<_, _> =
        arguments.label.iter().map(|pair| split_pair(pair)).collect::<Result<_>>()?;
    let destination = ImageStore {
        name: arguments.reference.clone(),
        labels,
        platforms: arguments.platforms.wanted()?,
        all_metadata: arguments.all_metadata,
        ..store
    };
    let registry = arguments.registry.registry(daemon, &arguments.reference).await?;
    let (source, destination) = (any::pack(&registry.message), any::pack(&destination));
    transfer::run(daemon, source, destination, true).await?;
    Ok(())
}
