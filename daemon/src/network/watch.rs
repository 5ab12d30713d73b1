//! What happens in all namespaces: one socket, however many watch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crated_api::network as api;
use crated_api::network::event::Type;
use crated_netns::{Event, EventKind, Monitor, Origin};
use tokio::sync::broadcast;

use super::{Network, Result, answer, lock};
use crate::metadata::network::HOST;
use crate::metadata::{Namespace, Scope};

/// Events kept for a watcher that is behind; then it is told that it lost some.
const BACKLOG_LEN: usize = 4096;

/// How long the thread waits before it looks whether anybody watches.
const IDLE: Duration = Duration::from_millis(500);

/// What happened, and where.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Where.
    pub source: Source,
    /// What, without the id of the network namespace.
    pub event: Arc<api::Event>,
}

/// Where an event comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The network namespace of the daemon.
    Host,
    /// The one with this id.
    Netns(Namespace, String),
    /// One that no client has asked for.
    Unknown,
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

    /// Checks what a client wants to watch.
    ///
    /// # Errors
    ///
    /// NotFound when there is no network namespace of this id; InvalidArgument for what cannot be
    /// an id.
    pub fn check_watched(&self, scope: &Scope, id: &str) -> Result<()> {
        if id != HOST {
            super::names::check(id)?;
            self.networks.netns(&scope.namespace, id)?;
        }
        Ok(())
    }

    /// Whose a pin is. Most names tell; of one that was cut the records do.
    fn owner(&self, pin: &str) -> Source {
        if let Some((namespace, id)) = super::names::owner(pin) {
            return Source::Netns(namespace, id);
        }
        let everything = self.networks.everything().unwrap_or_default();
        let mut all = everything.into_iter().flat_map(|(namespace, found)| {
            found.netns.into_iter().map(move |netns| (namespace.clone(), netns))
        });
        all.find(|(_, netns)| netns.pin == pin)
            .map_or(Source::Unknown, |(namespace, netns)| Source::Netns(namespace, netns.id))
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
    let mut cut = HashMap::new();
    loop {
        let next = monitor.wait(Some(IDLE));
        let Some(network) = network.upgrade() else { return };
        match next {
            Ok(Some(event)) => {
                let source = source(&event.origin, &network, &mut cut);
                if let (EventKind::NetnsGone, Origin::Pinned(pin)) = (&event.kind, &event.origin) {
                    network.lost(pin.as_str());
                    cut.remove(pin.as_str());
                }
                // Nobody may be watching just now.
                let _ = events.send(Watched { source, event: Arc::new(translate(event)) });
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

/// Where an event comes from; `cut` keeps whose the pins are whose names do not tell.
fn source(origin: &Origin, network: &Network, cut: &mut HashMap<String, Source>) -> Source {
    match origin {
        Origin::Host => Source::Host,
        // Somebody else's, or one whose pin is gone: nobody can have asked for it.
        Origin::Other(_) => Source::Unknown,
        Origin::Pinned(pin) => match cut.get(pin.as_str()) {
            Some(known) => known.clone(),
            None => {
                let source = network.owner(pin.as_str());
                if super::names::owner(pin.as_str()).is_none() && source != Source::Unknown {
                    cut.insert(pin.to_string(), source.clone());
                }
                source
            }
        },
    }
}

fn translate(event: Event) -> api::Event {
    let mut message =
        api::Event { timestamp: Some(SystemTime::now().into()), ..api::Event::default() };
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
    message
}
