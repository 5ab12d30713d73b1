//! `ctr images usage`: what each layer of an unpacked image occupies.

use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_api::services::snapshots::v1::{StatSnapshotRequest, UsageRequest};
use oci_spec::image::ImageConfiguration;

use super::{DEFAULT_SNAPSHOTTER, get};
use crate::connect::{Daemon, client};
use crate::error::Result;
use crate::output::{self, Padding, Table};
use crate::{chain, documents};

/// Which image, and where it is unpacked.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The snapshotter to look in.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = DEFAULT_SNAPSHOTTER)]
    snapshotter: String,
    /// The image.
    reference: String,
}

/// Prints one line per layer, topmost first, and their sum.
pub(crate) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<()> {
    let image = get(daemon, &arguments.reference).await?;
    let target = image.target.unwrap_or_default();
    let parts = documents::parts(daemon, &target, &documents::host_platform()).await?;
    let config: ImageConfiguration =
        documents::document(daemon, parts.manifest.config().digest().as_ref()).await?;
    let mut table = Table::new(Padding::Tight, ["KEY", "SIZE", "INODES", ""]);
    let (mut size, mut inodes) = (0_u64, 0_i64);
    let mut key = chain::top(config.rootfs().diff_ids());
    let mut client = client!(daemon, SnapshotsClient);
    while !key.is_empty() {
        let snapshotter = arguments.snapshotter.clone();
        let request = UsageRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        let usage = client.usage(request).await?.into_inner();
        let bytes = u64::try_from(usage.size).unwrap_or_default();
        (size, inodes) = (size + bytes, inodes + usage.inodes);
        let request = StatSnapshotRequest { snapshotter, key: key.clone() };
        let info = client.stat(request).await?.into_inner().info.unwrap_or_default();
        table.row([key, output::size_binary(bytes), usage.inodes.to_string(), String::new()]);
        key = info.parent;
    }
    let total = ["total".to_owned(), output::size_binary(size), inodes.to_string()];
    table.row(total.into_iter().chain([String::new()]));
    table.print();
    Ok(())
}
