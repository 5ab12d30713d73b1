use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prost::Message;
use tokio::{
    net::{UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    sync::{mpsc, oneshot, watch},
};

use super::frame::{Frame, FrameError, FrameReader, Kind};
use crate::{
    Error, Result,
    proto::ttrpc::{KeyValue, Request, Response},
};

/// One connection to a server; clones share it.
///
/// When the connection ends every open call fails with [`Error::Unavailable`]
/// and later ones fail at once; make a new client to connect anew.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    writer: mpsc::Sender<Vec<u8>>,
    closed: watch::Receiver<bool>,
}

struct State {
    next: u32,
    pending: HashMap<u32, oneshot::Sender<Result<Response>>>,
}

/// What surrounds a call.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Longest wait for the answer; `None` waits as long as the connection lives.
    pub timeout: Option<Duration>,
    /// Sent beside the request.
    pub metadata: Vec<(String, String)>,
}

impl Call {
    /// A call in a namespace.
    pub fn in_namespace(namespace: &str) -> Self {
        let header = (crate::proto::NAMESPACE_HEADER.to_owned(), namespace.to_owned());
        Call { timeout: None, metadata: vec![header] }
    }

    /// The same with a limit on the wait.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl Client {
    /// Connects to a socket on the file system.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let stream =
            UnixStream::connect(path).await.map_err(|e| Error::io("connect to", path, e))?;
        Ok(Self::new(stream))
    }

    /// Speaks over a connected socket. Must be called within a tokio runtime.
    pub fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        let (writer, queue) = mpsc::channel(QUEUE_LEN_MAX);
        let (close, closed) = watch::channel(false);
        let state = Mutex::new(State { next: 1, pending: HashMap::new() });
        let shared = Arc::new(Shared { state, writer, closed });
        tokio::spawn(write_frames(write, queue));
        tokio::spawn(read_frames(read, Arc::downgrade(&shared), close));
        Client { shared }
    }

    /// Calls a method and waits for its answer.
    ///
    /// # Errors
    ///
    /// - [`Error::DeadlineExceeded`]: no answer in time; a late one is dropped.
    /// - [`Error::Unavailable`]: the connection ended; the server may have acted.
    /// - [`Error::Internal`]: the answer is not a message of this type.
    /// - else what the server answered.
    pub async fn call<Q, A>(&self, service: &str, method: &str, query: &Q, call: Call) -> Result<A>
    where
        Q: Message,
        A: Message + Default,
    {
        let payload = self.call_raw(service, method, query.encode_to_vec(), call).await?;
        A::decode(payload.as_slice())
            .map_err(|e| Error::Internal(format!("decode answer of {service}/{method}: {e}")))
    }

    /// Like [`Client::call`] with the messages as bytes.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub async fn call_raw(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        call: Call,
    ) -> Result<Vec<u8>> {
        let nanos = call.timeout.map_or(0, |t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX));
        let pairs = call.metadata.into_iter();
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: nanos,
            metadata: pairs.map(|(key, value)| KeyValue { key, value }).collect(),
        };
        let answer = self.exchange(request.encode_to_vec());
        let response = match call.timeout {
            None => answer.await?,
            Some(limit) => tokio::time::timeout(limit, answer).await.map_err(|_| {
                Error::DeadlineExceeded(format!("{service}/{method}: no answer in {limit:?}"))
            })??,
        };
        match response.status {
            Some(status) if status.code != 0 => Err(Error::from_code(status.code, status.message)),
            _ => Ok(response.payload),
        }
    }

    async fn exchange(&self, payload: Vec<u8>) -> Result<Response> {
        // Ids must reach the wire in rising order, so the place in the queue
        // is taken before the id.
        let place = self.shared.writer.reserve().await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let pending = {
            let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            let stream = state.next;
            let frame = Frame { stream, kind: Kind::Request, flags: 0, payload };
            let wire = frame.encode().map_err(|e| Error::ResourceExhausted(e.to_string()))?;
            state.next = stream.checked_add(2).ok_or_else(closed)?;
            state.pending.insert(stream, answer);
            place.send(wire);
            Pending { shared: &self.shared, stream }
        };
        // A reader that ended before the insertion will not fail this call.
        if *self.shared.closed.borrow() {
            return Err(closed());
        }
        let answer = answered.await.map_err(|_| closed())?;
        drop(pending);
        answer
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.clone();
        // An error means the reader is gone, which is the same.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

/// Forgets a call when its caller does.
struct Pending<'a> {
    shared: &'a Shared,
    stream: u32,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pending.remove(&self.stream);
    }
}

async fn write_frames(mut write: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    use tokio::io::AsyncWriteExt;
    while let Some(wire) = queue.recv().await {
        if write.write_all(&wire).await.is_err() {
            return;
        }
    }
}

async fn read_frames(
    read: OwnedReadHalf,
    shared: std::sync::Weak<Shared>,
    close: watch::Sender<bool>,
) {
    let mut reader = FrameReader::new(read);
    loop {
        let frame = tokio::select! {
            frame = reader.next() => frame,
            // All clients are gone: nobody waits for an answer.
            () = close.closed() => break,
        };
        let (stream, answer) = match frame {
            Ok(Frame { stream, kind: Kind::Response, payload, .. }) => {
                let answer = Response::decode(payload.as_slice())
                    .map_err(|e| Error::Internal(format!("decode response: {e}")));
                (stream, answer)
            }
            Ok(_) => continue,
            Err(FrameError::TooLarge { stream, size_bytes }) => {
                let text = format!("answer of {size_bytes} bytes is over the limit");
                (stream, Err(Error::ResourceExhausted(text)))
            }
            Err(_) => break,
        };
        let Some(shared) = shared.upgrade() else {
            break;
        };
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = state.pending.remove(&stream) {
            // The caller may have given up meanwhile.
            let _ = waiting.send(answer);
        }
    }
    let _ = close.send(true);
    if let Some(shared) = shared.upgrade() {
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pending.clear();
    }
}

fn closed() -> Error {
    Error::Unavailable("ttrpc: closed".into())
}

/// Requests waiting for the socket; more make callers wait.
const QUEUE_LEN_MAX: usize = 64;
