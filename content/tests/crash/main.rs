//! What is left after a process is killed and after the power goes.
#![allow(clippy::print_stderr, reason = "seeds, summaries and skipped tests are for people")]

mod disk_error;
mod kill;
mod power_cut;
mod workload;

/// Says that a test could not be run here; in CI that is a failure.
fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "{reason}");
    eprintln!("skipped: {reason}");
}

/// A number of the environment, to run a test for longer than by default.
fn scale(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => default,
    }
}
