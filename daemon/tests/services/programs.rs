//! Programs of the operator on the way of a pull and of a layer.

use std::path::Path;
use std::sync::Arc;

use crate::common::{Fixture, in_namespace};
use crate::images::{self, Layer, host_architecture};
use crated::config::{Config, ProxyPlugin, StreamProcessor};
use crated_api::any;
use crated_api::services::diff::v1::ApplyRequest;
use crated_api::services::diff::v1::diff_client::DiffClient;
use crated_api::services::transfer::v1::TransferRequest;
use crated_api::services::transfer::v1::transfer_client::TransferClient;
use crated_api::types::transfer::{ImageStore, OciRegistry, RegistryResolver};
use crated_api::types::{Descriptor, Mount};
use crated_content::Digest;
use crated_distribution::testsuite::MemoryRegistry;
use crated_snapshot::testsuite::{is_root, may_run};
use tempfile::TempDir;
use tonic::{Code, Status};

/// Starts a daemon with a configuration that `change` has changed.
pub(crate) async fn start(change: impl FnOnce(&mut Config)) -> Fixture {
    Fixture::start_configured(Arc::new(TempDir::new().unwrap()), change).await
}

async fn pull(daemon: &Fixture, reference: &str) -> Result<(), Status> {
    let resolver = RegistryResolver { default_scheme: "http".into(), ..Default::default() };
    let source = OciRegistry { reference: reference.into(), resolver: Some(resolver) };
    let destination = ImageStore { name: reference.into(), ..ImageStore::default() };
    let request = TransferRequest {
        source: Some(any::pack(&source)),
        destination: Some(any::pack(&destination)),
        options: None,
    };
    let mut client = TransferClient::new(daemon.channel.clone());
    client.transfer(in_namespace("n", request)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_a_verifier_rejects_is_not_pulled() {
    let registry = MemoryRegistry::start().await.unwrap();
    let layer = Layer::of(&[("file", 0o644, b"x")]);
    for repository in ["good", "evil"] {
        images::put(&registry, repository, Some("1"), host_architecture(), &[&layer]);
    }
    let programs = TempDir::new().unwrap();
    let verifier = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/verify.sh");
    std::os::unix::fs::symlink(verifier, programs.path().join("verify")).unwrap();
    let daemon = start(|config| {
        config.plugins.image_verifier.bin_dir = programs.path().to_path_buf();
    })
    .await;
    pull(&daemon, &registry.reference("good:1").to_string()).await.unwrap();
    let rejected = pull(&daemon, &registry.reference("evil:1").to_string()).await.unwrap_err();
    assert_eq!(rejected.code(), Code::PermissionDenied, "{rejected}");
    assert!(rejected.message().contains("verify") && rejected.message().contains("not for us"));
}

fn shell(accepts: &str, script: &str) -> StreamProcessor {
    StreamProcessor {
        accepts: vec![accepts.into()],
        returns: "application/vnd.oci.image.layer.v1.tar".into(),
        path: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Vec::new(),
    }
}

/// Applies a stored blob, as one of a media type, to a directory.
async fn apply(
    daemon: &Fixture,
    media_type: &str,
    digest: String,
    target: &Path,
) -> Result<Descriptor, Status> {
    let diff =
        Descriptor { media_type: media_type.into(), digest, size: 1, ..Descriptor::default() };
    let bind = Mount {
        r#type: "bind".into(),
        source: target.display().to_string(),
        options: vec!["rbind".into(), "rw".into()],
        ..Mount::default()
    };
    let request = ApplyRequest { diff: Some(diff), mounts: vec![bind], ..Default::default() };
    let mut client = DiffClient::new(daemon.channel.clone());
    let applied = client.apply(in_namespace("n", request)).await?;
    Ok(applied.into_inner().applied.unwrap())
}

/// A tar with one file, and the same with every byte flipped.
fn layer() -> (Vec<u8>, Vec<u8>) {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(5);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", &b"hello"[..]).unwrap();
    let tar = builder.into_inner().unwrap();
    let turned = tar.iter().rev().copied().collect();
    (tar, turned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_another_type_passes_through_its_processor() {
    if !may_run(is_root(), "applying needs root") {
        return;
    }
    let daemon = start(|config| {
        let tag = "application/x+tagged";
        config.stream_processors.insert("untag".into(), shell(tag, "tail -c +4"));
        let broken = shell("application/x+broken", "cat >/dev/null; echo no key >&2; exit 3");
        config.stream_processors.insert("broken".into(), broken);
    })
    .await;
    let target = TempDir::new().unwrap();
    let (tar, turned) = layer();
    let tagged = [b"tag", &tar[..]].concat();
    let tagged = daemon.store("n", &tagged).await;
    let applied = apply(&daemon, "application/x+tagged", tagged, target.path()).await.unwrap();
    assert_eq!(applied.digest, Digest::of(&tar).to_string(), "the diff id is that of the tar");
    assert_eq!(std::fs::read_to_string(target.path().join("file")).unwrap(), "hello");

    let turned = daemon.store("n", &turned).await;
    let broken = apply(&daemon, "application/x+broken", turned.clone(), target.path()).await;
    let error = broken.unwrap_err();
    assert!(error.message().contains("exit code 3: no key"), "{error}");
    let error = apply(&daemon, "application/x+other", turned, target.path()).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Code::Unknown);
    assert!(error.message().contains("no processor for media-type"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn differs_are_asked_in_turn() {
    if !may_run(is_root(), "applying needs root") {
        return;
    }
    let far = Fixture::start().await;
    let socket = far.directory.path().join("c.sock");
    let proxy = ProxyPlugin { kind: "diff".into(), address: socket, ..Default::default() };
    let near = start(|config| {
        config.proxy_plugins.insert("far".into(), proxy);
        config.plugins.diff.default = vec!["unknown".into(), "far".into(), "walking".into()];
    })
    .await;
    let (target, (tar, _)) = (TempDir::new().unwrap(), layer());
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    // The blob is here and not there: it was the other side that looked for it.
    let digest = near.store("n", &tar).await;
    let missing = apply(&near, layer_type, digest.clone(), target.path()).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing}");
    far.store("n", &tar).await;
    let applied = apply(&near, layer_type, digest, target.path()).await.unwrap();
    assert_eq!(applied.digest, Digest::of(&tar).to_string());
}
