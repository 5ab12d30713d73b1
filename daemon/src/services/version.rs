//! `containerd.services.version.v1.Version`.

use crated_api::services::version::v1::VersionResponse;
use crated_api::services::version::v1::version_server::Version;
use tonic::{Request, Response, Status};

/// What clients are told.
///
/// They choose their path by it: from 2.0.0 on nerdctl pulls and pushes through the transfer
/// service without a fallback, and below 1.6 it warns. The level is therefore that of the API that
/// is complete, crated's own version stands behind it as build metadata, which versions ignore.
pub const VERSION: &str = concat!("v1.7.29+crated.", env!("CARGO_PKG_VERSION"));

/// The commit the daemon was built from, where the build said so.
pub const REVISION: &str = match option_env!("CRATED_REVISION") {
    Some(revision) => revision,
    None => concat!("crated-", env!("CARGO_PKG_VERSION")),
};

/// Tells the version.
#[derive(Clone, Copy, Debug)]
pub struct VersionService;

#[tonic::async_trait]
impl Version for VersionService {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: VERSION.to_owned(),
            revision: REVISION.to_owned(),
        }))
    }
}
