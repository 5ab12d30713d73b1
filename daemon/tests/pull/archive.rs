//! Archives in and out, and what other programs make of them.

use std::path::Path;
use std::process::Command;

use crated_api::any;
use crated_api::services::images::v1::images_client::ImagesClient;
use crated_api::services::streaming::v1::StreamInit;
use crated_api::services::streaming::v1::streaming_client::StreamingClient;
use crated_api::services::transfer::v1::TransferRequest;
use crated_api::services::transfer::v1::transfer_client::TransferClient;
use crated_api::types::transfer::{
    Data, ImageExportStream, ImageImportStream, ImageReference, ImageStore, OciRegistry,
    RegistryResolver, UnpackConfiguration, WindowUpdate,
};
use crated_api::{Any, services::images::v1::GetImageRequest};
use crated_distribution::testsuite::MemoryRegistry;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status};

use crate::common::{Fixture, in_namespace};
use crate::images::{self, host_architecture};
use crate::support::{
    NAMESPACE, blob_digests, host, image_names, pull_into, snapshot_names_of, two_layers,
};

/// Two directions of a stream that the daemon knows by name.
struct Stream {
    send: mpsc::UnboundedSender<Any>,
    receive: tonic::Streaming<Any>,
}

async fn open(fixture: &Fixture, id: &str) -> Stream {
    open_in(fixture, NAMESPACE, id).await
}

async fn open_in(fixture: &Fixture, namespace: &str, id: &str) -> Stream {
    let (send, outgoing) = mpsc::unbounded_channel();
    send.send(any::pack(&StreamInit { id: id.to_owned() })).unwrap();
    let request = in_namespace(namespace, UnboundedReceiverStream::new(outgoing));
    let mut client = StreamingClient::new(fixture.channel.clone());
    let mut receive = client.stream(request).await.unwrap().into_inner();
    receive.message().await.unwrap().unwrap();
    Stream { send, receive }
}

/// Sends `bytes` as the protocol has it: no more than was granted, 32 KiB at a time. The other
/// direction stays open for as long as the caller keeps it: hanging up is giving up.
async fn send(mut stream: Stream, bytes: Vec<u8>) -> tonic::Streaming<Any> {
    let (mut rest, mut window) = (&bytes[..], 0);
    while !rest.is_empty() {
        while window == 0 {
            let Some(Ok(message)) = stream.receive.next().await else { return stream.receive };
            let grant: WindowUpdate = any::unpack(&message).unwrap();
            window += usize::try_from(grant.update).unwrap();
        }
        let length = rest.len().min(window).min(32 << 10);
        let data = Data { data: rest[..length].to_vec().into() };
        if stream.send.send(any::pack(&data)).is_err() {
            return stream.receive;
        }
        (rest, window) = (&rest[length..], window - length);
    }
    stream.receive
}

async fn receive(mut stream: Stream) -> Vec<u8> {
    let (mut bytes, mut granted) = (Vec::new(), 0);
    loop {
        if granted == 0 {
            granted = 64 << 10;
            stream.send.send(any::pack(&WindowUpdate { update: 64 << 10 })).unwrap();
        }
        let Some(Ok(message)) = stream.receive.next().await else { return bytes };
        let data: Data = any::unpack(&message).unwrap();
        assert!(data.data.len() <= granted.min(32 << 10), "more than was granted");
        granted -= data.data.len();
        bytes.extend_from_slice(&data.data);
    }
}

async fn transfer(fixture: &Fixture, source: Any, destination: Any) -> Result<(), Status> {
    transfer_in(fixture, NAMESPACE, source, destination).await
}

async fn transfer_in(
    fixture: &Fixture,
    namespace: &str,
    source: Any,
    destination: Any,
) -> Result<(), Status> {
    let request =
        TransferRequest { source: Some(source), destination: Some(destination), options: None };
    let mut client = TransferClient::new(fixture.channel.clone());
    client.transfer(in_namespace(namespace, request)).await.map(drop)
}

async fn export(fixture: &Fixture, name: &str) -> Result<Vec<u8>, Status> {
    let received = tokio::spawn(receive(open(fixture, "export").await));
    let source = ImageStore { name: name.to_owned(), ..ImageStore::default() };
    let destination = ImageExportStream { stream: "export".to_owned(), ..Default::default() };
    transfer(fixture, any::pack(&source), any::pack(&destination)).await?;
    Ok(received.await.unwrap())
}

async fn import(fixture: &Fixture, archive: Vec<u8>) -> Result<(), Status> {
    import_in(fixture, NAMESPACE, archive).await
}

async fn import_in(fixture: &Fixture, namespace: &str, archive: Vec<u8>) -> Result<(), Status> {
    let sent = tokio::spawn(send(open_in(fixture, namespace, "import").await, archive));
    let source = ImageImportStream { stream: "import".to_owned(), ..Default::default() };
    let reference = ImageReference {
        name: "imported.test/x".to_owned(),
        is_prefix: true,
        allow_overwrite: true,
        ..ImageReference::default()
    };
    let destination = ImageStore {
        platforms: vec![host()],
        unpacks: vec![UnpackConfiguration {
            platform: Some(host()),
            snapshotter: "overlayfs".to_owned(),
        }],
        extra_references: vec![reference],
        ..ImageStore::default()
    };
    let (source, destination) = (any::pack(&source), any::pack(&destination));
    let imported = transfer_in(fixture, namespace, source, destination).await;
    sent.await.unwrap();
    imported
}

async fn digest_of(fixture: &Fixture, name: &str) -> String {
    let request = in_namespace(NAMESPACE, GetImageRequest { name: name.to_owned() });
    let answer = ImagesClient::new(fixture.channel.clone()).get(request).await.unwrap();
    answer.into_inner().image.unwrap().target.unwrap().digest
}

fn skopeo(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("skopeo").args(arguments).output().expect("skopeo is installed");
    let reason = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "skopeo {arguments:?}: {reason}");
    output.stdout
}

async fn pulled(fixture: &Fixture) -> (MemoryRegistry, String) {
    let registry = MemoryRegistry::start().await.unwrap();
    let (lower, upper) = two_layers();
    images::put(&registry, "a/b", Some("1"), host_architecture(), &[&lower, &upper]);
    let name = registry.reference("a/b:1").to_string();
    pull_into(fixture.channel.clone(), &name, "overlayfs").await.unwrap();
    (registry, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_imported_byte_for_byte() {
    let (first, second) = (Fixture::start().await, Fixture::start().await);
    let (_registry, name) = pulled(&first).await;

    let archive = export(&first, &name).await.unwrap();
    import(&second, archive.clone()).await.unwrap();

    assert_eq!(image_names(&second).await, std::slice::from_ref(&name));
    assert_eq!(digest_of(&second, &name).await, digest_of(&first, &name).await);
    assert_eq!(snapshot_names_of(&second, "overlayfs").await.len(), 2);
    assert_eq!(export(&second, &name).await.unwrap(), archive, "the same image, the same bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_namespace_has_is_imported_all_the_same() {
    let fixture = Fixture::start().await;
    let (_registry, name) = pulled(&fixture).await;
    let archive = export(&fixture, &name).await.unwrap();

    import_in(&fixture, "elsewhere", archive).await.unwrap();

    let request = in_namespace("elsewhere", GetImageRequest { name });
    let answer = ImagesClient::new(fixture.channel.clone()).get(request).await.unwrap();
    assert!(answer.into_inner().image.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reads_what_is_exported_and_the_daemon_what_skopeo_writes() {
    let fixture = Fixture::start().await;
    let (_registry, name) = pulled(&fixture).await;
    let at = |file: &str| fixture.directory.path().join(file).display().to_string();
    let digest = digest_of(&fixture, &name).await;

    std::fs::write(at("ours.tar"), export(&fixture, &name).await.unwrap()).unwrap();
    let ours = format!("oci-archive:{}", at("ours.tar"));
    let theirs = format!("oci-archive:{}:theirs", at("theirs.tar"));
    tokio::task::block_in_place(|| {
        let raw = skopeo(&["inspect", "--raw", &ours]);
        assert_eq!(crated_distribution::Digest::of(&raw).to_string(), digest);
        skopeo(&["copy", "-q", "--preserve-digests", &ours, &theirs]);
        let docker = format!("docker-archive:{}:docker.test/da:1", at("docker.tar"));
        skopeo(&["copy", "-q", &ours, &docker]);
    });

    import(&fixture, std::fs::read(at("theirs.tar")).unwrap()).await.unwrap();
    assert_eq!(digest_of(&fixture, "imported.test/x:theirs").await, digest);
    import(&fixture, std::fs::read(at("docker.tar")).unwrap()).await.unwrap();
    assert!(image_names(&fixture).await.contains(&"docker.test/da:1".to_owned()));
    umoci_unpacks(&fixture, Path::new(&at("theirs.tar")));
}

/// Another program unpacks the archive to what the image says.
fn umoci_unpacks(fixture: &Fixture, archive: &Path) {
    let directory = fixture.directory.path();
    let (layout, bundle) = (directory.join("layout"), directory.join("bundle"));
    tokio::task::block_in_place(|| {
        skopeo(&[
            "copy",
            "-q",
            &format!("oci-archive:{}:theirs", archive.display()),
            &format!("oci:{}:theirs", layout.display()),
        ]);
        let image = format!("{}:theirs", layout.display());
        let output = Command::new("umoci")
            .args(["unpack", "--image", &image])
            .arg(&bundle)
            .output()
            .expect("umoci is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
    assert_eq!(std::fs::read(bundle.join("rootfs/etc/c")).unwrap(), b"upper");
    assert!(!bundle.join("rootfs/etc/a").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_ends_early_leaves_no_image() {
    let fixture = Fixture::start().await;
    let (_registry, name) = pulled(&fixture).await;
    let archive = export(&fixture, &name).await.unwrap();
    let second = Fixture::start().await;

    for length in [0, 700, archive.len() / 2] {
        let refused = import(&second, archive[..length].to_vec()).await.unwrap_err();
        assert_ne!(refused.code(), Code::Internal, "{refused}");
    }

    assert!(image_names(&second).await.is_empty());
    import(&second, archive).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_and_pulled_again() {
    let fixture = Fixture::start().await;
    let (_source, name) = pulled(&fixture).await;
    let registry = MemoryRegistry::start().await.unwrap();
    let pushed = registry.reference("pushed/to:2").to_string();

    let source = ImageStore { name: name.clone(), ..ImageStore::default() };
    let destination = OciRegistry {
        reference: pushed.clone(),
        resolver: Some(RegistryResolver {
            default_scheme: "http".to_owned(),
            ..RegistryResolver::default()
        }),
    };
    transfer(&fixture, any::pack(&source), any::pack(&destination)).await.unwrap();

    let second = Fixture::start().await;
    pull_into(second.channel.clone(), &pushed, "overlayfs").await.unwrap();
    assert_eq!(digest_of(&second, &pushed).await, digest_of(&fixture, &name).await);
    let mut blobs = blob_digests(&second).await;
    let mut before = blob_digests(&fixture).await;
    blobs.sort();
    before.sort();
    assert_eq!(blobs, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_go_in_come_out() {
    let fixture = Fixture::start().await;
    let bytes = images::noise(3_000_000);
    let received = tokio::spawn(receive(open(&fixture, "out").await));
    let sent = tokio::spawn(send(open(&fixture, "in").await, bytes.clone()));
    let source = ImageImportStream { stream: "in".to_owned(), ..Default::default() };
    let destination = ImageExportStream { stream: "out".to_owned(), ..Default::default() };

    transfer(&fixture, any::pack(&source), any::pack(&destination)).await.unwrap();

    sent.await.unwrap();
    assert!(received.await.unwrap() == bytes);
}
