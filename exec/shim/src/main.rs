//! `containerd-shim-crated-v2`: keeps containers running, whatever happens to
//! the daemon.
//!
//! The daemon runs it as `… start`; that process makes the socket, forks the
//! shim proper, prints the socket's address and ends.
//! `… delete` cleans up after a shim that died. Everything else happens over
//! the socket.

mod args;
mod containers;
mod delete;
mod events;
mod exit;
mod info;
mod log;
mod options;
mod orphans;
mod sandbox;
mod serve;
mod service;
mod start;

use std::process::ExitCode;

use args::{Action, Args};

fn main() -> ExitCode {
    let result = Args::parse(std::env::args().skip(1)).and_then(|args| match args.action {
        Action::Start => start::run(&args),
        Action::Delete => delete::run(&args),
        Action::Info => info::run(&args),
        Action::Version => info::version(),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(std::io::stderr(), "containerd-shim-crated-v2: {}", error.report());
            ExitCode::FAILURE
        }
    }
}

/// One thread serves everything: containers wait far more than they ask.
fn runtime() -> crated_exec::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(std::time::Duration::from_millis(100))
        .build()
        .map_err(|source| crated_exec::Error::Io {
            op: "start runtime in",
            path: "process".into(),
            source,
        })
}

/// Mounting, and copying input from files.
const BLOCKING_THREADS_MAX: usize = 64;
