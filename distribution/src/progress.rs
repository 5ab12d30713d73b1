//! A ledger of transfers: who watches it sees every object's latest state, however late.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::body::{Body, Chunks, Source, Whence};
use crate::error::Result;

/// What happens to one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Known, not started.
    Waiting,
    /// Bytes come in.
    Downloading,
    /// Bytes go out.
    Uploading,
    /// Done.
    Complete,
    /// Is being unpacked.
    Extracting,
    /// Is unpacked.
    Extracted,
    /// Nothing had to be transferred.
    Exists,
    /// Given up.
    Failed,
}

impl State {
    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Complete | Self::Extracted | Self::Exists | Self::Failed)
    }
}

/// The latest state of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The object; see [`walk::reference_key`](crate::walk::reference_key).
    pub name: String,
    /// The objects that led to this one; they were entered earlier.
    pub parents: Vec<String>,
    /// What happens to it.
    pub state: State,
    /// Bytes transferred.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// The host it comes from and how often it had to be resumed, while it is known.
    pub whence: Option<Whence>,
}

/// The ledger: cheap to clone, every clone is the same ledger.
///
/// Memory is one entry per object, not per event, so a slow watcher costs nothing: it sees the
/// latest state instead of every step.
#[derive(Clone)]
pub struct Progress {
    ledger: Arc<Mutex<Ledger>>,
    changes: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Ledger {
    entries: Vec<(Entry, u64)>,
    by_name: HashMap<String, usize>,
    version: u64,
}

impl Progress {
    /// An empty ledger.
    pub fn new() -> Self {
        Self { ledger: Arc::default(), changes: Arc::new(watch::Sender::new(0)) }
    }

    /// Enters an object, or leaves it as it is when it was entered before.
    pub fn add(&self, name: &str, parents: &[String], total_bytes: u64) {
        self.change(|ledger| {
            if ledger.by_name.contains_key(name) {
                return;
            }
            ledger.by_name.insert(name.to_owned(), ledger.entries.len());
            let entry = Entry {
                name: name.to_owned(),
                parents: parents.to_vec(),
                state: State::Waiting,
                done_bytes: 0,
                total_bytes,
                whence: None,
            };
            ledger.entries.push((entry, ledger.version));
        });
    }

    /// Changes the state of an object that was entered; final states complete the count.
    pub fn state(&self, name: &str, state: State) {
        self.update(name, |entry| {
            entry.state = state;
            if matches!(state, State::Complete | State::Exists) {
                entry.done_bytes = entry.total_bytes;
            }
        });
    }

    /// Sets how many bytes of an object were transferred.
    pub fn done(&self, name: &str, done_bytes: u64) {
        self.update(name, |entry| entry.done_bytes = done_bytes);
    }

    /// All objects in the order they were entered.
    pub fn snapshot(&self) -> Vec<Entry> {
        self.lock().entries.iter().map(|(entry, _)| entry.clone()).collect()
    }

    /// A watcher that first sees everything entered so far.
    pub fn watch(&self) -> Watch {
        Watch { progress: self.clone(), changes: self.changes.subscribe(), seen: None }
    }

    /// Counts the bytes of a body as downloaded for `name`, from `offset` on.
    pub fn body(&self, name: &str, body: Body, offset: u64) -> Body {
        self.state(name, State::Downloading);
        self.counted(name, body, offset)
    }

    /// Counts the bytes of a source as uploaded for `name`.
    pub fn source<'s>(&self, name: &str, source: &'s dyn Source) -> impl Source + use<'s> {
        Counted { progress: self.clone(), name: name.to_owned(), source }
    }

    fn counted(&self, name: &str, body: Body, offset: u64) -> Body {
        let len = body.len_bytes();
        let chunks = CountedBody {
            progress: self.clone(),
            name: name.to_owned(),
            offset: offset + body.position_bytes(),
            body,
        };
        Body::new(name, Box::new(chunks), len)
    }

    fn update(&self, name: &str, update: impl FnOnce(&mut Entry)) {
        self.change(|ledger| {
            if let Some(&at) = ledger.by_name.get(name) {
                let version = ledger.version;
                let (entry, changed) = &mut ledger.entries[at];
                update(entry);
                *changed = version;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Ledger)) {
        let mut ledger = self.lock();
        ledger.version += 1;
        change(&mut ledger);
        let version = ledger.version;
        drop(ledger);
        self.changes.send_replace(version);
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // Every change leaves the ledger whole, so a panic elsewhere does not spoil it.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("entries", &self.lock().entries.len()).finish()
    }
}

/// A reader of the ledger.
pub struct Watch {
    progress: Progress,
    changes: watch::Receiver<u64>,
    seen: Option<u64>,
}

impl Watch {
    /// Objects that changed since the last call, parents before children; the first call returns
    /// everything. Waits until there is something.
    pub async fn changed(&mut self) -> Vec<Entry> {
        loop {
            self.changes.borrow_and_update();
            let entries = self.take();
            if !entries.is_empty() {
                return entries;
            }
            if self.changes.changed().await.is_err() {
                return Vec::new();
            }
        }
    }

    /// The same without waiting.
    pub fn take(&mut self) -> Vec<Entry> {
        let ledger = self.progress.lock();
        let news = |changed: &u64| self.seen.is_none_or(|seen| *changed > seen);
        let entries = ledger
            .entries
            .iter()
            .filter(|(_, changed)| news(changed))
            .map(|(entry, _)| entry.clone())
            .collect();
        self.seen = Some(ledger.version);
        entries
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("seen", &self.seen).finish_non_exhaustive()
    }
}

struct CountedBody {
    progress: Progress,
    name: String,
    offset: u64,
    body: Body,
}

#[async_trait]
impl Chunks for CountedBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let chunk = self.body.chunk().await?;
        if chunk.is_some() {
            let (done, whence) = (self.offset + self.body.position_bytes(), self.body.whence());
            self.progress.update(&self.name, |entry| {
                entry.done_bytes = done;
                entry.whence = whence;
            });
        }
        Ok(chunk)
    }

    fn whence(&self) -> Option<Whence> {
        self.body.whence()
    }
}

struct Counted<'s> {
    progress: Progress,
    name: String,
    source: &'s dyn Source,
}

#[async_trait]
impl Source for Counted<'_> {
    async fn open(&self, offset: u64) -> Result<Body> {
        self.progress.state(&self.name, State::Uploading);
        let body = self.source.open(offset).await?;
        Ok(self.progress.counted(&self.name, body, offset))
    }
}
