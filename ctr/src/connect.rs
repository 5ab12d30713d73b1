//! The connection to a daemon: one channel on its socket, one namespace for every call.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tower::service_fn;

use crate::error::{Error, Result};

/// The largest message that either side sends, as the daemon limits it.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What typed clients are made of.
pub(crate) type Transport = InterceptedService<Channel, Scope>;

/// A connected daemon and the namespace that calls speak of.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    channel: Channel,
    scope: Scope,
}

impl Daemon {
    /// Connects to the socket at `address`.
    pub(crate) async fn connect(
        address: &str,
        namespace: &str,
        timeout: Option<Duration>,
    ) -> Result<Self> {
        let refused = |cause: String| Error::Connect { address: address.to_owned(), cause };
        let namespace = namespace
            .parse()
            .map_err(|_| Error::Refused(format!("namespace {namespace:?} is invalid")))?;
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        // Dialled beforehand, because the transport hides the system's reason.
        let dialled = UnixStream::connect(&path).await;
        let dialled = dialled.map_err(|cause| refused(cause.to_string()))?;
        let dialled = Arc::new(Mutex::new(Some(dialled)));
        let mut endpoint = Endpoint::from_static("http://localhost");
        if let Some(timeout) = timeout {
            endpoint = endpoint.connect_timeout(timeout);
        }
        let channel = endpoint
            .connect_with_connector(service_fn(move |_: Uri| {
                let (path, dialled) = (path.clone(), Arc::clone(&dialled));
                async move {
                    let ready = dialled.lock().unwrap_or_else(PoisonError::into_inner).take();
                    match ready {
                        Some(stream) => Ok(TokioIo::new(stream)),
                        None => UnixStream::connect(path).await.map(TokioIo::new),
                    }
                }
            }))
            .await
            .map_err(|cause| refused(cause.to_string()))?;
        Ok(Self { channel, scope: Scope { namespace, lease: None } })
    }

    /// The same daemon; what calls make is kept by a lease.
    pub(crate) fn with_lease(&self, id: &str) -> Result<Self> {
        let lease = id.parse().map_err(|_| Error::Refused(format!("lease {id:?} is invalid")))?;
        let scope = Scope { lease: Some(lease), ..self.scope.clone() };
        Ok(Self { channel: self.channel.clone(), scope })
    }

    /// What a typed client is built on.
    pub(crate) fn transport(&self) -> Transport {
        InterceptedService::new(self.channel.clone(), self.scope.clone())
    }

    /// The namespace of every call.
    pub(crate) fn namespace(&self) -> &str {
        self.scope.namespace.to_str().unwrap_or_default()
    }
}

/// The header that says on whose behalf a call is made.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Scope {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

/// Builds a typed client with this program's message limits.
macro_rules! client {
    ($daemon:expr, $($client:ident)::+) => {
        $($client)::+::new($daemon.transport())
            .max_decoding_message_size($crate::connect::MESSAGE_BYTES_MAX)
            .max_encoding_message_size($crate::connect::MESSAGE_BYTES_MAX)
    };
}
pub(crate) use client;
