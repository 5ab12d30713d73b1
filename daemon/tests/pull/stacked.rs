//! Layers unpacked side by side are the same as layers unpacked in order.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crated_api::services::snapshots::v1::ViewSnapshotRequest;
use crated_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crated_distribution::testsuite::MemoryRegistry;
use crated_mount::{Mount, TempMount};

use crate::common::{Fixture, in_namespace};
use crate::images::{self, Layer, host_architecture};
use crate::support::{NAMESPACE, pull_into};

/// Kind and mode, owner, time of a file, and what is in it.
type Tree = BTreeMap<PathBuf, (u32, u32, Option<i64>, Vec<u8>)>;

fn tree(root: &Path) -> Tree {
    fn walk(root: &Path, dir: &Path, tree: &mut Tree) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = match meta.file_type() {
                kind if kind.is_file() => fs::read(&path).unwrap(),
                kind if kind.is_symlink() => {
                    fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
                }
                _ => Vec::new(),
            };
            // Directories that no entry describes are as old as the unpacking.
            let time = meta.is_file().then(|| meta.mtime());
            let name = path.strip_prefix(root).unwrap().to_owned();
            tree.insert(name, (meta.mode(), meta.uid(), time, content));
            if meta.is_dir() {
                walk(root, &path, tree);
            }
        }
    }
    let mut all = Tree::new();
    walk(root, root, &mut all);
    all
}

async fn seen(fixture: &Fixture, snapshotter: &str, top: &str) -> Tree {
    let request = ViewSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: "view".to_owned(),
        parent: top.to_owned(),
        ..ViewSnapshotRequest::default()
    };
    let mut client = SnapshotsClient::new(fixture.channel.clone());
    let mounts = client.view(in_namespace(NAMESPACE, request)).await.unwrap().into_inner().mounts;
    let mounts: Vec<Mount> = mounts
        .into_iter()
        .map(|mount| Mount {
            kind: mount.r#type,
            source: mount.source,
            target: mount.target,
            options: mount.options,
        })
        .collect();
    let attached = TempMount::attach(&mounts, fixture.directory.path()).unwrap();
    let tree = tree(attached.path());
    attached.close().unwrap();
    tree
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_unpacked_side_by_side_are_those_unpacked_in_order() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let layers = [
        Layer::of_entries(&[
            images::Entry::Dir("usr", 0o2751),
            images::Entry::Dir("usr/lib", 0o700),
            images::Entry::Link("lib", "usr/lib"),
            images::Entry::File("usr/lib/old", b"old"),
            images::Entry::File("usr/gone", b"gone"),
            images::Entry::Dir("opaque", 0o755),
            images::Entry::File("opaque/hidden", b"hidden"),
        ]),
        // Passes through a directory that it does not describe.
        Layer::of_entries(&[
            images::Entry::File("usr/lib/new", b"new"),
            images::Entry::File("usr/.wh.gone", b""),
        ]),
        // Its path leads through a link of the lowest layer.
        Layer::of_entries(&[images::Entry::File("lib/through", b"through")]),
        Layer::of_entries(&[
            images::Entry::Dir("opaque", 0o711),
            images::Entry::File("opaque/.wh..wh..opq", b""),
            images::Entry::File("opaque/seen", b"seen"),
            images::Entry::File("usr/lib/.wh.old", b""),
        ]),
    ];
    let references: Vec<&Layer> = layers.iter().collect();
    images::put(&registry, "a/b", Some("1"), host_architecture(), &references);
    let name = registry.reference("a/b:1").to_string();

    let mut chain: Option<String> = None;
    for layer in &layers {
        chain = Some(crated_snapshot::chain_id(chain.as_deref(), layer.diff_id.as_str()));
    }
    let top = chain.unwrap();
    pull_into(fixture.channel.clone(), &name, "native").await.unwrap();
    let in_order = seen(&fixture, "native", &top).await;
    pull_into(fixture.channel.clone(), &name, "overlayfs").await.unwrap();
    let side_by_side = seen(&fixture, "overlayfs", &top).await;

    assert_eq!(side_by_side, in_order);
    assert!(side_by_side.contains_key(Path::new("usr/lib/through")));
    let counts = fixture.running.daemon().pipeline.counters.counts();
    assert_eq!(counts.layers_applied, 8, "{counts:?}");
    assert!(counts.layers_applied_again >= 1, "{counts:?}");
}
