//! `containerd.services.containers.v1.Containers`.

use std::sync::Arc;

use crated_api::services::containers::v1::containers_server::Containers;
use crated_api::services::containers::v1::{
    Container as Record, CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest,
    GetContainerRequest, GetContainerResponse, ListContainerMessage, ListContainersRequest,
    ListContainersResponse, UpdateContainerRequest, UpdateContainerResponse,
};
use tonic::{Request, Response, Status};

use super::{Answers, convert, quick, scope, status};
use crate::filters::Filters;
use crate::metadata::Container;
use crate::wiring::Daemon;

/// Container records.
#[derive(Clone)]
pub struct ContainersService {
    daemon: Arc<Daemon>,
}

impl ContainersService {
    /// Serves the containers of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }

    async fn matching(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Vec<Container>, Status> {
        let scope = scope(&request)?;
        let filters = Filters::parse(&request.into_inner().filters)?;
        quick(&self.daemon, move |daemon| daemon.db.containers().list(&scope, &filters)).await
    }
}

#[tonic::async_trait]
impl Containers for ContainersService {
    async fn get(
        &self,
        request: Request<GetContainerRequest>,
    ) -> Result<Response<GetContainerResponse>, Status> {
        let scope = scope(&request)?;
        let id = request.into_inner().id;
        let container =
            quick(&self.daemon, move |daemon| daemon.db.containers().container(&scope, &id))
                .await?;
        Ok(Response::new(GetContainerResponse { container: Some(convert::container(container)) }))
    }

    async fn list(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let containers = self.matching(request).await?;
        let containers = containers.into_iter().map(convert::container).collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    type ListStreamStream = Answers<ListContainerMessage>;

    async fn list_stream(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let containers = self.matching(request).await?;
        let messages = containers.into_iter().map(|container| {
            Ok(ListContainerMessage { container: Some(convert::container(container)) })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn create(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let scope = scope(&request)?;
        let record = convert::container_record(required(request.into_inner().container)?)?;
        self.daemon.shims.expect_task();
        let container =
            quick(&self.daemon, move |daemon| daemon.db.containers().create(&scope, record))
                .await?;
        Ok(Response::new(CreateContainerResponse {
            container: Some(convert::container(container)),
        }))
    }

    async fn update(
        &self,
        request: Request<UpdateContainerRequest>,
    ) -> Result<Response<UpdateContainerResponse>, Status> {
        let scope = scope(&request)?;
        let UpdateContainerRequest { container, update_mask } = request.into_inner();
        let record = required(container)?;
        let id = record.id.clone();
        let update = convert::container_update(update_mask, record)?;
        let container =
            quick(&self.daemon, move |daemon| daemon.db.containers().update(&scope, &id, update))
                .await?;
        Ok(Response::new(UpdateContainerResponse {
            container: Some(convert::container(container)),
        }))
    }

    async fn delete(
        &self,
        request: Request<DeleteContainerRequest>,
    ) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let id = request.into_inner().id;
        quick(&self.daemon, move |daemon| daemon.db.containers().delete(&scope, &id)).await?;
        Ok(Response::new(()))
    }
}

fn required(container: Option<Record>) -> Result<Record, Status> {
    container.ok_or_else(|| status::invalid("container: missing"))
}
