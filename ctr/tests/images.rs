//! Images and content, by the program itself against a daemon: what it moves arrives whole.
//!
//! Needs root, for the snapshots.

#[path = "../../daemon/tests/common/mod.rs"]
mod common;
#[path = "../../daemon/tests/common/images.rs"]
mod images;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use common::Fixture;
use crated_distribution::testsuite::MemoryRegistry;
use images::{Layer, host_architecture};

/// Runs `ctr` on the daemon of `fixture`, in `namespace`, with `input`.
fn ctr(fixture: &Fixture, namespace: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ctr"))
        .arg("--address")
        .arg(fixture.directory.path().join("c.sock"))
        .args(["--namespace", namespace])
        .args(arguments)
        .env_remove("CONTAINERD_ADDRESS")
        .env_remove("CONTAINERD_NAMESPACE")
        .env_remove("CONTAINERD_SNAPSHOTTER")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ctr starts");
    // It may refuse before it reads.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("ctr ends")
}

/// What `ctr` prints when it succeeds.
fn succeeds(fixture: &Fixture, namespace: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let output = tokio::task::block_in_place(|| ctr(fixture, namespace, arguments, input));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ctr {arguments:?}: {error}");
    output.stdout
}

/// What `ctr` says when it refuses, in one line.
fn refused(fixture: &Fixture, arguments: &[&str], input: &[u8]) -> String {
    let output = tokio::task::block_in_place(|| ctr(fixture, "default", arguments, input));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "ctr {arguments:?}: {error}");
    assert_eq!(error.trim_end().lines().count(), 1, "ctr {arguments:?}: {error}");
    error
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

/// A registry with images `a/b:1` and `a/b:2`, of the same files in gzip and as plain tar.
async fn registry() -> (MemoryRegistry, String, String) {
    let registry = MemoryRegistry::start().await.expect("a registry");
    let files: [(&str, u32, &[u8]); 2] = [("etc/a", 0o644, b"lower"), ("etc/b", 0o600, b"kept")];
    let noise = images::noise(3_000_000);
    let upper = Layer::of(&[("etc/noise", 0o644, &noise)]);
    images::put(&registry, "a/b", Some("1"), host_architecture(), &[&Layer::of(&files), &upper]);
    images::put(
        &registry,
        "a/b",
        Some("2"),
        host_architecture(),
        &[&Layer::stored(&files), &upper],
    );
    let first = registry.reference("a/b:1").to_string();
    let second = registry.reference("a/b:2").to_string();
    (registry, first, second)
}

fn pull(fixture: &Fixture, name: &str) {
    let arguments = ["images", "pull", "--plain-http", "--snapshotter", "native", name];
    succeeds(fixture, "default", &arguments, b"");
}

fn checked(fixture: &Fixture, name: &str) -> String {
    let filter = format!("name=={name}");
    let arguments = ["images", "check", "--snapshotter", "native", &filter];
    text(succeeds(fixture, "default", &arguments, b""))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_whole_after_pull_although_its_snapshots_were_there() {
    let fixture = Fixture::start().await;
    let (_registry, first, second) = registry().await;
    pull(&fixture, &first);

    pull(&fixture, &second);

    let state = checked(&fixture, &second);
    assert!(state.contains("complete (4/4)") && !state.contains("incomplete"), "{state}");
    assert!(state.contains("true"), "unpacked: {state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_to_a_file_or_a_pipe_is_imported_from_either() {
    let fixture = Fixture::start().await;
    let (_registry, name, _) = registry().await;
    pull(&fixture, &name);
    let file = fixture.directory.path().join("image.tar").display().to_string();

    succeeds(&fixture, "default", &["images", "export", &file, &name], b"");
    let piped = succeeds(&fixture, "default", &["images", "export", "-", &name], b"");
    let by_file = ["images", "import", "--snapshotter", "native", &file];
    let by_pipe = ["images", "import", "--snapshotter", "native", "-"];
    let from_file = text(succeeds(&fixture, "of-file", &by_file, b""));
    let from_pipe = text(succeeds(&fixture, "of-pipe", &by_pipe, &piped));

    assert_eq!(std::fs::read(&file).expect("the archive"), piped);
    assert_eq!(from_file, format!("saved {name}\n"));
    assert_eq!(from_pipe, from_file);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_none_is_refused_in_one_line() {
    let fixture = Fixture::start().await;
    let arguments = ["images", "import", "--snapshotter", "native", "-"];

    let error = refused(&fixture, &arguments, b"not an archive");

    assert!(error.starts_with("ctr: "), "{error}");
    assert!(text(succeeds(&fixture, "default", &["images", "ls", "-q"], b"")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn content_goes_in_and_comes_out_byte_for_byte() {
    let fixture = Fixture::start().await;
    let bytes = images::noise(3_000_000);
    let digest = crated_distribution::Digest::of(&bytes).to_string();

    succeeds(&fixture, "default", &["content", "ingest", "given"], &bytes);
    let wrong = ["content", "ingest", "--expected-digest", &digest, "wrong"];
    let error = refused(&fixture, &wrong, b"something else");

    assert!(error.contains(&digest), "{error}");
    let back = succeeds(&fixture, "default", &["content", "get", &digest], b"");
    assert!(back == bytes, "the bytes differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_converted_image_has_plain_layers() {
    let fixture = Fixture::start().await;
    let (_registry, name, _) = registry().await;
    pull(&fixture, &name);

    let convert = ["images", "convert", "--uncompress", "--oci", &name, "plain.test/x:1"];
    succeeds(&fixture, "default", &convert, b"");

    let state = checked(&fixture, "plain.test/x:1");
    assert!(state.contains("complete (4/4)") && !state.contains("incomplete"), "{state}");
    let export = ["images", "export", "-", "plain.test/x:1"];
    let archive = succeeds(&fixture, "default", &export, b"");
    let plain = b"application/vnd.oci.image.layer.v1.tar\"";
    assert!(archive.windows(plain.len()).any(|part| part == plain), "no layer is plain");
}
