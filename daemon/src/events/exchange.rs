//! The fan-out from publishers to subscriptions.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_core::Stream;
use prost_types::Any;
use tokio::sync::mpsc;

use super::{Envelope, encode, zero_time};
use crate::filters::Filters;
use crate::metadata::{self, EventSink, Namespace, validate};

/// Passes events from publishers to subscriptions. Cheap to clone; clones share subscriptions.
#[derive(Clone, Default)]
pub struct Exchange {
    subscribers: Arc<Mutex<Vec<Subscriber>>>,
}

/// Why an event was not taken, or a subscription ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The envelope breaks a rule; nobody got it.
    #[error(transparent)]
    Invalid(#[from] metadata::Error),
    /// The reader fell too far behind; events were lost from here on. Subscribe again and look at
    /// the state of things.
    #[error("event reader fell more than {QUEUE_BYTES_MAX} bytes behind")]
    Overrun,
}

struct Subscriber {
    filters: Filters,
    queue: mpsc::UnboundedSender<Arc<Envelope>>,
    backlog: Arc<Backlog>,
}

/// What one subscription has not read yet.
#[derive(Default)]
struct Backlog {
    size_bytes: AtomicUsize,
    overrun: AtomicBool,
}

impl Exchange {
    /// An exchange without subscriptions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Publishes `event`, dated now. Never waits for readers.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when `topic` is not `/` before each of one or more identifiers.
    pub fn publish(&self, namespace: &Namespace, topic: &str, event: Any) -> Result<(), Error> {
        validate::topic(topic)?;
        self.send(Envelope {
            timestamp: SystemTime::now(),
            namespace: namespace.to_string(),
            topic: topic.to_owned(),
            event,
        });
        Ok(())
    }

    /// Passes on an event that was published elsewhere, unchanged.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when namespace or topic are malformed or the timestamp is missing
    /// (year 1 and the like).
    pub fn forward(&self, envelope: Envelope) -> Result<(), Error> {
        validate::identifier("namespace", &envelope.namespace)?;
        validate::topic(&envelope.topic)?;
        if envelope.timestamp <= zero_time() {
            return Err(metadata::Error::invalid("event timestamp", "must be set").into());
        }
        self.send(envelope);
        Ok(())
    }

    /// Subscribes to the events published from now on that pass `filters`, of all namespaces.
    /// Dropping the subscription ends it.
    pub fn subscribe(&self, filters: Filters) -> Subscription {
        let (sender, receiver) = mpsc::unbounded_channel();
        let backlog = Arc::new(Backlog::default());
        let subscriber = Subscriber { filters, queue: sender, backlog: backlog.clone() };
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| !subscriber.queue.is_closed());
        subscribers.push(subscriber);
        Subscription { queue: receiver, backlog, ended: false }
    }

    /// Subscriptions that are alive.
    pub fn subscriptions(&self) -> usize {
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| !subscriber.queue.is_closed());
        subscribers.len()
    }

    /// The lock is held while filters are tried, so that all readers see one order.
    fn send(&self, envelope: Envelope) {
        let envelope = Arc::new(envelope);
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| subscriber.offer(&envelope));
    }
}

impl EventSink for Exchange {
    fn emit(&self, namespace: &Namespace, event: metadata::Event) {
        let topic = event.topic();
        self.send(Envelope {
            timestamp: SystemTime::now(),
            namespace: namespace.to_string(),
            topic: topic.to_owned(),
            event: encode::encode(event),
        });
    }
}

impl Subscriber {
    /// Queues the event if it is wanted; `false` when the subscription is over.
    fn offer(&self, envelope: &Arc<Envelope>) -> bool {
        if self.queue.is_closed() {
            return false;
        }
        if !self.filters.matches(&**envelope) {
            return true;
        }
        let size_bytes = size_bytes(envelope);
        let queued = self.backlog.size_bytes.fetch_add(size_bytes, Ordering::AcqRel);
        // One event always fits, whatever its size.
        if queued > 0 && queued + size_bytes > QUEUE_BYTES_MAX {
            self.backlog.overrun.store(true, Ordering::Release);
            tracing::warn!(queued, "event reader is too slow, ending its stream");
            return false;
        }
        self.queue.send(envelope.clone()).is_ok()
    }
}

/// A stream of events, in the order of publication.
///
/// It ends by itself only after [`Error::Overrun`], or when the last [`Exchange`] is gone.
pub struct Subscription {
    queue: mpsc::UnboundedReceiver<Arc<Envelope>>,
    backlog: Arc<Backlog>,
    ended: bool,
}

impl Subscription {
    /// The next event, or `None` at the end. Cancel safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Arc<Envelope>, Error>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Arc<Envelope>, Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.queue.poll_recv(context).map(|next| match next {
            Some(envelope) => {
                self.backlog.size_bytes.fetch_sub(size_bytes(&envelope), Ordering::AcqRel);
                Some(Ok(envelope))
            }
            None => {
                self.ended = true;
                self.backlog.overrun.load(Ordering::Acquire).then_some(Err(Error::Overrun))
            }
        })
    }
}

impl Stream for Subscription {
    type Item = Result<Arc<Envelope>, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(context)
    }
}

/// What an event takes in a queue: its texts and body, and the structures around them.
fn size_bytes(envelope: &Envelope) -> usize {
    const OVERHEAD_BYTES: usize = 256;
    OVERHEAD_BYTES
        + envelope.namespace.len()
        + envelope.topic.len()
        + envelope.event.type_url.len()
        + envelope.event.value.len()
}

/// Bytes one subscription may have waiting: about half a million events of a stuck reader, hours
/// on a busy host, and bearable for the daemon.
pub const QUEUE_BYTES_MAX: usize = 256 << 20;
