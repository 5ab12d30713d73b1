//! `containerd.services.mounts.v1.Mounts`.

use std::sync::Arc;

use crated_api::services::mounts::v1::mounts_server::Mounts;
use crated_api::services::mounts::v1::{
    ActivateRequest, ActivateResponse, DeactivateRequest, InfoRequest, InfoResponse, ListMessage,
    ListRequest, UpdateRequest, UpdateResponse,
};
use tonic::{Request, Response, Status};

use super::{Answers, bulk, convert, quick, scope, status};
use crate::filters::Filters;
use crate::mounts::{Activate, Error};
use crate::wiring::Daemon;

/// Mounts that the kernel cannot do as they are described.
#[derive(Clone)]
pub struct MountsService {
    daemon: Arc<Daemon>,
}

impl MountsService {
    /// Serves the mounts of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }
}

#[tonic::async_trait]
impl Mounts for MountsService {
    async fn activate(
        &self,
        request: Request<ActivateRequest>,
    ) -> Result<Response<ActivateResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let ActivateRequest { name, mounts, labels, temporary } = request.into_inner();
        let mounts = convert::mounts_from(mounts);
        let wish = Activate { name, mounts, labels: convert::labels(labels), temporary };
        let info =
            bulk(&self.daemon, move |daemon| daemon.mounts.activate(namespace.as_str(), wish))
                .await?;
        Ok(Response::new(ActivateResponse { info: Some(info) }))
    }

    async fn deactivate(
        &self,
        request: Request<DeactivateRequest>,
    ) -> Result<Response<()>, Status> {
        let namespace = scope(&request)?.namespace;
        let name = request.into_inner().name;
        bulk(&self.daemon, move |daemon| daemon.mounts.deactivate(namespace.as_str(), &name))
            .await?;
        Ok(Response::new(()))
    }

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let name = request.into_inner().name;
        let info = quick(&self.daemon, move |daemon| daemon.mounts.info(namespace.as_str(), &name))
            .await?;
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        Err(status::unimplemented("update of activated mounts"))
    }

    type ListStream = Answers<ListMessage>;

    /// Filters are checked and otherwise ignored: no field of an activation has a name.
    async fn list(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let namespace = scope(&request)?.namespace;
        Filters::parse(&request.into_inner().filters)?;
        let infos = self.daemon.mounts.list(namespace.as_str());
        let messages = infos.into_iter().map(|info| Ok(ListMessage { info: Some(info) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        status::from_mounts(&error)
    }
}
