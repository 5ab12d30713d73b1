//! `containerd.services.streaming.v1.Streaming`: streams that other calls refer to by name.
//!
//! A client opens a stream under a name, waits for the acknowledgement, and names it in a call
//! of another service, which then owns both directions. The stream ends when either side drops
//! it, whether it was ever used or not.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use crated_api::services::streaming::v1::StreamInit;
use crated_api::services::streaming::v1::streaming_server::Streaming;
use crated_api::{Any, any};
use futures_core::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{HEADER_NAMESPACE, status};

/// Messages on their way to a client that has not read them: progress is polled and bytes are
/// sent against a window, so more never wait for long.
const OUTGOING_MAX: usize = 64;

/// Streams of one client that are open and not yet used.
const OPEN_MAX: usize = 10_000;

/// Both directions of an open stream.
pub struct AnyStream {
    /// What the client sends.
    pub incoming: tonic::Streaming<Any>,
    /// To the client; dropping it ends the stream.
    pub outgoing: mpsc::Sender<Result<Any, Status>>,
}

/// The streams that wait to be used. Clones share them.
#[derive(Clone, Default)]
pub struct Streams {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    open: HashMap<Key, (u64, AnyStream)>,
    opened: u64,
}

/// A namespace and a name in it.
type Key = (String, String);

impl Streams {
    /// Takes the stream that a client of `namespace` opened as `id`.
    ///
    /// # Errors
    ///
    /// NotFound when there is none, or when it was taken already.
    pub fn take(&self, namespace: &str, id: &str) -> Result<AnyStream, Status> {
        self.lock()
            .open
            .remove(&(namespace.to_owned(), id.to_owned()))
            .map(|(_, stream)| stream)
            .ok_or_else(|| status::not_found(format!("stream {id:?}")))
    }

    fn add(&self, key: Key, stream: AnyStream) -> Result<Registration, Status> {
        let mut table = self.lock();
        if table.open.contains_key(&key) {
            return Err(Status::already_exists(format!("stream {:?}: already exists", key.1)));
        }
        if table.open.len() >= OPEN_MAX {
            return Err(Status::resource_exhausted(format!("{OPEN_MAX} streams are open")));
        }
        table.opened += 1;
        let number = table.opened;
        table.open.insert(key.clone(), (number, stream));
        Ok(Registration { streams: self.clone(), key, number })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A map is whole between its methods, so a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lives as long as the client listens; a stream that was never used goes with it.
struct Registration {
    streams: Streams,
    key: Key,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut table = self.streams.lock();
        // One taken meanwhile is somebody else's; one of the same name may be new.
        if table.open.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            table.open.remove(&self.key);
        }
    }
}

/// What the client listens to.
pub struct Answers {
    messages: ReceiverStream<Result<Any, Status>>,
    _registration: Registration,
}

impl Stream for Answers {
    type Item = Result<Any, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.messages).poll_next(context)
    }
}

/// Opens streams.
#[derive(Clone)]
pub struct StreamingService {
    streams: Streams,
}

impl StreamingService {
    /// Serves `streams`.
    pub fn new(streams: Streams) -> Self {
        Self { streams }
    }
}

#[tonic::async_trait]
impl Streaming for StreamingService {
    type StreamStream = Answers;

    async fn stream(
        &self,
        request: Request<tonic::Streaming<Any>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let namespace = request
            .metadata()
            .get(HEADER_NAMESPACE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let mut incoming = request.into_inner();
        let first = incoming.message().await?;
        let first = first.ok_or_else(|| status::invalid("stream: ended before its name"))?;
        let init: StreamInit =
            any::unpack(&first).map_err(|error| status::invalid(format!("stream: {error}")))?;
        if init.id.is_empty() {
            return Err(status::invalid("stream: must have a name"));
        }
        let (outgoing, answers) = mpsc::channel(OUTGOING_MAX);
        let acknowledge = outgoing.clone();
        let registration =
            self.streams.add((namespace, init.id), AnyStream { incoming, outgoing })?;
        // Only now may the client name the stream elsewhere. A new channel has room.
        let _ = acknowledge.try_send(Ok(any_empty()));
        let messages = ReceiverStream::new(answers);
        Ok(Response::new(Answers { messages, _registration: registration }))
    }
}

fn any_empty() -> Any {
    Any { type_url: "google.protobuf.Empty".to_owned(), value: Vec::new() }
}
