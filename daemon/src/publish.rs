//! `crated publish`: an event handed in on standard input, for shims that do not speak ttrpc.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crated_api::Any;
use crated_api::services::events::v1::PublishRequest;
use crated_api::services::events::v1::events_client::EventsClient;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::Endpoint;

use crate::error::{Error, Result};
use crate::services::HEADER_NAMESPACE;

/// Largest event: the limit of a ttrpc message, the other way in.
const EVENT_BYTES_MAX: u64 = 4 << 20;

/// A shim waits for the command, and must not wait for a daemon that hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// Publishes the packed event that `input` holds.
///
/// # Errors
///
/// [`Error::Io`] when the event cannot be read or the daemon at `address` does not take it.
pub async fn publish(address: &Path, namespace: &str, topic: &str, input: impl Read) -> Result<()> {
    let fail = |step| move |source| Error::Io { object: "event".to_owned(), step, source };
    let mut bytes = Vec::new();
    input.take(EVENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(fail("read"))?;
    if bytes.len() as u64 > EVENT_BYTES_MAX {
        let reason = format!("larger than {EVENT_BYTES_MAX} bytes");
        return Err(fail("read")(io::Error::other(reason)));
    }
    let event = Any::decode(bytes.as_slice()).map_err(io::Error::other).map_err(fail("decode"))?;
    let mut request = Request::new(PublishRequest { topic: topic.to_owned(), event: Some(event) });
    let namespace = namespace.parse().map_err(io::Error::other).map_err(fail("address"))?;
    request.metadata_mut().insert(HEADER_NAMESPACE, namespace);
    let sending = tokio::time::timeout(PATIENCE, send(address.to_path_buf(), request));
    let sent = sending.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    sent.map_err(|source| Error::io("publish to", address, source))
}

async fn send(address: PathBuf, request: Request<PublishRequest>) -> io::Result<()> {
    let dial = tower::service_fn(move |_| {
        let address = address.clone();
        async move { UnixStream::connect(address).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(dial)
        .await
        .map_err(io::Error::other)?;
    let answer = EventsClient::new(channel).publish(request).await;
    answer.map(drop).map_err(|status| io::Error::other(status.message().to_owned()))
}
