//! One blob on its way into a content store behind a socket: a stream of messages, each answered.

use std::io;
use std::time::Duration;

use crated_api::services::content::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use crated_content::{
    Commit, Digest, Error, Info, Ingest, Provider, Result, Status as Progress, Writer,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::content::{About, ProxyStore};
use super::link::in_namespace;
use super::{Failure, NAMESPACE_DEFAULT};
use crate::services::convert::{self, answers};

/// An open write.
pub(super) struct ProxyWriter {
    store: ProxyStore,
    /// `None` once the stream has ended.
    stream: Option<Exchange>,
    progress: Progress,
    digest: Digest,
}

struct Exchange {
    messages: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl ProxyWriter {
    pub(super) fn open(store: &ProxyStore, ingest: &Ingest) -> Result<Self> {
        let about = match &ingest.expected {
            Some(digest) => About::Blob(digest),
            None => About::Ingest(&ingest.reference),
        };
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: ingest.reference.clone(),
            total: ingest.total.map_or(0, convert::size),
            expected: ingest.expected.as_ref().map_or_else(String::new, Digest::to_string),
            ..WriteContentRequest::default()
        };
        let (mut client, limit) = (store.client(), store.link.deadlines().quick);
        let opened = store.link.wait(limit, async move {
            let (messages, queue) = mpsc::channel(1);
            // Some servers send nothing, not even headers, before they have a message to answer.
            let _ = messages.send(first).await;
            let request = in_namespace(NAMESPACE_DEFAULT, ReceiverStream::new(queue));
            let answers = client.write(request).await?.into_inner();
            let mut exchange = Exchange { messages, answers };
            let answer = exchange.answers.message().await?;
            Ok((exchange, answer))
        });
        let (exchange, answer) = opened.map_err(|failure| {
            let locked = failure.refusal().is_some_and(|status| status.code() == Code::Unavailable);
            // Who holds a reference keeps it also from those who know the digest.
            let about = if locked { About::Ingest(&ingest.reference) } else { about };
            store.refused(about, failure)
        })?;
        let mut writer = Self {
            store: store.clone(),
            stream: Some(exchange),
            progress: Progress {
                reference: ingest.reference.clone(),
                offset: 0,
                total: ingest.total,
                expected: ingest.expected.clone(),
                started_at: answers::time_or_epoch(None),
                updated_at: answers::time_or_epoch(None),
            },
            digest: Digest::of(b""),
        };
        let failed = |failure| store.refused(About::Ingest(&ingest.reference), failure);
        let answer = answer.ok_or_else(|| failed(writer.ended()))?;
        writer.note(&answer).map_err(failed)?;
        Ok(writer)
    }

    /// Sends a message and takes its answer.
    fn exchange(
        &mut self,
        message: WriteContentRequest,
        limit: Duration,
    ) -> std::result::Result<(), Failure> {
        let mut exchange = self.stream.take().ok_or_else(|| self.ended())?;
        let (answer, exchange) = self.store.link.wait(limit, async move {
            // When the stream is over already its status says why, and that is the answer.
            let _ = exchange.messages.send(message).await;
            let answer = exchange.answers.message().await?;
            Ok((answer, exchange))
        })?;
        self.stream = Some(exchange);
        let answer = answer.ok_or_else(|| self.ended())?;
        self.note(&answer)
    }

    fn note(&mut self, answer: &WriteContentResponse) -> std::result::Result<(), Failure> {
        let malformed = |_| self.store.link.broken("malformed answer: digest");
        if !answer.digest.is_empty() {
            self.digest = answer.digest.parse().map_err(malformed)?;
        }
        self.progress.offset = answers::size_from(answer.offset);
        self.progress.total = convert::optional_size(answer.total).or(self.progress.total);
        if answer.started_at.is_some() {
            self.progress.started_at = answers::time_or_epoch(answer.started_at);
            self.progress.updated_at = answers::time_or_epoch(answer.updated_at);
        }
        Ok(())
    }

    fn ended(&self) -> Failure {
        self.store.link.broken("the stream of a write ended early")
    }

    /// Ends the stream and waits until the other side has let go of the reference.
    fn close(&mut self) {
        let Some(Exchange { messages, mut answers }) = self.stream.take() else { return };
        let _ = self.store.link.wait(CLOSE_DEADLINE, async move {
            drop(messages);
            while answers.message().await?.is_some() {}
            Ok(())
        });
    }

    /// What a refused commit means.
    fn uncommitted(&self, commit: &Commit, failure: Failure) -> Error {
        let mismatch =
            failure.refusal().is_some_and(|status| status.code() == Code::FailedPrecondition);
        match (commit.size_bytes, &commit.digest) {
            (Some(expected), _) if mismatch && expected != self.progress.offset => {
                Error::SizeMismatch { expected, actual: self.progress.offset }
            }
            (_, Some(expected)) if mismatch => {
                Error::DigestMismatch { expected: expected.clone(), actual: self.digest.clone() }
            }
            _ if failure.refusal().is_some_and(|s| s.code() == Code::AlreadyExists) => {
                Error::AlreadyExists(commit.digest.clone().unwrap_or_else(|| self.digest.clone()))
            }
            _ => self.store.refused(About::Ingest(&self.progress.reference), failure),
        }
    }
}

impl io::Write for ProxyWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let piece = &buf[..buf.len().min(PIECE_BYTES_MAX)];
        let message = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: convert::size(self.progress.offset),
            data: piece.to_vec().into(),
            ..WriteContentRequest::default()
        };
        let limit = self.store.link.deadlines().quick;
        self.exchange(message, limit).map_err(Failure::into_io)?;
        Ok(piece.len())
    }

    /// Every piece has been answered: nothing is held back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer for ProxyWriter {
    fn status(&self) -> Progress {
        self.progress.clone()
    }

    fn digest(&mut self) -> Result<Digest> {
        Ok(self.digest.clone())
    }

    fn truncate(&mut self) -> Result<()> {
        // A write at the start of what has begun starts it over.
        let message =
            WriteContentRequest { action: WriteAction::Write.into(), ..Default::default() };
        let limit = self.store.link.deadlines().quick;
        let truncated = self.exchange(message, limit);
        truncated
            .map_err(|failure| self.store.refused(About::Ingest(&self.progress.reference), failure))
    }

    fn commit(mut self: Box<Self>, commit: &Commit) -> Result<Info> {
        // Whoever demands nothing gets what is there: what was announced at the opening would
        // otherwise be demanded by the other side.
        let size_bytes = commit.size_bytes.unwrap_or(self.progress.offset);
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: convert::size(self.progress.offset),
            total: convert::size(size_bytes),
            expected: commit.digest.as_ref().unwrap_or(&self.digest).to_string(),
            labels: commit.labels.clone(),
            ..WriteContentRequest::default()
        };
        let limit = self.store.link.deadlines().bulk;
        let committed = self.exchange(message, limit);
        self.close();
        committed.map_err(|failure| self.uncommitted(commit, failure))?;
        let digest = commit.digest.clone().unwrap_or_else(|| self.digest.clone());
        self.store.info(&digest)
    }
}

impl Drop for ProxyWriter {
    fn drop(&mut self) {
        self.close();
    }
}

/// Bytes in one message: half of what peers accept.
const PIECE_BYTES_MAX: usize = 8 << 20;

/// How long a dropped writer waits for its reference to be free.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);
