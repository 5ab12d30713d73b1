//! A snapshotter behind a socket.

use std::ops::ControlFlow;

use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_api::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info as Record, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest,
    UsageRequest, ViewSnapshotRequest,
};
use crated_mount::Mount;
use crated_snapshot::{
    CommitOptions, Error, Info, Key, LabelUpdate, Labels, Name, Result, Snapshotter, Usage,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::link::in_namespace;
use super::{Failure, Link, NAMESPACE_DEFAULT};
use crate::config::MESSAGE_BYTES_MAX;
use crate::metadata::validate;
use crate::services::convert::{self, answers};

/// A snapshotter behind a socket.
#[derive(Clone, Debug)]
pub struct ProxySnapshotter {
    link: Link,
}

impl ProxySnapshotter {
    /// The snapshotter at the end of `link`, which the proxy knows by the link's name.
    pub fn new(link: Link) -> Self {
        Self { link }
    }

    fn name(&self) -> String {
        self.link.name().to_owned()
    }

    fn client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.link.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Asks about `key` and waits for the answer.
    fn ask<Q, A, F>(
        &self,
        key: &str,
        pace: Pace,
        message: Q,
        call: impl FnOnce(SnapshotsClient<Channel>, Request<Q>) -> F,
    ) -> Result<A>
    where
        A: Send + 'static,
        F: Future<Output = Result<Response<A>, Status>> + Send + 'static,
    {
        let deadlines = self.link.deadlines();
        let limit = match pace {
            Pace::Quick => deadlines.quick,
            Pace::Bulk => deadlines.bulk,
        };
        let called = call(self.client(), in_namespace(namespace(key), message));
        let answer = self.link.wait(limit, called).map_err(|failure| self.refused(key, failure))?;
        Ok(answer.into_inner())
    }

    fn refused(&self, key: &str, failure: Failure) -> Error {
        let Some(status) = failure.refusal() else { return self.unreached(failure) };
        let reason = status.message().to_owned();
        match status.code() {
            Code::NotFound => Error::NotFound(key.to_owned()),
            Code::AlreadyExists => Error::AlreadyExists(key.to_owned()),
            Code::InvalidArgument => Error::InvalidArgument { what: "request", reason },
            Code::FailedPrecondition => {
                Error::FailedPrecondition { key: key.to_owned(), reason: format!("is: {reason}") }
            }
            Code::Unimplemented => Error::Unsupported { reason },
            _ => self.unreached(failure),
        }
    }

    fn unreached(&self, failure: Failure) -> Error {
        let path = self.link.address().to_path_buf();
        Error::Io { op: "ask snapshotter at", path, source: failure.into_io() }
    }

    /// An answer that does not say what it must.
    fn info(&self, record: Option<Record>) -> Result<Info> {
        let record = record.ok_or_else(|| self.unreached(self.link.broken("empty answer")))?;
        answers::snapshot_from(record).map_err(|status| {
            self.unreached(self.link.broken(&format!("malformed answer: {}", status.message())))
        })
    }
}

/// How long an answer may take.
#[derive(Clone, Copy)]
enum Pace {
    Quick,
    Bulk,
}

impl Snapshotter for ProxySnapshotter {
    fn stat(&self, key: &str) -> Result<Info> {
        let message = StatSnapshotRequest { snapshotter: self.name(), key: key.to_owned() };
        let answer = self.ask(key, Pace::Quick, message, |mut client, request| async move {
            client.stat(request).await
        })?;
        self.info(answer.info)
    }

    fn update(&self, key: &str, labels: &LabelUpdate) -> Result<Info> {
        let (update_mask, labels) = answers::label_mask(answers::content_labels(labels.clone()));
        let info = Record { name: key.to_owned(), labels, ..Record::default() };
        let message =
            UpdateSnapshotRequest { snapshotter: self.name(), info: Some(info), update_mask };
        let answer = self.ask(key, Pace::Quick, message, |mut client, request| async move {
            client.update(request).await
        })?;
        self.info(answer.info)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        let message = UsageRequest { snapshotter: self.name(), key: key.to_owned() };
        let answer = self.ask(key, Pace::Bulk, message, |mut client, request| async move {
            client.usage(request).await
        })?;
        Ok(Usage {
            size_bytes: answers::size_from(answer.size),
            inodes: answers::size_from(answer.inodes),
        })
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        let message = MountsRequest { snapshotter: self.name(), key: key.to_string() };
        let answer =
            self.ask(key.as_str(), Pace::Quick, message, |mut client, request| async move {
                client.mounts(request).await
            })?;
        Ok(convert::mounts_from(answer.mounts))
    }

    fn prepare(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        let message = PrepareSnapshotRequest {
            snapshotter: self.name(),
            key: key.to_string(),
            parent: parent.map_or_else(String::new, Name::to_string),
            labels: labels.clone(),
        };
        let answer = self
            .ask(key.as_str(), Pace::Bulk, message, |mut client, request| async move {
                client.prepare(request).await
            })
            .map_err(|error| missing_parent(error, parent))?;
        Ok(convert::mounts_from(answer.mounts))
    }

    fn view(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        let message = ViewSnapshotRequest {
            snapshotter: self.name(),
            key: key.to_string(),
            parent: parent.map_or_else(String::new, Name::to_string),
            labels: labels.clone(),
        };
        let answer = self
            .ask(key.as_str(), Pace::Bulk, message, |mut client, request| async move {
                client.view(request).await
            })
            .map_err(|error| missing_parent(error, parent))?;
        Ok(convert::mounts_from(answer.mounts))
    }

    fn commit(&self, name: &Name, key: &Key, options: &CommitOptions) -> Result<()> {
        let message = CommitSnapshotRequest {
            snapshotter: self.name(),
            name: name.to_string(),
            key: key.to_string(),
            labels: options.labels.clone(),
            parent: options.parent.as_ref().map_or_else(String::new, Name::to_string),
        };
        self.ask(key.as_str(), Pace::Bulk, message, |mut client, request| async move {
            client.commit(request).await
        })
        .map_err(|error| match error {
            Error::AlreadyExists(_) => Error::AlreadyExists(name.to_string()),
            error => error,
        })
    }

    fn remove(&self, key: &str) -> Result<()> {
        let message = RemoveSnapshotRequest { snapshotter: self.name(), key: key.to_owned() };
        self.ask(key, Pace::Bulk, message, |mut client, request| async move {
            client.remove(request).await
        })
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        let message = ListSnapshotsRequest { snapshotter: self.name(), ..Default::default() };
        let mut infos = self.ask("", Pace::Quick, message, |mut client, request| async move {
            client.list(request).await
        })?;
        loop {
            let next = self.link.wait(self.link.deadlines().quick, async move {
                infos.message().await.map(|message| (message, infos))
            });
            let (message, rest) = next.map_err(|failure| self.refused("", failure))?;
            infos = rest;
            let Some(message) = message else { return Ok(()) };
            for record in message.info {
                if visit(self.info(Some(record))?).is_break() {
                    return Ok(());
                }
            }
        }
    }

    /// Proxies without a way to clean up have nothing to be cleaned.
    fn cleanup(&self) -> Result<()> {
        let message = CleanupRequest { snapshotter: self.name() };
        let cleaned = self.ask("", Pace::Bulk, message, |mut client, request| async move {
            client.cleanup(request).await
        });
        match cleaned {
            Err(Error::Unsupported { .. }) => Ok(()),
            cleaned => cleaned,
        }
    }
}

/// What is missing when a snapshot is made can only be its parent.
fn missing_parent(error: Error, parent: Option<&Name>) -> Error {
    match (error, parent) {
        (Error::NotFound(_), Some(parent)) => Error::NotFound(parent.to_string()),
        (error, _) => error,
    }
}

/// The namespace of a key of the layer below, `<namespace>/<number>/<key>`.
fn namespace(key: &str) -> &str {
    let mut parts = key.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(namespace), Some(number), Some(_))
            if number.bytes().all(|byte| byte.is_ascii_digit())
                && validate::identifier("namespace", namespace).is_ok() =>
        {
            namespace
        }
        _ => NAMESPACE_DEFAULT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_what_a_key_begins_with() {
        assert_eq!(namespace("moby/12/sha256:abc"), "moby");
        for other in ["sha256:abc", "moby/x/y", "moby/12", "-/1/y", "", "/1/x"] {
            assert_eq!(namespace(other), NAMESPACE_DEFAULT, "{other}");
        }
    }
}
