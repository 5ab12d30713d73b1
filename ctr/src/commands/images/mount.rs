//! `ctr images mount` and `ctr images unmount`

use std::collections::BTreeMap;
use std::ffi::CString;
use std::time::{Duration, SystemTime};

use crated_api::services::leases::v1::leases_client::LeasesClient;
use crated_api::services::leases::v1::{CreateRequest, DeleteRequest};
use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_api::services::snapshots::v1::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use crated_api::types::Mount;
use oci_spec::image::ImageConfiguration;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{DEFAULT_SNAPSHOTTER, get};
use crate::connect::{Daemon, client};
use crate::error::{Error, Result};
use crate::{chain, documents, output, time};

/// How long what is mounted is kept.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// What to mount where.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Mount it writable.
    #[arg(long)]
    rw: bool,
    /// The platform.
    #[arg(long)]
    platform: Option<String>,
    /// The snapshotter it is unpacked in.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = DEFAULT_SNAPSHOTTER)]
    snapshotter: String,
    /// The image.
    reference: String,
    /// The directory.
    target: String,
}

/// What to unmount.
#[derive(Debug, clap::Args)]
pub(crate) struct Unmount {
    /// Remove its snapshot too.
    #[arg(long)]
    rm: bool,
    /// The snapshotter it is in.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = DEFAULT_SNAPSHOTTER)]
    snapshotter: String,
    /// The directory.
    target: String,
}

/// Mounts an image that is unpacked.
pub(crate) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<()> {
    let image = get(daemon, &arguments.reference).await?;
    let platform = arguments.platform.clone().unwrap_or_else(documents::host_platform);
    let target = image.target.unwrap_or_default();
    let parts = documents::parts(daemon, &target, &platform).await?;
    let config: ImageConfiguration =
        documents::document(daemon, parts.manifest.config().digest().as_ref()).await?;
    let parent = chain::top(config.rootfs().diff_ids());
    let key = arguments.target.clone();
    let labels = BTreeMap::from([
        ("containerd.io/gc.expire".to_owned(), time::rfc3339(SystemTime::now() + LEASE)),
        (format!("containerd.io/gc.ref.snapshot.{}", arguments.snapshotter), key.clone()),
    ]);
    let lease = CreateRequest { id: key.clone(), labels };
    client!(daemon, LeasesClient).create(lease).await?;
    let mounted = mount_snapshot(daemon, &arguments, key.clone(), parent).await;
    if mounted.is_err() {
        // The failure that counts is the first; the lease expires anyway.
        let request = DeleteRequest { id: key, sync: false };
        let _ = client!(daemon, LeasesClient).delete(request).await;
    }
    mounted?;
    output::line(parts.manifest.config().digest());
    output::line(&arguments.target);
    Ok(())
}

async fn mount_snapshot(
    daemon: &Daemon,
    arguments: &Arguments,
    key: String,
    parent: String,
) -> Result<()> {
    let daemon = daemon.with_lease(&key)?;
    let snapshotter = arguments.snapshotter.clone();
    let mut client = client!(daemon, SnapshotsClient);
    let mounts = if arguments.rw {
        let request =
            PrepareSnapshotRequest { snapshotter, key: key.clone(), parent, ..Default::default() };
        client.prepare(request).await?.into_inner().mounts
    } else {
        let request =
            ViewSnapshotRequest { snapshotter, key: key.clone(), parent, ..Default::default() };
        client.view(request).await?.into_inner().mounts
    };
    for one in &mounts {
        if let Err(error) = attach(one, &arguments.target) {
            let snapshotter = arguments.snapshotter.clone();
            // The failure that counts is the first.
            let _ = client.remove(RemoveSnapshotRequest { snapshotter, key }).await;
            return Err(error);
        }
    }
    Ok(())
}

/// Unmounts a directory.
pub(crate) async fn unmount_image(daemon: &Daemon, arguments: Unmount) -> Result<()> {
    unmount(arguments.target.as_str(), UnmountFlags::empty())
        .map_err(|errno| Error::io("unmount", &arguments.target)(errno.into()))?;
    if arguments.rm {
        let (snapshotter, key) = (arguments.snapshotter, arguments.target.clone());
        let request = RemoveSnapshotRequest { snapshotter, key: key.clone() };
        client!(daemon, SnapshotsClient).remove(request).await?;
        let request = DeleteRequest { id: key, sync: false };
        client!(daemon, LeasesClient).delete(request).await?;
    }
    output::line(arguments.target);
    Ok(())
}

fn attach(what: &Mount, target: &str) -> Result<()> {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in &what.options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" => {}
            "bind" => flags |= MountFlags::BIND,
            "rbind" => flags |= MountFlags::BIND | MountFlags::REC,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            other => data.push(other.to_owned()),
        }
    }
    let failed = |errno: rustix::io::Errno| Error::io("mount on", target)(errno.into());
    let data = CString::new(data.join(","))
        .map_err(|_| Error::Refused("mount options hold a NUL".to_owned()))?;
    mount(what.source.as_str(), target, what.r#type.as_str(), flags, data.as_c_str())
        .map_err(failed)?;
    if flags.contains(MountFlags::BIND | MountFlags::RDONLY) {
        // A bind takes no notice of it the first time.
        rustix::mount::mount_remount(target, flags, c"").map_err(failed)?;
    }
    Ok(())
}
