//! Starts a container from a bundle and runs a second process in it.
//!
//! `exec_into BUNDLE COMMAND…`: the container is killed when the command has
//! ended. Needs root and runc.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to people")]

use std::process::ExitCode;

use crated_exec::{
    Bundle, CreateTask, ExecProcess, Result, Runtime, Stdio,
    reaper::Reaper,
    runc::{RuncConfig, RuncRuntime},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, command @ ..] = words.as_slice() else {
        eprintln!("usage: exec_into BUNDLE COMMAND...");
        return ExitCode::FAILURE;
    };
    match run(bundle, command).await {
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            eprintln!("{}", error.report());
            ExitCode::FAILURE
        }
    }
}

async fn run(bundle: &str, command: &[String]) -> Result<u32> {
    let runtime = RuncRuntime::new(RuncConfig::default(), Reaper::new()?);
    let task = runtime
        .create(CreateTask {
            id: format!("exec-{}", std::process::id()),
            bundle: Bundle::open(bundle)?,
            rootfs: Vec::new(),
            stdio: Stdio::default(),
            checkpoint: None,
        })
        .await?;
    task.start().await?;
    let spec = serde_json::json!({
        "args": command, "cwd": "/", "env": ["PATH=/bin:/usr/bin"], "user": { "uid": 0, "gid": 0 }
    });
    let stdio =
        Stdio { stdout: "/dev/stdout".into(), stderr: "/dev/stderr".into(), ..Stdio::default() };
    let process = task
        .exec(ExecProcess { id: "second".into(), spec: spec.to_string().into_bytes(), stdio })
        .await?;
    process.start().await?;
    let exit = process.wait().await?;
    process.delete().await?;
    // It may have ended by itself.
    let _ = task.kill(9, true).await;
    task.wait().await?;
    task.delete().await?;
    Ok(exit.status)
}
