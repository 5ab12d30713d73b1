//! A piece of a blob on its way in: opened again where it breaks, moved where it is slow.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use super::failure::explain;
use super::fetch::Shared;
use super::options::Timeouts;
use super::retry;
use crate::body::Whence;
use crate::descriptor::Descriptor;
use crate::error::{Error, Result};

/// The bytes of a blob from `position` up to, not including, `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) position: u64,
    pub(super) end: u64,
}

/// An answer's body, of which the first `skip` bytes were not asked for, and which goes on to
/// `end`.
pub(super) struct Stream {
    pub(super) incoming: Incoming,
    pub(super) skip: u64,
    pub(super) end: u64,
    pub(super) _connection: OwnedSemaphorePermit,
}

/// Where the spans of one blob come from, for whoever watches.
#[derive(Debug, Clone, Default)]
pub(super) struct Trace(Arc<Mutex<Option<Whence>>>);

impl Trace {
    pub(super) fn whence(&self) -> Option<Whence> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn opened(&self, host: &str, again: bool) {
        let mut whence = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let resumes = whence.as_ref().map_or(0, |whence| whence.resumes) + u32::from(again);
        *whence = Some(Whence { host: host.into(), resumes });
    }
}

/// A span that opens itself again where it broke.
pub(super) struct Resuming {
    trace: Trace,
    shared: Arc<Shared>,
    descriptor: Descriptor,
    span: Span,
    stream: Option<Stream>,
    host: String,
    /// Openings since the last byte.
    barren: u32,
    /// Hosts that were slow; the work moved away from them.
    slow: Vec<String>,
    window: Window,
}

/// What came of waiting for the next piece.
enum Piece {
    Bytes(Bytes),
    End,
    Broken(Error),
    Slow,
}

impl Resuming {
    /// Opens `span`. A server that takes no ranges sends more than that: see
    /// [`Resuming::take_whole`].
    pub(super) async fn open(
        shared: Arc<Shared>,
        descriptor: Descriptor,
        span: Span,
        trace: Trace,
    ) -> Result<Self> {
        let (stream, host) = shared.stream(&descriptor, &span, &[]).await?;
        trace.opened(&host, false);
        let (stream, slow, window) = (Some(stream), Vec::new(), Window::new());
        Ok(Self { trace, shared, descriptor, span, stream, host, barren: 0, slow, window })
    }

    /// Goes on as far as the server does, which may be further than was asked for.
    pub(super) fn take_whole(&mut self) {
        if let Some(stream) = &self.stream {
            self.span.end = self.span.end.max(stream.end);
        }
    }

    /// Where it will end.
    pub(super) fn end(&self) -> u64 {
        self.span.end
    }

    /// Bytes per second of waiting so far; time that the reader took for itself does not count.
    pub(super) fn rate(&self) -> u64 {
        let nanos = self.window.waited_in_all.as_nanos().max(1);
        let rate = u128::from(self.window.bytes_in_all) * 1_000_000_000 / nanos;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// The next piece, `None` at the end of the span.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let left = self.span.end - self.span.position;
            let Some(stream) = &mut self.stream else { return Ok(None) };
            let bounded = self.span.end < self.descriptor.size_bytes;
            if left == 0 && bounded {
                self.stream = None;
                return Ok(None);
            }
            let longer = stream.end > self.span.end;
            let timeouts = &self.shared.client().timeouts;
            let piece = self.window.next(stream, timeouts, &self.host).await;
            match piece {
                Piece::Bytes(mut bytes) => {
                    self.barren = 0;
                    if bytes.len() as u64 > left && bounded {
                        if !longer {
                            let what = self.descriptor.digest.to_string();
                            return Err(Error::Oversized { what, want: left });
                        }
                        bytes.truncate(left as usize);
                    }
                    // One byte too many of the whole is the body's to report; it counts them.
                    self.span.position += (bytes.len() as u64).min(left);
                    return Ok(Some(bytes));
                }
                Piece::End if left == 0 => {
                    self.stream = None;
                    return Ok(None);
                }
                Piece::End => {
                    let what = self.descriptor.digest.to_string();
                    let (have, want) = (self.span.position, self.descriptor.size_bytes);
                    self.reopen(Error::UnexpectedEof { what, have, want }).await?;
                }
                Piece::Broken(error) => self.reopen(error).await?,
                Piece::Slow => self.move_away().await?,
            }
        }
    }

    /// Leaves a slow host for another; a host that is alone gets a second connection. Gives up
    /// when there is nowhere left to go.
    async fn move_away(&mut self) -> Result<()> {
        let (host, limit) = (self.host.clone(), self.shared.client().timeouts.rate_window);
        let error = Error::Timeout { host, step: "a body below the least rate", limit };
        let moves_max = self.shared.endpoints().max(2) - 1;
        if self.slow.len() >= moves_max {
            self.stream = None;
            return Err(error);
        }
        self.reopen(error).await
    }

    /// Opens the rest again; gives up with `cause` after too many openings without a byte.
    async fn reopen(&mut self, cause: Error) -> Result<()> {
        self.stream = None;
        if self.barren == BARREN_MAX {
            return Err(cause);
        }
        self.barren += 1;
        tracing::debug!(
            digest = %self.descriptor.digest, position = self.span.position, %cause, "resuming"
        );
        tokio::time::sleep(retry::backoff(self.barren)).await;
        if matches!(cause, Error::Timeout { .. }) {
            self.slow.push(self.host.clone());
        }
        match self.shared.stream(&self.descriptor, &self.span, &self.slow).await {
            Ok((stream, host)) => {
                self.trace.opened(&host, true);
                self.stream = Some(stream);
                self.host = host;
                self.window.restart();
                Ok(())
            }
            // What broke first says more than that the way back is closed too, unless the
            // registry explains itself.
            Err(error) if error.is_transient() => Err(cause),
            Err(error) => Err(error),
        }
    }
}

/// Measures how fast a body comes, by the time spent waiting for it.
struct Window {
    waited: Duration,
    bytes: u64,
    waited_in_all: Duration,
    bytes_in_all: u64,
}

impl Window {
    fn new() -> Self {
        let (waited, waited_in_all) = (Duration::ZERO, Duration::ZERO);
        Self { waited, bytes: 0, waited_in_all, bytes_in_all: 0 }
    }

    fn restart(&mut self) {
        self.waited = Duration::ZERO;
        self.bytes = 0;
    }

    async fn next(&mut self, stream: &mut Stream, timeouts: &Timeouts, host: &str) -> Piece {
        loop {
            let (limit, since) = (timeouts.stall, Instant::now());
            let Ok(frame) = tokio::time::timeout(limit, stream.incoming.frame()).await else {
                let (host, step) = (host.to_owned(), "waiting for the next bytes of a body");
                return Piece::Broken(Error::Timeout { host, step, limit });
            };
            self.waited += since.elapsed();
            self.waited_in_all += since.elapsed();
            let mut bytes = match frame {
                None => return Piece::End,
                Some(Err(error)) => {
                    let reason = explain(&error, host).1;
                    let url = host.to_owned();
                    return Piece::Broken(Error::Transport { method: "GET", url, reason });
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => bytes,
                    Err(_) => continue,
                },
            };
            self.bytes += bytes.len() as u64;
            self.bytes_in_all += bytes.len() as u64;
            if self.waited >= timeouts.rate_window {
                let least = timeouts.rate_min_bytes as f64 * self.waited.as_secs_f64();
                if (self.bytes as f64) < least {
                    return Piece::Slow;
                }
                self.restart();
            }
            let skipped = stream.skip.min(bytes.len() as u64);
            stream.skip -= skipped;
            let bytes = bytes.split_off(skipped as usize);
            if !bytes.is_empty() {
                return Piece::Bytes(bytes);
            }
        }
    }
}

/// How often a body is opened again without any byte in between.
const BARREN_MAX: u32 = 3;
