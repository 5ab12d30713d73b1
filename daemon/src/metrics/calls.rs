//! Calls over gRPC, counted and measured from their arrival to the end of the answer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument;

use super::{Histograms, Metrics, seconds};
use crate::services::HEADER_NAMESPACE;

/// Numbers of calls and how long they took.
#[derive(Debug)]
pub struct Calls {
    handled: Family<Handled, Counter>,
    services: Histograms<OfService>,
    methods: Option<Histograms<OfMethod>>,
    open: Gauge,
    stirs: AtomicU64,
    stirred: Notify,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handled {
    grpc_service: String,
    grpc_method: String,
    grpc_code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfService {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMethod {
    grpc_service: String,
    grpc_method: String,
}

impl Calls {
    pub(super) fn register(registry: &mut Registry, per_method: bool) -> Self {
        let this = Self {
            handled: Family::default(),
            services: Family::new_with_constructor(seconds),
            methods: per_method.then(|| Family::new_with_constructor(seconds as fn() -> _)),
            open: Gauge::default(),
            stirs: AtomicU64::new(0),
            stirred: Notify::new(),
        };
        registry.register("grpc_server_handled", "Calls that ended", this.handled.clone());
        let services = "How long calls took, by service";
        registry.register("crated_call_seconds", services, this.services.clone());
        if let Some(methods) = &this.methods {
            let help = "How long calls took, by method";
            registry.register("grpc_server_handling_seconds", help, methods.clone());
        }
        registry.register("crated_calls_open", "Calls under way", this.open.clone());
        this
    }

    /// Waits until a call begins or ends, or one did since this was last waited for. Meant for
    /// one who waits.
    pub async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// How often a call began or ended since the start.
    pub fn stirs(&self) -> u64 {
        self.stirs.load(Ordering::Relaxed)
    }

    fn stir(&self) {
        self.stirs.fetch_add(1, Ordering::Relaxed);
        self.stirred.notify_one();
    }

    fn ended(&self, call: &Call, code: Code) {
        self.open.dec();
        self.stir();
        // A path that nobody serves is whatever a client made up: it gets no label of its own.
        let (service, method) = match code {
            Code::Unimplemented => ("unknown", "unknown"),
            _ => call.names(),
        };
        let (grpc_service, grpc_method) = (service.to_owned(), method.to_owned());
        let elapsed = call.since.elapsed().as_secs_f64();
        self.services.get_or_create(&OfService { service: grpc_service.clone() }).observe(elapsed);
        if let Some(methods) = &self.methods {
            let of =
                OfMethod { grpc_service: grpc_service.clone(), grpc_method: grpc_method.clone() };
            methods.get_or_create(&of).observe(elapsed);
        }
        let grpc_code = name(code);
        self.handled.get_or_create(&Handled { grpc_service, grpc_method, grpc_code }).inc();
        tracing::debug!(parent: &call.span, code = grpc_code, seconds = elapsed, "call ended");
    }
}

/// Measures every call, and opens the span that what is logged during the call stands in.
#[derive(Clone, Debug)]
pub struct CallLayer(pub Arc<Metrics>);

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> CallService<S> {
        CallService { inner, metrics: Arc::clone(&self.0) }
    }
}

/// See [`CallLayer`].
#[derive(Clone, Debug)]
pub struct CallService<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S, A, B> Service<Request<A>> for CallService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<Measured<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let mut call = Call::begin(&self.metrics, &request);
        let span = call.span.clone();
        let answer = self.inner.call(request);
        Box::pin(
            async move {
                let answer = answer.await?;
                call.code = code(answer.headers());
                Ok(answer.map(|body| Measured { body, call }))
            }
            .instrument(span),
        )
    }
}

/// A call under way; it has ended when this is dropped.
#[derive(Debug)]
struct Call {
    metrics: Arc<Metrics>,
    path: String,
    since: Instant,
    span: tracing::Span,
    /// How it ended, as soon as that has been said.
    code: Option<Code>,
}

impl Call {
    fn begin<A>(metrics: &Arc<Metrics>, request: &Request<A>) -> Self {
        metrics.calls.open.inc();
        metrics.calls.stir();
        let path = request.uri().path().to_owned();
        let namespace = request.headers().get(HEADER_NAMESPACE);
        let namespace = namespace.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (service, method) = split(&path);
        let span = tracing::info_span!("call", service, method, namespace);
        Self { metrics: Arc::clone(metrics), since: Instant::now(), span, code: None, path }
    }

    fn names(&self) -> (&str, &str) {
        split(&self.path)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // The client went away before anything was decided.
        let code = self.code.unwrap_or(Code::Cancelled);
        self.metrics.calls.ended(self, code);
    }
}

/// The body of an answer whose end is the end of the call.
#[derive(Debug)]
pub struct Measured<B> {
    body: B,
    call: Call,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Measured<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.code = code(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The code in the headers or trailers of an answer.
fn code(headers: &HeaderMap) -> Option<Code> {
    Status::from_header_map(headers).map(|status| status.code())
}

/// Service and method of a path such as `/containerd.services.images.v1.Images/Get`.
fn split(path: &str) -> (&str, &str) {
    path.trim_start_matches('/').split_once('/').unwrap_or((path, ""))
}

/// What dashboards call a code.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
