//! `containerd.services.sandbox.v1.Store`.

use std::sync::Arc;

use crated_api::services::sandbox::v1::store_server::Store;
use crated_api::services::sandbox::v1::{
    StoreCreateRequest, StoreCreateResponse, StoreDeleteRequest, StoreDeleteResponse,
    StoreGetRequest, StoreGetResponse, StoreListRequest, StoreListResponse, StoreUpdateRequest,
    StoreUpdateResponse,
};
use crated_api::types::Sandbox as Record;
use tonic::{Request, Response, Status};

use super::super::{convert, quick, scope, status};
use crate::filters::Filters;
use crate::wiring::Daemon;

/// Sandbox records.
#[derive(Clone)]
pub struct StoreService {
    daemon: Arc<Daemon>,
}

impl StoreService {
    /// Serves the sandbox records of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }
}

#[tonic::async_trait]
impl Store for StoreService {
    async fn create(
        &self,
        request: Request<StoreCreateRequest>,
    ) -> Result<Response<StoreCreateResponse>, Status> {
        let scope = scope(&request)?;
        let record = convert::sandbox_record(required(request.into_inner().sandbox)?);
        let sandbox =
            quick(&self.daemon, move |daemon| daemon.db.sandboxes().create(&scope, record)).await?;
        Ok(Response::new(StoreCreateResponse { sandbox: Some(convert::sandbox(sandbox)) }))
    }

    async fn update(
        &self,
        request: Request<StoreUpdateRequest>,
    ) -> Result<Response<StoreUpdateResponse>, Status> {
        let scope = scope(&request)?;
        let StoreUpdateRequest { sandbox, fields } = request.into_inner();
        let record = required(sandbox)?;
        let update = convert::sandbox_update(fields, &record)?;
        let id = record.sandbox_id;
        let sandbox =
            quick(&self.daemon, move |daemon| daemon.db.sandboxes().update(&scope, &id, update))
                .await?;
        Ok(Response::new(StoreUpdateResponse { sandbox: Some(convert::sandbox(sandbox)) }))
    }

    async fn delete(
        &self,
        request: Request<StoreDeleteRequest>,
    ) -> Result<Response<StoreDeleteResponse>, Status> {
        let scope = scope(&request)?;
        let id = request.into_inner().sandbox_id;
        quick(&self.daemon, move |daemon| daemon.db.sandboxes().delete(&scope, &id)).await?;
        Ok(Response::new(StoreDeleteResponse {}))
    }

    async fn list(
        &self,
        request: Request<StoreListRequest>,
    ) -> Result<Response<StoreListResponse>, Status> {
        let scope = scope(&request)?;
        let filters = Filters::parse(&request.into_inner().filters)?;
        let list =
            quick(&self.daemon, move |daemon| daemon.db.sandboxes().list(&scope, &filters)).await?;
        let list = list.into_iter().map(convert::sandbox).collect();
        Ok(Response::new(StoreListResponse { list }))
    }

    async fn get(
        &self,
        request: Request<StoreGetRequest>,
    ) -> Result<Response<StoreGetResponse>, Status> {
        let scope = scope(&request)?;
        let id = request.into_inner().sandbox_id;
        let sandbox =
            quick(&self.daemon, move |daemon| daemon.db.sandboxes().sandbox(&scope, &id)).await?;
        Ok(Response::new(StoreGetResponse { sandbox: Some(convert::sandbox(sandbox)) }))
    }
}

fn required(sandbox: Option<Record>) -> Result<Record, Status> {
    sandbox.ok_or_else(|| status::invalid("sandbox: missing"))
}
