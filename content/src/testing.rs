/// Says that a test could not be run here; in CI that is a failure.
#[allow(clippy::print_stderr, reason = "the message is for whoever runs the tests")]
pub(crate) fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "{reason}");
    eprintln!("skipped: {reason}");
}
