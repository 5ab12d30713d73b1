//! `containerd.services.namespaces.v1.Namespaces`.

use std::sync::Arc;

use crated_api::services::namespaces::v1::namespaces_server::Namespaces;
use crated_api::services::namespaces::v1::{
    CreateNamespaceRequest, CreateNamespaceResponse, DeleteNamespaceRequest, GetNamespaceRequest,
    GetNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse, Namespace as Record,
    UpdateNamespaceRequest, UpdateNamespaceResponse,
};
use tonic::{Request, Response, Status};

use super::{convert, quick, status};
use crate::metadata::{Error, Namespace};
use crate::wiring::Daemon;

/// Namespaces and their labels.
#[derive(Clone)]
pub struct NamespacesService {
    daemon: Arc<Daemon>,
}

impl NamespacesService {
    /// Serves the namespaces of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }
}

#[tonic::async_trait]
impl Namespaces for NamespacesService {
    /// A namespace nobody wrote to is answered all the same, without labels: clients look for
    /// defaults in it before they create anything.
    async fn get(
        &self,
        request: Request<GetNamespaceRequest>,
    ) -> Result<Response<GetNamespaceResponse>, Status> {
        let name: Namespace = request.into_inner().name.parse()?;
        let record = quick(&self.daemon, move |daemon| {
            let labels = daemon.db.namespaces().labels(&name)?.unwrap_or_default();
            Ok::<_, Error>(Record { name: name.to_string(), labels })
        })
        .await?;
        Ok(Response::new(GetNamespaceResponse { namespace: Some(record) }))
    }

    async fn list(
        &self,
        _: Request<ListNamespacesRequest>,
    ) -> Result<Response<ListNamespacesResponse>, Status> {
        let records = quick(&self.daemon, |daemon| daemon.db.namespaces().list()).await?;
        let namespaces = records.into_iter().map(convert::namespace).collect();
        Ok(Response::new(ListNamespacesResponse { namespaces }))
    }

    async fn create(
        &self,
        request: Request<CreateNamespaceRequest>,
    ) -> Result<Response<CreateNamespaceResponse>, Status> {
        let record = required(request.into_inner().namespace)?;
        let name: Namespace = record.name.parse()?;
        let record =
            quick(&self.daemon, move |daemon| daemon.db.namespaces().create(&name, &record.labels))
                .await?;
        Ok(Response::new(CreateNamespaceResponse { namespace: Some(convert::namespace(record)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateNamespaceRequest>,
    ) -> Result<Response<UpdateNamespaceResponse>, Status> {
        let UpdateNamespaceRequest { namespace, update_mask } = request.into_inner();
        let record = required(namespace)?;
        let name: Namespace = record.name.parse()?;
        let update = convert::namespace_update(update_mask, record.labels)?;
        let record =
            quick(&self.daemon, move |daemon| daemon.db.namespaces().update(&name, &update))
                .await?;
        Ok(Response::new(UpdateNamespaceResponse { namespace: Some(convert::namespace(record)) }))
    }

    async fn delete(
        &self,
        request: Request<DeleteNamespaceRequest>,
    ) -> Result<Response<()>, Status> {
        let name: Namespace = request.into_inner().name.parse()?;
        quick(&self.daemon, move |daemon| daemon.db.namespaces().delete(&name)).await?;
        Ok(Response::new(()))
    }
}

fn required(record: Option<Record>) -> Result<Record, Status> {
    record.ok_or_else(|| status::invalid("namespace: missing"))
}
