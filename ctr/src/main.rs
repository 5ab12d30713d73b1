//! `ctr`: a command line for crated and containerd, for people who debug them.
#![forbid(unsafe_code)]

mod beside;
mod chain;
mod cli;
mod commands;
mod connect;
mod documents;
mod error;
mod io;
mod output;
mod rootfs;
mod signal;
mod spec;
mod time;
mod transfer;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use crate::cli::{Cli, Command};
use crate::connect::Daemon;
use crate::error::{Error, Result};

/// The code that this program ends with: its own, or that of a process it watched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit(pub(crate) u8);

impl Exit {
    pub(crate) const SUCCESS: Self = Self(0);
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: whoever copies streams has threads of its own, and starting more takes longer
    // than most commands.
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("start", "the runtime"))
        .and_then(|runtime| {
            let outcome = runtime.block_on(run(cli));
            // Threads that wait for input or for a pipe nobody opens end with the process.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(exit) => ExitCode::from(exit.0),
        Err(error) => {
            output::error(error);
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<Exit> {
    let limit = |time: Duration| (!time.is_zero()).then_some(time);
    let command = async {
        let connect = limit(cli.connect_timeout);
        let daemon = Daemon::connect(&cli.address, &cli.namespace, connect).await?;
        dispatch(&daemon, cli.command).await
    };
    match limit(cli.timeout) {
        None => command.await,
        Some(time) => match tokio::time::timeout(time, command).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Refused(format!("gave up after {time:?}: deadline exceeded"))),
        },
    }
}

async fn dispatch(daemon: &Daemon, command: Command) -> Result<Exit> {
    match command {
        Command::Version => commands::version::run(daemon).await?,
        Command::Plugins(command) => commands::plugins::run(daemon, command).await?,
        Command::Containers(command) => commands::containers::run(daemon, command).await?,
        Command::Content(command) => commands::content::run(daemon, command).await?,
        Command::Events(arguments) => commands::events::run(daemon, arguments).await?,
        Command::Images(command) => commands::images::run(daemon, command).await?,
        Command::Leases(command) => commands::leases::run(daemon, command).await?,
        Command::Namespaces(command) => commands::namespaces::run(daemon, command).await?,
        Command::Net(command) => commands::net::run(daemon, command).await?,
        Command::Run(arguments) => return commands::run::run(daemon, *arguments).await,
        Command::Snapshots(arguments) => commands::snapshots::run(daemon, arguments).await?,
        Command::Tasks(command) => return commands::tasks::run(daemon, command).await,
    }
    Ok(Exit::SUCCESS)
}
