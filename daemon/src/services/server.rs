//! The sockets and what is served on them.

use std::sync::Arc;
use std::time::Duration;

use crated_api::health::health_server::HealthServer;
use crated_api::network::network_server::NetworkServer;
use crated_api::services::containers::v1::containers_server::ContainersServer;
use crated_api::services::content::v1::content_server::ContentServer;
use crated_api::services::diff::v1::diff_server::DiffServer;
use crated_api::services::events::v1::events_server::EventsServer;
use crated_api::services::images::v1::images_server::ImagesServer;
use crated_api::services::introspection::v1::introspection_server::IntrospectionServer;
use crated_api::services::leases::v1::leases_server::LeasesServer;
use crated_api::services::mounts::v1::mounts_server::MountsServer;
use crated_api::services::namespaces::v1::namespaces_server::NamespacesServer;
use crated_api::services::sandbox::v1::controller_server::ControllerServer;
use crated_api::services::sandbox::v1::store_server::StoreServer;
use crated_api::services::snapshots::v1::snapshots_server::SnapshotsServer;
use crated_api::services::streaming::v1::streaming_server::StreamingServer;
use crated_api::services::tasks::v1::tasks_server::TasksServer;
use crated_api::services::transfer::v1::transfer_server::TransferServer;
use crated_api::services::version::v1::version_server::VersionServer;
use futures_util::{Stream, StreamExt, stream};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tonic::service::Routes;
use tonic::transport::Server;

use super::authority::Lenient;
use super::containers::ContainersService;
use super::content::ContentService;
use super::diff::DiffService;
use super::events::EventsService;
use super::health::HealthService;
use super::images::ImagesService;
use super::introspection::IntrospectionService;
use super::leases::LeasesService;
use super::mounts::MountsService;
use super::namespaces::NamespacesService;
use super::network::NetworkService;
use super::sandbox::{ControllerService, StoreService};
use super::snapshots::SnapshotsService;
use super::streaming::{StreamingService, Streams};
use super::tasks::TasksService;
use super::transfer::TransferService;
use super::version::VersionService;
use crate::metrics::calls::CallLayer;
use crate::recover::Recovery;
use crate::wiring::Daemon;

/// Every service on the gRPC socket. A service that is not here answers Unimplemented, which is
/// how clients find out.
pub fn routes(daemon: &Arc<Daemon>, recovery: Recovery, serving: watch::Receiver<bool>) -> Routes {
    let receive = daemon.config.grpc.max_recv_message_size;
    let send = daemon.config.grpc.max_send_message_size;
    let mut routes = Routes::builder();
    macro_rules! serve {
        ($server:ident($service:expr)) => {
            routes.add_service(
                $server::new($service)
                    .max_decoding_message_size(receive)
                    .max_encoding_message_size(send),
            );
        };
    }
    serve!(VersionServer(VersionService));
    serve!(HealthServer(HealthService::new(serving)));
    serve!(IntrospectionServer(IntrospectionService::new(daemon.clone())));
    serve!(NamespacesServer(NamespacesService::new(daemon.clone())));
    serve!(LeasesServer(LeasesService::new(daemon.clone())));
    serve!(ContentServer(ContentService::new(daemon.clone())));
    serve!(ImagesServer(ImagesService::new(daemon.clone())));
    serve!(SnapshotsServer(SnapshotsService::new(daemon.clone())));
    serve!(MountsServer(MountsService::new(daemon.clone())));
    serve!(DiffServer(DiffService::new(daemon.clone())));
    serve!(ContainersServer(ContainersService::new(daemon.clone())));
    serve!(StoreServer(StoreService::new(daemon.clone())));
    serve!(EventsServer(EventsService::new(daemon.clone())));
    serve!(ControllerServer(ControllerService::new(daemon.clone(), recovery.clone())));
    serve!(TasksServer(TasksService::new(daemon.clone(), recovery)));
    serve!(NetworkServer(NetworkService::new(daemon.clone())));
    let streams = Streams::default();
    serve!(StreamingServer(StreamingService::new(streams.clone())));
    serve!(TransferServer(TransferService::new(daemon.clone(), streams)));
    routes.routes()
}

/// Serves `routes` on `listener`, each call under `measure`, until `stop` resolves, then lets open calls end.
///
/// # Errors
///
/// A connection failure never is; only the transport's own.
pub async fn serve(
    routes: Routes,
    listener: UnixListener,
    measure: CallLayer,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .layer(measure)
        .max_concurrent_streams(Some(STREAMS_MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections(listener), stop)
        .await
}

/// Connections as they come. A listener never fails for good on a unix socket: what it reports is
/// a client that left, or descriptors that ran out and come back.
fn connections(listener: UnixListener) -> impl Stream<Item = Result<Lenient, std::io::Error>> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    stream::unfold((listener, places), |(listener, places)| async move {
        // The next client waits in the kernel's queue while all places are taken.
        let place = Arc::clone(&places).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((connection, _)) => {
                    let connection = Lenient::new(connection).holding(place);
                    return Some((Ok(connection), (listener, places)));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed, trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
    .fuse()
}

/// Connections at a time. A client has one, so this is clients of a very busy host, or a leak.
const CONNECTIONS_MAX: usize = 8192;

/// Calls at a time on one connection: a client may wait there for every container of the host.
const STREAMS_MAX: u32 = 1 << 17;

/// Time for descriptors to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of one call on their way: a chunk of content being written, and the next.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// Bytes of all calls of a connection on their way.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Calls given up before they were looked at. Go clients read content by opening a stream and
/// dropping it when they have enough, many at a time; the library's default takes that for an
/// attack and drops the connection.
const RESETS_MAX: usize = 4096;
