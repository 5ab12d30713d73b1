//! Bytes over a stream of messages, against a window.
//!
//! The receiver grants a number of bytes and grants more as it takes them; the sender sends no
//! more than was granted, in messages of at most 32 KiB. The end of the stream is
//! the end of the bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use crated_api::types::transfer::{Data, WindowUpdate};
use crated_api::{Any, any};
use tokio::io::{AsyncRead, AsyncReadExt as _, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;

use super::streaming::AnyStream;

/// Bytes in one message: what every client takes.
const MESSAGE_BYTES_MAX: usize = 32 << 10;

/// Bytes that a client may have on their way to us. The first grant is what clients are used to
/// get; later ones are larger, which spares a fast client the waiting.
const WINDOW_BYTES: i32 = 64 << 10;
const WINDOW_BYTES_MAX: i32 = 2 << 20;

/// Messages between the stream and whoever reads: as many as the window allows.
const MESSAGES_MAX: usize = 64;

/// What is written ahead of a slow client.
const WRITE_AHEAD_BYTES: usize = 256 << 10;

/// The bytes that a client sends.
pub struct Incoming {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
    pump: JoinHandle<()>,
}

impl Incoming {
    /// Receives from `stream` as fast as somebody reads.
    pub fn new(stream: AnyStream) -> Self {
        let (sender, pieces) = mpsc::channel(MESSAGES_MAX);
        Self { pieces, current: Bytes::new(), pump: tokio::spawn(receive(stream, sender)) }
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match std::task::ready!(self.pieces.poll_recv(context)) {
                Some(Ok(piece)) => self.current = piece,
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.current.len().min(into.remaining());
        into.put_slice(&self.current[..length]);
        self.current.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // The stream ends with it.
        self.pump.abort();
    }
}

async fn receive(mut stream: AnyStream, pieces: mpsc::Sender<io::Result<Bytes>>) {
    let (mut granted, mut window) = (0_i32, WINDOW_BYTES);
    loop {
        if granted < window / 2 || granted == 0 {
            let update = WindowUpdate { update: window - granted };
            if stream.outgoing.send(Ok(any::pack(&update))).await.is_err() {
                return;
            }
            granted = window;
            window = (window * 2).min(WINDOW_BYTES_MAX);
        }
        let message = match stream.incoming.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(status) => {
                let error = io::Error::new(io::ErrorKind::ConnectionAborted, status);
                let _ = pieces.send(Err(error)).await;
                return;
            }
        };
        let Ok(data) = any::unpack::<Data>(&message) else {
            tracing::warn!(message = message.type_url, "unknown message in a stream of bytes");
            continue;
        };
        granted = granted.saturating_sub(i32::try_from(data.data.len()).unwrap_or(i32::MAX));
        if !data.data.is_empty() && pieces.send(Ok(data.data)).await.is_err() {
            return;
        }
    }
}

/// A way to send bytes to a client.
pub struct Outgoing {
    pump: JoinHandle<io::Result<()>>,
}

impl Outgoing {
    /// Sends to `stream` what is written to the other half.
    pub fn new(stream: AnyStream) -> (DuplexStream, Self) {
        let (near, far) = tokio::io::duplex(WRITE_AHEAD_BYTES);
        (near, Self { pump: tokio::spawn(send(stream, far)) })
    }

    /// Waits until the client has taken everything, after the other half was dropped.
    ///
    /// # Errors
    ///
    /// When the client went away before.
    pub async fn finish(mut self) -> io::Result<()> {
        (&mut self.pump).await.map_err(io::Error::other)?
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

async fn send(mut stream: AnyStream, mut from: DuplexStream) -> io::Result<()> {
    let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the client ended the stream");
    let (mut window, mut buffer) = (0_usize, vec![0; MESSAGE_BYTES_MAX]);
    loop {
        while window == 0 {
            let message: Result<Option<Any>, Status> = stream.incoming.message().await;
            let message = message.map_err(io::Error::other)?.ok_or_else(gone)?;
            if let Ok(update) = any::unpack::<WindowUpdate>(&message) {
                window = window.saturating_add(usize::try_from(update.update).unwrap_or(0));
            }
        }
        let want = buffer.len().min(window);
        let length = from.read(&mut buffer[..want]).await?;
        if length == 0 {
            return Ok(());
        }
        window -= length;
        let data = Data { data: Bytes::copy_from_slice(&buffer[..length]) };
        stream.outgoing.send(Ok(any::pack(&data))).await.map_err(|_| gone())?;
    }
}
