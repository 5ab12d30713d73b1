//! The command line, spelled as containerd's `ctr` spells it.

use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::commands;

/// A command line for crated and containerd, for people who debug them.
#[derive(Debug, Parser)]
#[command(name = "ctr", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Address of the daemon's gRPC socket.
    #[arg(short, long, env = "CONTAINERD_ADDRESS", default_value = "/run/crated/crated.sock")]
    pub(crate) address: String,
    /// Namespace that commands speak of.
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    pub(crate) namespace: String,
    /// Total time that a command may take, such as 30s; 0 for no limit.
    #[arg(long, value_parser = duration, default_value = "0")]
    pub(crate) timeout: Duration,
    /// Time that connecting may take, such as 2s; 0 for no limit.
    #[arg(long, value_parser = duration, default_value = "0")]
    pub(crate) connect_timeout: Duration,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One noun each.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the client and server versions.
    Version,
    /// Provide information about the daemon's plugins.
    #[command(visible_alias = "plugin", subcommand)]
    Plugins(commands::plugins::Command),
    /// Manage containers.
    #[command(visible_aliases = ["c", "container"], subcommand)]
    Containers(commands::containers::Command),
    /// Manage content.
    #[command(subcommand)]
    Content(commands::content::Command),
    /// Display the daemon's events.
    #[command(visible_alias = "event")]
    Events(commands::events::Arguments),
    /// Manage images.
    #[command(visible_aliases = ["i", "image"], subcommand)]
    Images(commands::images::Command),
    /// Manage leases.
    #[command(subcommand)]
    Leases(commands::leases::Command),
    /// Manage namespaces.
    #[command(visible_aliases = ["ns", "namespace"], subcommand)]
    Namespaces(commands::namespaces::Command),
    /// Manage network namespaces and links.
    #[command(subcommand)]
    Net(commands::net::Command),
    /// Run a container.
    Run(Box<commands::run::Arguments>),
    /// Manage snapshots.
    #[command(visible_alias = "snapshot")]
    Snapshots(commands::snapshots::Arguments),
    /// Manage tasks.
    #[command(visible_aliases = ["t", "task"], subcommand)]
    Tasks(commands::tasks::Command),
}

/// Parses a duration such as `300ms`, `10s`, `2m`, `1h` or a bare zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a duration"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        "" if number == 0 => Ok(Duration::ZERO),
        _ => Err(format!("{text:?} has no unit; write 300ms, 10s, 2m or 1h")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(duration("5").is_err());
        assert!(duration("s").is_err());
    }
}
