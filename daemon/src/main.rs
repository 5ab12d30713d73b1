//! The daemon: arguments, logging, configuration, start, wait, drain.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use crated::config::{self, Config};
use crated::error::{Error, Result, chain};
use crated::services::version::{REVISION, VERSION};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

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
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of what survives a reboot.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Directory of what does not.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Path of the gRPC socket.
    #[arg(short, long, value_name = "SOCKET")]
    address: Option<PathBuf>,
    /// Least important level to log: trace, debug, info, warn or error.
    #[arg(short, long, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Show the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
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
}

fn main() -> ExitCode {
    let Arguments { overrides, command } = Arguments::parse();
    let done = match command {
        None => effective(&overrides).and_then(serve),
        Some(Command::Config(ConfigCommand::Default)) => print(&Config::default()),
        Some(Command::Config(ConfigCommand::Dump)) => {
            effective(&overrides).and_then(|config| print(&config))
        }
        Some(Command::Publish { topic, namespace }) => {
            let address = overrides.address.unwrap_or_else(|| Config::default().grpc.address);
            runtime().and_then(|runtime| {
                let input = std::io::stdin();
                runtime.block_on(crated::publish::publish(&address, &namespace, &topic, input))
            })
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&chain(&error));
            ExitCode::FAILURE
        }
    }
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

fn serve(config: Config) -> Result<()> {
    start_logging(&config);
    tracing::info!(version = VERSION, revision = REVISION, "starting");
    for key in config.ignored() {
        tracing::warn!(key, "configuration is not for crated, ignored");
    }
    if config.oom_score != 0 {
        let path = Path::new("/proc/self/oom_score_adj");
        std::fs::write(path, config.oom_score.to_string())
            .map_err(|error| Error::io("write", path, error))?;
    }
    runtime()?.block_on(async {
        let wait = |kind| {
            signal(kind).map_err(|source| Error::Io {
                object: "signal".to_owned(),
                step: "handle",
                source,
            })
        };
        let (mut terminate, mut interrupt) =
            (wait(SignalKind::terminate())?, wait(SignalKind::interrupt())?);
        let mut running = crated::start(config).await?;
        notify(sd_notify::NotifyState::Ready);
        let failure = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            failure = running.failed() => Some(failure),
        };
        notify(sd_notify::NotifyState::Stopping);
        tracing::info!("stopping; containers go on running");
        running.stop().await?;
        failure.map_or(Ok(()), Err)
    })
}

fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(crated::blocking::THREADS_MAX)
        .thread_name("crated")
        .build()
        .map_err(|source| Error::Io { object: "threads".to_owned(), step: "start", source })
}

fn start_logging(config: &Config) {
    let level = match config.debug.level.as_str() {
        "" => "info",
        "fatal" | "panic" => "error",
        level => level,
    };
    let own = ["crated", "crated_content", "crated_distribution", "crated_exec", "crated_mount"]
        .into_iter()
        .chain(["crated_netns", "crated_snapshot"])
        .map(|name| format!("{name}={level}"));
    let filter = std::iter::once("warn".to_owned()).chain(own).collect::<Vec<_>>().join(",");
    let filter = EnvFilter::builder().parse_lossy(filter);
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.debug.format.as_str() {
        "json" => logger.json().init(),
        _ => logger.with_ansi(false).init(),
    }
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "no service manager to notify");
    }
}

#[allow(clippy::print_stdout, reason = "the configuration is what was asked for")]
fn print(config: &Config) -> Result<()> {
    print!("{}", config.to_toml());
    Ok(())
}

#[allow(clippy::print_stderr, reason = "the one line an operator sees")]
fn report(line: &str) {
    eprintln!("crated: {line}");
}
