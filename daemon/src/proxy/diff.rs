//! A differ behind a socket: it reads and writes the content itself, so whole requests are passed on.

use crated_api::services::diff::v1::diff_client::DiffClient;
use crated_api::services::diff::v1::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use tonic::Status;

use super::Link;
use super::link::scoped;
use crate::metadata::Scope;

impl Link {
    /// Has the differ at the other end unpack a layer.
    ///
    /// # Errors
    ///
    /// Its own, Unavailable when it is not there.
    pub async fn apply(
        &self,
        scope: &Scope,
        request: ApplyRequest,
    ) -> Result<ApplyResponse, Status> {
        let mut client = DiffClient::new(self.channel());
        let call = client.apply(scoped(scope, request));
        Ok(self.call(self.deadlines().bulk, call).await?.into_inner())
    }

    /// Has the differ at the other end make a layer.
    ///
    /// # Errors
    ///
    /// Those of [`apply`](Self::apply).
    pub async fn diff(&self, scope: &Scope, request: DiffRequest) -> Result<DiffResponse, Status> {
        let mut client = DiffClient::new(self.channel());
        let call = client.diff(scoped(scope, request));
        Ok(self.call(self.deadlines().bulk, call).await?.into_inner())
    }
}
