//! A daemon that is killed goes on where it was.

use crated_api::services::content::v1::ListStatusesRequest;
use crated_api::services::content::v1::content_client::ContentClient;
use crated_distribution::testsuite::MemoryRegistry;
use rustix::process::Signal;
use tonic::transport::Channel;

use crate::common::{self, in_namespace, until};
use crate::gate::Gate;
use crate::images::{self, Layer, host_architecture};
use crate::process::Process;
use crate::support::{NAMESPACE, pull_into, snapshots_on};

/// How far the ingest of the layer is, in bytes.
async fn offset(channel: &Channel) -> u64 {
    let request = in_namespace(NAMESPACE, ListStatusesRequest::default());
    let answer = ContentClient::new(channel.clone()).list_statuses(request).await.unwrap();
    let statuses = answer.into_inner().statuses;
    let layer = statuses.iter().find(|status| status.r#ref.starts_with("layer-"));
    layer.map_or(0, |status| u64::try_from(status.offset).unwrap())
}

/// How many layers are being unpacked.
async fn extractions(channel: &Channel) -> usize {
    let names = snapshots_on(channel, "overlayfs").await;
    names.iter().filter(|name| name.starts_with("extract-")).count()
}

/// Case 56 of the adversarial list, and the part of case 57 that a killed process can show.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_near_the_end_of_a_layer_fetches_little_more_than_the_rest() {
    // A layer of CI is so small that what a disk has not taken yet is a large part of it.
    let by_hand = std::env::var("CRATED_TEST_LAYER_MIB").ok();
    let mib: usize = by_hand.as_ref().map_or(40, |text| text.parse().expect("a number of MiB"));
    let layer = Layer::stored(&[("large", 0o644, &images::noise(mib << 20))]);
    let size = layer.gzip.len() as u64;
    let registry = MemoryRegistry::start().await.unwrap();
    images::put(&registry, "a/b", Some("1"), host_architecture(), &[&layer]);
    let gate = Gate::before(registry.address()).await;
    let name = format!("{}/a/b:1", gate.address);
    let directory = tempfile::TempDir::new().unwrap();
    common::write_config(directory.path());

    let mut first = Process::start(directory.path()).await;
    gate.allow(size / 100 * 95);
    let (channel, pulled) = (first.channel.clone(), name.clone());
    let pull = tokio::spawn(async move { pull_into(channel, &pulled, "overlayfs").await });
    // What came through is there in order but for the parts that were fetched ahead.
    let reached = if by_hand.is_some() { size / 100 * 95 - (7 << 20) } else { size / 2 };
    until("most of the layer is there", async || offset(&first.channel).await >= reached).await;
    assert_eq!(extractions(&first.channel).await, 1);
    first.end(Signal::KILL);
    assert!(pull.await.unwrap().is_err());

    gate.open();
    let before = gate.passed();
    let second = Process::start(directory.path()).await;
    assert_eq!(extractions(&second.channel).await, 0, "nobody goes on with it");
    pull_into(second.channel.clone(), &name, "overlayfs").await.unwrap();
    let fetched = gate.passed() - before;
    let allowed = if by_hand.is_some() { size / 20 + (8 << 20) } else { size / 10 * 7 };
    assert!(fetched < allowed, "{fetched} of {size} bytes fetched again");
}
