//! Events on their way to the daemon, in order, whatever happens to it.

use std::{
    collections::VecDeque,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use crated_exec::{
    Error, Result,
    proto::{self, EVENTS, forward::ForwardRequest, types::Envelope},
    reaper::Reaper,
    ttrpc::{Call, Client},
};
use prost::{Message, Name};
use tokio::sync::Notify;

/// Where events go.
pub(crate) struct Publisher {
    namespace: String,
    route: Route,
    reaper: Arc<Reaper>,
    queue: Mutex<VecDeque<Envelope>>,
    filled: Notify,
    emptied: Notify,
}

enum Route {
    /// The daemon's ttrpc socket.
    Socket(PathBuf),
    /// The daemon's executable, with its gRPC address.
    Binary(PathBuf, String),
}

impl Publisher {
    /// Sends to the socket the daemon named in the environment, else through
    /// its executable.
    pub(crate) fn new(args: &crate::args::Args, reaper: Arc<Reaper>) -> Arc<Self> {
        let socket = std::env::var_os("TTRPC_ADDRESS").filter(|address| !address.is_empty());
        let route = match socket {
            Some(address) => Route::Socket(address.into()),
            None => Route::Binary(args.publish_binary.clone(), args.address.clone()),
        };
        Arc::new(Publisher {
            namespace: args.namespace.clone(),
            route,
            reaper,
            queue: Mutex::default(),
            filled: Notify::new(),
            emptied: Notify::new(),
        })
    }

    /// Queues an event; the order of calls is the order of delivery.
    pub(crate) fn publish<M: Message + Name>(&self, topic: &str, event: &M) {
        let envelope = Envelope {
            timestamp: Some(proto::timestamp(Some(SystemTime::now()))),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(proto::pack(event)),
        };
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= QUEUE_LEN_MAX {
            let lost = queue.pop_front();
            tracing::warn!(
                topic = lost.map(|e| e.topic),
                "event lost: the daemon is away too long"
            );
        }
        queue.push_back(envelope);
        self.filled.notify_one();
    }

    /// Delivers for ever. An event leaves the queue when the daemon took it
    /// or refused it; until then it is tried again.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut client = None;
        let mut pause = RETRY_FIRST;
        loop {
            let Some(envelope) = self.first() else {
                self.emptied.notify_waiters();
                self.filled.notified().await;
                continue;
            };
            match self.send(&mut client, &envelope).await {
                Ok(()) => {}
                Err(error) if is_refusal(&error) => {
                    tracing::warn!(topic = envelope.topic, %error, "event refused");
                }
                Err(error) => {
                    tracing::debug!(topic = envelope.topic, %error, "event not delivered yet");
                    client = None;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LAST);
                    continue;
                }
            }
            pause = RETRY_FIRST;
            self.pop(&envelope);
        }
    }

    /// Waits until all events are delivered, at most `deadline`.
    pub(crate) async fn flush(&self, deadline: Duration) {
        let emptied = async {
            loop {
                let notified = self.emptied.notified();
                if self.first().is_none() {
                    return;
                }
                notified.await;
            }
        };
        // Ending without the daemon is better than never.
        let _ = tokio::time::timeout(deadline, emptied).await;
    }

    fn first(&self) -> Option<Envelope> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).front().cloned()
    }

    fn pop(&self, sent: &Envelope) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // A full queue may have dropped it meanwhile.
        if queue.front() == Some(sent) {
            queue.pop_front();
        }
    }

    async fn send(&self, client: &mut Option<Client>, envelope: &Envelope) -> Result<()> {
        let (binary, address) = match &self.route {
            Route::Socket(path) => {
                let connected = match client.take().filter(|client| !client.is_closed()) {
                    Some(connected) => connected,
                    None => Client::connect(path).await?,
                };
                let request = ForwardRequest { envelope: Some(envelope.clone()) };
                let call = Call::in_namespace(&self.namespace).timeout(SEND_DEADLINE);
                connected.call::<_, ()>(EVENTS, "Forward", &request, call).await?;
                *client = Some(connected);
                return Ok(());
            }
            Route::Binary(binary, address) => (binary, address),
        };
        let event = envelope.event.as_ref().map(Message::encode_to_vec).unwrap_or_default();
        let mut command = Command::new(binary);
        command.args(["--address", address, "publish", "--topic", &envelope.topic]);
        command.args(["--namespace", &self.namespace]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let (mut child, mut claim) = self.reaper.spawn(&mut command)?;
        if let Some(mut stdin) = child.stdin.take() {
            use std::io::Write;
            // Events are smaller than a pipe; a broken one shows in the exit.
            let _ = stdin.write_all(&event);
        }
        let exit = tokio::time::timeout(SEND_DEADLINE, claim.wait()).await;
        match exit.map_err(|_| Error::DeadlineExceeded("publish does not end".into()))?? {
            exit if exit.status == 0 => Ok(()),
            exit => Err(Error::Unavailable(format!("publish ended with {}", exit.status))),
        }
    }
}

/// Whether the daemon will never take this event.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::InvalidArgument(_) | Error::Unimplemented(_))
}

/// A container makes a handful of events, an exec three.
const QUEUE_LEN_MAX: usize = 16_384;

/// How long the daemon may take for one event.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

const RETRY_FIRST: Duration = Duration::from_millis(20);

/// A daemon that comes back is noticed within this time.
const RETRY_LAST: Duration = Duration::from_secs(2);
