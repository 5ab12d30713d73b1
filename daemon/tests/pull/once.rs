//! Identical work is done once, and nothing is left of work that failed.

use std::time::Duration;

use crated_distribution::Digest;
use crated_distribution::testsuite::MemoryRegistry;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::common::{Fixture, until};
use crate::gate::Gate;
use crate::images::{self, Layer, MANIFEST, host_architecture};
use crate::support::{image_names, pull_into, snapshot_names_of};

const PULLS: usize = 100;

fn layers(count: usize) -> Vec<Layer> {
    let name = |number: usize| format!("dir{number}/file");
    (0..count)
        .map(|number| Layer::of(&[(&name(number), 0o644, format!("{number}").as_bytes())]))
        .collect()
}

fn put(registry: &MemoryRegistry, layers: &[Layer]) -> String {
    let layers: Vec<&Layer> = layers.iter().collect();
    images::put(registry, "a/b", Some("1"), host_architecture(), &layers);
    registry.reference("a/b:1").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pulls_of_one_image_fetch_and_unpack_everything_once() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let layers = layers(5);
    let name = put(&registry, &layers);

    let mut pulls = JoinSet::new();
    for _ in 0..PULLS {
        let (channel, name) = (fixture.channel.clone(), name.clone());
        pulls.spawn(async move { pull_into(channel, &name, "overlayfs").await });
    }
    while let Some(pulled) = pulls.join_next().await {
        pulled.unwrap().unwrap();
    }

    let requests = registry.requests();
    for layer in &layers {
        let blob = format!("GET /v2/a/b/blobs/{}", Digest::of(&layer.gzip));
        let fetched = requests.iter().filter(|request| request.starts_with(&blob)).count();
        assert_eq!(fetched, 1, "{blob}");
    }
    let counts = fixture.running.daemon().pipeline.counters.counts();
    assert_eq!(counts.layers_applied, 5, "{counts:?}");
    assert_eq!(counts.failures, 0, "{counts:?}");
    assert_eq!(snapshot_names_of(&fixture, "overlayfs").await.len(), 5);
    // The same where operators look.
    let metrics = fixture.running.daemon().metrics_text();
    for line in [
        "crated_pull_layers_applied_total 5".to_owned(),
        format!("crated_pull_blobs_fetched_total {}", counts.blobs_fetched),
        format!("crated_pull_fetches_awaited_total {}", counts.fetches_awaited),
        "crated_pull_failures_total 0".to_owned(),
        format!("crated_pull_stage_seconds_count{{stage=\"resolve\"}} {PULLS}"),
        "crated_pull_stage_seconds_count{stage=\"fetch\"} 5".to_owned(),
        "crated_pull_stage_seconds_count{stage=\"commit\"} 5".to_owned(),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    assert!(metrics.contains("crated_pull_stage_seconds_count{stage=\"unpack\"}"), "{metrics}");
}

/// An image whose layer `bad` is not what the configuration names.
fn put_bad(registry: &MemoryRegistry, layers: &[Layer], bad: usize) -> String {
    let config = images::config(host_architecture(), &layers.iter().collect::<Vec<_>>());
    let other = Layer::of(&[("something/else", 0o644, b"?")]);
    let served = |number: usize| if number == bad { &other } else { &layers[number] };
    let descriptors: Vec<Value> =
        (0..layers.len()).map(|number| served(number).descriptor()).collect();
    for number in 0..layers.len() {
        registry.put_blob("a/b", served(number).gzip.clone());
    }
    let document = images::manifest(&config, &descriptors);
    registry.put_blob("a/b", config);
    registry.put_manifest("a/b", Some("1"), MANIFEST, document);
    registry.reference("a/b:1").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_layer_is_wrong_nothing_half_made_is_left() {
    let layers = layers(4);
    for snapshotter in ["overlayfs", "native"] {
        for bad in 0..layers.len() {
            let fixture = Fixture::start().await;
            let registry = MemoryRegistry::start().await.unwrap();
            let name = put_bad(&registry, &layers, bad);

            let refused = pull_into(fixture.channel.clone(), &name, snapshotter).await;

            let refused = refused.unwrap_err();
            assert!(refused.message().contains("wrong diff id"), "{refused}");
            assert!(image_names(&fixture).await.is_empty());
            // Those below are whole; nothing keeps them but the lease, which has ended.
            let mut parent: Option<String> = None;
            let mut whole = Vec::new();
            for layer in &layers[..bad] {
                let chain = crated_snapshot::chain_id(parent.as_deref(), layer.diff_id.as_str());
                parent = Some(chain.clone());
                whole.push(chain);
            }
            let left = snapshot_names_of(&fixture, snapshotter).await;
            assert!(left.iter().all(|name| whole.contains(name)), "{left:?}");
            put(&registry, &layers);
            pull_into(fixture.channel.clone(), &name, snapshotter).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gives_up_leaves_nothing_half_made() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let gate = Gate::before(registry.address()).await;
    let large = Layer::of(&[("large", 0o644, &images::noise(4 << 20))]);
    images::put(&registry, "a/b", Some("1"), host_architecture(), &[&large, &layers(1)[0]]);
    let name = format!("{}/a/b:1", gate.address);

    gate.allow(1 << 20);
    let (channel, pulled) = (fixture.channel.clone(), name.clone());
    let pull = tokio::spawn(async move { pull_into(channel, &pulled, "overlayfs").await });
    until("the layer is on its way", async || gate.passed() >= 1 << 20).await;
    pull.abort();
    let _ = pull.await;

    until("its snapshots are gone", async || {
        let left = snapshot_names_of(&fixture, "overlayfs").await;
        left.iter().all(|name| name.starts_with("sha256:"))
    })
    .await;
    assert!(image_names(&fixture).await.is_empty());
    gate.open();
    let again = pull_into(fixture.channel.clone(), &name, "overlayfs");
    tokio::time::timeout(Duration::from_secs(120), again).await.unwrap().unwrap();
}
