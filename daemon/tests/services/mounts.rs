//! Mounts that the daemon prepares or performs. Needs root.

use std::fs;
use std::path::Path;

use crate::common::{Fixture, in_namespace};
use crated_api::services::mounts::v1::mounts_client::MountsClient;
use crated_api::services::mounts::v1::{
    ActivateRequest, DeactivateRequest, InfoRequest, ListRequest, UpdateRequest,
};
use crated_api::types::{ActivationInfo, Mount};
use crated_snapshot::testsuite::{is_root, may_run};
use tonic::Code;
use tonic::transport::Channel;

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.into(),
        source: source.into(),
        target: String::new(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

async fn activate(
    daemon: &Fixture,
    name: &str,
    mounts: &[Mount],
    temporary: bool,
) -> Result<ActivationInfo, Code> {
    let request = ActivateRequest {
        name: name.into(),
        mounts: mounts.to_vec(),
        labels: crate::common::labels(&[("why", "test")]),
        temporary,
    };
    let mut client = MountsClient::new(daemon.channel.clone());
    let answer = client.activate(in_namespace("n", request)).await;
    answer.map(|answer| answer.into_inner().info.unwrap()).map_err(|error| error.code())
}

async fn deactivate(client: &mut MountsClient<Channel>, name: &str) -> Result<(), Code> {
    let request = DeactivateRequest { name: name.into() };
    let answer = client.deactivate(in_namespace("n", request)).await;
    answer.map(drop).map_err(|error| error.code())
}

fn mounted(path: &str) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_can_mount_alone_is_left_to_it() {
    let daemon = Fixture::start().await;
    let plain = [mount("overlay", "overlay", &["lowerdir=/a:/b"]), mount("bind", "/x", &["ro"])];
    assert_eq!(activate(&daemon, "a", &plain, false).await, Err(Code::Unimplemented));
    assert_eq!(activate(&daemon, "a", &[], false).await, Err(Code::InvalidArgument));
    assert_eq!(
        activate(&daemon, "", &[mount("erofs", "/x", &[])], false).await,
        Err(Code::InvalidArgument)
    );
    let broken = [mount("format/bind", "{{ mount 3 }}", &[])];
    assert_eq!(activate(&daemon, "a", &broken, false).await, Err(Code::InvalidArgument));
    let outside = [mount("mkdir/bind", "/x", &["X-containerd.mkdir.path=/etc/nothing"])];
    assert_eq!(activate(&daemon, "a", &outside, false).await, Err(Code::InvalidArgument));
    let mut client = MountsClient::new(daemon.channel.clone());
    assert_eq!(deactivate(&mut client, "a").await, Err(Code::NotFound));
    let info = client.info(in_namespace("n", InfoRequest { name: "a".into() })).await;
    assert_eq!(info.unwrap_err().code(), Code::NotFound);
    let update = client.update(in_namespace("n", UpdateRequest::default())).await;
    assert_eq!(update.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_live_from_activation_to_deactivation() {
    if !may_run(is_root(), "mounting needs root") {
        return;
    }
    let daemon = Fixture::start().await;
    let root = daemon.directory.path().join("root");
    let (lower, upper) = (daemon.directory.path().join("lower"), root.join("made/upper"));
    fs::create_dir(&lower).unwrap();
    fs::write(lower.join("file"), "below").unwrap();
    let list = [
        mount("bind", &lower.display().to_string(), &["rbind", "ro"]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "lowerdir={{ mount 0 }}",
                &format!("X-containerd.mkdir.path={}:755", upper.display()),
                &format!("upperdir={}", upper.display()),
            ],
        ),
    ];
    let info = activate(&daemon, "a b/c", &list, false).await.unwrap();
    assert_eq!(activate(&daemon, "a b/c", &list, false).await, Err(Code::AlreadyExists));
    let place = info.active[0].mount_point.clone();
    assert_eq!(fs::read_to_string(Path::new(&place).join("file")).unwrap(), "below");
    let expected = mount(
        "overlay",
        "overlay",
        &[&format!("lowerdir={place}"), &format!("upperdir={}", upper.display())],
    );
    assert_eq!(info.system, [expected]);
    assert!(upper.is_dir());

    // Another daemon on the same directories finds what is still mounted.
    let daemon = daemon.restart().await;
    let mut client = MountsClient::new(daemon.channel.clone());
    let found = client.info(in_namespace("n", InfoRequest { name: "a b/c".into() })).await;
    assert_eq!(found.unwrap().into_inner().info.unwrap(), info);
    let listed = client.list(in_namespace("n", ListRequest::default())).await.unwrap();
    assert_eq!(listed.into_inner().message().await.unwrap().unwrap().info.unwrap(), info);
    let elsewhere = client.list(in_namespace("other", ListRequest::default())).await.unwrap();
    assert!(elsewhere.into_inner().message().await.unwrap().is_none());
    deactivate(&mut client, "a b/c").await.unwrap();
    assert!(!mounted(&place));
    assert!(!Path::new(&place).parent().unwrap().exists());
    assert_eq!(deactivate(&mut client, "a b/c").await, Err(Code::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporary_activation_mounts_everything() {
    if !may_run(is_root(), "mounting needs root") {
        return;
    }
    let daemon = Fixture::start().await;
    let layers = [daemon.directory.path().join("1"), daemon.directory.path().join("2")];
    let mut list = Vec::new();
    for layer in &layers {
        fs::create_dir(layer).unwrap();
        fs::write(layer.join(layer.file_name().unwrap()), "").unwrap();
        list.push(mount("bind", &layer.display().to_string(), &["rbind", "ro"]));
    }
    list.push(mount("format/overlay", "overlay", &["lowerdir={{ overlay 1 0 }}"]));
    let info = activate(&daemon, "t", &list, true).await.unwrap();
    assert_eq!((info.active.len(), info.system.len()), (3, 1));
    let view = &info.system[0];
    assert_eq!((view.r#type.as_str(), &view.options[..]), ("bind", &["rbind".to_owned()][..]));
    for name in ["1", "2"] {
        assert!(Path::new(&view.source).join(name).exists(), "{name}");
    }
    let mut client = MountsClient::new(daemon.channel.clone());
    deactivate(&mut client, "t").await.unwrap();
    assert!(!mounted(&daemon.directory.path().join("state").display().to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_activation_leaves_nothing_mounted() {
    if !may_run(is_root(), "mounting needs root") {
        return;
    }
    let daemon = Fixture::start().await;
    let source = daemon.directory.path().join("there");
    fs::create_dir(&source).unwrap();
    let list = [
        mount("bind", &source.display().to_string(), &["rbind"]),
        mount("erofs", "/nowhere/at/all.erofs", &["ro"]),
    ];
    assert!(activate(&daemon, "f", &list, false).await.is_err());
    let state = daemon.directory.path().join("state").display().to_string();
    assert!(!mounted(&state));
    let left = Path::new(&state).join("io.containerd.mount-manager.v1.bolt/t");
    assert_eq!(fs::read_dir(left).unwrap().count(), 0);
    assert!(activate(&daemon, "f", &list[..1], true).await == Err(Code::Unimplemented));
}
