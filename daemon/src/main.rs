//! The daemon: arguments and what each command does. Serving itself is in `serve.rs`.

mod logging;
mod serve;
mod sys;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use crated::config::{self, Config};
use crated::error::{Result, chain};
use crated::fsck;

/// A container daemon that speaks containerd's API.
#[derive(Parser)]
#[command(name = "crated", version = env!("CARGO_PKG_VERSION"))]
struct Arguments {
    #[command(flatten)]
    overrides: Overrides,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What the command line says over the configuration file.
#[derive(Args)]
struct Overrides {
    /// Configuration file.
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Directory of what survives a reboot.
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    /// Directory of what does not.
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
    /// Path of the gRPC socket.
    #[arg(short, long, value_name = "SOCKET", global = true)]
    address: Option<PathBuf>,
    /// Least important level to log: trace, debug, info, warn or error.
    #[arg(short, long, value_name = "LEVEL", global = true)]
    log_level: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Show or check the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Compare the records with the content and the snapshots on disk, while no daemon runs.
    Fsck {
        /// Put right what can be proved. Without it, nothing is changed.
        #[arg(long)]
        repair: bool,
    },
    /// Publish an event that is read from standard input, for shims.
    Publish {
        /// What kind of event it is.
        #[arg(long)]
        topic: String,
        /// The namespace it happened in.
        #[arg(long)]
        namespace: String,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print the configuration that applies without a file.
    Default,
    /// Print the configuration that applies.
    Dump,
    /// Read the configuration and say what of it is not accepted, or not done.
    Check,
}

fn main() -> ExitCode {
    let Arguments { overrides, command } = Arguments::parse();
    let done = match command {
        None => effective(&overrides).and_then(serve::serve).map(|()| ExitCode::SUCCESS),
        Some(Command::Config(ConfigCommand::Default)) => Ok(print(&Config::default().to_toml())),
        Some(Command::Config(ConfigCommand::Dump)) => {
            effective(&overrides).map(|config| print(&config.to_toml()))
        }
        Some(Command::Config(ConfigCommand::Check)) => effective(&overrides).map(|config| {
            config.ignored().into_iter().for_each(|key| report(&format!("ignored: {key}")));
            ExitCode::SUCCESS
        }),
        Some(Command::Fsck { repair }) => {
            effective(&overrides).and_then(|config| fsck::run(&config, repair)).map(|found| {
                print(&found.to_string());
                if found.is_sound() { ExitCode::SUCCESS } else { ExitCode::from(FSCK_FOUND) }
            })
        }
        Some(Command::Publish { topic, namespace }) => {
            let address = overrides.address.unwrap_or_else(|| Config::default().grpc.address);
            serve::runtime().and_then(|runtime| {
                let input = std::io::stdin();
                runtime.block_on(crated::publish::publish(&address, &namespace, &topic, input))?;
                Ok(ExitCode::SUCCESS)
            })
        }
    };
    done.unwrap_or_else(|error| {
        report(&chain(&error));
        ExitCode::FAILURE
    })
}

/// The file, if there is one, and the command line over it.
fn effective(overrides: &Overrides) -> Result<Config> {
    let default = Path::new(config::PATH_DEFAULT);
    let (path, mut config) = match &overrides.config {
        Some(path) => (path.as_path(), Config::load(path)?),
        None if default.exists() => (default, Config::load(default)?),
        None => (default, Config::default()),
    };
    let replace = |target: &mut PathBuf, value: &Option<PathBuf>| {
        if let Some(value) = value {
            target.clone_from(value);
        }
    };
    replace(&mut config.root, &overrides.root);
    replace(&mut config.state, &overrides.state);
    replace(&mut config.grpc.address, &overrides.address);
    if let Some(level) = &overrides.log_level {
        config.debug.level.clone_from(level);
    }
    config.check(path)?;
    Ok(config)
}

#[allow(clippy::print_stdout, reason = "what was asked for")]
fn print(text: &str) -> ExitCode {
    print!("{text}");
    ExitCode::SUCCESS
}

#[allow(clippy::print_stderr, reason = "the one line an operator sees")]
fn report(line: &str) {
    eprintln!("crated: {line}");
}

/// What `fsck` ends with when it left something that is not as it should be.
const FSCK_FOUND: u8 = 4;
