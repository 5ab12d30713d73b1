//! The conformance suite on crun. Needs root, crun, busybox and unshare.
//!
//! On a hybrid host crun takes the unified hierarchy for the only one, so each test runs again in
//! a mount namespace without it.

use std::{path::Path, process::Command, sync::Arc};

use crated_exec::{
    Runtime,
    reaper::Reaper,
    runc::{RuncConfig, RuncRuntime},
    testsuite,
};

const INSIDE: &str = "CRATED_EXEC_CRUN_INSIDE";

/// Whether this is the process that tests; if not, it runs the test in one that does.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !testsuite::can_run() || !has_crun() {
        return false;
    }
    let enter = "if [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi; \
                 exec \"$0\" \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", enter])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

fn has_crun() -> bool {
    if ["/usr/bin/crun", "/usr/local/bin/crun"].iter().any(|path| Path::new(path).exists()) {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "needs crun");
    #[allow(clippy::print_stderr, reason = "tests talk to people")]
    {
        eprintln!("skipped: needs crun");
    }
    false
}

crated_exec::runtime_testsuite!(|root| async {
    let config = RuncConfig { binary: "crun".into(), root, ..RuncConfig::default() };
    Arc::new(RuncRuntime::new(config, Reaper::new().unwrap())) as Arc<dyn Runtime>
}, within: inside);
