//! Connections: straight there, or through an http proxy. Https is tunnelled through it, http is
//! asked for by whole addresses.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tower::Service;

use super::failure::NoTunnel;
use super::proxy::Proxies;
use super::transport::Lookup;

/// Connects to where a request goes, or to the proxy in between.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) direct: HttpConnector<Lookup>,
    /// Proxies come from the configuration, so any address will do.
    pub(crate) to_proxy: HttpConnector<Lookup>,
    pub(crate) proxies: Proxies,
}

impl Service<Uri> for Connector {
    type Response = Way;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Way, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.intercept(&to).cloned() else {
            let connecting = self.direct.call(to);
            return Box::pin(async move { Ok(Way { stream: connecting.await?, proxied: false }) });
        };
        let connecting = self.to_proxy.call(proxy.address.clone());
        Box::pin(async move {
            let stream = connecting.await?;
            if to.scheme_str() == Some("http") {
                return Ok(Way { stream, proxied: true });
            }
            let mut stream = stream.into_inner();
            tunnel(&mut stream, &to, proxy.login.as_ref()).await?;
            Ok(Way { stream: TokioIo::new(stream), proxied: false })
        })
    }
}

/// Asks the proxy for a tunnel to `to`. Time is bounded by whoever waits for the connection.
async fn tunnel(stream: &mut TcpStream, to: &Uri, login: Option<&HeaderValue>) -> io::Result<()> {
    let host = to.host().unwrap_or_default();
    let port = to.port_u16().unwrap_or(443);
    let mut head =
        format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
    if let Some(login) = login {
        head.extend_from_slice(b"Proxy-Authorization: ");
        head.extend_from_slice(login.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    stream.write_all(&head).await?;

    let mut answer = Vec::new();
    // The other end of the tunnel waits for us to speak, so nothing follows the answer.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(refused("answer is too long"));
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    match answer.get(..12).and_then(|line| std::str::from_utf8(line).ok()) {
        Some(line) if line.starts_with("HTTP/1.") && line[8..].starts_with(" 2") => Ok(()),
        Some(line) if line.starts_with("HTTP/1.") && line.ends_with("407") => {
            Err(refused("authentication required"))
        }
        Some(line) if line.starts_with("HTTP/1.") => {
            let status: String = line[8..].chars().filter(|c| !c.is_control()).collect();
            Err(refused(&format!("no tunnel: status{status}")))
        }
        _ => Err(refused("answer is not http")),
    }
}

fn refused(reason: &str) -> io::Error {
    io::Error::other(NoTunnel(reason.to_owned()))
}

/// A connection, perhaps to a proxy that wants whole addresses.
pub(crate) struct Way {
    stream: TokioIo<TcpStream>,
    proxied: bool,
}

impl Connection for Way {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.proxied)
    }
}

impl Read for Way {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Way {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

/// The head of a proxy's answer; real ones have a line or five.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
