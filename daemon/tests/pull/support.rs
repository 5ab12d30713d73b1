//! What the tests of pulling share.

use crated_api::any;
use crated_api::services::content::v1::ListContentRequest;
use crated_api::services::images::v1::ListImagesRequest;
use crated_api::services::images::v1::images_client::ImagesClient;
use crated_api::services::snapshots::v1::ListSnapshotsRequest;
use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_api::services::transfer::v1::TransferRequest;
use crated_api::services::transfer::v1::transfer_client::TransferClient;
use crated_api::types::Platform;
use crated_api::types::transfer::{ImageStore, OciRegistry, RegistryResolver, UnpackConfiguration};
use tonic::Status;
use tonic::transport::Channel;

use crate::common::{Fixture, in_namespace};
use crate::images::{Layer, host_architecture};

pub(crate) const NAMESPACE: &str = "pulls";

pub(crate) fn two_layers() -> (Layer, Layer) {
    let lower = Layer::of(&[("etc/a", 0o644, b"lower"), ("etc/b", 0o600, b"kept")]);
    let upper = Layer::of(&[("etc/.wh.a", 0o644, b""), ("etc/c", 0o644, b"upper")]);
    (lower, upper)
}

pub(crate) fn host() -> Platform {
    Platform {
        os: "linux".to_owned(),
        architecture: host_architecture().to_owned(),
        ..Platform::default()
    }
}

pub(crate) async fn pull(fixture: &Fixture, reference: &str) -> Result<(), Status> {
    pull_into(fixture.channel.clone(), reference, "native").await
}

/// Pulls and unpacks an image for this host.
pub(crate) async fn pull_into(
    channel: Channel,
    reference: &str,
    snapshotter: &str,
) -> Result<(), Status> {
    let source = OciRegistry {
        reference: reference.to_owned(),
        resolver: Some(RegistryResolver {
            default_scheme: "http".to_owned(),
            ..RegistryResolver::default()
        }),
    };
    let destination = ImageStore {
        name: reference.to_owned(),
        platforms: vec![host()],
        unpacks: vec![UnpackConfiguration {
            platform: Some(host()),
            snapshotter: snapshotter.to_owned(),
        }],
        ..ImageStore::default()
    };
    let request = TransferRequest {
        source: Some(any::pack(&source)),
        destination: Some(any::pack(&destination)),
        options: None,
    };
    let mut client = TransferClient::new(channel);
    client.transfer(in_namespace(NAMESPACE, request)).await.map(drop)
}

pub(crate) async fn image_names(fixture: &Fixture) -> Vec<String> {
    let request = in_namespace(NAMESPACE, ListImagesRequest::default());
    let answer = ImagesClient::new(fixture.channel.clone()).list(request).await.unwrap();
    answer.into_inner().images.into_iter().map(|image| image.name).collect()
}

pub(crate) async fn snapshot_names(fixture: &Fixture) -> Vec<String> {
    snapshot_names_of(fixture, "native").await
}

pub(crate) async fn snapshot_names_of(fixture: &Fixture, snapshotter: &str) -> Vec<String> {
    snapshots_on(&fixture.channel, snapshotter).await
}

/// The names of all snapshots of the daemon that `channel` leads to.
pub(crate) async fn snapshots_on(channel: &Channel, snapshotter: &str) -> Vec<String> {
    let request = ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), filters: Vec::new() };
    let mut client = SnapshotsClient::new(channel.clone());
    let mut stream = client.list(in_namespace(NAMESPACE, request)).await.unwrap().into_inner();
    let mut names = Vec::new();
    while let Some(batch) = stream.message().await.unwrap() {
        names.extend(batch.info.into_iter().map(|info| info.name));
    }
    names
}

pub(crate) async fn blob_digests(fixture: &Fixture) -> Vec<String> {
    let request = in_namespace(NAMESPACE, ListContentRequest::default());
    let mut stream = fixture.content().list(request).await.unwrap().into_inner();
    let mut digests = Vec::new();
    while let Some(batch) = stream.message().await.unwrap() {
        digests.extend(batch.info.into_iter().map(|info| info.digest));
    }
    digests
}
