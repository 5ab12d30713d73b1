//! `ctr net ns`.

use std::time::Duration;

use crated_api::network as api;
use crated_api::network::network_client::NetworkClient;

use super::describe::{pairs, refused};
use crate::connect::{Daemon, client};
use crate::error::Result;
use crate::output::{self, Padding, Table};

/// What to do with network namespaces.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make one, or take over an existing one.
    #[command(visible_alias = "add")]
    Create(Create),
    /// List them.
    #[command(visible_alias = "list")]
    Ls(List),
    /// Print everything about one.
    #[command(visible_alias = "get")]
    Info {
        /// Its id, or host.
        id: String,
    },
    /// Delete some.
    #[command(visible_aliases = ["del", "delete", "remove"])]
    Rm(Remove),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Its id.
    id: String,
    /// Labels, given as KEY=VALUE.
    #[arg(long)]
    label: Vec<String>,
    /// Settings, such as net.ipv4.ip_forward=1.
    #[arg(long)]
    sysctl: Vec<String>,
    /// Leave the loopback device down.
    #[arg(long)]
    lo_down: bool,
    /// Take over the one that this process is in.
    #[arg(long, conflicts_with = "path")]
    pid: Option<i32>,
    /// Take over the one of this file.
    #[arg(long)]
    path: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Print ids only.
    #[arg(short, long)]
    quiet: bool,
    /// Filters, such as id==web, state==LOST or labels.app==shop.
    filters: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Remove {
    /// Their ids.
    #[arg(required = true)]
    ids: Vec<String>,
    /// Even when processes or containers use them.
    #[arg(short, long)]
    force: bool,
    /// How long to wait for the kernel.
    #[arg(long, value_parser = crate::cli::duration)]
    wait: Option<Duration>,
}

pub(super) async fn run(daemon: &Daemon, command: Command) -> Result<()> {
    match command {
        Command::Create(arguments) => create(daemon, arguments).await,
        Command::Ls(arguments) => list(daemon, arguments).await,
        Command::Info { id } => info(daemon, id).await,
        Command::Rm(arguments) => remove(daemon, arguments).await,
    }
}

/// Where the network namespace called `id` is pinned.
pub(crate) async fn path(daemon: &Daemon, id: &str) -> Result<String> {
    let request = api::GetNetnsRequest { id: id.to_owned() };
    let netns = client!(daemon, NetworkClient).get_netns(request).await?.into_inner();
    match netns.state() {
        api::State::Ready => Ok(netns.path),
        state => Err(refused(format!("network namespace {id:?} is {}", state_text(state)))),
    }
}

async fn create(daemon: &Daemon, arguments: Create) -> Result<()> {
    let from = match (arguments.pid, arguments.path) {
        (Some(pid), _) => Some(api::source::From::Pid(pid)),
        (None, Some(path)) => Some(api::source::From::Path(path)),
        (None, None) => None,
    };
    let netns = api::Netns {
        id: arguments.id,
        labels: pairs(&arguments.label)?,
        sysctls: pairs(&arguments.sysctl)?,
        lo_up: Some(!arguments.lo_down),
        source: from.map(|from| api::Source { from: Some(from) }),
        ..api::Netns::default()
    };
    let request = api::CreateNetnsRequest { netns: Some(netns) };
    let made = client!(daemon, NetworkClient).create_netns(request).await?.into_inner();
    output::line(made.path);
    Ok(())
}

async fn list(daemon: &Daemon, arguments: List) -> Result<()> {
    let request = api::ListNetnsRequest { filters: arguments.filters };
    let found = client!(daemon, NetworkClient).list_netns(request).await?.into_inner().netns;
    if arguments.quiet {
        found.iter().for_each(|netns| output::line(&netns.id));
        return Ok(());
    }
    let mut table = Table::new(Padding::Wide, ["ID", "STATE", "PATH", "LABELS"]);
    for netns in found {
        let labels: Vec<String> =
            netns.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let state = state_text(netns.state()).to_owned();
        let labels = if labels.is_empty() { "-".to_owned() } else { labels.join(",") };
        table.row([netns.id, state, netns.path, labels]);
    }
    table.print();
    Ok(())
}

async fn info(daemon: &Daemon, id: String) -> Result<()> {
    let mut client = client!(daemon, NetworkClient);
    let request = api::GetNetnsRequest { id: id.clone() };
    let netns = client.get_netns(request).await?.into_inner();
    let field = |name: &str, value: String| {
        if !value.is_empty() {
            output::line(format!("{name:<12}{value}"));
        }
    };
    let state = netns.state();
    field("id", netns.id);
    field("state", state_text(state).to_owned());
    field("path", netns.path);
    field("nsid", netns.nsid.map(|nsid| nsid.to_string()).unwrap_or_default());
    if netns.inode != 0 {
        field("inode", netns.inode.to_string());
        field("cookie", netns.cookie.to_string());
    }
    if let Some(time) = &netns.created_at {
        field("created", time.to_string());
    }
    for (key, value) in &netns.labels {
        field("label", format!("{key}={value}"));
    }
    for (key, value) in &netns.sysctls {
        field("sysctl", format!("{key}={value}"));
    }
    for container in netns.containers {
        field("container", container);
    }
    for holder in netns.holders {
        let how = if holder.member { "lives inside" } else { "holds it open" };
        field("process", format!("{} {} ({how})", holder.pid, holder.command));
    }
    if state == api::State::Ready {
        let request = api::ListLinksRequest { netns: id, ..Default::default() };
        for link in client.list_links(request).await?.into_inner().links {
            let status = link.status.unwrap_or_default();
            let addrs = status.addrs.iter().map(|addr| addr.address.as_str()).collect();
            let text = [vec![status.ifname.as_str(), status.kind.as_str()], addrs].concat();
            field("link", text.join(" "));
            for drift in status.drift {
                field("drift", format!("{}: {drift}", status.ifname));
            }
        }
    }
    Ok(())
}

async fn remove(daemon: &Daemon, arguments: Remove) -> Result<()> {
    let mut failed = None;
    for id in arguments.ids {
        let request = api::DeleteNetnsRequest {
            id: id.clone(),
            force: arguments.force,
            wait_timeout_ms: arguments
                .wait
                .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            etag: String::new(),
        };
        match client!(daemon, NetworkClient).delete_netns(request).await {
            Ok(answer) => {
                output::line(&id);
                for holder in answer.into_inner().holders {
                    output::warn(format!(
                        "network namespace {id:?} lives on in process {} ({})",
                        holder.pid, holder.command
                    ));
                }
            }
            // The others go all the same; the first failure is the answer.
            Err(error) if failed.is_none() => failed = Some(error),
            Err(error) => output::warn(error.message()),
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

pub(super) fn state_text(state: api::State) -> &'static str {
    match state {
        api::State::Ready => "READY",
        api::State::Lost => "LOST",
        api::State::Replaced => "REPLACED",
        api::State::Deleting => "DELETING",
        api::State::Unspecified => "-",
    }
}
