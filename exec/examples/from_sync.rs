//! Runs a command in a throw-away sandbox from a program without async code.
//!
//! `from_sync ROOTFS COMMAND…`: the folder ROOTFS, which needs `proc` and `dev`,
//! is seen read-only, memory and processes are limited, there is no network.
//! Prints the output. Needs root and runc.
//!
//! The async runtime is a value of this function, on this thread: nothing of it is left when
//! the function returns.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to people")]

use std::{path::Path, process::ExitCode};

use crated_exec::{
    Bundle, CreateTask, Result, Runtime, Stdio,
    reaper::Reaper,
    runc::{RuncConfig, RuncRuntime},
};
use crated_mount::Mount;
use serde_json::json;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [rootfs, command @ ..] = words.as_slice() else {
        eprintln!("usage: from_sync ROOTFS COMMAND...");
        return ExitCode::FAILURE;
    };
    match sandboxed(rootfs, command) {
        Ok((status, output)) => {
            print!("{output}");
            ExitCode::from(status as u8)
        }
        Err(error) => {
            eprintln!("{}", error.report());
            ExitCode::FAILURE
        }
    }
}

/// Runs a command to its end; its exit code and what it printed.
fn sandboxed(rootfs: &str, command: &[String]) -> Result<(u32, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a thread can have a runtime");
    let folder = std::env::temp_dir().join(format!("sandbox-{}", std::process::id()));
    let bundle = Bundle::create(&folder, spec(command).to_string().as_bytes())?;
    let log = folder.join("output");
    let ended = runtime.block_on(run(&bundle, rootfs, &log));
    let output = std::fs::read_to_string(&log).unwrap_or_default();
    bundle.remove()?;
    Ok((ended?, output))
}

async fn run(bundle: &Bundle, rootfs: &str, log: &Path) -> Result<u32> {
    let sandbox = RuncRuntime::new(RuncConfig::default(), Reaper::new()?);
    let out = format!("file://{}", log.display());
    let task = sandbox
        .create(CreateTask {
            id: format!("sandbox-{}", std::process::id()),
            bundle: bundle.clone(),
            rootfs: vec![Mount {
                kind: "bind".into(),
                source: rootfs.into(),
                target: String::new(),
                options: vec!["rbind".into(), "ro".into()],
            }],
            stdio: Stdio { stdout: out.clone(), stderr: out, ..Stdio::default() },
            checkpoint: None,
        })
        .await?;
    task.start().await?;
    let exit = task.wait().await?;
    task.delete().await?;
    Ok(exit.status)
}

fn spec(command: &[String]) -> serde_json::Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": command,
            "cwd": "/",
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "user": { "uid": 0, "gid": 0 },
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] }
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "network" }
            ],
            "resources": { "memory": { "limit": 256 << 20 }, "pids": { "limit": 64 } }
        }
    })
}
