//! What the daemon is doing, for someone who wonders why it does not.
//!
//! On SIGUSR1 the state of threads, of calls, of what running operations hold, and all metrics
//! are written to `<state>/dump.txt`, readable by the owner only; the log says where.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result, chain};
use crate::services::version::{REVISION, VERSION};
use crate::wiring::Daemon;

/// The file below the state directory.
pub const FILE: &str = "dump.txt";

/// Writes the dump, and logs where it is or why it is not.
pub async fn write(daemon: &Arc<Daemon>) {
    let shared = Arc::clone(daemon);
    match daemon.blocking.apart(move || save(&shared)).await {
        Ok(Ok(path)) => tracing::info!(path = %path.display(), "state dumped"),
        Ok(Err(error)) => tracing::warn!(error = chain(&error), "state not dumped"),
        Err(error) => tracing::warn!(%error, "state not dumped"),
    }
}

fn save(daemon: &Daemon) -> Result<PathBuf> {
    let path = daemon.config.state.join(FILE);
    let draft = path.with_extension("tmp");
    let fail = |error| Error::io("write", &draft, error);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(fail)?;
    file.write_all(text(daemon).as_bytes()).map_err(fail)?;
    fs::rename(&draft, &path).map_err(|error| Error::io("rename", &draft, error))?;
    Ok(path)
}

/// The dump. Blocks.
pub fn text(daemon: &Daemon) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(text, "crated {VERSION} {REVISION}, process {}", std::process::id());
    let _ = writeln!(text, "root {}", daemon.config.root.display());
    let _ = writeln!(text, "state {}", daemon.config.state.display());
    let _ = writeln!(text, "\n# lanes of blocking work: {:?}", daemon.blocking);
    let _ = writeln!(text, "\n# threads: id, name, state, where it waits\n");
    threads(&mut text);
    let _ = writeln!(text, "\n# what running operations hold\n");
    for held in daemon.db.held() {
        let _ = writeln!(text, "{held}");
    }
    let _ = writeln!(text, "\n# metrics\n");
    text.push_str(&daemon.metrics_text());
    text
}

fn threads(text: &mut String) {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return };
    let mut tasks: Vec<PathBuf> = tasks.flatten().map(|entry| entry.path()).collect();
    tasks.sort();
    for task in tasks {
        let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
        let (stat, waits) = (read("stat"), read("wchan"));
        // The name stands in brackets and may hold anything; the state follows the last bracket.
        let state = stat.rsplit_once(')').map_or("?", |(_, rest)| rest.trim());
        let state = state.split(' ').next().unwrap_or("?");
        let id = task.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(text, "{id} {} {state} {waits}", read("comm").trim());
    }
}
