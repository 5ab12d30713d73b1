//! `containerd.services.events.v1.Events`.

use std::sync::Arc;

use crated_api::services::events::v1::events_server::Events;
use crated_api::services::events::v1::{ForwardRequest, PublishRequest, SubscribeRequest};
use crated_api::types;
use futures_util::StreamExt;
use tonic::{Request, Response, Status};

use super::{Answers, convert, scope, status};
use crate::events::{Envelope, zero_time};
use crate::filters::Filters;
use crate::wiring::Daemon;

/// The event bus, for gRPC clients.
#[derive(Clone)]
pub struct EventsService {
    daemon: Arc<Daemon>,
}

impl EventsService {
    /// Serves the events of `daemon`.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }
}

#[tonic::async_trait]
impl Events for EventsService {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<()>, Status> {
        let namespace = scope(&request)?.namespace;
        let PublishRequest { topic, event } = request.into_inner();
        let event = event.ok_or_else(|| status::invalid("event: missing"))?;
        self.daemon.events.publish(&namespace, &topic, event)?;
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<()>, Status> {
        let envelope = envelope(request.into_inner().envelope)?;
        self.daemon.events.forward(envelope)?;
        Ok(Response::new(()))
    }

    type SubscribeStream = Answers<types::Envelope>;

    /// Events of all namespaces: a filter narrows them, the caller's namespace does not. The
    /// stream ends with the daemon, or when the reader has fallen hopelessly behind.
    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let filters = Filters::parse(&request.into_inner().filters)?;
        let mut stopping = self.daemon.stopping();
        let events = self
            .daemon
            .events
            .subscribe(filters)
            .map(|next| next.map(|envelope| message(&envelope)).map_err(Status::from))
            .take_until(async move { drop(stopping.wait_for(|stopping| *stopping).await) });
        Ok(Response::new(Box::pin(events)))
    }
}

/// An envelope a client or a shim sent. Without a time it gets the one that means none.
pub(super) fn envelope(envelope: Option<types::Envelope>) -> Result<Envelope, Status> {
    let envelope = envelope.ok_or_else(|| status::invalid("envelope: missing"))?;
    Ok(Envelope {
        timestamp: envelope.timestamp.map_or(Ok(zero_time()), convert::system_time)?,
        namespace: envelope.namespace,
        topic: envelope.topic,
        event: envelope.event.unwrap_or_default(),
    })
}

/// An envelope made on behalf of a dead shim.
pub(crate) fn shim_envelope(from: crated_exec::proto::types::Envelope) -> Result<Envelope, Status> {
    envelope(Some(types::Envelope {
        timestamp: from.timestamp,
        namespace: from.namespace,
        topic: from.topic,
        event: from.event,
    }))
}

fn message(envelope: &Envelope) -> types::Envelope {
    types::Envelope {
        timestamp: Some(convert::timestamp(envelope.timestamp)),
        namespace: envelope.namespace.clone(),
        topic: envelope.topic.clone(),
        event: Some(envelope.event.clone()),
    }
}
