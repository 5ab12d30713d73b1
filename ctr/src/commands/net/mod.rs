//! `ctr net`: network namespaces and links.

mod describe;
mod link;
mod ns;
mod plan;
mod table;
mod watch;

use clap::Subcommand;
use crated_api::network as api;
use crated_api::network::network_client::NetworkClient;
use crated_api::network::operation::Change;
use crated_api::network::result::Outcome;

use crate::connect::{Daemon, client};
use crate::error::Result;
use crate::output::{self, Padding, Table};

pub(crate) use self::ns::path;

/// What to do with networks. Wherever a network namespace is named, host stands for the daemon's.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Manage network namespaces.
    #[command(visible_alias = "netns", subcommand)]
    Ns(ns::Command),
    /// Manage links.
    #[command(visible_alias = "links", subcommand)]
    Link(link::Command),
    /// Manage addresses.
    #[command(visible_alias = "address", subcommand)]
    Addr(table::Addresses),
    /// Manage routes.
    #[command(subcommand)]
    Route(table::Routes),
    /// Manage neighbours.
    #[command(visible_alias = "neighbour", subcommand)]
    Neigh(table::Neighbours),
    /// Make what a file says, or none of it.
    Apply(plan::Arguments),
    /// Print the counters of links.
    Stats(Stats),
    /// Print what happens, as it happens.
    Watch(watch::Arguments),
    /// Print what the kernel can do.
    Capabilities,
}

/// Which counters.
#[derive(Debug, clap::Args)]
pub(crate) struct Stats {
    /// A network namespace.
    netns: String,
    /// Links; all by default.
    links: Vec<String>,
}

pub(crate) async fn run(daemon: &Daemon, command: Command) -> Result<()> {
    match command {
        Command::Ns(command) => ns::run(daemon, command).await,
        Command::Link(command) => link::run(daemon, command).await,
        Command::Addr(command) => table::addresses(daemon, command).await,
        Command::Route(command) => table::routes(daemon, command).await,
        Command::Neigh(command) => table::neighbours(daemon, command).await,
        Command::Apply(arguments) => plan::run(daemon, arguments).await,
        Command::Stats(arguments) => stats(daemon, arguments).await,
        Command::Watch(arguments) => watch::run(daemon, arguments).await,
        Command::Capabilities => capabilities(daemon).await,
    }
}

async fn stats(daemon: &Daemon, arguments: Stats) -> Result<()> {
    let Stats { netns, links } = arguments;
    let request = api::StatsRequest { netns, links };
    let answer = client!(daemon, NetworkClient).stats(request).await?.into_inner();
    let header = ["LINK", "RX-BYTES", "RX-PACKETS", "RX-DROPPED", "TX-BYTES", "TX-PACKETS"];
    let header = header.into_iter().chain(["TX-DROPPED", "QUEUE-DROPPED", "ERRORS"]);
    let mut table = Table::new(Padding::Wide, header);
    let total = api::LinkStats { name: "(all)".to_owned(), ..answer.total.unwrap_or_default() };
    for link in answer.links.into_iter().chain([total]) {
        let numbers = [
            link.rx_bytes,
            link.rx_packets,
            link.rx_dropped,
            link.tx_bytes,
            link.tx_packets,
            link.tx_dropped,
            link.queue_dropped,
            link.rx_errors + link.tx_errors,
        ];
        table.row([link.name].into_iter().chain(numbers.map(|number| number.to_string())));
    }
    table.print();
    Ok(())
}

async fn capabilities(daemon: &Daemon) -> Result<()> {
    let found = client!(daemon, NetworkClient).capabilities(()).await?.into_inner();
    let word = |is: bool| if is { "yes" } else { "no" };
    output::line(format!("kinds of links: {}", found.kinds.join(", ")));
    output::line(format!("bridges tell VLANs apart: {}", word(found.bridge_vlan_filtering)));
    output::line(format!("limits of what is sent: {}", word(found.egress_limit)));
    output::line(format!("limits of what is received: {}", word(found.ingress_limit)));
    output::line(format!("IPv6: {}", word(found.ipv6)));
    Ok(())
}

/// Makes one change that has no call of its own.
async fn change(daemon: &Daemon, netns: &str, change: Change) -> Result<()> {
    let operation = api::Operation { netns: netns.to_owned(), change: Some(change) };
    let request = api::ApplyRequest { operations: vec![operation], atomic: true };
    let answer = client!(daemon, NetworkClient).apply(request).await?.into_inner();
    match answer.results.into_iter().next().and_then(|result| result.outcome) {
        Some(Outcome::Error(error)) => Err(describe::refused(error.message)),
        _ => Ok(()),
    }
}
