//! The program as a person meets it: what it says without a daemon, and to wrong input.

use std::process::{Command, Output};

fn ctr(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ctr"))
        .args(arguments)
        .env_remove("CONTAINERD_ADDRESS")
        .env_remove("CONTAINERD_NAMESPACE")
        .output()
        .expect("ctr starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_names_every_noun() {
    let output = ctr(&["--help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for noun in [
        "version",
        "plugins",
        "containers",
        "content",
        "events",
        "images",
        "leases",
        "namespaces",
        "net",
        "run",
        "snapshots",
        "tasks",
    ] {
        assert!(help.contains(&format!("  {noun}")), "{noun} is missing in:\n{help}");
    }
}

#[test]
fn nouns_have_the_short_names_that_hands_remember() {
    for noun in ["c", "i", "ns", "t", "container", "image", "namespace", "task", "snapshot"] {
        let output = ctr(&[noun, "--help"]);
        assert!(output.status.success(), "{noun}: {}", text(&output.stderr));
    }
}

#[test]
fn nobody_at_the_address_is_one_clear_line() {
    let output = ctr(&["-a", "/nonexistent/c.sock", "version"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.starts_with("ctr: failed to dial \"/nonexistent/c.sock\""), "{error}");
    assert!(error.contains("No such file or directory"), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
}

#[test]
fn what_cannot_be_asked_is_refused_before_anything_happens() {
    for arguments in [
        &["tasks", "kill"][..],
        &["run", "--rm"],
        &["images", "pull"],
        &["no-such-noun"],
        &["--timeout", "5", "version"],
    ] {
        let output = ctr(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn networks_are_spelled_as_people_know_them() {
    for arguments in [
        ["net", "ns", "create"],
        ["net", "ns", "ls"],
        ["net", "ns", "info"],
        ["net", "ns", "rm"],
        ["net", "link", "add"],
        ["net", "link", "set"],
        ["net", "link", "ls"],
        ["net", "link", "rm"],
        ["net", "addr", "add"],
        ["net", "route", "add"],
        ["net", "neigh", "add"],
        ["net", "apply", "--dry-run"],
        ["net", "stats", "host"],
        ["net", "watch", "host"],
    ] {
        let output = ctr(&[arguments[0], arguments[1], arguments[2], "--help"]);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    }
}
