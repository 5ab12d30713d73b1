//! `ctr net link`.

use crated_api::FieldMask;
use crated_api::network as api;
use crated_api::network::network_client::NetworkClient;

use super::describe::{self, LinkKind, Settings, refused};
use crate::connect::{Daemon, client};
use crate::error::Result;
use crate::output::{self, Padding, Table};

/// What to do with links.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make one.
    #[command(visible_alias = "create")]
    Add(Box<Add>),
    /// Change one; what is not given stays.
    #[command(visible_alias = "update")]
    Set(Box<Set>),
    /// List those of a network namespace, or all that were made with this command.
    #[command(visible_alias = "list")]
    Ls(List),
    /// Remove some.
    #[command(visible_aliases = ["del", "delete", "remove"])]
    Rm {
        /// Their network namespace, or host.
        netns: String,
        /// Their ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    /// Its network namespace, or host.
    netns: String,
    /// Its name.
    name: String,
    /// Its id, if it is not to be its name.
    #[arg(long, default_value = "")]
    id: String,
    /// Labels, given as KEY=VALUE.
    #[arg(long)]
    label: Vec<String>,
    #[command(flatten)]
    kind: LinkKind,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    /// Its network namespace, or host.
    netns: String,
    /// Its id.
    id: String,
    /// A new name.
    #[arg(long)]
    name: Option<String>,
    /// Labels, given as KEY=VALUE; an empty value removes one.
    #[arg(long)]
    label: Vec<String>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Print names only.
    #[arg(short, long)]
    quiet: bool,
    /// A network namespace, or host.
    netns: Option<String>,
    /// Filters, such as kind==veth, name==eth0 or labels.app==shop.
    #[arg(long = "filter")]
    filters: Vec<String>,
}

pub(super) async fn run(daemon: &Daemon, command: Command) -> Result<()> {
    match command {
        Command::Add(arguments) => add(daemon, *arguments).await,
        Command::Set(arguments) => set(daemon, *arguments).await,
        Command::Ls(arguments) => list(daemon, arguments).await,
        Command::Rm { netns, ids } => remove(daemon, netns, ids).await,
    }
}

async fn add(daemon: &Daemon, arguments: Add) -> Result<()> {
    let (mut spec, _) = arguments.settings.message()?;
    spec.name = arguments.name;
    spec.kind = Some(arguments.kind.message()?);
    let labels = describe::pairs(&arguments.label)?;
    let link = api::Link {
        id: arguments.id,
        netns: arguments.netns,
        labels,
        spec: Some(spec),
        ..api::Link::default()
    };
    let request = api::CreateLinkRequest { link: Some(link) };
    let made = client!(daemon, NetworkClient).create_link(request).await?.into_inner();
    table(&[made]).print();
    Ok(())
}

async fn set(daemon: &Daemon, arguments: Set) -> Result<()> {
    let (mut spec, mut paths) = arguments.settings.message()?;
    if let Some(name) = arguments.name {
        spec.name = name;
        paths.push("spec.name".to_owned());
    }
    let labels = describe::pairs(&arguments.label)?;
    paths.extend(labels.keys().map(|key| format!("labels.{key}")));
    if paths.is_empty() {
        return Err(refused("nothing to change: give at least one setting"));
    }
    let link = api::Link {
        id: arguments.id,
        netns: arguments.netns,
        labels,
        spec: Some(spec),
        ..api::Link::default()
    };
    let update_mask = Some(FieldMask { paths });
    let request = api::UpdateLinkRequest { link: Some(link), update_mask };
    let made = client!(daemon, NetworkClient).update_link(request).await?.into_inner();
    table(&[made]).print();
    Ok(())
}

async fn list(daemon: &Daemon, arguments: List) -> Result<()> {
    let netns = arguments.netns.unwrap_or_default();
    let request = api::ListLinksRequest { netns, filters: arguments.filters };
    let found = client!(daemon, NetworkClient).list_links(request).await?.into_inner().links;
    if arguments.quiet {
        found.iter().for_each(|link| output::line(name(link)));
        return Ok(());
    }
    table(&found).print();
    for link in &found {
        for drift in link.status.iter().flat_map(|status| &status.drift) {
            output::warn(format!("{}/{}: {drift}", link.netns, name(link)));
        }
    }
    Ok(())
}

async fn remove(daemon: &Daemon, netns: String, ids: Vec<String>) -> Result<()> {
    let mut failed = None;
    for id in ids {
        let etag = String::new();
        let request = api::DeleteLinkRequest { netns: netns.clone(), id: id.clone(), etag };
        match client!(daemon, NetworkClient).delete_link(request).await {
            Ok(_) => output::line(&id),
            // The others go all the same; the first failure is the answer.
            Err(error) if failed.is_none() => failed = Some(error),
            Err(error) => output::warn(error.message()),
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// The name a link has, or was to have.
fn name(link: &api::Link) -> &str {
    let spec = link.spec.as_ref().map_or("", |spec| spec.name.as_str());
    link.status.as_ref().map_or(spec, |status| status.ifname.as_str())
}

fn table(links: &[api::Link]) -> Table {
    let header = ["NETNS", "ID", "NAME", "KIND", "STATE", "MTU", "MAC", "MASTER", "ADDRESSES"];
    let mut table = Table::new(Padding::Wide, header.into_iter().chain(["LIMITS"]));
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    for link in links {
        let id = or_dash(&link.id);
        let Some(status) = &link.status else {
            let gone = [link.netns.as_str(), &id, name(link), "-", "LOST", "-", "-", "-", "-", "-"];
            table.row(gone.map(str::to_owned));
            continue;
        };
        let addrs: Vec<&str> = status.addrs.iter().map(|addr| addr.address.as_str()).collect();
        table.row([
            link.netns.clone(),
            id,
            status.ifname.clone(),
            status.kind.clone(),
            if status.up { status.oper_state.clone() } else { "down".to_owned() },
            status.mtu.to_string(),
            or_dash(&status.mac),
            or_dash(&status.master),
            or_dash(&addrs.join(",")),
            limits(status.bandwidth.as_ref()),
        ]);
    }
    table
}

fn limits(bandwidth: Option<&api::Bandwidth>) -> String {
    let Some(bandwidth) = bandwidth else { return "-".to_owned() };
    let text = |word: &str, rate: &Option<api::Rate>| {
        rate.as_ref().map(|rate| format!("{word} {}", describe::rate_text(rate)))
    };
    let both = [text("egress", &bandwidth.egress), text("ingress", &bandwidth.ingress)];
    both.into_iter().flatten().collect::<Vec<_>>().join(",")
}
