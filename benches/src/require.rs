use std::process::{Command, Stdio};

/// Whether this process may and can run what is measured: as root, with the tools installed.
///
/// What is missing is printed. With `CI=true` in the environment it is a failure instead, so that
/// nobody mistakes a skipped run for a passed one.
///
/// # Panics
///
/// With `CI=true`, when something is missing.
pub fn can_run() -> bool {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("root".to_owned());
    }
    for tool in TOOLS {
        let mut version = Command::new(tool);
        // mkfs.ext4 knows only the short form, and prints to the other stream.
        version.arg(if tool.starts_with("mkfs") { "-V" } else { "--version" });
        version.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if !version.status().is_ok_and(|status| status.success()) {
            missing.push(tool.to_owned());
        }
    }
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "cannot run here: needs {missing}"
    );
    say(&format!("skipped: needs {missing}"));
    false
}

#[allow(clippy::print_stderr, reason = "benches and tests talk to the person running them")]
fn say(message: &str) {
    eprintln!("{message}");
}

/// GNU tar, gzip and umoci are what the applier is compared with.
const TOOLS: [&str; 5] = ["losetup", "mkfs.ext4", "tar", "gzip", "umoci"];
