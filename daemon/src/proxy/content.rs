//! A content store behind a socket.

use std::io;
use std::ops::ControlFlow;

use crated_api::services::content::v1::content_client::ContentClient;
use crated_api::services::content::v1::{
    AbortRequest, DeleteContentRequest, Info as Record, InfoRequest, ListContentRequest,
    ListStatusesRequest, ReadContentRequest, StatusRequest, UpdateRequest,
};
use crated_content::{
    Digest, Error, Info, Ingest, IngestManager, Ingester, LabelUpdate, Manager, Provider, ReaderAt,
    Result, Status as Progress, Writer,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::link::in_namespace;
use super::writer::ProxyWriter;
use super::{Failure, Link, NAMESPACE_DEFAULT};
use crate::config::MESSAGE_BYTES_MAX;
use crate::services::convert::answers;

/// A content store behind a socket.
///
/// Its readers ask for each piece anew, so unlike those of a store at hand they end with the blob
/// when that is deleted.
#[derive(Clone, Debug)]
pub struct ProxyStore {
    pub(super) link: Link,
}

impl ProxyStore {
    /// The store at the end of `link`.
    pub fn new(link: Link) -> Self {
        Self { link }
    }

    pub(super) fn client(&self) -> ContentClient<Channel> {
        ContentClient::new(self.link.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Asks and waits for the answer.
    fn ask<Q, A, F>(
        &self,
        about: About<'_>,
        message: Q,
        call: impl FnOnce(ContentClient<Channel>, Request<Q>) -> F,
    ) -> Result<A>
    where
        A: Send + 'static,
        F: Future<Output = std::result::Result<Response<A>, Status>> + Send + 'static,
    {
        let called = call(self.client(), in_namespace(NAMESPACE_DEFAULT, message));
        let answer = self.link.wait(self.link.deadlines().quick, called);
        Ok(answer.map_err(|failure| self.refused(about, failure))?.into_inner())
    }

    pub(super) fn refused(&self, about: About<'_>, failure: Failure) -> Error {
        let Some(status) = failure.refusal() else {
            return Error::Unavailable { reason: failure.to_string() };
        };
        let reason = status.message().to_owned();
        match (status.code(), about) {
            (Code::NotFound, About::Blob(digest)) => Error::NotFound(digest.clone()),
            (Code::NotFound, About::Ingest(reference)) => {
                Error::IngestNotFound(reference.to_owned())
            }
            (Code::AlreadyExists, About::Blob(digest)) => Error::AlreadyExists(digest.clone()),
            (Code::DataLoss, About::Blob(digest)) => {
                Error::Corrupt { digest: digest.clone(), reason }
            }
            (Code::InvalidArgument, _) => Error::InvalidArgument { what: "request", reason },
            (Code::Unavailable, About::Ingest(reference)) => Error::Locked {
                reference: reference.to_owned(),
                // Since when only the text says.
                since: std::time::SystemTime::now(),
            },
            (Code::Unavailable, _) => Error::Unavailable { reason },
            _ => {
                let path = self.link.address().to_path_buf();
                Error::Io { op: "ask content store at", path, source: failure.into_io() }
            }
        }
    }

    pub(super) fn described(&self, record: Option<Record>) -> Result<Info> {
        let broken = |reason: &str| {
            let failure = self.link.broken(reason);
            Error::Unavailable { reason: failure.to_string() }
        };
        let record = record.ok_or_else(|| broken("empty answer"))?;
        answers::content_from(record)
            .map_err(|status| broken(&format!("malformed answer: {}", status.message())))
    }
}

/// What a call is about: decides what its refusal means.
#[derive(Clone, Copy)]
pub(super) enum About<'a> {
    Blob(&'a Digest),
    Ingest(&'a str),
    Everything,
}

impl Provider for ProxyStore {
    fn info(&self, digest: &Digest) -> Result<Info> {
        let message = InfoRequest { digest: digest.to_string() };
        let answer = self.ask(About::Blob(digest), message, |mut client, request| async move {
            client.info(request).await
        })?;
        self.described(answer.info)
    }

    fn reader(&self, digest: &Digest) -> Result<Box<dyn ReaderAt>> {
        let size_bytes = self.info(digest)?.size_bytes;
        Ok(Box::new(ProxyReader { store: self.clone(), digest: digest.clone(), size_bytes }))
    }
}

struct ProxyReader {
    store: ProxyStore,
    digest: Digest,
    size_bytes: u64,
}

impl ReaderAt for ProxyReader {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.size_bytes.saturating_sub(offset);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        if wanted == 0 {
            return Ok(0);
        }
        let message = ReadContentRequest {
            digest: self.digest.to_string(),
            offset: crate::services::convert::size(offset),
            size: crate::services::convert::size(wanted as u64),
        };
        let (mut client, limit) = (self.store.client(), self.store.link.deadlines().quick);
        let read = self.store.link.wait(limit, async move {
            let request = in_namespace(NAMESPACE_DEFAULT, message);
            let mut pieces = client.read(request).await?.into_inner();
            let mut data = Vec::with_capacity(wanted);
            // Dropping the stream early is how a reader says that it has enough.
            while data.len() < wanted
                && let Some(piece) = pieces.message().await?
            {
                let room = wanted - data.len();
                data.extend_from_slice(&piece.data[..piece.data.len().min(room)]);
            }
            Ok(data)
        });
        let data = read.map_err(Failure::into_io)?;
        if data.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }
}

impl Ingester for ProxyStore {
    fn writer(&self, ingest: &Ingest) -> Result<Box<dyn Writer>> {
        Ok(Box::new(ProxyWriter::open(self, ingest)?))
    }
}

impl IngestManager for ProxyStore {
    fn status(&self, reference: &str) -> Result<Progress> {
        let message = StatusRequest { r#ref: reference.to_owned() };
        let answer =
            self.ask(About::Ingest(reference), message, |mut client, request| async move {
                client.status(request).await
            })?;
        let status = answer.status.ok_or_else(|| Error::IngestNotFound(reference.to_owned()))?;
        Ok(answers::ingest_from(status))
    }

    fn statuses(&self) -> Result<Vec<Progress>> {
        let message = ListStatusesRequest::default();
        let answer = self.ask(About::Everything, message, |mut client, request| async move {
            client.list_statuses(request).await
        })?;
        let mut statuses: Vec<_> = answer.statuses.into_iter().map(answers::ingest_from).collect();
        statuses.sort_by(|one, other| one.reference.cmp(&other.reference));
        Ok(statuses)
    }

    fn abort(&self, reference: &str) -> Result<()> {
        let message = AbortRequest { r#ref: reference.to_owned() };
        self.ask(About::Ingest(reference), message, |mut client, request| async move {
            client.abort(request).await
        })
    }
}

impl Manager for ProxyStore {
    fn update(&self, digest: &Digest, update: &LabelUpdate) -> Result<Info> {
        let (update_mask, labels) = answers::label_mask(update.clone());
        let info = Record { digest: digest.to_string(), labels, ..Record::default() };
        let message = UpdateRequest { info: Some(info), update_mask };
        let answer = self.ask(About::Blob(digest), message, |mut client, request| async move {
            client.update(request).await
        })?;
        self.described(answer.info)
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        let message = ListContentRequest::default();
        let mut infos = self.ask(About::Everything, message, |mut client, request| async move {
            client.list(request).await
        })?;
        loop {
            let next = self.link.wait(self.link.deadlines().quick, async move {
                infos.message().await.map(|message| (message, infos))
            });
            let (message, rest) =
                next.map_err(|failure| self.refused(About::Everything, failure))?;
            infos = rest;
            let Some(message) = message else { return Ok(()) };
            for record in message.info {
                if visit(self.described(Some(record))?).is_break() {
                    return Ok(());
                }
            }
        }
    }

    fn delete(&self, digest: &Digest) -> Result<()> {
        let message = DeleteContentRequest { digest: digest.to_string() };
        self.ask(About::Blob(digest), message, |mut client, request| async move {
            client.delete(request).await
        })
    }
}
