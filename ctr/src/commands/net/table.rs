//! `ctr net addr`, `ctr net route` and `ctr net neigh`: what the kernel keeps in tables.

use crated_api::network as api;
use crated_api::network::network_client::NetworkClient;
use crated_api::network::operation::Change;

use super::{change, describe};
use crate::connect::{Daemon, client};
use crate::error::Result;
use crate::output::{self, Padding, Table};

/// What to do with addresses.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Addresses {
    /// Add one to a link.
    Add(Address),
    /// Remove one from a link.
    #[command(visible_alias = "del")]
    Rm(Address),
    /// List those of a network namespace.
    #[command(visible_alias = "list")]
    Ls {
        /// The network namespace, or host.
        netns: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Address {
    /// The network namespace, or host.
    netns: String,
    /// The link.
    link: String,
    /// The address and flags, such as 10.9.0.2/24 or fd00::2/64 nodad.
    #[arg(required = true)]
    address: Vec<String>,
}

/// What to do with routes.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Routes {
    /// Add one, such as default via 10.9.0.1.
    Add(Route),
    /// Remove one.
    #[command(visible_alias = "del")]
    Rm(Route),
    /// List those of a network namespace.
    #[command(visible_alias = "list")]
    Ls {
        /// The network namespace, or host.
        netns: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Route {
    /// The network namespace, or host.
    netns: String,
    /// The route, such as default via 10.9.0.1 or 10.1.0.0/16 dev eth0.
    #[arg(required = true)]
    route: Vec<String>,
}

/// What to do with neighbours.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Neighbours {
    /// Add a permanent one.
    Add(Neighbour),
    /// Remove one.
    #[command(visible_alias = "del")]
    Rm(Neighbour),
    /// List those of a network namespace, forwarding entries included.
    #[command(visible_alias = "list")]
    Ls {
        /// The network namespace, or host.
        netns: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Neighbour {
    /// The network namespace, or host.
    netns: String,
    /// The link.
    dev: String,
    /// The neighbour's address.
    ip: String,
    /// Its hardware address; not needed to remove it.
    #[arg(default_value = "")]
    mac: String,
}

pub(super) async fn addresses(daemon: &Daemon, command: Addresses) -> Result<()> {
    let of = |given: &Address| -> Result<api::LinkAddress> {
        let address = Some(describe::address(&given.address.join(" "))?);
        Ok(api::LinkAddress { link: given.link.clone(), address })
    };
    match command {
        Addresses::Add(given) => {
            change(daemon, &given.netns, Change::AddAddress(of(&given)?)).await
        }
        Addresses::Rm(given) => {
            change(daemon, &given.netns, Change::RemoveAddress(of(&given)?)).await
        }
        Addresses::Ls { netns } => {
            let request = api::ListLinksRequest { netns, ..Default::default() };
            let links = client!(daemon, NetworkClient).list_links(request).await?.into_inner();
            let mut table = Table::new(Padding::Wide, ["LINK", "ADDRESS", "SCOPE", "FLAGS"]);
            for status in links.links.into_iter().filter_map(|link| link.status) {
                for addr in status.addrs {
                    let flags = [("nodad", addr.nodad), ("noprefixroute", addr.noprefixroute)];
                    let flags: Vec<&str> =
                        flags.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
                    let flags = if flags.is_empty() { "-".to_owned() } else { flags.join(",") };
                    table.row([status.ifname.clone(), addr.address, addr.scope, flags]);
                }
            }
            table.print();
            Ok(())
        }
    }
}

pub(super) async fn routes(daemon: &Daemon, command: Routes) -> Result<()> {
    match command {
        Routes::Add(given) => {
            let route = describe::route(&given.route.join(" "))?;
            change(daemon, &given.netns, Change::AddRoute(route)).await
        }
        Routes::Rm(given) => {
            let route = describe::route(&given.route.join(" "))?;
            change(daemon, &given.netns, Change::RemoveRoute(route)).await
        }
        Routes::Ls { netns } => {
            let request = api::ListRoutesRequest { netns };
            let routes = client!(daemon, NetworkClient).list_routes(request).await?.into_inner();
            routes.routes.iter().for_each(|route| output::line(describe::route_text(route)));
            Ok(())
        }
    }
}

pub(super) async fn neighbours(daemon: &Daemon, command: Neighbours) -> Result<()> {
    let of = |given: &Neighbour| api::Neighbour {
        dev: given.dev.clone(),
        ip: given.ip.clone(),
        mac: given.mac.clone(),
        permanent: true,
    };
    match command {
        Neighbours::Add(given) => {
            change(daemon, &given.netns, Change::AddNeighbour(of(&given))).await
        }
        Neighbours::Rm(given) => {
            change(daemon, &given.netns, Change::RemoveNeighbour(of(&given))).await
        }
        Neighbours::Ls { netns } => {
            let request = api::ListNeighboursRequest { netns };
            let found = client!(daemon, NetworkClient).list_neighbours(request).await?.into_inner();
            let mut table = Table::new(Padding::Wide, ["LINK", "ADDRESS", "MAC", "STATE"]);
            let state = |permanent| if permanent { "permanent" } else { "learned" }.to_owned();
            for neigh in found.neighbours {
                let mac = if neigh.mac.is_empty() { "-".to_owned() } else { neigh.mac };
                table.row([neigh.dev, neigh.ip, mac, state(neigh.permanent)]);
            }
            for entry in found.forwarding {
                let to = if entry.dst.is_empty() { "-".to_owned() } else { entry.dst };
                table.row([entry.dev, to, entry.mac, state(entry.permanent)]);
            }
            table.print();
            Ok(())
        }
    }
}
