//! The progress of a transfer, in the words that clients match on.

use std::time::Duration;

use crated_api::any;
use crated_api::types::Descriptor;
use crated_api::types::transfer::Progress as Message;
use crated_distribution::{Entry, Progress, State, Watch};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::Status;

use super::streaming::AnyStream;

/// How often counts are sent: what a person can follow.
const INTERVAL: Duration = Duration::from_millis(200);

/// A client that may be listening.
pub struct Report {
    stream: Option<AnyStream>,
}

impl Report {
    /// Reports to `stream`, or to nobody.
    pub fn new(stream: Option<AnyStream>) -> Self {
        Self { stream }
    }

    /// Sends a line about the whole transfer.
    pub async fn line(&self, event: String) {
        self.send(Message { event, ..Message::default() }).await;
    }

    /// Sends what happened to one object.
    pub async fn object(&self, event: &str, name: &str, descriptor: Descriptor) {
        let (event, name) = (event.to_owned(), name.to_owned());
        self.send(Message { event, name, desc: Some(descriptor), ..Message::default() }).await;
    }

    /// Sends what the ledger says, below the root `name`, until stopped.
    ///
    /// `event` says what happens to the root.
    pub fn watch(
        &self,
        progress: &Progress,
        event: &str,
        name: &str,
        root: Descriptor,
    ) -> Watching {
        let (stop, stopped) = oneshot::channel();
        let Some(stream) = &self.stream else { return Watching { stop, task: None } };
        let first = Message {
            event: event.to_owned(),
            name: name.to_owned(),
            desc: Some(root),
            ..Message::default()
        };
        let (outgoing, watch) = (stream.outgoing.clone(), progress.watch());
        let task = tokio::spawn(follow(outgoing, watch, first, stopped));
        Watching { stop, task: Some(task) }
    }

    /// Ends the stream after the last message.
    pub async fn finish(self) {
        drop(self.stream);
    }

    async fn send(&self, message: Message) {
        if let Some(stream) = &self.stream {
            // A client that no longer listens does not stop the transfer.
            let _ = stream.outgoing.send(Ok(any::pack(&message))).await;
        }
    }
}

/// A ledger that is being followed.
pub struct Watching {
    stop: oneshot::Sender<()>,
    task: Option<JoinHandle<()>>,
}

impl Watching {
    /// Sends the final state of every object, then stops.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        if let Some(task) = self.task {
            // It can only have ended; its panic, if any, has been reported.
            let _ = task.await;
        }
    }
}

async fn follow(
    outgoing: mpsc::Sender<Result<crated_api::Any, Status>>,
    mut watch: Watch,
    first: Message,
    mut stopped: oneshot::Receiver<()>,
) {
    let root = first.name.clone();
    if outgoing.send(Ok(any::pack(&first))).await.is_err() {
        return;
    }
    loop {
        let last = tokio::select! {
            biased;
            _ = &mut stopped => true,
            () = tokio::time::sleep(INTERVAL) => false,
        };
        for entry in watch.take() {
            let Some(message) = message(entry, &root) else { continue };
            if outgoing.send(Ok(any::pack(&message))).await.is_err() {
                return;
            }
        }
        if last {
            return;
        }
    }
}

/// What clients read of an entry; nothing of one that failed, which the call's error tells.
fn message(entry: Entry, root: &str) -> Option<Message> {
    let event = match entry.state {
        State::Waiting => "waiting",
        State::Downloading => "downloading",
        State::Uploading => "uploading",
        State::Complete => "complete",
        State::Exists => "already exists",
        State::Extracting => "extracting",
        State::Extracted => "extracted",
        _ => return None,
    };
    let parents = if entry.parents.is_empty() { vec![root.to_owned()] } else { entry.parents };
    let count = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
    Some(Message {
        event: event.to_owned(),
        desc: Some(Descriptor {
            digest: digest_of(&entry.name),
            size: count(entry.total_bytes),
            ..Descriptor::default()
        }),
        name: entry.name,
        parents,
        progress: count(entry.done_bytes),
        total: count(entry.total_bytes),
    })
}

/// The digest that ends an object's name.
fn digest_of(name: &str) -> String {
    let rest = name.split_once('-').map_or(name, |(_, rest)| rest);
    rest.rsplit('@').next().unwrap_or(rest).to_owned()
}
