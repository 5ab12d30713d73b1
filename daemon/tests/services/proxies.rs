//! Parts that run as processes of their own: a second daemon serves them here.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Fixture, config, in_namespace};
use crate::programs::start;
use crate::suites::Far;
use crated::config::{Config, ProxyPlugin, Span};
use crated::proxy::{ProxySnapshotter, ProxyStore};
use crated_api::services::introspection::v1::PluginsRequest;
use crated_api::services::introspection::v1::introspection_client::IntrospectionClient;
use crated_api::services::sandbox::v1::ControllerStartRequest;
use crated_api::services::sandbox::v1::controller_client::ControllerClient;
use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_api::services::snapshots::v1::{MountsRequest, PrepareSnapshotRequest};
use crated_content::{
    Commit, Digest, Error, Ingest, IngestManager, Ingester, Manager, Provider, read_blob,
};
use crated_snapshot::{CommitOptions, Key, Kind, Labels, Name, Snapshotter};
use tempfile::TempDir;
use tonic::{Code, Status};

fn proxy(kind: &str, address: &Path) -> ProxyPlugin {
    ProxyPlugin {
        kind: kind.into(),
        address: address.into(),
        capabilities: vec!["remap-ids".into()],
        exports: [("root".to_owned(), "/far".to_owned())].into(),
        ..ProxyPlugin::default()
    }
}

async fn prepare(daemon: &Fixture, snapshotter: &str, key: &str) -> Result<String, Status> {
    let request = PrepareSnapshotRequest {
        snapshotter: snapshotter.into(),
        key: key.into(),
        ..Default::default()
    };
    let mut snapshots = SnapshotsClient::new(daemon.channel.clone());
    let mounts = snapshots.prepare(in_namespace("n", request)).await?.into_inner().mounts;
    Ok(mounts[0].source.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxied_snapshotter_is_listed_and_asked() {
    let far = Fixture::start().await;
    let socket = far.directory.path().join("c.sock");
    let near = start(|config| {
        config.proxy_plugins.insert("far".into(), proxy("snapshot", &socket));
    })
    .await;
    let mut introspection = IntrospectionClient::new(near.channel.clone());
    let filters = vec!["type==io.containerd.snapshotter.v1, id==far".to_owned()];
    let plugins = introspection.plugins(PluginsRequest { filters }).await.unwrap().into_inner();
    let listed = &plugins.plugins[0];
    assert_eq!(listed.capabilities, ["remap-ids"]);
    assert_eq!(listed.exports["root"], "/far");
    assert_eq!(listed.exports["address"], socket.display().to_string());
    assert_eq!(listed.platforms[0].os, "linux");
    // The second daemon has no snapshotter called `far`, and its refusal arrives as it was sent.
    let refused = prepare(&near, "far", "k").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("not loaded"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_without_its_proxies_and_finds_them_later() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("c.sock");
    let near = start(|config| {
        config.proxy_plugins.insert("far".into(), proxy("snapshot", &socket));
        config.proxy_plugins.insert("boxes".into(), proxy("sandbox", &socket));
    })
    .await;
    let dead = prepare(&near, "far", "k").await.unwrap_err();
    assert_eq!(dead.code(), Code::Unavailable, "{dead}");
    assert!(dead.message().contains(&socket.display().to_string()), "{dead}");
    let request = ControllerStartRequest { sandbox_id: "s".into(), sandboxer: "boxes".into() };
    let mut controller = ControllerClient::new(near.channel.clone());
    let dead = controller.start(in_namespace("n", request.clone())).await.unwrap_err();
    assert_eq!(dead.code(), Code::Unavailable, "{dead}");

    let far = Fixture::start_on(Arc::new(directory)).await;
    let refused = prepare(&near, "far", "k").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "it answers now: {refused}");
    // The call goes on whole: it is the other side that has no such sandboxer.
    let refused = controller.start(in_namespace("n", request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    drop(far);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mute_proxy_costs_its_own_callers_only() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("mute.sock");
    let _mute = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let near = start(|config| {
        config.proxy_plugins.insert("far".into(), proxy("snapshot", &socket));
        let limit = Span(Duration::from_millis(300));
        config.timeouts.insert("crated.timeout.proxy.quick".into(), limit);
        config.timeouts.insert("crated.timeout.proxy.bulk".into(), limit);
    })
    .await;
    let late = prepare(&near, "far", "k").await.unwrap_err();
    let codes = [Code::DeadlineExceeded, Code::Unavailable];
    assert!(codes.contains(&late.code()), "{late}");
    assert!(late.message().contains("mute.sock"), "{late}");
    prepare(&near, "native", "k").await.unwrap();
    let mounts = MountsRequest { snapshotter: "native".into(), key: "k".into() };
    SnapshotsClient::new(near.channel.clone()).mounts(in_namespace("n", mounts)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxied_store_takes_the_place_of_the_daemons_own() {
    let far = Fixture::start().await;
    let socket = far.directory.path().join("c.sock");
    let near = start(|config| {
        config.disabled_plugins.push("io.containerd.content.v1.content".into());
        config.proxy_plugins.insert("far".into(), proxy("content", &socket));
    })
    .await;
    let digest = near.store("n", b"bytes that lie elsewhere").await;
    let blobs = near.directory.path().join("root/io.containerd.content.v1.content");
    assert!(!blobs.exists(), "nothing is stored here");
    let hex = digest.strip_prefix("sha256:").unwrap();
    let there = far.directory.path().join("root/io.containerd.content.v1.content/blobs/sha256");
    assert!(there.join(hex).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_any_store_does_not_start() {
    let directory = TempDir::new().unwrap();
    let mut config = config(directory.path());
    config.disabled_plugins.push("io.containerd.content.v1.content".into());
    let refused = crated::start(config).await.err().unwrap().to_string();
    assert!(refused.contains("exactly one proxy"), "{refused}");
}

#[test]
fn proxies_of_unknown_type_or_address_are_refused_by_name() {
    let parse = |text: &str| Config::parse(text, Path::new("/x.toml")).unwrap_err();
    for (text, reason) in [
        ("[proxy_plugins.a]\ntype = 'runtime'\naddress = '/s'", "proxy_plugins.a.type"),
        ("[proxy_plugins.a]\ntype = 'snapshot'\naddress = 's'", "proxy_plugins.a.address"),
        ("[proxy_plugins.native]\ntype = 'snapshot'\naddress = '/s'", "proxy_plugins.native"),
    ] {
        let error = parse(text).to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn snapshots_of_a_proxy_are_walked() {
    let far = Far::new();
    let snapshotter = ProxySnapshotter::new(far.link("native"));
    let (key, name) = (Key::new("draft").unwrap(), Name::new("base").unwrap());
    snapshotter.prepare(&key, None, &Labels::new()).unwrap();
    let labels: Labels = [("containerd.io/snapshot.ref".to_owned(), "r".to_owned())].into();
    let options = CommitOptions { labels: labels.clone(), parent: None };
    snapshotter.commit(&name, &key, &options).unwrap();
    for number in 0..101 {
        let key = Key::new(format!("view {number}")).unwrap();
        snapshotter.view(&key, Some(&name), &Labels::new()).unwrap();
    }
    let mut found = Vec::new();
    snapshotter
        .walk(&mut |info| {
            found.push(info);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(found.len(), 102);
    let base = found.iter().find(|info| info.name == "base").unwrap();
    assert_eq!((base.kind, &base.labels), (Kind::Committed, &labels));
    let views = found.iter().filter(|info| info.parent.as_ref() == Some(&name));
    assert_eq!(views.count(), 101);
}

#[test]
fn blobs_of_a_proxy_are_written_read_and_walked() {
    let far = Far::new();
    let store = ProxyStore::new(far.link("content"));
    let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
    let digest = Digest::of(&bytes);
    let mut writer = store.writer(&Ingest::new("a ref")).unwrap();
    assert!(matches!(store.writer(&Ingest::new("a ref")), Err(Error::Locked { .. })));
    writer.write_all(&bytes[..12_000_000]).unwrap();
    drop(writer);
    let mut writer = store.writer(&Ingest::new("a ref").total(20_000_000)).unwrap();
    if writer.status().offset == 0 {
        writer.write_all(&bytes[..12_000_000]).unwrap();
    }
    writer.write_all(&bytes[12_000_000..]).unwrap();
    assert_eq!(store.statuses().unwrap().len(), 1);
    writer.commit(&Commit::expecting(digest.clone())).unwrap();
    assert!(read_blob(&store, &digest, u64::MAX).unwrap() == bytes);
    let known = Ingest::new("other").expected(digest.clone());
    assert!(matches!(store.writer(&known), Err(Error::AlreadyExists(found)) if found == digest));
    let mut count = 0;
    store
        .walk(&mut |_| {
            count += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(count, 1);
    store.delete(&digest).unwrap();
    assert!(matches!(store.info(&digest), Err(Error::NotFound(_))));
}
