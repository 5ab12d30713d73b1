//! `containerd.services.content.v1.Content`.

mod write;

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use crated_api::services::content::v1::content_server::Content;
use crated_api::services::content::v1::{
    AbortRequest, DeleteContentRequest, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest,
    ReadContentResponse, StatusRequest, StatusResponse, UpdateRequest, UpdateResponse,
    WriteContentRequest, WriteContentResponse,
};
use crated_content::{Digest, Info, IngestManager, Manager, Provider, ReaderAt};
use futures_util::{StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, batches, convert, quick, scope, status};
use crate::blocking::Blocking;
use crate::filters::Filters;
use crate::metadata::{Error, NamespacedStore, Result as MetadataResult};
use crate::wiring::Daemon;

/// Bytes in one message of a read: clients take up to 16 MiB, smaller ones overlap better.
const CHUNK_BYTES_MAX: u64 = 1 << 20;

/// Chunks read ahead of the client: one on its way, one being read.
const READ_AHEAD: usize = 2;

/// Bytes by digest.
#[derive(Clone)]
pub struct ContentService {
    daemon: Arc<Daemon>,
}

impl ContentService {
    /// Serves the content of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }

    fn store<T>(&self, request: &Request<T>) -> Result<NamespacedStore, Status> {
        Ok(self.daemon.content.scoped(scope(request)?))
    }
}

#[tonic::async_trait]
impl Content for ContentService {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let store = self.store(&request)?;
        let digest = convert::digest(&request.into_inner().digest)?;
        let info = quick(&self.daemon, move |_| store.info(&digest).map_err(Error::from)).await?;
        Ok(Response::new(InfoResponse { info: Some(convert::content_info(info)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateRequest>,
    ) -> Result<Response<UpdateResponse>, Status> {
        let store = self.store(&request)?;
        let UpdateRequest { info, update_mask } = request.into_inner();
        let info = info.ok_or_else(|| status::invalid("content info: missing"))?;
        let digest = convert::digest(&info.digest)?;
        let update = convert::label_update("content", update_mask, info.labels)?;
        let info =
            quick(&self.daemon, move |_| store.update(&digest, &update).map_err(Error::from))
                .await?;
        Ok(Response::new(UpdateResponse { info: Some(convert::content_info(info)) }))
    }

    type ListStream = Answers<ListContentResponse>;

    async fn list(
        &self,
        request: Request<ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let store = self.store(&request)?;
        let filters = Filters::parse(&request.into_inner().filters)?;
        let infos = quick(&self.daemon, move |_| matching(&store, &filters)).await?;
        Ok(Response::new(batches(infos, |infos| ListContentResponse {
            info: infos.into_iter().map(convert::content_info).collect(),
        })))
    }

    async fn delete(&self, request: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        let store = self.store(&request)?;
        let digest = convert::digest(&request.into_inner().digest)?;
        quick(&self.daemon, move |_| store.delete(&digest).map_err(Error::from)).await?;
        Ok(Response::new(()))
    }

    type ReadStream = Answers<ReadContentResponse>;

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let store = self.store(&request)?;
        let ReadContentRequest { digest, offset, size } = request.into_inner();
        let digest = convert::digest(&digest)?;
        let opened = digest.clone();
        let blob = quick(&self.daemon, move |_| store.reader(&opened).map_err(Error::from)).await?;
        let (start, end) = range(offset, size, blob.size_bytes())?;
        Ok(Response::new(chunks(self.daemon.blocking.clone(), blob.into(), digest, start, end)))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let store = self.store(&request)?;
        let reference = request.into_inner().r#ref;
        let status =
            quick(&self.daemon, move |_| store.status(&reference).map_err(Error::from)).await?;
        Ok(Response::new(StatusResponse { status: Some(convert::content_status(status)) }))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        let store = self.store(&request)?;
        let filters = Filters::parse(&request.into_inner().filters)?;
        let mut statuses =
            quick(&self.daemon, move |_| store.statuses().map_err(Error::from)).await?;
        statuses.retain(|status| filters.matches(status));
        let statuses = statuses.into_iter().map(convert::content_status).collect();
        Ok(Response::new(ListStatusesResponse { statuses }))
    }

    type WriteStream = Answers<WriteContentResponse>;

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let store = self.store(&request)?;
        let session = write::Session::new(self.daemon.blocking.clone(), store);
        Ok(Response::new(session.answers(request.into_inner())))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        let store = self.store(&request)?;
        let reference = request.into_inner().r#ref;
        quick(&self.daemon, move |_| store.abort(&reference).map_err(Error::from)).await?;
        Ok(Response::new(()))
    }
}

fn matching(store: &NamespacedStore, filters: &Filters) -> MetadataResult<Vec<Info>> {
    let mut infos = Vec::new();
    store.walk(&mut |info| {
        if filters.matches(&info) {
            infos.push(info);
        }
        ControlFlow::Continue(())
    })?;
    Ok(infos)
}

/// Where a read begins and ends. A negative offset is the start, no size the end of the blob.
fn range(offset: i64, size: i64, size_bytes: u64) -> Result<(u64, u64), Status> {
    let start = u64::try_from(offset).unwrap_or(0);
    if start > size_bytes {
        let error = crated_content::Error::OutOfRange { offset: start, size_bytes };
        return Err(status::from_content(error));
    }
    let wanted = convert::optional_size(size).unwrap_or(u64::MAX);
    Ok((start, start.saturating_add(wanted).min(size_bytes)))
}

/// Reads `blob` from `start` to `end`, a little ahead of the client and only while it reads.
fn chunks(
    blocking: Blocking,
    blob: Arc<dyn ReaderAt>,
    digest: Digest,
    start: u64,
    end: u64,
) -> Answers<ReadContentResponse> {
    let count = (end - start).div_ceil(CHUNK_BYTES_MAX);
    let chunk = move |index: u64| {
        let (blob, blocking, digest) = (Arc::clone(&blob), blocking.clone(), digest.clone());
        async move {
            let offset = start + index * CHUNK_BYTES_MAX;
            let length = CHUNK_BYTES_MAX.min(end - offset);
            let data = blocking.bulk(move || read_exact(&*blob, &digest, offset, length)).await??;
            Ok(ReadContentResponse { offset: convert::size(offset - start), data })
        }
    };
    Box::pin(stream::iter(0..count).map(chunk).buffered(READ_AHEAD))
}

fn read_exact(
    blob: &dyn ReaderAt,
    digest: &Digest,
    offset: u64,
    length: u64,
) -> Result<Bytes, Status> {
    let length = usize::try_from(length).expect("a chunk fits in memory");
    let mut data = vec![0; length];
    let mut filled = 0;
    while filled < length {
        let read = blob
            .read_at(&mut data[filled..], offset + filled as u64)
            .map_err(|error| status::from_io(&error))?;
        if read == 0 {
            let reason = "shorter than recorded".to_owned();
            let error = crated_content::Error::Corrupt { digest: digest.clone(), reason };
            return Err(status::from_content(error));
        }
        filled += read;
    }
    Ok(data.into())
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn ranges_are_clipped_to_the_blob() {
        assert_eq!(range(0, 0, 10).unwrap(), (0, 10));
        assert_eq!(range(-5, -1, 10).unwrap(), (0, 10));
        assert_eq!(range(4, 3, 10).unwrap(), (4, 7));
        assert_eq!(range(4, i64::MAX, 10).unwrap(), (4, 10));
        assert_eq!(range(10, 1, 10).unwrap(), (10, 10));
        assert_eq!(range(11, 1, 10).unwrap_err().code(), Code::OutOfRange);
    }
}
