//! `containerd.services.leases.v1.Leases`.

use std::sync::Arc;

use crated_api::services::leases::v1::leases_server::Leases;
use crated_api::services::leases::v1::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest,
    ListRequest, ListResourcesRequest, ListResourcesResponse, ListResponse,
};
use tonic::{Request, Response, Status};

use super::{convert, quick, scope};
use crate::filters::Filters;
use crate::wiring::Daemon;

/// Leases and what they hold.
#[derive(Clone)]
pub struct LeasesService {
    daemon: Arc<Daemon>,
}

impl LeasesService {
    /// Serves the leases of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }
}

#[tonic::async_trait]
impl Leases for LeasesService {
    async fn create(
        &self,
        request: Request<CreateRequest>,
    ) -> Result<Response<CreateResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let CreateRequest { id, labels } = request.into_inner();
        let id = convert::optional(id);
        let lease = quick(&self.daemon, move |daemon| {
            daemon.db.leases().create(&namespace, id.as_deref(), &labels)
        })
        .await?;
        Ok(Response::new(CreateResponse { lease: Some(convert::lease(lease)) }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<()>, Status> {
        let namespace = scope(&request)?.namespace;
        let DeleteRequest { id, sync } = request.into_inner();
        quick(&self.daemon, move |daemon| daemon.db.leases().delete(&namespace, &id)).await?;
        if sync {
            self.daemon.collect().await?;
        }
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let filters = Filters::parse(&request.into_inner().filters)?;
        let leases =
            quick(&self.daemon, move |daemon| daemon.db.leases().list(&namespace, &filters))
                .await?;
        let leases = leases.into_iter().map(convert::lease).collect();
        Ok(Response::new(ListResponse { leases }))
    }

    async fn add_resource(
        &self,
        request: Request<AddResourceRequest>,
    ) -> Result<Response<()>, Status> {
        let namespace = scope(&request)?.namespace;
        let AddResourceRequest { id, resource } = request.into_inner();
        let resource = convert::resource_named(resource)?;
        quick(&self.daemon, move |daemon| {
            daemon.db.leases().add_resource(&namespace, &id, &resource)
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn delete_resource(
        &self,
        request: Request<DeleteResourceRequest>,
    ) -> Result<Response<()>, Status> {
        let namespace = scope(&request)?.namespace;
        let DeleteResourceRequest { id, resource } = request.into_inner();
        let resource = convert::resource_named(resource)?;
        quick(&self.daemon, move |daemon| {
            daemon.db.leases().delete_resource(&namespace, &id, &resource)
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let id = request.into_inner().id;
        let resources =
            quick(&self.daemon, move |daemon| daemon.db.leases().resources(&namespace, &id))
                .await?;
        let resources = resources.into_iter().map(convert::resource).collect();
        Ok(Response::new(ListResourcesResponse { resources }))
    }
}
