use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::Failure;
use crate::metadata::Scope;
use crate::services::{HEADER_LEASE, HEADER_NAMESPACE};

/// How long a proxy may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For what concerns records: to connect and to answer.
    pub quick: Duration,
    /// For what moves bytes: to prepare, to commit, to clean up, to make a layer.
    pub bulk: Duration,
}

impl Default for Deadlines {
    /// Remote snapshotters fetch while they prepare; a minute is a long time for a record.
    fn default() -> Self {
        Self { quick: Duration::from_secs(60), bulk: Duration::from_secs(1800) }
    }
}

/// The way to one proxy: its socket, and who waits for its answers. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Link {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    address: PathBuf,
    channel: Channel,
    runtime: Handle,
    deadlines: Deadlines,
}

impl Link {
    /// The way to the proxy called `name` on the socket `address`. Nothing is connected yet.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new(name: &str, address: &Path, deadlines: Deadlines) -> Self {
        let socket = address.to_path_buf();
        let dial = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_timeout(deadlines.quick)
            .connect_with_connector_lazy(dial);
        let inner = Inner {
            name: name.to_owned(),
            address: address.to_path_buf(),
            channel,
            runtime: Handle::current(),
            deadlines,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The name in the configuration.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where the proxy listens.
    pub fn address(&self) -> &Path {
        &self.inner.address
    }

    /// What calls go over.
    pub fn channel(&self) -> Channel {
        self.inner.channel.clone()
    }

    /// How long the proxy may take.
    pub fn deadlines(&self) -> Deadlines {
        self.inner.deadlines
    }

    /// Waits for `call`, at most for `limit`.
    ///
    /// # Errors
    ///
    /// [`Failure`], which names the proxy.
    pub async fn call<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(limit, call).await {
            Ok(answer) => {
                answer.map_err(|status| Failure::new(self.name(), self.address(), status))
            }
            Err(_) => Err(Failure::Late {
                name: self.name().to_owned(),
                address: self.address().to_path_buf(),
                limit,
            }),
        }
    }

    /// As [`call`](Self::call), from a blocking thread.
    ///
    /// # Errors
    ///
    /// Those of [`call`](Self::call).
    pub fn wait<T, F>(&self, limit: Duration, call: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let (answer, answered) = mpsc::sync_channel(1);
        let link = self.clone();
        self.inner.runtime.spawn(async move {
            // Whoever waited has gone only if its thread has.
            let _ = answer.send(link.call(limit, call).await);
        });
        answered.recv().unwrap_or_else(|_| Err(self.broken("the daemon is stopping")))
    }

    /// The proxy does not keep to the protocol.
    pub(super) fn broken(&self, reason: &str) -> Failure {
        Failure::Dead {
            name: self.name().to_owned(),
            address: self.address().to_path_buf(),
            reason: reason.to_owned(),
        }
    }
}

/// A call on whose behalf another is made.
pub(crate) fn scoped<T>(scope: &Scope, message: T) -> Request<T> {
    let mut request = in_namespace(scope.namespace.as_str(), message);
    if let Some(lease) = scope.lease.as_deref().and_then(|lease| lease.parse().ok()) {
        request.metadata_mut().insert(HEADER_LEASE, lease);
    }
    request
}

/// A call in a namespace.
pub(super) fn in_namespace<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    // A namespace is letters, digits and dashes, which every header can hold.
    if let Ok(value) = namespace.parse() {
        request.metadata_mut().insert(HEADER_NAMESPACE, value);
    }
    request
}
