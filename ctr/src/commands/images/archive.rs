//! `ctr images import` and `ctr images export`

use std::fs::File;
use std::time::SystemTime;

use crated_api::any;
use crated_api::types::transfer::{
    ImageExportStream, ImageImportStream, ImageReference, ImageStore,
};

use super::DEFAULT_SNAPSHOTTER;
use crate::beside::{Sink, Source};
use crate::connect::Daemon;
use crate::error::{Error, Result};
use crate::transfer::{self, PlatformArguments};
use crate::{output, time};

/// What to import and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// Take only images of this name, and give it to those that have only a tag.
    #[arg(long, default_value = "")]
    base_name: String,
    /// Also name images by their digest.
    #[arg(long)]
    digests: bool,
    /// Name images by their digest only where they have no other name.
    #[arg(long)]
    skip_digest_for_named: bool,
    /// Keep the archive's index under this name.
    #[arg(long, default_value = "")]
    index_name: String,
    /// Do not unpack.
    #[arg(long)]
    no_unpack: bool,
    /// The snapshotter to unpack into.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = DEFAULT_SNAPSHOTTER)]
    snapshotter: String,
    /// Taken for other clients' sake: this is how it always works.
    #[arg(long, hide = true)]
    #[allow(dead_code, reason = "taken for other clients' sake")]
    local: bool,
    #[command(flatten)]
    platforms: PlatformArguments,
    /// The archive; `-` for standard input.
    file: String,
}

/// What to export and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    /// Leave out `manifest.json`, which docker reads.
    #[arg(long)]
    skip_manifest_json: bool,
    /// Leave out layers that must not be distributed.
    #[arg(long)]
    skip_non_distributable: bool,
    /// Taken for other clients' sake: this is how it always works.
    #[arg(long, hide = true)]
    #[allow(dead_code, reason = "taken for other clients' sake")]
    local: bool,
    #[command(flatten)]
    platforms: PlatformArguments,
    /// The archive; `-` for standard output.
    file: String,
    /// The images.
    #[arg(required = true)]
    images: Vec<String>,
}

/// Imports the images of an archive, and prints their names.
pub(crate) async fn import(daemon: &Daemon, arguments: Import) -> Result<()> {
    let input = match arguments.file.as_str() {
        "-" => Source::new(std::io::stdin(), "standard input"),
        path => Source::new(File::open(path).map_err(Error::io("open", path))?, path),
    };
    let today = time::rfc3339(SystemTime::now());
    let today = today.split('T').next().unwrap_or_default();
    let reference = ImageReference {
        allow_overwrite: arguments.base_name.is_empty(),
        name: match arguments.base_name.as_str() {
            "" => format!("import-{today}"),
            name => name.to_owned(),
        },
        is_prefix: true,
        add_digest: arguments.digests,
        skip_named_digest: arguments.skip_digest_for_named,
    };
    let unpack = arguments.platforms.unpack_into(&arguments.snapshotter)?;
    let destination = ImageStore {
        name: arguments.index_name,
        platforms: arguments.platforms.wanted()?,
        unpacks: if arguments.no_unpack { Vec::new() } else { vec![unpack] },
        extra_references: vec![reference],
        ..ImageStore::default()
    };
    let stream = transfer::stream_id("import")?;
    let sent = tokio::spawn(transfer::send(transfer::open(daemon, &stream).await?, input));
    let source = ImageImportStream { stream, ..ImageImportStream::default() };
    let saved = transfer::run(daemon, any::pack(&source), any::pack(&destination), false).await;
    if saved.is_ok() || sent.is_finished() {
        // What could not be read is the cause of what the daemon then says.
        sent.await.map_err(|error| Error::Refused(error.to_string()))??;
    }
    let saved = saved?;
    saved.iter().for_each(|name| output::line(format!("saved {name}")));
    Ok(())
}

/// Writes images into an archive.
pub(crate) async fn export(daemon: &Daemon, arguments: Export) -> Result<()> {
    let out = match arguments.file.as_str() {
        "-" => Sink::new(std::io::stdout(), "standard output"),
        path => Sink::new(File::create(path).map_err(Error::io("create", path))?, path),
    };
    let reference = |name: &String| ImageReference { name: name.clone(), ..Default::default() };
    let source = ImageStore {
        extra_references: arguments.images.iter().map(reference).collect(),
        ..ImageStore::default()
    };
    let stream = transfer::stream_id("export")?;
    let received = tokio::spawn(transfer::receive(transfer::open(daemon, &stream).await?, out));
    let destination = ImageExportStream {
        stream,
        platforms: arguments.platforms.wanted()?,
        all_platforms: arguments.platforms.all_platforms,
        skip_compatibility_manifest: arguments.skip_manifest_json,
        skip_non_distributable: arguments.skip_non_distributable,
        ..ImageExportStream::default()
    };
    let exported = transfer::run(daemon, any::pack(&source), any::pack(&destination), false).await;
    let received = received.await.map_err(|error| Error::Refused(error.to_string()))?;
    if exported.is_err() && arguments.file != "-" {
        // Half an archive is none.
        let _ = std::fs::remove_file(&arguments.file);
    }
    exported?;
    received
}
