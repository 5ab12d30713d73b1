//! A large blob over several connections.
//!
//! ```text
//! 0        range_bytes                                                    size
//! |  first   |  part  |  part  |  part  |  ...                              |
//!   measured   fetched at once, handed out in order
//! ```
//!
//! The first range is also the question whether the server takes ranges: one that does not sends
//! the whole blob, which is then simply read. If the first range came fast, one more connection
//! reads the rest: where a single one fills the link, several only add requests. Otherwise parts
//! are fetched side by side and kept until their turn. Each part resumes and moves to another
//! mirror by itself, so one that is stuck holds up neither the others nor the pull.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;

use super::fetch::Shared;
use super::quota::Quota;
use super::stream::{Resuming, Span, Trace};
use crate::body::{Chunks, Whence};
use crate::descriptor::Descriptor;
use crate::error::Result;

/// The pieces of a blob in their order.
pub(super) struct Ranged {
    shared: Arc<Shared>,
    descriptor: Descriptor,
    trace: Trace,
    /// What is read without parts: the first range, or everything after it.
    single: Option<Resuming>,
    /// Fetched at once; the first one is being handed out.
    parts: VecDeque<Part>,
    tasks: JoinSet<()>,
    /// The first byte that nobody was asked for yet.
    next: u64,
    _body: OwnedSemaphorePermit,
}

/// A span that a task fetches ahead. Its memory is bounded by the length of the span, for which
/// `_budget` was taken before it began.
struct Part {
    pieces: mpsc::UnboundedReceiver<Result<Bytes>>,
    _budget: OwnedSemaphorePermit,
    /// The place among all bodies; the first part uses that of the whole.
    _body: Option<OwnedSemaphorePermit>,
}

impl Ranged {
    pub(super) async fn open(
        shared: Arc<Shared>,
        descriptor: Descriptor,
        position: u64,
        body: OwnedSemaphorePermit,
    ) -> Result<Self> {
        let limits = &shared.client().limits;
        let (size, range) = (descriptor.size_bytes, limits.range_bytes.max(1));
        let splits = limits.parts_max > 1
            && limits.parts_below_rate > 0
            && size - position >= range.saturating_mul(2);
        let end = if splits { position + range } else { size };
        let span = Span { position, end };
        let trace = Trace::default();
        let opening = Resuming::open(shared.clone(), descriptor.clone(), span, trace.clone());
        let mut first = opening.await?;
        first.take_whole();
        let (next, parts, tasks) = (first.end(), VecDeque::new(), JoinSet::new());
        let single = Some(first);
        Ok(Self { shared, descriptor, trace, single, parts, tasks, next, _body: body })
    }

    /// After the first range: one connection for the rest, or parts.
    async fn go_on(&mut self, rate: u64) -> Result<()> {
        if rate < self.shared.client().limits.parts_below_rate {
            return Ok(());
        }
        let span = Span { position: self.next, end: self.descriptor.size_bytes };
        self.next = span.end;
        let (shared, descriptor) = (self.shared.clone(), self.descriptor.clone());
        self.single = Some(Resuming::open(shared, descriptor, span, self.trace.clone()).await?);
        Ok(())
    }

    /// Starts as many parts as may run. Budget is taken in the order of the parts, so whoever
    /// holds any can hand out its first part and give it back.
    async fn start_parts(&mut self) -> Result<()> {
        let limits = &self.shared.client().limits;
        let range = limits.range_bytes.max(1);
        while self.next < self.descriptor.size_bytes && self.parts.len() < limits.parts_max {
            let end = self.descriptor.size_bytes.min(self.next.saturating_add(range));
            let span = Span { position: self.next, end };
            let quota = &self.shared.client().quota;
            let first = self.parts.is_empty();
            let Some((budget, body)) = permits(quota, first, span.end - span.position).await?
            else {
                break;
            };
            self.next = span.end;
            let (sender, pieces) = mpsc::unbounded_channel();
            let (shared, descriptor) = (self.shared.clone(), self.descriptor.clone());
            let opening = Resuming::open(shared, descriptor, span, self.trace.clone());
            self.tasks.spawn(async move {
                if let Err(error) = fetch(opening, &sender).await {
                    // Nobody listens any more when the body was dropped.
                    let _ = sender.send(Err(error));
                }
            });
            self.parts.push_back(Part { pieces, _budget: budget, _body: body });
        }
        // Forgets the tasks that are done.
        while self.tasks.try_join_next().is_some() {}
        Ok(())
    }
}

/// Room for a part, and its place among all bodies unless it uses that of the whole.
type Permits = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

/// What a part of `bytes` bytes needs. Only the `first` waits for it; others are not worth that.
async fn permits(quota: &Quota, first: bool, bytes: u64) -> Result<Option<Permits>> {
    if first {
        return Ok(Some((quota.ahead(bytes).await?, None)));
    }
    let Some(body) = quota.body_now() else { return Ok(None) };
    let Some(budget) = quota.ahead_now(bytes) else { return Ok(None) };
    Ok(Some((budget, Some(body))))
}

#[async_trait]
impl Chunks for Ranged {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(single) = &mut self.single {
                if let Some(bytes) = single.chunk().await? {
                    return Ok(Some(bytes));
                }
                let rate = single.rate();
                self.single = None;
                if self.next < self.descriptor.size_bytes {
                    self.go_on(rate).await?;
                }
                continue;
            }
            self.start_parts().await?;
            let Some(part) = self.parts.front_mut() else { return Ok(None) };
            match part.pieces.recv().await {
                Some(piece) => return piece.map(Some),
                None => self.parts.pop_front(),
            };
        }
    }

    fn whence(&self) -> Option<Whence> {
        self.trace.whence()
    }
}

/// Fetches one part into the hands of whoever reads it.
async fn fetch(
    opening: impl Future<Output = Result<Resuming>>,
    pieces: &mpsc::UnboundedSender<Result<Bytes>>,
) -> Result<()> {
    let mut part = opening.await?;
    while let Some(bytes) = part.chunk().await? {
        if pieces.send(Ok(bytes)).is_err() {
            break;
        }
    }
    Ok(())
}
