//! The configuration file and the command line, through the library and through the program.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crated::config::{Config, SharingPolicy};
use crated::error::chain;

/// What dockerd writes for the daemon it starts.
const OF_DOCKERD: &str = r#"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
imports = []
oom_score = 0
plugin_dir = ""
required_plugins = []
root = "/var/lib/docker/containerd/daemon"
state = "/var/run/docker/containerd/daemon"
temp = ""
version = 2

[cgroup]
  path = ""

[debug]
  address = "/var/run/docker/containerd/containerd-debug.sock"
  format = ""
  gid = 0
  level = ""
  uid = 0

[grpc]
  address = "/var/run/docker/containerd/containerd.sock"
  gid = 0
  max_recv_message_size = 16777216
  max_send_message_size = 16777216
  tcp_address = ""
  tcp_tls_ca = ""
  tcp_tls_cert = ""
  tcp_tls_key = ""
  uid = 0

[metrics]
  address = ""
  grpc_histogram = false

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    anything = { goes = true }

[proxy_plugins]

[stream_processors]

[timeouts]
  "io.containerd.timeout.shim.load" = "7s"

[ttrpc]
  address = ""
  gid = 0
  uid = 0
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/etc/x.toml")).map_err(|error| chain(&error))
}

#[test]
fn the_file_of_dockerd_is_understood() {
    let config = parse(OF_DOCKERD).unwrap();
    assert_eq!(config.root, Path::new("/var/lib/docker/containerd/daemon"));
    let address = "/var/run/docker/containerd/containerd.sock";
    assert_eq!(config.grpc.address, Path::new(address));
    assert_eq!(config.ttrpc_address(), Path::new(&format!("{address}.ttrpc")));
    let load = config.timeout("io.containerd.timeout.shim.load", Duration::ZERO);
    assert_eq!(load, Duration::from_secs(7));
    let ignored = config.ignored().join(" ");
    assert!(ignored.contains("cri") && ignored.contains("debug.address"), "{ignored}");
}

#[test]
fn newer_names_mean_the_same_as_older_ones() {
    let config = parse(
        r#"
version = 4
[plugins."io.containerd.server.v1.grpc"]
address = "/run/new.sock"
gid = 7
[plugins."io.containerd.metadata.v1.bolt"]
content_sharing_policy = "isolated"
[plugins."io.containerd.gc.v1.scheduler"]
schedule_delay = "1m30s"
"#,
    )
    .unwrap();
    assert_eq!((config.grpc.address.as_path(), config.grpc.gid), (Path::new("/run/new.sock"), 7));
    assert_eq!(config.plugins.metadata.content_sharing_policy, SharingPolicy::Isolated);
    assert_eq!(config.plugins.gc.schedule_delay.0, Duration::from_secs(90));
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    for (text, line, key) in [
        ("version = 3\n\nrooot = \"/x\"\n", 3, "rooot"),
        ("[grpc]\naddress = \"/x\"\nports = 1\n", 3, "ports"),
        ("[crated]\n\n\nshim = \"x\"\n", 4, "shim"),
        (
            "version = 2\n[plugins]\n[plugins.\"io.containerd.snapshotter.v1.overlayfs\"]\nroot = \"x\"\n",
            4,
            "root",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(&format!("configuration /etc/x.toml:{line}: ")), "{error}");
        assert!(error.contains(key) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn values_that_cannot_work_are_refused() {
    for (text, word) in [
        ("version = 1", "version 1"),
        ("version = 5", "version 5"),
        ("root = \"relative\"", "absolute"),
        ("root = \"/x\"\nstate = \"/x\"", "differ"),
        ("oom_score = 2000", "oom_score"),
        ("[debug]\nlevel = \"loud\"", "loud"),
        ("[grpc]\ntcp_address = \"0.0.0.0:1\"", "tcp_address"),
        ("[timeouts]\n\"a\" = \"soon\"", "soon"),
        ("[crated]\nrunc_v2_shim = \"shim\"", "runc_v2_shim"),
        ("[metrics]\naddress = \"nowhere\"", "metrics.address"),
        ("version = \"two\"", "invalid type"),
        ("[grpc", ":1"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn imports_are_laid_over_and_loops_end() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    std::fs::create_dir(directory.path().join("conf.d")).unwrap();
    write("main.toml", "imports = [\"conf.d/*.toml\"]\nroot = \"/a\"\n[grpc]\ngid = 1\nuid = 2\n");
    write("conf.d/1.toml", "root = \"/b\"\n[grpc]\ngid = 3\n");
    write("conf.d/2.toml", "root = \"/c\"\n");
    write("conf.d/3.txt", "nonsense");
    let config = Config::load(&directory.path().join("main.toml")).unwrap();
    assert_eq!((config.root.as_path(), config.grpc.gid, config.grpc.uid), (Path::new("/c"), 3, 2));

    write("conf.d/2.toml", "nope = 1\n");
    let error = Config::load(&directory.path().join("main.toml")).unwrap_err();
    assert!(chain(&error).contains("conf.d/2.toml:1: "), "{}", chain(&error));
    write("conf.d/2.toml", "imports = [\"../main.toml\"]\n");
    let error = Config::load(&directory.path().join("main.toml")).unwrap_err();
    assert!(chain(&error).contains("loop"), "{}", chain(&error));
}

fn crated(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_crated")).args(arguments).output().unwrap()
}

#[test]
fn the_default_reads_back_as_itself() {
    let output = crated(&["config", "default"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(parse(&text).unwrap(), Config::default(), "{text}");
    assert_eq!(Config::default().grpc.address, Path::new("/run/crated/crated.sock"));
}

#[test]
fn the_command_line_has_the_last_word() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::write(&file, "root = \"/from/file\"\nstate = \"/s\"\n").unwrap();
    let output = crated(&[
        "--config",
        file.to_str().unwrap(),
        "--address",
        "/run/x.sock",
        "--log-level",
        "debug",
        "config",
        "dump",
    ]);
    let config = parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert_eq!(config.root, Path::new("/from/file"));
    assert_eq!(config.grpc.address, Path::new("/run/x.sock"));
    assert_eq!(config.debug.level, "debug");
}

#[test]
fn failing_to_start_is_one_clear_line() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none.toml");
    let output = crated(&["--config", missing.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("crated: configuration ") && text.contains(": read: "), "{text}");

    std::fs::write(&missing, "root = \"/r\"\nbogus = 1\n").unwrap();
    let output = crated(&["--config", missing.to_str().unwrap()]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    assert!(text.contains("none.toml:2: unknown field"), "{text}");
}

#[test]
fn a_configuration_is_checked_without_starting() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let output = crated(&["config", "check", "--config", file.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check("version = 4\nroot = \"/r\"\n"), (Some(0), String::new()));
    let (code, text) = check("[debug]\naddress = \"/run/debug.sock\"\n");
    assert_eq!((code, text.as_str()), (Some(0), "crated: ignored: debug.address\n"));
    let (code, text) = check("root = \"/r\"\n\nbogus = 1\n");
    assert_eq!(code, Some(1));
    assert!(text.contains("c.toml:3: unknown field"), "{text}");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let output = crated(&["config", "check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "a directory is no file");
}

#[test]
fn a_file_that_is_far_too_large_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::File::create(&file).unwrap().set_len(100 << 20).unwrap();
    let error = chain(&Config::load(&file).unwrap_err());
    assert!(error.contains("larger than"), "{error}");
}
