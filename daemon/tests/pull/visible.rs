//! What becomes visible, and what must not.

use crated_api::services::content::v1::InfoRequest;
use crated_api::services::images::v1::GetImageRequest;
use crated_api::services::images::v1::images_client::ImagesClient;
use crated_api::services::snapshots::v1::StatSnapshotRequest;
use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_distribution::Digest;
use crated_distribution::testsuite::MemoryRegistry;
use serde_json::{Value, json};
use tonic::Code;

use crate::common::{Fixture, in_namespace};
use crate::images::{self, INDEX, Layer, MANIFEST, host_architecture};
use crate::support::{NAMESPACE, blob_digests, image_names, pull, snapshot_names, two_layers};

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_image_is_stored_labelled_and_unpacked() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let (lower, upper) = two_layers();
    let root = images::put(&registry, "a/b", Some("1"), host_architecture(), &[&lower, &upper]);
    let name = registry.reference("a/b:1").to_string();

    pull(&fixture, &name).await.unwrap();

    let request = in_namespace(NAMESPACE, GetImageRequest { name: name.clone() });
    let mut client = ImagesClient::new(fixture.channel.clone());
    let image = client.get(request).await.unwrap().into_inner().image.unwrap();
    assert_eq!(image.target.unwrap().digest, root.digest.as_str());
    assert_eq!(blob_digests(&fixture).await.len(), 4);

    let top = crated_snapshot::chain_id(Some(lower.diff_id.as_str()), upper.diff_id.as_str());
    let request = StatSnapshotRequest { snapshotter: "native".to_owned(), key: top };
    let mut client = SnapshotsClient::new(fixture.channel.clone());
    let stat = client.stat(in_namespace(NAMESPACE, request)).await.unwrap().into_inner();
    assert_eq!(stat.info.unwrap().parent, lower.diff_id.as_str());

    let request = InfoRequest { digest: root.digest.to_string() };
    let info = fixture.content().info(in_namespace(NAMESPACE, request)).await.unwrap();
    let labels = info.into_inner().info.unwrap().labels;
    assert!(labels.contains_key("containerd.io/gc.ref.content.config"), "{labels:?}");
    assert!(labels.contains_key("containerd.io/gc.ref.content.l.1"), "{labels:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_not_fetched_again() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let (lower, upper) = two_layers();
    images::put(&registry, "a/b", Some("1"), host_architecture(), &[&lower, &upper]);
    let name = registry.reference("a/b:1").to_string();
    pull(&fixture, &name).await.unwrap();
    let before = registry.requests().len();

    pull(&fixture, &name).await.unwrap();

    let again: Vec<String> = registry.requests().split_off(before);
    assert!(again.iter().all(|request| request.starts_with("HEAD")), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_layers_of_the_wanted_platform_are_fetched() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let (mine, other) = two_layers();
    let wanted = images::put(&registry, "a/b", None, host_architecture(), &[&mine]);
    let foreign = images::put(&registry, "a/b", None, "s390x", &[&other]);
    let entry = |descriptor: &crated_distribution::Descriptor, architecture: &str| {
        json!({
            "mediaType": MANIFEST, "digest": descriptor.digest.as_str(),
            "size": descriptor.size_bytes,
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [entry(&foreign, "s390x"), entry(&wanted, host_architecture())],
    });
    registry.put_manifest("a/b", Some("1"), INDEX, index.to_string().into_bytes());

    pull(&fixture, registry.reference("a/b:1").to_string().as_str()).await.unwrap();

    let blobs = blob_digests(&fixture).await;
    assert!(blobs.contains(&Digest::of(&mine.gzip).to_string()));
    assert!(!blobs.contains(&Digest::of(&other.gzip).to_string()));
    assert_eq!(snapshot_names(&fixture).await, [mine.diff_id.to_string()]);
}

/// Puts an image whose only layer is served as `served` although its descriptor says `promised`.
fn put_lying(registry: &MemoryRegistry, promised: Value, diff_id: &Layer, served: Vec<u8>) {
    let config = images::config(host_architecture(), &[diff_id]);
    let document = images::manifest(&config, &[promised]);
    registry.put_blob("a/b", config);
    registry.put_blob("a/b", served);
    registry.put_manifest("a/b", Some("1"), MANIFEST, document);
}

/// After a failed pull: no image, no snapshot, and the daemon goes on.
async fn nothing_is_left(fixture: &Fixture) {
    assert!(image_names(fixture).await.is_empty());
    assert!(snapshot_names(fixture).await.is_empty());
    let registry = MemoryRegistry::start().await.unwrap();
    let (lower, upper) = two_layers();
    images::put(&registry, "good", Some("1"), host_architecture(), &[&lower, &upper]);
    pull(fixture, registry.reference("good:1").to_string().as_str()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_unfolds_to_something_else_is_refused() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let (named, served) = two_layers();
    put_lying(&registry, served.descriptor(), &named, served.gzip.clone());

    let refused = pull(&fixture, registry.reference("a/b:1").to_string().as_str()).await;

    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("wrong diff id"), "{refused}");
    assert!(refused.message().contains(named.diff_id.as_str()), "{refused}");
    nothing_is_left(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_layer_is_refused() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let (layer, _) = two_layers();
    let half = layer.gzip[..layer.gzip.len() / 2].to_vec();
    let promised = Layer { gzip: half.clone(), diff_id: layer.diff_id.clone() }.descriptor();
    put_lying(&registry, promised, &layer, half);

    let refused = pull(&fixture, registry.reference("a/b:1").to_string().as_str()).await;

    let refused = refused.unwrap_err();
    assert!(refused.message().contains("layer sha256:"), "{refused}");
    nothing_is_left(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_another_size_or_missing_is_refused() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let (layer, _) = two_layers();
    let mut longer = layer.descriptor();
    longer["size"] = json!(layer.gzip.len() + 1);
    put_lying(&registry, longer, &layer, layer.gzip.clone());
    let name = registry.reference("a/b:1").to_string();
    pull(&fixture, &name).await.unwrap_err();

    let mut absent = layer.descriptor();
    absent["digest"] = json!(Digest::of(b"nobody has this").as_str());
    put_lying(&registry, absent, &layer, Vec::new());
    let refused = pull(&fixture, &name).await.unwrap_err();

    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    nothing_is_left(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_not_found_and_nobody_there_is_unavailable() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let missing = pull(&fixture, registry.reference("no/such:1").to_string().as_str()).await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);

    let silent = pull(&fixture, "127.0.0.1:1/a/b:1").await.unwrap_err();
    assert_eq!(silent.code(), Code::Unavailable, "{silent}");
    assert!(silent.message().contains("connection refused"), "{silent}");

    let malformed = pull(&fixture, "no host").await.unwrap_err();
    assert_eq!(malformed.code(), Code::InvalidArgument, "{malformed}");
    nothing_is_left(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_inside_indexes_end_somewhere_and_nothing_is_fetched_twice() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let (layer, _) = two_layers();
    let image = images::put(&registry, "a/b", None, host_architecture(), &[&layer]);
    let entry = |descriptor: &crated_distribution::Descriptor| {
        json!({
            "mediaType": descriptor.media_type, "digest": descriptor.digest.as_str(),
            "size": descriptor.size_bytes,
        })
    };
    let index = |entries: &[Value], tag: Option<&str>| {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        registry.put_manifest("a/b", tag, INDEX, index.to_string().into_bytes())
    };
    index(&[entry(&image), entry(&image), entry(&image)], Some("thrice"));
    let mut nested = index(&[entry(&image)], None);
    for _ in 0..100 {
        nested = index(&[entry(&nested)], Some("deep"));
    }

    let deep = pull(&fixture, registry.reference("a/b:deep").to_string().as_str()).await;
    assert_eq!(deep.unwrap_err().code(), Code::ResourceExhausted);
    let before = registry.requests().len();
    pull(&fixture, registry.reference("a/b:thrice").to_string().as_str()).await.unwrap();

    let manifest = format!("GET /v2/a/b/manifests/{}", image.digest);
    let requests = registry.requests().split_off(before);
    assert_eq!(
        requests.iter().filter(|request| request.starts_with(&manifest)).count(),
        1,
        "{requests:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_meanwhile_does_not_matter() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let (lower, upper) = two_layers();
    let root = images::put(&registry, "a/b", Some("1"), host_architecture(), &[&lower, &upper]);

    pull(&fixture, registry.reference("a/b:1").to_string().as_str()).await.unwrap();

    // The tag is looked up once; all that follows goes by digest.
    let requests = registry.requests();
    let by_tag = requests.iter().filter(|request| request.ends_with("/manifests/1")).count();
    assert_eq!(by_tag, 1, "{requests:?}");
    let by_digest = format!("GET /v2/a/b/manifests/{}", root.digest);
    assert!(requests.iter().any(|request| request.starts_with(&by_digest)), "{requests:?}");
}
