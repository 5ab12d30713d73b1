//! `containerd.services.images.v1.Images`.

use std::sync::Arc;

use crated_api::services::images::v1::images_server::Images;
use crated_api::services::images::v1::{
    CreateImageRequest, CreateImageResponse, DeleteImageRequest, GetImageRequest, GetImageResponse,
    Image as Record, ListImagesRequest, ListImagesResponse, UpdateImageRequest,
    UpdateImageResponse,
};
use tonic::{Request, Response, Status};

use super::{convert, quick, scope, status};
use crate::filters::Filters;
use crate::metadata::Image;
use crate::wiring::Daemon;

/// Image records.
#[derive(Clone)]
pub struct ImagesService {
    daemon: Arc<Daemon>,
}

impl ImagesService {
    /// Serves the images of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }
}

#[tonic::async_trait]
impl Images for ImagesService {
    async fn get(
        &self,
        request: Request<GetImageRequest>,
    ) -> Result<Response<GetImageResponse>, Status> {
        let scope = scope(&request)?;
        let name = request.into_inner().name;
        let image =
            quick(&self.daemon, move |daemon| daemon.db.images().image(&scope, &name)).await?;
        Ok(Response::new(GetImageResponse { image: Some(convert::image(image)) }))
    }

    async fn list(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let scope = scope(&request)?;
        let filters = Filters::parse(&request.into_inner().filters)?;
        let images =
            quick(&self.daemon, move |daemon| daemon.db.images().list(&scope, &filters)).await?;
        let images = images.into_iter().map(convert::image).collect();
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn create(
        &self,
        request: Request<CreateImageRequest>,
    ) -> Result<Response<CreateImageResponse>, Status> {
        let scope = scope(&request)?;
        let CreateImageRequest { image, source_date_epoch } = request.into_inner();
        let record = required(image)?;
        let epoch = source_date_epoch.map(convert::system_time).transpose()?;
        let image = Image {
            name: record.name,
            labels: convert::labels(record.labels),
            target: convert::target(record.target)?,
            created_at: std::time::UNIX_EPOCH,
            updated_at: std::time::UNIX_EPOCH,
        };
        let image =
            quick(&self.daemon, move |daemon| daemon.db.images().create(&scope, image, epoch))
                .await?;
        Ok(Response::new(CreateImageResponse { image: Some(convert::image(image)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateImageRequest>,
    ) -> Result<Response<UpdateImageResponse>, Status> {
        let scope = scope(&request)?;
        let UpdateImageRequest { image, update_mask, source_date_epoch } = request.into_inner();
        let record = required(image)?;
        let epoch = source_date_epoch.map(convert::system_time).transpose()?;
        let name = record.name.clone();
        let update = convert::image_update(update_mask, record)?;
        let image = quick(&self.daemon, move |daemon| {
            daemon.db.images().update(&scope, &name, update, epoch)
        })
        .await?;
        Ok(Response::new(UpdateImageResponse { image: Some(convert::image(image)) }))
    }

    async fn delete(&self, request: Request<DeleteImageRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let DeleteImageRequest { name, sync, target } = request.into_inner();
        let target = target
            .filter(|target| !target.digest.is_empty())
            .map(|target| convert::digest(&target.digest))
            .transpose()?;
        quick(&self.daemon, move |daemon| {
            daemon.db.images().delete(&scope, &name, target.as_ref())
        })
        .await?;
        if sync {
            self.daemon.collect().await?;
        }
        Ok(Response::new(()))
    }
}

fn required(image: Option<Record>) -> Result<Record, Status> {
    image.ok_or_else(|| status::invalid("image: missing"))
}
