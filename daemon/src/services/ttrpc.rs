//! `containerd.services.events.ttrpc.v1.Events`, on a socket of its own: where shims deliver what
//! happened to their containers.

use std::sync::Arc;

use async_trait::async_trait;
use crated_api::services::events::ttrpc::v1::ForwardRequest;
use crated_exec::ttrpc::{Context, Server, Service};
use crated_exec::{Error, Result};
use prost::Message;

use super::events::envelope;
use crate::wiring::Daemon;

/// The name shims call.
const NAME: &str = "containerd.services.events.ttrpc.v1.Events";

/// The services of the ttrpc socket.
pub fn server(daemon: Arc<Daemon>) -> Server {
    Server::new().service(NAME, Arc::new(Events { daemon }))
}

struct Events {
    daemon: Arc<Daemon>,
}

#[async_trait]
impl Service for Events {
    async fn call(&self, _: Context, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        if method != "Forward" {
            return Err(Error::Unimplemented(format!("method {NAME}/{method}")));
        }
        let request = ForwardRequest::decode(payload)
            .map_err(|error| Error::InvalidArgument(format!("malformed request: {error}")))?;
        let envelope = envelope(request.envelope).map_err(|error| refused(&error))?;
        self.daemon.events.forward(envelope).map_err(|error| refused(&error.into()))?;
        Ok(Vec::new())
    }
}

fn refused(status: &tonic::Status) -> Error {
    Error::from_code(status.code().into(), status.message().to_owned())
}
