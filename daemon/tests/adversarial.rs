//! Cases of the adversarial list that take a whole daemon. What is not here, and where it is:
//!
//! - 28, uploads to hostile servers: the daemon hands its store to the pusher and adds nothing;
//!   the cases are with the pusher, `distribution/tests/hostile.rs`.
//! - 56, resuming near the end of a layer: `pull/resume.rs`, with the size of the layer as a
//!   setting.
//! - 57, power cuts between the steps of a commit: `content/tests/crash.rs` below, and
//!   `bytes_published_before_a_crash_are_taken_up_or_collected` in `metadata_content.rs` above.
//! - 65, a million blobs: `gc.rs` follows a hundred thousand references. How long a start takes
//!   and a collection pauses is measured by `benches`, since no test may depend on time.
//! - 66, fsync answers EIO: takes a block device that fails on demand, which the kernels that run
//!   these tests do not offer to a container. Not run.
//! - 67, no room for records: `a_full_disk_fails_writes_and_keeps_what_is_there` in
//!   `metadata_database.rs`.
//! - 125, restoring hostile checkpoints: takes CRIU to make one. What can be said without it is
//!   below: a checkpoint that is not there makes no container.
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

mod common;
#[path = "common/gate.rs"]
mod gate;
#[path = "common/images.rs"]
mod images;
#[path = "pull/support.rs"]
#[allow(dead_code, reason = "the tests of pulling use the rest")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use common::{Fixture, in_namespace, until};
use crated_api::Any;
use crated_api::services::containers::v1::containers_client::ContainersClient;
use crated_api::services::containers::v1::{Container, CreateContainerRequest, container::Runtime};
use crated_api::services::introspection::v1::PluginsRequest;
use crated_api::services::introspection::v1::introspection_client::IntrospectionClient;
use crated_api::services::tasks::v1::tasks_client::TasksClient;
use crated_api::services::tasks::v1::{CreateTaskRequest, ListTasksRequest};
use crated_api::services::version::v1::version_client::VersionClient;
use crated_api::types::Descriptor;
use crated_distribution::testsuite::MemoryRegistry;
use gate::Gate;
use images::{Layer, host_architecture};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use support::{NAMESPACE, image_names, pull_into};
use tempfile::TempDir;

/// Whether file systems can be mounted here; they must in CI.
fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root();
    if !can {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root");
        println!("skipped: needs root");
    }
    can
}

/// A file system, gone when this is dropped.
struct Mounted<'p>(&'p Path);

impl<'p> Mounted<'p> {
    fn at(path: &'p Path, kind: &str, options: &str) -> Self {
        fs::create_dir_all(path).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount(kind, path, kind, MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Self(path)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Whatever is open there may stay so for a moment.
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_22_a_registry_that_says_no_more_holds_up_nobody_but_its_own_pull() {
    let (fixture, registry) = (Fixture::start().await, MemoryRegistry::start().await.unwrap());
    let layer = Layer::stored(&[("large", 0o644, &images::noise(4 << 20))]);
    images::put(&registry, "slow/image", Some("1"), host_architecture(), &[&layer]);
    let small = Layer::of(&[("small", 0o644, b"small")]);
    images::put(&registry, "quick/image", Some("1"), host_architecture(), &[&small]);
    let gate = Gate::before(registry.address()).await;
    gate.allow(1 << 20);
    let (channel, slow) = (fixture.channel.clone(), format!("{}/slow/image:1", gate.address));
    let stuck = tokio::spawn(async move { pull_into(channel, &slow, "overlayfs").await });
    until("the layer is stuck in the middle", async || gate.passed() >= 1 << 20).await;

    let quick = registry.reference("quick/image:1").to_string();
    pull_into(fixture.channel.clone(), &quick, "overlayfs").await.unwrap();

    assert!(!stuck.is_finished(), "nothing more came");
    stuck.abort();
    let _ = stuck.await;
    // Giving up frees what the pull held: the same layer from the registry itself is not waited for.
    let direct = registry.reference("slow/image:1").to_string();
    pull_into(fixture.channel.clone(), &direct, "overlayfs").await.unwrap();
    let mut names = image_names(&fixture).await;
    names.sort();
    let mut expected = vec![quick, direct];
    expected.sort();
    assert_eq!(names, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_68_a_daemon_without_descriptors_serves_again_when_it_has_some() {
    const DESCRIPTORS: usize = 128;
    let directory = TempDir::new().unwrap();
    common::write_config(directory.path());
    let address = directory.path().join("c.sock");
    let limited = format!("ulimit -n {DESCRIPTORS}; exec \"$0\" \"$@\"");
    let mut daemon = Command::new("sh")
        .args(["-c", &limited, env!("CARGO_BIN_EXE_crated"), "--config"])
        .arg(directory.path().join("config.toml"))
        .stderr(fs::File::create(directory.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    until("the daemon listens", async || UnixStream::connect(&address).is_ok()).await;

    // As many clients as it has descriptors for everything; the last wait in the kernel's queue.
    let clients: Vec<UnixStream> =
        (0..DESCRIPTORS).map(|_| UnixStream::connect(&address).unwrap()).collect();
    let log = || fs::read_to_string(directory.path().join("log")).unwrap();
    until("the daemon has run out", async || log().contains("accept failed")).await;
    drop(clients);

    let channel = common::connect(address.clone()).await;
    let answer = VersionClient::new(channel).version(()).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    answer.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn case_69_a_root_that_overlayfs_cannot_use_is_told_and_the_rest_works() {
    if !can_mount() {
        return;
    }
    let base = TempDir::new().unwrap();
    let directory = Arc::new(TempDir::new().unwrap());
    for name in ["lower", "upper", "work"] {
        fs::create_dir(base.path().join(name)).unwrap();
    }
    fs::set_permissions(base.path().join("upper"), fs::Permissions::from_mode(0o700)).unwrap();
    let at = |name: &str| base.path().join(name).display().to_string();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let root = directory.path().join("root");
    let _overlay = Mounted::at(&root, "overlay", &options);
    let fixture = Fixture::start_on(Arc::clone(&directory)).await;

    let mut introspection = IntrospectionClient::new(fixture.channel.clone());
    let filters = vec!["id==overlayfs".to_owned()];
    let plugins = introspection.plugins(PluginsRequest { filters }).await.unwrap().into_inner();
    let [overlayfs] = &plugins.plugins[..] else { panic!("{plugins:?}") };
    let failure = overlayfs.init_err.as_ref().expect("overlayfs does not work on itself");
    assert!(failure.message.contains("skip plugin"), "{failure:?}");

    let registry = MemoryRegistry::start().await.unwrap();
    let layer = Layer::of(&[("file", 0o644, b"bytes")]);
    images::put(&registry, "a/b", Some("1"), host_architecture(), &[&layer]);
    let name = registry.reference("a/b:1").to_string();
    let refused = pull_into(fixture.channel.clone(), &name, "overlayfs").await.unwrap_err();
    assert!(refused.message().contains("overlayfs"), "{refused}");
    pull_into(fixture.channel.clone(), &name, "native").await.unwrap();
    let Fixture { running, channel, .. } = fixture;
    drop(channel);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn case_123_a_full_root_is_refused_by_name_and_starts_once_there_is_room() {
    if !can_mount() {
        return;
    }
    let directory = Arc::new(TempDir::new().unwrap());
    let root = directory.path().join("root");
    let _full = Mounted::at(&root, "tmpfs", "size=64m,mode=700");
    let ballast = root.join("ballast");
    let _ = fs::write(&ballast, vec![1; 65 << 20]);
    common::write_config(directory.path());
    let config = directory.path().join("config.toml");

    let Output { status, stderr, .. } = Command::new(env!("CARGO_BIN_EXE_crated"))
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(!status.success(), "{said}");
    assert!(said.contains("root") && said.contains("No space left"), "{said}");
    assert!(!directory.path().join("c.sock").exists());

    fs::remove_file(&ballast).unwrap();
    let fixture = Fixture::start_on(Arc::clone(&directory)).await;
    fixture.store(NAMESPACE, b"there is room again").await;
    let Fixture { running, channel, .. } = fixture;
    drop(channel);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn case_125_a_checkpoint_that_is_not_there_or_not_one_makes_no_task() {
    let fixture = Fixture::start().await;
    let stored = fixture.store(NAMESPACE, b"not a checkpoint").await;
    let container = Container {
        id: "restored".to_owned(),
        runtime: Some(Runtime { name: "io.containerd.runc.v2".to_owned(), options: None }),
        spec: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
            value: b"{}".to_vec(),
        }),
        ..Container::default()
    };
    let request = CreateContainerRequest { container: Some(container) };
    ContainersClient::new(fixture.channel.clone())
        .create(in_namespace(NAMESPACE, request))
        .await
        .unwrap();
    let mut tasks = TasksClient::new(fixture.channel.clone());
    let missing = format!("sha256:{}", "0".repeat(64));
    for digest in ["../../etc/passwd", missing.as_str(), stored.as_str()] {
        let checkpoint = Descriptor {
            media_type: "application/vnd.containerd.container.criu.checkpoint.criu.tar".to_owned(),
            digest: digest.to_owned(),
            ..Descriptor::default()
        };
        let request = CreateTaskRequest {
            container_id: "restored".to_owned(),
            checkpoint: Some(checkpoint),
            ..CreateTaskRequest::default()
        };
        tasks.create(in_namespace(NAMESPACE, request)).await.unwrap_err();
        let list = in_namespace(NAMESPACE, ListTasksRequest::default());
        assert!(tasks.list(list).await.unwrap().into_inner().tasks.is_empty(), "{digest}");
    }
}
