//! The write protocol: one stream, one writer, one answer per message.
//!
//! ```text
//!  first message (ref, total, expected) ──► open: takes the reference
//!  each message: STAT    say where we are
//!                WRITE   append at offset; offset 0 on a started write starts it over
//!                COMMIT  append, check, publish; the stream ends
//!  end of stream without COMMIT: the bytes stay, the reference is free
//! ```
//!
//! However a stream ends, the writer is gone before the client can notice: a client that opens the
//! same reference next never finds it locked by its own past.

use std::io::Write;

use crated_api::services::content::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use crated_content::{Commit, Digest, Ingest, IngestManager, Ingester, Writer};
use futures_util::stream;
use tokio::runtime::Handle;
use tonic::{Status, Streaming};

use super::super::{Answers, convert, status};
use crate::blocking::Blocking;
use crate::metadata::NamespacedStore;

/// One stream of writes.
pub(super) struct Session {
    blocking: Blocking,
    store: NamespacedStore,
    state: State,
}

enum State {
    /// Nothing received yet.
    New,
    /// A writer is open.
    Open(Box<Open>),
    /// Committed or failed: the stream is over.
    Done,
}

/// An open write and what the client has said about it.
struct Open {
    writer: Held,
    reference: String,
    total: Option<u64>,
    expected: Option<Digest>,
}

impl Session {
    pub(super) fn new(blocking: Blocking, store: NamespacedStore) -> Self {
        Self { blocking, store, state: State::New }
    }

    /// The answers to `messages`, each made when the client has taken the one before.
    pub(super) fn answers(
        self,
        messages: Streaming<WriteContentRequest>,
    ) -> Answers<WriteContentResponse> {
        Box::pin(stream::unfold((self, messages), |(mut session, mut messages)| async move {
            let answer = session.next(&mut messages).await?;
            Some((answer, (session, messages)))
        }))
    }

    async fn next(
        &mut self,
        messages: &mut Streaming<WriteContentRequest>,
    ) -> Option<Result<WriteContentResponse, Status>> {
        if matches!(self.state, State::Done) {
            return None;
        }
        let message = match messages.message().await {
            Ok(Some(message)) => message,
            Ok(None) => {
                self.close().await;
                return None;
            }
            Err(error) => {
                self.close().await;
                return Some(Err(error));
            }
        };
        let (state, store) = (std::mem::replace(&mut self.state, State::Done), self.store.clone());
        let handled = self.blocking.bulk(move || handle(state, &store, message)).await;
        Some(match handled {
            Ok(Ok((state, answer))) => {
                self.state = state;
                Ok(answer)
            }
            Ok(Err(error)) => Err(error),
            Err(panicked) => Err(panicked.into()),
        })
    }

    /// Frees the reference and keeps the bytes.
    async fn close(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Done);
        // A panic while closing has been reported; the reference is free in any case.
        let _ = self.blocking.quick(move || state.release()).await;
    }
}

impl State {
    /// Frees the reference, here and now.
    fn release(self) {
        if let Self::Open(mut open) = self {
            open.writer.release();
        }
    }
}

/// Handles one message. The writer is dropped, and its reference free, when this fails.
fn handle(
    state: State,
    store: &NamespacedStore,
    message: WriteContentRequest,
) -> Result<(State, WriteContentResponse), Status> {
    let mut open = match state {
        State::Open(open) => open,
        State::New => Box::new(open(store, &message)?),
        State::Done => return Err(status::precondition("content write: stream is over")),
    };
    match open.handle(store, message) {
        Ok((answer, true)) => Ok((State::Open(open), answer)),
        Ok((answer, false)) => Ok((State::Done, answer)),
        Err(error) => {
            open.writer.release();
            Err(error)
        }
    }
}

fn open(store: &NamespacedStore, message: &WriteContentRequest) -> Result<Open, Status> {
    if message.r#ref.is_empty() {
        return Err(status::invalid("content write: first message without ref"));
    }
    let ingest = Ingest {
        reference: message.r#ref.clone(),
        total: convert::optional_size(message.total),
        expected: expected(message)?,
    };
    let writer = store.writer(&ingest).map_err(status::from_content)?;
    let Ingest { reference, total, expected } = ingest;
    Ok(Open { writer: Held(Some(writer)), reference, total, expected })
}

fn expected(message: &WriteContentRequest) -> Result<Option<Digest>, Status> {
    match message.expected.as_str() {
        "" => Ok(None),
        text => convert::digest(text).map(Some),
    }
}

impl Open {
    /// The answer to a message, and whether another may follow.
    fn handle(
        &mut self,
        store: &NamespacedStore,
        message: WriteContentRequest,
    ) -> Result<(WriteContentResponse, bool), Status> {
        let action = WriteAction::try_from(message.action)
            .map_err(|_| status::invalid(format!("content write: action {}", message.action)))?;
        self.note(store, &message)?;
        match action {
            WriteAction::Stat => Ok((self.answer(action)?, true)),
            WriteAction::Write => {
                self.append(&message)?;
                Ok((self.answer(action)?, true))
            }
            WriteAction::Commit => {
                self.append(&message)?;
                Ok((self.commit(message.labels)?, false))
            }
        }
    }

    /// Remembers what a message says about the whole blob. Ends the write when the namespace has
    /// that blob already: it then belongs to the caller's lease, and the bytes sent so far go.
    fn note(
        &mut self,
        store: &NamespacedStore,
        message: &WriteContentRequest,
    ) -> Result<(), Status> {
        if let Some(total) = convert::optional_size(message.total) {
            self.total = Some(total);
        }
        let Some(digest) = expected(message)? else { return Ok(()) };
        if store.attach(&digest)? {
            self.writer.release();
            if let Err(error) = store.abort(&self.reference) {
                tracing::debug!(reference = %self.reference, %error, "abort a needless ingest");
            }
            return Err(status::from_content(crated_content::Error::AlreadyExists(digest)));
        }
        self.expected = Some(digest);
        Ok(())
    }

    /// Appends the data of a message at its offset.
    fn append(&mut self, message: &WriteContentRequest) -> Result<(), Status> {
        let writer = self.writer.get()?;
        let current = writer.status().offset;
        match u64::try_from(message.offset) {
            Ok(0) if current > 0 => writer.truncate().map_err(status::from_content)?,
            Ok(offset) if offset == current => {}
            _ => {
                return Err(status::out_of_range(format!(
                    "content write {:?}: offset {} is not the current offset {current}",
                    self.reference, message.offset,
                )));
            }
        }
        writer.write_all(&message.data).map_err(|error| status::from_io(&error))
    }

    fn commit(&mut self, labels: crated_content::Labels) -> Result<WriteContentResponse, Status> {
        let mut answer = self.answer(WriteAction::Commit)?;
        let commit = Commit { size_bytes: self.total, digest: self.expected.clone(), labels };
        let writer = self.writer.0.take().ok_or_else(closed)?;
        let info = writer.commit(&commit).map_err(status::from_content)?;
        answer.digest = info.digest.to_string();
        answer.offset = convert::size(info.size_bytes);
        answer.total = answer.offset;
        Ok(answer)
    }

    fn answer(&mut self, action: WriteAction) -> Result<WriteContentResponse, Status> {
        let total = self.total;
        let writer = self.writer.get()?;
        let status = writer.status();
        Ok(WriteContentResponse {
            action: action.into(),
            started_at: Some(convert::timestamp(status.started_at)),
            updated_at: Some(convert::timestamp(status.updated_at)),
            offset: convert::size(status.offset),
            total: convert::size(status.total.or(total).unwrap_or(0)),
            digest: writer.digest().map_err(status::from_content)?.to_string(),
        })
    }
}

/// A writer that is closed on a blocking thread when a client goes away in the middle.
struct Held(Option<Box<dyn Writer>>);

impl Held {
    fn get(&mut self) -> Result<&mut Box<dyn Writer>, Status> {
        self.0.as_mut().ok_or_else(closed)
    }

    /// Closes the writer on this thread: its reference is free when this returns.
    fn release(&mut self) {
        drop(self.0.take());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(writer) = self.0.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(writer))),
            Err(_) => drop(writer),
        }
    }
}

fn closed() -> Status {
    status::precondition("content write: writer is closed")
}
