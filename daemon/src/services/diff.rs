//! `containerd.services.diff.v1.Diff`: stored layers to directories and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crated_api::services::diff::v1::diff_server::Diff;
use crated_api::services::diff::v1::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use crated_api::types::Descriptor;
use crated_content::{
    Commit, Digest, Ingest, IngestManager, Ingester, LabelUpdate, Labels, Manager, Provider,
};
use crated_mount::Mount;
use crated_snapshot::{ApplyOptions, Compression, DiffOptions, Diffed};
use tonic::{Code, Request, Response, Status};

use super::{bulk, convert, scope, status};
use crate::metadata::NamespacedStore;
use crate::wiring::Daemon;

/// On a stored layer: the digest of its plain tar. Clients find layers by it.
const LABEL_UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Layers to directories and back.
#[derive(Clone)]
pub struct DiffService {
    daemon: Arc<Daemon>,
}

impl DiffService {
    /// Serves the applier and the differ of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }
}

#[tonic::async_trait]
impl Diff for DiffService {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let store = self.daemon.content.scoped(scope(&request)?);
        let ApplyRequest { diff, mounts, sync_fs, .. } = request.into_inner();
        let diff = diff.ok_or_else(|| status::invalid("diff: missing"))?;
        let digest = convert::digest(&diff.digest)?;
        if !is_layer(&diff.media_type) {
            let reason = format!("no processor for media-type: {}", diff.media_type);
            return Err(Status::new(Code::Unknown, reason));
        }
        let mounts = convert::mounts_from(mounts);
        let sync_fs = sync_fs || self.daemon.config.plugins.diff.sync_fs;
        let applied = bulk(&self.daemon, move |daemon| {
            let blob = store.reader(&digest).map_err(status::from_content)?;
            let options = ApplyOptions { sync_fs, ..ApplyOptions::default() };
            let mut layer = crated_content::reader(blob);
            daemon.applier.apply(&mut layer, &mounts, &options).map_err(status::from_snapshot)
        })
        .await?;
        let applied = Descriptor {
            media_type: Compression::None.media_type().to_owned(),
            digest: applied.diff_id,
            size: convert::size(applied.size_bytes),
            ..Descriptor::default()
        };
        Ok(Response::new(ApplyResponse { applied: Some(applied) }))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let store = self.daemon.content.scoped(scope(&request)?);
        let request = request.into_inner();
        let making = Making {
            compression: compression(&request.media_type)?,
            lower: convert::mounts_from(request.left),
            upper: convert::mounts_from(request.right),
            epoch: request.source_date_epoch.map(convert::system_time).transpose()?,
            labels: request.labels,
            reference: request.r#ref,
        };
        let media_type = making.compression.media_type().to_owned();
        let (digest, size_bytes) =
            bulk(&self.daemon, move |daemon| making.run(daemon, &store)).await?;
        let diff = Descriptor {
            media_type,
            digest: digest.to_string(),
            size: convert::size(size_bytes),
            ..Descriptor::default()
        };
        Ok(Response::new(DiffResponse { diff: Some(diff) }))
    }
}

/// A layer to be made.
struct Making {
    compression: Compression,
    lower: Vec<Mount>,
    upper: Vec<Mount>,
    epoch: Option<SystemTime>,
    labels: Labels,
    reference: String,
}

impl Making {
    fn run(self, daemon: &Daemon, store: &NamespacedStore) -> Result<(Digest, u64), Status> {
        let passing = self.reference.is_empty();
        let reference = if passing { unique_reference() } else { self.reference.clone() };
        let made = self.write(daemon, store, &reference);
        if made.is_err() && passing {
            // Nobody knows the reference, so nobody could resume or abort it.
            if let Err(error) = store.abort(&reference) {
                tracing::debug!(%reference, %error, "abort a failed diff");
            }
        }
        made
    }

    fn write(
        &self,
        daemon: &Daemon,
        store: &NamespacedStore,
        reference: &str,
    ) -> Result<(Digest, u64), Status> {
        let mut writer = store.writer(&Ingest::new(reference)).map_err(status::from_content)?;
        if writer.status().offset > 0 {
            writer.truncate().map_err(status::from_content)?;
        }
        let options = DiffOptions { compression: self.compression, source_date_epoch: self.epoch };
        let Diffed { diff_id, digest, size_bytes, .. } = daemon
            .differ
            .diff(&self.lower, &self.upper, &mut *writer, &options)
            .map_err(status::from_snapshot)?;
        let digest = convert::digest(&digest)?;
        let mut labels = self.labels.clone();
        labels.insert(LABEL_UNCOMPRESSED.to_owned(), diff_id.clone());
        let commit = Commit { size_bytes: Some(size_bytes), digest: Some(digest.clone()), labels };
        match writer.commit(&commit) {
            Ok(_) => {}
            Err(crated_content::Error::AlreadyExists(_)) => {
                let label = (LABEL_UNCOMPRESSED.to_owned(), Some(diff_id));
                let update = LabelUpdate::Merge([label].into());
                store.update(&digest, &update).map_err(status::from_content)?;
            }
            Err(error) => return Err(status::from_content(error)),
        }
        Ok((digest, size_bytes))
    }
}

/// The compression of a layer to be made; others are for another differ.
fn compression(media_type: &str) -> Result<Compression, Status> {
    let known = [Compression::None, Compression::Gzip, Compression::Zstd];
    match media_type {
        "" => Ok(Compression::Gzip),
        name => known
            .into_iter()
            .find(|compression| compression.media_type() == name)
            .ok_or_else(|| status::unimplemented(format!("diff of media type {name:?}"))),
    }
}

/// Whether the applier unpacks blobs of this type. What compression they have their bytes tell:
/// the suffixes of Docker's types are not to be trusted.
fn is_layer(media_type: &str) -> bool {
    let media_type = media_type.split(';').next().unwrap_or_default();
    let (base, suffix) = match media_type.strip_prefix(DOCKER_PREFIX) {
        Some(rest) => {
            let rest = rest.strip_prefix("foreign.").unwrap_or(rest);
            let rest = rest.strip_prefix("diff.tar").or_else(|| rest.strip_prefix("tar"));
            (rest.is_some(), rest.unwrap_or_default().trim_start_matches('.'))
        }
        None => {
            let rest = media_type
                .strip_prefix(OCI_PREFIX)
                .map(|rest| rest.strip_prefix("nondistributable.").unwrap_or(rest));
            let rest = rest.and_then(|rest| rest.strip_prefix("v1.tar"));
            (rest.is_some(), rest.unwrap_or_default().trim_start_matches('+'))
        }
    };
    base && ["", "gzip", "zstd"].contains(&suffix)
}

const DOCKER_PREFIX: &str = "application/vnd.docker.image.rootfs.";
const OCI_PREFIX: &str = "application/vnd.oci.image.layer.";

/// A reference no other call has.
fn unique_reference() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    format!("diff-{nanos}-{pid}-{count}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_known_by_their_media_type() {
        for known in [
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ] {
            assert!(is_layer(known), "{known}");
        }
        for other in [
            "",
            "application/json",
            "application/vnd.oci.image.layer.v1.tar+encrypted",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.image.config.v1+json",
        ] {
            assert!(!is_layer(other), "{other}");
        }
    }

    #[test]
    fn an_unknown_type_is_left_to_another_differ() {
        assert_eq!(compression("").unwrap(), Compression::Gzip);
        assert_eq!(compression("application/x").unwrap_err().code(), Code::Unimplemented);
    }
}
