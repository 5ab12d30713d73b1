//! `containerd.services.diff.v1.Diff`: stored layers to directories and back.

use std::io::Read;
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
use crate::metadata::{NamespacedStore, Scope};
use crate::programs::Processed;
use crate::proxy::Link;
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

/// One that makes and applies layers.
enum Member {
    /// The daemon itself.
    Walking,
    /// A process of its own.
    Proxy(Link),
}

#[tonic::async_trait]
impl Diff for DiffService {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let (scope, request) = (scope(&request)?, request.into_inner());
        let mut last = None;
        for member in self.members() {
            let answer = match member {
                Member::Walking => self.apply_here(&scope, request.clone()).await,
                Member::Proxy(link) => link.apply(&scope, request.clone()).await,
            };
            match answer {
                Err(error) if error.code() == Code::Unimplemented => last = Some(error),
                answer => return answer.map(Response::new),
            }
        }
        Err(last.unwrap_or_else(|| status::unimplemented("apply")))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let (scope, request) = (scope(&request)?, request.into_inner());
        let mut last = None;
        for member in self.members() {
            let answer = match member {
                Member::Walking => self.diff_here(&scope, request.clone()).await,
                Member::Proxy(link) => link.diff(&scope, request.clone()).await,
            };
            match answer {
                Err(error) if error.code() == Code::Unimplemented => last = Some(error),
                answer => return answer.map(Response::new),
            }
        }
        Err(last.unwrap_or_else(|| status::unimplemented("diff")))
    }
}

impl DiffService {
    /// Who is asked, in this order, until one knows how.
    fn members(&self) -> impl Iterator<Item = Member> {
        self.daemon.config.plugins.diff.default.iter().filter_map(|name| match name.as_str() {
            "walking" => Some(Member::Walking),
            name => self.daemon.differs.get(name).cloned().map(Member::Proxy),
        })
    }

    async fn apply_here(
        &self,
        scope: &Scope,
        request: ApplyRequest,
    ) -> Result<ApplyResponse, Status> {
        let store = self.daemon.content.scoped(scope.clone());
        let ApplyRequest { diff, mounts, payloads, sync_fs } = request;
        let diff = diff.ok_or_else(|| status::invalid("diff: missing"))?;
        let digest = convert::digest(&diff.digest)?;
        let steps = self.daemon.processors.route(&diff.media_type);
        let steps = steps.map_err(|error| Status::new(Code::Unknown, error.to_string()))?;
        let mounts = convert::mounts_from(mounts);
        let sync_fs = sync_fs || self.daemon.config.plugins.diff.sync_fs;
        let applied = bulk(&self.daemon, move |daemon| {
            let blob = store.reader(&digest).map_err(status::from_content)?;
            let options = ApplyOptions { sync_fs, write_early: true, ..ApplyOptions::default() };
            let mut layer: Box<dyn Read> = match &steps[..] {
                [] => Box::new(crated_content::reader(blob)),
                steps => {
                    let processed =
                        Processed::start(steps, &payloads, crated_content::reader(blob));
                    Box::new(processed.map_err(|error| status::from_io(&error))?)
                }
            };
            daemon.applier.apply(&mut *layer, &mounts, &options).map_err(status::from_snapshot)
        })
        .await?;
        let applied = Descriptor {
            media_type: Compression::None.media_type().to_owned(),
            digest: applied.diff_id,
            size: convert::size(applied.size_bytes),
            ..Descriptor::default()
        };
        Ok(ApplyResponse { applied: Some(applied) })
    }

    async fn diff_here(&self, scope: &Scope, request: DiffRequest) -> Result<DiffResponse, Status> {
        let store = self.daemon.content.scoped(scope.clone());
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
        Ok(DiffResponse { diff: Some(diff) })
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
    fn an_unknown_type_is_left_to_another_differ() {
        assert_eq!(compression("").unwrap(), Compression::Gzip);
        assert_eq!(compression("application/x").unwrap_err().code(), Code::Unimplemented);
    }
}
