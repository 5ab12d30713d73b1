//! Who keeps a container from being removed.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use crate::cgroup::Cgroup;

/// Processes of the container with what they wait for, and who holds its mounts; empty when
/// nobody is found. Looks at all processes of the host, so only for what has failed already.
pub(super) fn describe(bundle: &Path) -> String {
    let mut text = String::new();
    for pid in processes(bundle).into_iter().take(NAMED_MAX) {
        // Writing to a String cannot fail.
        let _ = write!(text, "; {}", process(pid));
    }
    let place = bundle.display().to_string();
    for pid in holders(bundle).into_iter().take(NAMED_MAX) {
        let _ = write!(text, "; something in {place} is mounted for pid {pid} ({})", name(pid));
    }
    text
}

/// Whether the container's first process is still there.
pub(super) fn is_alive(bundle: &Path) -> bool {
    !processes(bundle).is_empty()
}

/// A process, its state and where in the kernel it waits.
pub(crate) fn process(pid: u32) -> String {
    let state = state(pid).unwrap_or('?');
    let waits = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let waits = match waits.trim() {
        "" | "0" => String::new(),
        place => format!(", waits in {place}"),
    };
    format!("pid {pid} ({}) is in state {state}{waits}", name(pid))
}

/// The processes of the container: those of its cgroup if that tells it apart, else the first.
fn processes(bundle: &Path) -> Vec<u32> {
    let Some(pid) = init(bundle) else { return Vec::new() };
    let same = |cgroup: &Cgroup| Cgroup::of(std::process::id()).is_ok_and(|own| own == *cgroup);
    match Cgroup::of(pid) {
        Ok(cgroup) if !same(&cgroup) => cgroup.pids().unwrap_or_else(|_| vec![pid]),
        _ => vec![pid],
    }
}

/// The first process, unless it has ended. A pid that came to another process since then is told
/// by its age: that one is younger than the file.
fn init(bundle: &Path) -> Option<u32> {
    let file = bundle.join("init.pid");
    let pid: u32 = fs::read_to_string(&file).ok()?.trim().parse().ok()?;
    let written = fs::metadata(&file).ok()?.modified().ok()?;
    let written = written.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let zombie = matches!(state(pid), None | Some('Z' | 'X'));
    (!zombie && started(pid)? <= written + AGE_SLACK_S).then_some(pid)
}

/// When a process was started, in seconds since the epoch.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks: u64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<u64>().ok()? + ticks / TICKS_PER_S)
}

fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, brackets included.
    stat.rsplit_once(") ")?.1.chars().next()
}

fn name(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().escape_debug().to_string()
}

/// Processes, one of each mount namespace, that see something mounted in the bundle, or in what
/// is left of it under its hidden name.
fn holders(bundle: &Path) -> Vec<u32> {
    let hidden = bundle.file_name().map(|name| bundle.with_file_name(hidden(name)));
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut holders = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten().take(PROCESSES_MAX) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(namespace) = fs::read_link(entry.path().join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        seen.push(namespace);
        let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        let below = |line: &str| {
            let at = line.split(' ').nth(4).map(Path::new);
            at.is_some_and(|at| {
                at.starts_with(bundle) || hidden.as_ref().is_some_and(|path| at.starts_with(path))
            })
        };
        if mounts.lines().any(below) {
            holders.push(pid);
        }
    }
    holders
}

fn hidden(name: &OsStr) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden
}

/// Enough to find the culprit.
const NAMED_MAX: usize = 8;

/// Processes looked at: a host has fewer, and this is no census.
const PROCESSES_MAX: usize = 32_768;

/// Boot time and file times are rounded.
const AGE_SLACK_S: u64 = 2;

/// What the kernel counts in for its users.
const TICKS_PER_S: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_with_its_state_and_where_it_waits() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(dir.path().join("init.pid"), child.id().to_string()).unwrap();
        let text = describe(dir.path());
        let alive = is_alive(dir.path());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(alive);
        assert!(text.contains(&format!("pid {} (", child.id())), "{text}");
        assert!(text.contains("is in state "), "{text}");
        assert!(!is_alive(dir.path()));
        assert_eq!(describe(dir.path()), "");
    }
}
