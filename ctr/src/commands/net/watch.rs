//! `ctr net watch`.

use crated_api::network as api;
use crated_api::network::event::Type;
use crated_api::network::network_client::NetworkClient;

use super::describe;
use crate::connect::{Daemon, client};
use crate::error::Result;
use crate::output;

/// Which events.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Network namespaces, host among them; all of this namespace and the host's by default.
    netns: Vec<String>,
    /// End after so many events.
    #[arg(long)]
    count: Option<usize>,
}

pub(super) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<()> {
    let request = api::WatchRequest { netns: arguments.netns };
    let mut events = client!(daemon, NetworkClient).watch(request).await?.into_inner();
    let mut left = arguments.count.unwrap_or(usize::MAX);
    while left > 0 {
        let Some(event) = events.message().await? else { break };
        output::line(text(&event));
        left -= usize::from(event.r#type() != Type::Snapshot);
    }
    Ok(())
}

fn text(event: &api::Event) -> String {
    let what = match event.r#type() {
        Type::Snapshot => return "watching".to_owned(),
        Type::Overrun => return "events were lost, list again".to_owned(),
        kind => kind.as_str_name().to_lowercase().replace('_', " "),
    };
    let time = event.timestamp.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut line = format!("{time} {} {what}", event.netns);
    if let Some(link) = &event.link {
        let state = if link.up { link.oper_state.as_str() } else { "down" };
        line.push_str(&format!(" {} {} mtu {} {state}", link.ifname, link.kind, link.mtu));
    }
    if let Some(address) = &event.address {
        line.push_str(&format!(" {} on link {}", address.address, event.ifindex));
    }
    if let Some(route) = &event.route {
        line.push_str(&format!(" {}", describe::route_text(route)));
        if event.ifindex != 0 {
            line.push_str(&format!(" on link {}", event.ifindex));
        }
    }
    line
}
