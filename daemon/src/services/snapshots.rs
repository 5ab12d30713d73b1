//! `containerd.services.snapshots.v1.Snapshots`.

use std::ops::ControlFlow;
use std::sync::Arc;

use crated_api::services::snapshots::v1::snapshots_server::Snapshots;
use crated_api::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse,
    MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse,
    RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest,
    UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use crated_snapshot::{CommitOptions, Info, Key, Name, Snapshotter};
use tonic::{Request, Response, Status};

use super::{Answers, batches, bulk, convert, quick, scope, status};
use crate::filters::Filters;
use crate::metadata::{Error, NamespacedSnapshotter, Result as MetadataResult};
use crate::wiring::Daemon;

/// File systems from layers of change.
#[derive(Clone)]
pub struct SnapshotsService {
    daemon: Arc<Daemon>,
}

impl SnapshotsService {
    /// Serves the snapshotters of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }

    /// The snapshotter a call names, as the caller's namespace sees it.
    fn snapshotter<T>(
        &self,
        request: &Request<T>,
        name: impl Fn(&T) -> &str,
    ) -> Result<NamespacedSnapshotter, Status> {
        self.daemon.snapshotter(scope(request)?, name(request.get_ref()))
    }
}

#[tonic::async_trait]
impl Snapshots for SnapshotsService {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        // Most likely for a container that is about to be created.
        self.daemon.shims.expect_task();
        let snapshotter = self.snapshotter(&request, |request| &request.snapshotter)?;
        let PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let (key, parent) = (key_of(key)?, name_of(parent)?);
        // Some implementors copy the parent.
        let mounts = bulk(&self.daemon, move |_| {
            snapshotter.prepare(&key, parent.as_ref(), &labels).map_err(Error::from)
        })
        .await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts: convert::mounts(mounts) }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let snapshotter = self.snapshotter(&request, |request| &request.snapshotter)?;
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let (key, parent) = (key_of(key)?, name_of(parent)?);
        let mounts = bulk(&self.daemon, move |_| {
            snapshotter.view(&key, parent.as_ref(), &labels).map_err(Error::from)
        })
        .await?;
        Ok(Response::new(ViewSnapshotResponse { mounts: convert::mounts(mounts) }))
    }

    async fn mounts(
        &self,
        request: Request<MountsRequest>,
    ) -> Result<Response<MountsResponse>, Status> {
        let snapshotter = self.snapshotter(&request, |request| &request.snapshotter)?;
        let key = key_of(request.into_inner().key)?;
        let mounts =
            quick(&self.daemon, move |_| snapshotter.mounts(&key).map_err(Error::from)).await?;
        Ok(Response::new(MountsResponse { mounts: convert::mounts(mounts) }))
    }

    async fn commit(
        &self,
        request: Request<CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let snapshotter = self.snapshotter(&request, |request| &request.snapshotter)?;
        let CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        let (key, parent) = (key_of(key)?, name_of(parent)?);
        let name = Name::new(name).map_err(status::from_snapshot)?;
        let options = CommitOptions { labels: convert::labels(labels), parent };
        // The usage of the layer is measured at this moment.
        bulk(&self.daemon, move |_| snapshotter.commit(&name, &key, &options).map_err(Error::from))
            .await?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let snapshotter = self.snapshotter(&request, |request| &request.snapshotter)?;
        let key = request.into_inner().key;
        quick(&self.daemon, move |_| snapshotter.remove(&key).map_err(Error::from)).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let snapshotter = self.snapshotter(&request, |request| &request.snapshotter)?;
        let key = request.into_inner().key;
        let info =
            quick(&self.daemon, move |_| snapshotter.stat(&key).map_err(Error::from)).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(convert::snapshot_info(info)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let snapshotter = self.snapshotter(&request, |request| &request.snapshotter)?;
        let UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let info = info.ok_or_else(|| status::invalid("snapshot info: missing"))?;
        let update = convert::label_update("snapshot", update_mask, info.labels)?;
        let update = convert::snapshot_labels(update);
        let info = quick(&self.daemon, move |_| {
            snapshotter.update(&info.name, &update).map_err(Error::from)
        })
        .await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(convert::snapshot_info(info)) }))
    }

    type ListStream = Answers<ListSnapshotsResponse>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let snapshotter = self.snapshotter(&request, |request| &request.snapshotter)?;
        let filters = Filters::parse(&request.into_inner().filters)?;
        let infos = quick(&self.daemon, move |_| matching(&snapshotter, &filters)).await?;
        Ok(Response::new(batches(infos, |infos| ListSnapshotsResponse {
            info: infos.into_iter().map(convert::snapshot_info).collect(),
        })))
    }

    async fn usage(
        &self,
        request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        let snapshotter = self.snapshotter(&request, |request| &request.snapshotter)?;
        let key = request.into_inner().key;
        let usage =
            bulk(&self.daemon, move |_| snapshotter.usage(&key).map_err(Error::from)).await?;
        Ok(Response::new(UsageResponse {
            size: convert::size(usage.size_bytes),
            inodes: convert::size(usage.inodes),
        }))
    }

    async fn cleanup(&self, request: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        let snapshotter = self.snapshotter(&request, |request| &request.snapshotter)?;
        bulk(&self.daemon, move |_| snapshotter.cleanup().map_err(Error::from)).await?;
        Ok(Response::new(()))
    }
}

fn matching(snapshotter: &dyn Snapshotter, filters: &Filters) -> MetadataResult<Vec<Info>> {
    let mut infos = Vec::new();
    snapshotter.walk(&mut |info| {
        if filters.matches(&info) {
            infos.push(info);
        }
        ControlFlow::Continue(())
    })?;
    Ok(infos)
}

fn key_of(text: String) -> Result<Key, Status> {
    Key::new(text).map_err(status::from_snapshot)
}

fn name_of(text: String) -> Result<Option<Name>, Status> {
    convert::optional(text).map(Name::new).transpose().map_err(status::from_snapshot)
}
