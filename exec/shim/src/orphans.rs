//! What a shim that was killed leaves running besides its container: runtimes half way through
//! their work, which would finish it after everything else has been cleaned up.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Kills the processes of a dead shim's session that work in the bundle. Both together tell them
/// from all others: a shim makes a session of its own, its commands run in the bundle, and what
/// they start in containers has a session and a root of its own.
pub(crate) fn kill(bundle: &Path) {
    let Some(shim) = fs::read_to_string(bundle.join("shim.pid")).ok() else { return };
    let Ok(shim) = shim.trim().parse::<u32>() else { return };
    if is_running(&fields(format!("/proc/{shim}"))) {
        return;
    }
    // Where processes are is told without links.
    let Ok(bundle) = bundle.canonicalize() else { return };
    for _ in 0..ROUNDS_MAX {
        let orphans = find(shim, &bundle);
        if orphans.is_empty() {
            return;
        }
        for pid in orphans {
            let pidfd = pidfd_open(pid, PidfdFlags::empty());
            // Ended meanwhile, which is all that is wanted.
            let _ = pidfd.and_then(|fd| pidfd_send_signal(fd, Signal::KILL));
        }
        std::thread::sleep(PAUSE);
    }
}

fn find(session: u32, bundle: &Path) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let fields = fields(entry.path());
        if !is_running(&fields) || fields.get(3) != Some(&session.to_string()) {
            continue;
        }
        let here = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == bundle);
        if here {
            found.extend(Pid::from_raw(pid));
        }
    }
    found
}

/// State, parent, group, session and more of a process; none without the process.
fn fields(process: impl AsRef<Path>) -> Vec<String> {
    let stat = fs::read_to_string(process.as_ref().join("stat")).unwrap_or_default();
    // They come after the name, which may hold anything.
    let fields = stat.rsplit_once(") ").unwrap_or_default().1;
    fields.split_whitespace().map(str::to_owned).collect()
}

fn is_running(fields: &[String]) -> bool {
    fields.first().is_some_and(|state| !["Z", "X"].contains(&state.as_str()))
}

/// Killing is done when nothing is found any more; a process the kernel keeps is given up.
const ROUNDS_MAX: u32 = 50;
const PAUSE: Duration = Duration::from_millis(5);
