//! `ctr images`

mod archive;
mod convert;
mod mount;
mod pull;
mod push;
mod usage;

use std::collections::BTreeMap;

use crated_api::FieldMask;
use crated_api::services::images::v1::images_client::ImagesClient;
use crated_api::services::images::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
    UpdateImageRequest,
};
use crated_api::services::snapshots::v1::StatSnapshotRequest;
use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use oci_spec::image::ImageConfiguration;

use crate::connect::{Daemon, client};
use crate::error::{Error, Result};
use crate::output::{self, Padding, Table};
use crate::spec::split_pair;
use crate::{chain, documents};

pub(crate) use pull::{DEFAULT_SNAPSHOTTER, FetchArguments, fetch};

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check that all content of images is there, and whether they are unpacked.
    Check {
        /// The snapshotter to look in.
        #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = DEFAULT_SNAPSHOTTER)]
        snapshotter: String,
        /// Filters, such as `name==x`.
        filters: Vec<String>,
    },
    /// Convert an image into another form.
    Convert(convert::Arguments),
    /// Write images into an archive.
    Export(archive::Export),
    /// Read images from an archive.
    Import(archive::Import),
    /// List images.
    #[command(visible_alias = "ls")]
    List {
        /// Print only their names.
        #[arg(short, long)]
        quiet: bool,
        /// Filters, such as `name==x`.
        filters: Vec<String>,
    },
    /// Set labels of an image; an empty value clears one.
    Label {
        /// Its name.
        name: String,
        /// Labels given as KEY=VALUE.
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Mount an image that is unpacked.
    Mount(mount::Arguments),
    /// Pull an image from a registry and unpack it.
    Pull(Box<pull::Arguments>),
    /// Push an image to a registry.
    Push(Box<push::Arguments>),
    /// Unmount an image.
    Unmount(mount::Unmount),
    /// Show what the layers of an image occupy.
    Usage(usage::Arguments),
    /// Remove images by name.
    #[command(visible_aliases = ["rm", "del", "remove"])]
    Delete {
        /// Wait until what they held is collected.
        #[arg(long)]
        sync: bool,
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Give an image further names.
    Tag {
        /// Replace names that exist.
        #[arg(long)]
        force: bool,
        /// The image.
        source: String,
        /// Its new names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Runs one of them.
pub(crate) async fn run(daemon: &Daemon, command: Command) -> Result<()> {
    match command {
        Command::Check { snapshotter, filters } => check(daemon, &snapshotter, filters).await,
        Command::List { quiet, filters } => list(daemon, quiet, filters).await,
        Command::Label { name, labels } => label(daemon, name, &labels).await,
        Command::Convert(arguments) => convert::run(daemon, arguments).await,
        Command::Export(arguments) => archive::export(daemon, arguments).await,
        Command::Import(arguments) => archive::import(daemon, arguments).await,
        Command::Mount(arguments) => mount::run(daemon, arguments).await,
        Command::Pull(arguments) => pull::run(daemon, *arguments).await,
        Command::Push(arguments) => push::run(daemon, *arguments).await,
        Command::Unmount(arguments) => mount::unmount_image(daemon, arguments).await,
        Command::Usage(arguments) => usage::run(daemon, arguments).await,
        Command::Delete { sync, names } => delete(daemon, sync, names).await,
        Command::Tag { force, source, names } => tag(daemon, force, &source, names).await,
    }
}

/// The record of one image.
pub(crate) async fn get(daemon: &Daemon, name: &str) -> Result<Image> {
    let request = GetImageRequest { name: name.to_owned() };
    let answer = client!(daemon, ImagesClient).get(request).await?.into_inner();
    answer.image.ok_or_else(|| Error::Refused(format!("image {name:?}: empty answer")))
}

async fn all(daemon: &Daemon, filters: Vec<String>) -> Result<Vec<Image>> {
    let answer = client!(daemon, ImagesClient).list(ListImagesRequest { filters }).await?;
    Ok(answer.into_inner().images)
}

async fn list(daemon: &Daemon, quiet: bool, filters: Vec<String>) -> Result<()> {
    let images = all(daemon, filters).await?;
    if quiet {
        images.iter().for_each(|image| output::line(&image.name));
        return Ok(());
    }
    let header = ["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS", ""];
    let mut table = Table::new(Padding::Tight, header);
    for image in images {
        let target = image.target.unwrap_or_default();
        // Parts of an image may legally be missing; the row then says less.
        let size = match documents::parts(daemon, &target, &documents::host_platform()).await {
            Ok(parts) => output::size_binary(parts.size_bytes()),
            Err(_) => "-".to_owned(),
        };
        let platforms = documents::platforms(daemon, &target).await.unwrap_or_default();
        let platforms = if platforms.is_empty() { "-".to_owned() } else { platforms.join(",") };
        let labels = output::labels(&image.labels);
        let row = [image.name, target.media_type, target.digest, size, platforms, labels];
        table.row(row.into_iter().chain([String::new()]));
    }
    table.print();
    Ok(())
}

async fn check(daemon: &Daemon, snapshotter: &str, filters: Vec<String>) -> Result<()> {
    let header = ["REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED", ""];
    let mut table = Table::new(Padding::Tight, header);
    for image in all(daemon, filters).await? {
        let target = image.target.unwrap_or_default();
        let (status, size, unpacked) = match state(daemon, &target, snapshotter).await {
            Ok(state) => state,
            Err(error) if error.is_not_found() => {
                ("unavailable (0/?)".to_owned(), "-".to_owned(), false)
            }
            Err(error) => return Err(error),
        };
        let row =
            [image.name, target.media_type, target.digest, status, size, unpacked.to_string()];
        table.row(row.into_iter().chain([String::new()]));
    }
    table.print();
    Ok(())
}

async fn state(
    daemon: &Daemon,
    target: &crated_api::types::Descriptor,
    snapshotter: &str,
) -> Result<(String, String, bool)> {
    let parts = documents::parts(daemon, target, &documents::host_platform()).await?;
    let manifest = &parts.manifest;
    let needed: Vec<_> =
        std::iter::once(manifest.config()).chain(manifest.layers().iter()).collect();
    let (mut have, mut have_bytes) = (1, parts.manifest_bytes);
    for part in &needed {
        if documents::exists(daemon, part.digest().as_ref()).await? {
            have += 1;
            have_bytes += part.size();
        }
    }
    let need = needed.len() + 1;
    let word = if have == need { "complete" } else { "incomplete" };
    let size =
        format!("{}/{}", output::size_binary(have_bytes), output::size_binary(parts.size_bytes()));
    let config = documents::document(daemon, manifest.config().digest().as_ref()).await;
    let unpacked = match config {
        Ok(config) => is_unpacked(daemon, &config, snapshotter).await?,
        Err(_) => false,
    };
    Ok((format!("{word} ({have}/{need})"), size, unpacked))
}

async fn is_unpacked(
    daemon: &Daemon,
    config: &ImageConfiguration,
    snapshotter: &str,
) -> Result<bool> {
    let key = chain::top(config.rootfs().diff_ids());
    let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
    match client!(daemon, SnapshotsClient).stat(request).await.map_err(Error::from) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn label(daemon: &Daemon, name: String, labels: &[String]) -> Result<()> {
    let labels: BTreeMap<_, _> =
        labels.iter().map(|pair| split_pair(pair)).collect::<Result<_>>()?;
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let request = UpdateImageRequest {
        image: Some(Image { name: name.clone(), labels, ..Image::default() }),
        update_mask: Some(FieldMask { paths }),
        ..UpdateImageRequest::default()
    };
    client!(daemon, ImagesClient).update(request).await?;
    output::line(name);
    Ok(())
}

async fn delete(daemon: &Daemon, sync: bool, names: Vec<String>) -> Result<()> {
    let last = names.len().saturating_sub(1);
    let mut failed = None;
    for (number, name) in names.into_iter().enumerate() {
        // One collection is enough, after the last of them.
        let request = DeleteImageRequest {
            name: name.clone(),
            sync: sync && number == last,
            ..DeleteImageRequest::default()
        };
        match client!(daemon, ImagesClient).delete(request).await {
            Ok(_) => output::line(name),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

async fn tag(daemon: &Daemon, force: bool, source: &str, names: Vec<String>) -> Result<()> {
    let image = get(daemon, source).await?;
    for name in names {
        let copy = Image { name: name.clone(), ..image.clone() };
        let request = CreateImageRequest { image: Some(copy.clone()), source_date_epoch: None };
        match client!(daemon, ImagesClient).create(request).await {
            Err(status) if force && status.code() == tonic::Code::AlreadyExists => {
                let request =
                    UpdateImageRequest { image: Some(copy), ..UpdateImageRequest::default() };
                client!(daemon, ImagesClient).update(request).await?;
            }
            other => drop(other?),
        }
        output::line(name);
    }
    Ok(())
}
