use std::{collections::HashMap, future::Future, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use prost::Message;
use tokio::{
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};

use super::frame::{Frame, FrameError, FrameReader, Kind};
use crate::{
    Error, Result,
    proto::{NAMESPACE_HEADER, rpc, ttrpc::Request, ttrpc::Response},
};

/// Open calls of one connection; more are refused with ResourceExhausted.
///
/// Every waited-for process holds one, hence the size.
pub const IN_FLIGHT_MAX: usize = 16_384;

/// One service, by its full name, on a [`Server`].
#[async_trait]
pub trait Service: Send + Sync {
    /// Answers a call; `payload` and the answer are encoded messages.
    ///
    /// Calls run side by side. The future is dropped when the connection ends.
    ///
    /// # Errors
    ///
    /// Sent to the caller with its class. For an unknown method use
    /// [`Error::Unimplemented`].
    async fn call(&self, context: Context, method: &str, payload: &[u8]) -> Result<Vec<u8>>;
}

/// What came beside a request.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// How long the caller will wait.
    pub timeout: Option<Duration>,
    /// Pairs in the order sent.
    pub metadata: Vec<(String, String)>,
}

impl Context {
    /// The namespace of the call, `None` when absent or empty.
    pub fn namespace(&self) -> Option<&str> {
        let mut pairs = self.metadata.iter();
        let (_, value) = pairs.find(|(key, _)| key.eq_ignore_ascii_case(NAMESPACE_HEADER))?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }
}

/// Serves [`Service`]s on Unix sockets.
#[derive(Clone, Default)]
pub struct Server {
    services: HashMap<String, Arc<dyn Service>>,
    open: Arc<watch::Sender<usize>>,
}

impl Server {
    /// A server that knows no service.
    pub fn new() -> Self {
        Server::default()
    }

    /// Adds a service under its full name; a second one of the name replaces it.
    #[must_use]
    pub fn service(mut self, name: &str, service: Arc<dyn Service>) -> Self {
        self.services.insert(name.to_owned(), service);
        self
    }

    /// How many clients are connected, now and from now on.
    pub fn connections(&self) -> watch::Receiver<usize> {
        self.open.subscribe()
    }

    /// Accepts connections until `stop` resolves, then drops them all.
    ///
    /// Only the superuser and the user this process runs as may connect;
    /// others are disconnected without an answer.
    ///
    /// # Errors
    ///
    /// A listener that fails for good. Running out of descriptors only pauses it.
    pub async fn serve(self, listener: UnixListener, stop: impl Future<Output = ()>) -> Result<()> {
        let server = Arc::new(self);
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stop => return Ok(()),
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, _)) if is_trusted(&stream) => {
                    connections.spawn(Arc::clone(&server).connection(stream));
                }
                Ok(_) => tracing::warn!("refused a connection of another user"),
                Err(error) if is_passing(&error) => {
                    tracing::warn!(%error, "accept failed, trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => return Err(Error::io("accept on", "socket", error)),
            }
        }
    }

    /// Serves one connection until it ends.
    pub async fn connection(self: Arc<Self>, stream: UnixStream) {
        let (read, write) = stream.into_split();
        let (answers, queue) = mpsc::channel(ANSWERS_LEN_MAX);
        let mut calls = JoinSet::new();
        calls.spawn(write_answers(write, queue));
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let mut reader = FrameReader::new(read);
        let _counted = Counted::new(&self.open);
        loop {
            while calls.try_join_next().is_some() {}
            match reader.next().await {
                Ok(Frame { stream, kind: Kind::Request, payload, .. }) => {
                    let Ok(permit) = Arc::clone(&in_flight).try_acquire_owned() else {
                        let text = format!("more than {IN_FLIGHT_MAX} calls at once");
                        let answer = Err(Error::ResourceExhausted(text));
                        if answers.send(encode(stream, answer)).await.is_err() {
                            return;
                        }
                        continue;
                    };
                    let (server, answers) = (Arc::clone(&self), answers.clone());
                    calls.spawn(async move {
                        let answer = server.answer(&payload).await;
                        // A closed queue means the caller is gone.
                        let _ = answers.send(encode(stream, answer)).await;
                        drop(permit);
                    });
                }
                // Streams are not served, so data belongs to none.
                Ok(_) => {}
                Err(FrameError::TooLarge { stream, size_bytes }) => {
                    let text = format!("request of {size_bytes} bytes is over the limit");
                    let answer = Err(Error::ResourceExhausted(text));
                    if answers.send(encode(stream, answer)).await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    async fn answer(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let request = Request::decode(payload)
            .map_err(|e| Error::InvalidArgument(format!("decode request: {e}")))?;
        let service = self
            .services
            .get(&request.service)
            .ok_or_else(|| Error::Unimplemented(format!("service {}", request.service)))?;
        let timeout = u64::try_from(request.timeout_nano).ok().filter(|nanos| *nanos > 0);
        let context = Context {
            timeout: timeout.map(Duration::from_nanos),
            metadata: request.metadata.into_iter().map(|pair| (pair.key, pair.value)).collect(),
        };
        service.call(context, &request.method, &request.payload).await
    }
}

/// One open connection.
struct Counted(Arc<watch::Sender<usize>>);

impl Counted {
    fn new(open: &Arc<watch::Sender<usize>>) -> Self {
        open.send_modify(|count| *count += 1);
        Counted(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("services", &self.services.keys()).finish()
    }
}

fn encode(stream: u32, answer: Result<Vec<u8>>) -> Vec<u8> {
    let (code, message, payload) = match answer {
        Ok(payload) => (0, String::new(), payload),
        Err(error) => (error.class().code(), error.report(), Vec::new()),
    };
    let status = rpc::Status { code, message, details: Vec::new() };
    let response = Response { status: Some(status), payload };
    let payload = response.encode_to_vec();
    let frame = Frame { stream, kind: Kind::Response, flags: 0, payload };
    frame.encode().unwrap_or_else(|_| {
        encode(stream, Err(Error::ResourceExhausted("answer is over the limit".into())))
    })
}

async fn write_answers(mut write: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    use tokio::io::AsyncWriteExt;
    while let Some(wire) = queue.recv().await {
        if write.write_all(&wire).await.is_err() {
            return;
        }
    }
}

fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::CONNABORTED];
    error.raw_os_error().is_some_and(|e| passing.iter().any(|p| p.raw_os_error() == e))
}

/// Answers waiting for the socket; more make their calls wait.
const ANSWERS_LEN_MAX: usize = 64;

/// Time for descriptors to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
