//! What happens in all namespaces: one socket, however many watch.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crated_api::network as api;
use crated_api::network::event::Type;
use crated_netns::{Event, EventKind, Monitor, Origin};
use tokio::sync::broadcast;

use super::{Network, Result, answer, lock};
use crate::metadata::network::HOST;

/// Events kept for a watcher that is behind; then it is told that it lost some.
const BACKLOG_LEN: usize = 4096;

/// How long the thread waits before it looks whether anybody watches.
const IDLE: Duration = Duration::from_millis(500);

/// An event and the pin of the namespace it comes from; none is the host's.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The pin; `None` for the host.
    pub pin: Option<String>,
    /// What happened, without the id of the namespace.
    pub event: Arc<api::Event>,
}

/// Those who watch.
#[derive(Default)]
pub(super) struct Watchers {
    sender: Mutex<Option<broadcast::Sender<Watched>>>,
}

impl Network {
    /// Begins to watch. The socket is open when this returns.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn watch(self: &Arc<Self>) -> Result<broadcast::Receiver<Watched>> {
        let mut sender = lock(&self.watchers.sender);
        if let Some(sender) = &*sender {
            return Ok(sender.subscribe());
        }
        let monitor = self.root()?.monitor()?;
        let (started, receiver) = broadcast::channel(BACKLOG_LEN);
        let network = Arc::downgrade(self);
        let events = started.clone();
        std::thread::Builder::new()
            .name("network-watch".into())
            .spawn(move || follow(monitor, &events, &network))
            .map_err(|error| super::Error::Precondition(format!("watch: {error}")))?;
        *sender = Some(started);
        Ok(receiver)
    }

    /// The name of the pin of a namespace, or of nothing for the host's.
    ///
    /// # Errors
    ///
    /// NotFound when there is no network namespace of this id; InvalidArgument for what cannot be
    /// an id.
    pub fn pin_of(&self, scope: &crate::metadata::Scope, id: &str) -> Result<Option<String>> {
        match id {
            HOST => Ok(None),
            id => {
                let pin = super::names::pin(&scope.namespace, id)?.to_string();
                self.networks.netns(&scope.namespace, id)?;
                Ok(Some(pin))
            }
        }
    }

    /// The ids of the namespaces of `scope` by their pins.
    ///
    /// # Errors
    ///
    /// The records'.
    pub fn ids(
        &self,
        scope: &crate::metadata::Scope,
    ) -> Result<std::collections::HashMap<String, String>> {
        let all = self.networks.all_netns(&scope.namespace)?;
        Ok(all.into_iter().map(|netns| (netns.pin, netns.id)).collect())
    }

    fn lost(&self, pin: &str) {
        let everything = self.networks.everything().unwrap_or_default();
        for (namespace, found) in everything {
            // Being made or deleted is no loss.
            let record = found.netns.iter().find(|it| it.pin == pin && !it.deleting);
            if let Some(record) = record.filter(|_| lock(&self.identities).contains_key(pin)) {
                self.tell_netns(&namespace, "lost", record, "it ended");
            }
        }
    }
}

/// Passes events on while anybody watches.
fn follow(
    mut monitor: Monitor,
    events: &broadcast::Sender<Watched>,
    network: &std::sync::Weak<Network>,
) {
    loop {
        let next = monitor.wait(Some(IDLE));
        let Some(network) = network.upgrade() else { return };
        match next {
            Ok(Some(event)) => {
                if let (EventKind::NetnsGone, Origin::Pinned(pin)) = (&event.kind, &event.origin) {
                    network.lost(pin.as_str());
                }
                // Nobody may be watching just now.
                let _ = events.send(translate(event));
            }
            Ok(None) => {
                let mut sender = lock(&network.watchers.sender);
                if events.receiver_count() == 0 {
                    *sender = None;
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "watching networks");
                *lock(&network.watchers.sender) = None;
                return;
            }
        }
    }
}

fn translate(event: Event) -> Watched {
    let mut message =
        api::Event { timestamp: Some(SystemTime::now().into()), ..api::Event::default() };
    let pin = match event.origin {
        Origin::Host => None,
        Origin::Pinned(name) => Some(name.to_string()),
        // Somebody else's, or one whose pin is gone: nobody can have asked for it.
        Origin::Other(id) => Some(format!("nsid {id}")),
    };
    let kind = match event.kind {
        EventKind::LinkNew(link) => {
            message.ifindex = link.ifindex;
            message.link = Some(answer::status(&link, None));
            Type::LinkNew
        }
        EventKind::LinkChanged(link) => {
            message.ifindex = link.ifindex;
            message.link = Some(answer::status(&link, None));
            Type::LinkChanged
        }
        EventKind::LinkGone { ifindex, link } => {
            message.ifindex = ifindex;
            message.link = Some(answer::status(&link, None));
            Type::LinkGone
        }
        EventKind::AddrAdded { ifindex, addr } => {
            message.ifindex = ifindex;
            message.address = Some(answer::address(&addr));
            Type::AddressAdded
        }
        EventKind::AddrRemoved { ifindex, addr } => {
            message.ifindex = ifindex;
            message.address = Some(answer::address(&addr));
            Type::AddressRemoved
        }
        EventKind::RouteAdded { ifindex, route } => {
            message.ifindex = ifindex.unwrap_or_default();
            message.route = Some(answer::route(&route));
            Type::RouteAdded
        }
        EventKind::RouteRemoved { ifindex, route } => {
            message.ifindex = ifindex.unwrap_or_default();
            message.route = Some(answer::route(&route));
            Type::RouteRemoved
        }
        EventKind::NetnsNew => Type::NetnsNew,
        EventKind::NetnsGone => Type::NetnsGone,
        _ => Type::Overrun,
    };
    message.r#type = kind.into();
    Watched { pin, event: Arc::new(message) }
}
