//! `ctr plugins`

use crated_api::services::introspection::v1::PluginsRequest;
use crated_api::services::introspection::v1::introspection_client::IntrospectionClient;

use crate::connect::{Daemon, client};
use crate::error::Result;
use crate::output::{self, Padding, Table};

/// What to do with plugins.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the daemon's plugins.
    #[command(visible_alias = "ls")]
    List {
        /// Print only their ids.
        #[arg(short, long)]
        quiet: bool,
        /// Filters, such as `type==io.containerd.snapshotter.v1`.
        filters: Vec<String>,
    },
}

/// Runs one of them.
pub(crate) async fn run(daemon: &Daemon, command: Command) -> Result<()> {
    let Command::List { quiet, filters } = command;
    let mut client = client!(daemon, IntrospectionClient);
    let plugins = client.plugins(PluginsRequest { filters }).await?.into_inner().plugins;
    if quiet {
        plugins.iter().for_each(|plugin| output::line(&plugin.id));
        return Ok(());
    }
    let mut table = Table::new(Padding::Wide, ["TYPE", "ID", "PLATFORMS", "STATUS", ""]);
    for plugin in plugins {
        let platforms: Vec<String> = plugin
            .platforms
            .iter()
            .map(|platform| format!("{}/{}", platform.os, platform.architecture))
            .collect();
        let platforms = if platforms.is_empty() { "-".to_owned() } else { platforms.join(",") };
        let status = match &plugin.init_err {
            None => "ok",
            Some(error) if error.message.contains("skip plugin") => "skip",
            Some(_) => "error",
        };
        table.row([plugin.r#type, plugin.id, platforms, status.to_owned(), String::new()]);
    }
    table.print();
    Ok(())
}
