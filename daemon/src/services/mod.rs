//! The gRPC and ttrpc services: each unpacks a request, calls one layer below and packs the answer.
//!
//! Namespaces, leases, events and labels happened below, in [`metadata`](crate::metadata). What
//! services share is here, in [`convert`] and in [`status`]; which of them are served is listed in
//! [`server`].

pub mod authority;
pub mod bytes;
pub mod containers;
pub mod content;
pub mod convert;
pub mod diff;
pub mod events;
pub mod health;
mod huffman;
pub mod images;
pub mod introspection;
pub mod leases;
pub mod mounts;
pub mod namespaces;
pub mod network;
pub mod progress;
pub mod sandbox;
pub mod server;
pub mod snapshots;
pub mod socket;
pub mod status;
pub mod streaming;
pub mod tasks;
pub mod transfer;
pub mod ttrpc;
pub mod version;

use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::metadata::{Namespace, Scope};
use crate::wiring::Daemon;

/// The namespace of a call.
pub const HEADER_NAMESPACE: &str = "containerd-namespace";

/// The lease that everything a call touches is attached to.
pub const HEADER_LEASE: &str = "containerd-lease";

/// Records per message where a list is streamed: what clients are used to.
const BATCH_MAX: usize = 100;

/// Answers of a streaming call.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The namespace and the lease of a call.
///
/// # Errors
///
/// FailedPrecondition without a namespace, InvalidArgument for one that cannot be.
pub fn scope<T>(request: &Request<T>) -> Result<Scope, Status> {
    scope_of(request.metadata())
}

/// As [`scope`], from the headers alone.
///
/// # Errors
///
/// Those of [`scope`].
pub fn scope_of(headers: &MetadataMap) -> Result<Scope, Status> {
    let namespace = header(headers, HEADER_NAMESPACE)?
        .ok_or_else(|| status::precondition("namespace is required"))?;
    let scope = Scope::new(namespace.parse::<Namespace>()?);
    Ok(match header(headers, HEADER_LEASE)? {
        Some(lease) => scope.with_lease(lease),
        None => scope,
    })
}

/// A header as text; absent and empty are the same. Of several values the first counts: clients
/// put the newest in front.
fn header<'a>(headers: &'a MetadataMap, name: &str) -> Result<Option<&'a str>, Status> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = std::str::from_utf8(value.as_encoded_bytes())
        .map_err(|_| status::invalid(format!("header {name}: not UTF-8")))?;
    Ok((!text.is_empty()).then_some(text))
}

/// Runs work on records beside the async services.
async fn quick<T, E, F>(daemon: &Arc<Daemon>, work: F) -> Result<T, Status>
where
    T: Send + 'static,
    E: Into<Status> + Send + 'static,
    F: FnOnce(&Daemon) -> Result<T, E> + Send + 'static,
{
    let shared = Arc::clone(daemon);
    daemon.blocking.quick(move || work(&shared)).await?.map_err(Into::into)
}

/// Runs work that moves bytes beside the async services.
async fn bulk<T, E, F>(daemon: &Arc<Daemon>, work: F) -> Result<T, Status>
where
    T: Send + 'static,
    E: Into<Status> + Send + 'static,
    F: FnOnce(&Daemon) -> Result<T, E> + Send + 'static,
{
    let shared = Arc::clone(daemon);
    daemon.blocking.bulk(move || work(&shared)).await?.map_err(Into::into)
}

/// Streams `items`, up to [`BATCH_MAX`] in a message. No items, no message.
fn batches<T, M>(items: Vec<T>, pack: fn(Vec<T>) -> M) -> Answers<M>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let mut items = items.into_iter();
    Box::pin(tokio_stream::iter(std::iter::from_fn(move || {
        let batch: Vec<T> = items.by_ref().take(BATCH_MAX).collect();
        (!batch.is_empty()).then(|| Ok(pack(batch)))
    })))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_call_needs_a_valid_namespace() {
        let mut request = Request::new(());
        assert_eq!(scope(&request).unwrap_err().code(), Code::FailedPrecondition);
        request.metadata_mut().insert(HEADER_NAMESPACE, "".parse().unwrap());
        assert_eq!(scope(&request).unwrap_err().code(), Code::FailedPrecondition);
        request.metadata_mut().insert(HEADER_NAMESPACE, "-x".parse().unwrap());
        assert_eq!(scope(&request).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn the_first_of_repeated_headers_counts() {
        let mut request = Request::new(());
        request.metadata_mut().append(HEADER_NAMESPACE, "newest".parse().unwrap());
        request.metadata_mut().append(HEADER_NAMESPACE, "older".parse().unwrap());
        request.metadata_mut().insert(HEADER_LEASE, "l".parse().unwrap());
        let scope = scope(&request).unwrap();
        assert_eq!(scope.namespace.as_str(), "newest");
        assert_eq!(scope.lease.as_deref(), Some("l"));
    }
}
