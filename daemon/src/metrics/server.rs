//! The HTTP server that metrics are scraped from: `GET /v1/metrics`, or `/metrics`.
//!
//! It answers one request per connection and reads no body, on a TCP address or on a unix socket
//! with the modes of the gRPC socket.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::error::{Error, Result};
use crate::services::socket::{self, Socket};
use crate::wiring::Daemon;

/// A listening metrics server.
#[derive(Debug)]
pub struct Exporter {
    listener: Listener,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Socket),
}

impl Exporter {
    /// Listens on `address`: a path, also as `unix://<path>`, or `host:port`. On a path, `uid` and
    /// `gid` own the socket.
    ///
    /// # Errors
    ///
    /// Those of [`socket::listen`]; [`Error::Io`] when the TCP address cannot be had.
    pub async fn listen(address: &str, uid: u32, gid: u32) -> Result<Self> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let listener = if path.starts_with('/') {
            let (listener, socket) = socket::listen(Path::new(path), uid, gid)?;
            Listener::Unix(listener, socket)
        } else {
            let listening = TcpListener::bind(address).await;
            Listener::Tcp(listening.map_err(|source| Error::Io {
                object: format!("metrics.address {address}"),
                step: "listen",
                source,
            })?)
        };
        Ok(Self { listener })
    }

    /// Where it listens, with the port the system chose for port 0.
    pub fn address(&self) -> String {
        match &self.listener {
            Listener::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| String::new(), |address| address.to_string())
            }
            Listener::Unix(_, socket) => socket.path().display().to_string(),
        }
    }

    /// Answers until `stop` resolves.
    pub async fn serve(self, daemon: Arc<Daemon>, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = stop => {}
            () = self.accept(&daemon) => {}
        }
    }

    async fn accept(&self, daemon: &Arc<Daemon>) {
        loop {
            let accepted = match &self.listener {
                Listener::Tcp(listener) => {
                    listener.accept().await.map(|(stream, _)| answer(stream, daemon))
                }
                Listener::Unix(listener, _) => {
                    listener.accept().await.map(|(stream, _)| answer(stream, daemon))
                }
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, "accept failed, trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection beside the others.
fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, daemon: &Arc<Daemon>) {
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        let service = service_fn(move |request| respond(Arc::clone(&daemon), request));
        let connection = http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let served = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
        if let Ok(Err(error)) = served {
            tracing::debug!(%error, "scrape ended early");
        }
    });
}

async fn respond(
    daemon: Arc<Daemon>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let known = ["/v1/metrics", "/metrics"].contains(&request.uri().path());
    let (status, text) = if !known {
        (StatusCode::NOT_FOUND, "metrics are at /v1/metrics\n".to_owned())
    } else if request.method() != Method::GET {
        (StatusCode::METHOD_NOT_ALLOWED, "metrics are only read\n".to_owned())
    } else {
        let shared = Arc::clone(&daemon);
        match daemon.blocking.apart(move || shared.metrics_text()).await {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    };
    let kind = if status == StatusCode::OK { OPENMETRICS } else { "text/plain; charset=utf-8" };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    Ok(response)
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Time for descriptors to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A scraper sends one line and a few headers at once.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a request; the library's least, and far more than a scraper sends.
const HEADER_BYTES_MAX: usize = 8192;

/// From connecting to the last byte: a scraper that is slower has given up.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
