use std::{fs::File, io::Read, io::Seek, io::SeekFrom, path::Path};

use serde::Deserialize;

/// One line a runtime writes with `--log-format json`.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The last error in a runtime's log; reads at most the log's tail.
pub(super) fn last_error(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_MAX_BYTES))).ok()?;
    let mut text = Vec::new();
    file.take(TAIL_MAX_BYTES).read_to_end(&mut text).ok()?;
    last_error_in(&String::from_utf8_lossy(&text))
}

fn last_error_in(text: &str) -> Option<String> {
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let mut errors = lines.filter(|line| matches!(line.level.as_str(), "error" | "fatal"));
    errors.find(|line| !line.msg.trim().is_empty()).map(|line| line.msg.trim().to_owned())
}

/// Runtimes explain a failure in its last lines.
const TAIL_MAX_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_wins_over_later_warnings_and_broken_lines() {
        let log = concat!(
            "{\"level\":\"error\",\"msg\":\"first\",\"time\":\"t\"}\n",
            "{\"level\":\"error\",\"msg\":\"exec: \\\"x\\\": not found\"}\n",
            "{\"level\":\"warning\",\"msg\":\"later\"}\n",
            "{\"level\":\"error\",\"ms",
        );
        assert_eq!(last_error_in(log).as_deref(), Some("exec: \"x\": not found"));
        assert_eq!(last_error_in(""), None);
    }

    #[test]
    fn only_the_tail_of_a_huge_log_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = "x".repeat(4 << 20);
        log.push_str("\n{\"level\":\"error\",\"msg\":\"end\"}\n");
        std::fs::write(&path, log).unwrap();
        assert_eq!(last_error(&path).as_deref(), Some("end"));
    }
}
