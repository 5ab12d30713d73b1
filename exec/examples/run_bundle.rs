//! Runs a command from a bundle, with no daemon.
//!
//! `run_bundle BUNDLE [COMMAND…]`: the bundle has `config.json` and `rootfs`;
//! a command replaces the one in the spec. Needs root and runc.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to people")]

use std::{fs, path::PathBuf, process::ExitCode};

use crated_exec::{
    Bundle, CreateTask, Result, Runtime, Stdio,
    reaper::Reaper,
    runc::{RuncConfig, RuncRuntime},
    spec,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(bundle) = words.next() else {
        eprintln!("usage: run_bundle BUNDLE [COMMAND...]");
        return ExitCode::FAILURE;
    };
    match run(bundle.into(), words.collect()).await {
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            eprintln!("{}", error.report());
            ExitCode::FAILURE
        }
    }
}

async fn run(path: PathBuf, command: Vec<String>) -> Result<u32> {
    let bundle = Bundle::open(path)?;
    if !command.is_empty() {
        let words: Vec<_> = command.iter().map(String::as_str).collect();
        let edited = spec::with_args(spec::parse(&bundle.read_spec()?)?, &words);
        let edited = serde_json::to_vec(&edited).expect("a spec is valid JSON");
        fs::write(bundle.config(), edited).expect("the bundle is writable");
    }
    let runtime = RuncRuntime::new(RuncConfig::default(), Reaper::new()?);
    let task = runtime
        .create(CreateTask {
            id: format!("run-{}", std::process::id()),
            bundle,
            rootfs: Vec::new(),
            stdio: Stdio {
                stdout: "/dev/stdout".into(),
                stderr: "/dev/stderr".into(),
                ..Stdio::default()
            },
            checkpoint: None,
        })
        .await?;
    task.start().await?;
    let exit = task.wait().await?;
    task.delete().await?;
    Ok(exit.status)
}
