//! Network namespaces and links with a record: made, changed, deleted, found again.
//!
//! ```text
//!  services ─► Network ─► crated-netns          the kernel's part, on threads of its own
//!                 │  └──► metadata::Networks     what was asked for: survives a reboot
//!                 └─────► <state>/network/PIN    what was made of it: dies with the boot
//! ```
//!
//! # Order of work
//!
//! A note is written before a namespace is pinned or a link of the host is made, empty at first.
//! Record and kernel are changed side by side; when both are done the namespace's identity is
//! noted, and then the caller is answered. Notes survive the daemon, and are gone after a reboot as
//! the namespaces are. What an empty note names belongs to a creation that a crash cut off, and is
//! taken back at the next start, record and all. Nothing else is: a live namespace without record
//! is recorded again. Deletion marks the record first, and goes on where it was.
//!
//! No thread of the daemon's enters another namespace: the crate has threads for that.

mod answer;
mod apply;
mod busy;
mod delete;
mod draft;
mod error;
mod names;
mod notes;
mod orphans;
mod read;
mod recover;
mod request;
mod update;
mod watch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use crated_api::any::pack;
use crated_api::network as api;
use crated_netns::{Capabilities, Netns, NetnsId, NetnsRoot, RootOptions};

use crate::config::Config;
use crate::events::Exchange;
use crate::metadata::network::HOST;
use crate::metadata::{Db, LinkRecord, Namespace, NetnsRecord, Networks};

pub use self::error::{Error, Result};
pub use self::orphans::proved;
pub use self::read::LinkFilter;
pub use self::watch::{Source, Watched};

use self::busy::Busy;
use self::notes::Notes;
use self::watch::Watchers;

/// The networks of a daemon.
pub struct Network {
    networks: Networks,
    events: Exchange,
    dir: PathBuf,
    options: RootOptions,
    orphan_grace: Duration,
    notes: Notes,
    /// Opened when first needed: a host without networks gets no directory of pins.
    root: Mutex<Option<NetnsRoot>>,
    /// Who is pinned where, as of this boot, by pin.
    identities: Mutex<HashMap<String, NetnsId>>,
    busy: Busy,
    /// Held for reading by whoever makes links, alone by whoever looks for orphans.
    gate: RwLock<()>,
    capabilities: Mutex<Option<Capabilities>>,
    watchers: Watchers,
}

impl Network {
    /// The networks recorded in `db`. Nothing is touched yet. `uuid` is the daemon's identity, by
    /// which it knows its links on the host.
    pub fn new(config: &Config, db: &Db, events: &Exchange, uuid: &str) -> Arc<Self> {
        let settings = &config.crated;
        let dir = config.state.join("netns");
        // Specifications of containers name it from the root.
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        db.pins_are_in(&dir);
        let expose = settings.netns_expose_in.as_os_str();
        let options = RootOptions {
            expose_in: (!expose.is_empty()).then(|| settings.netns_expose_in.clone()),
            owner_group: owner_group(uuid),
            ..RootOptions::default()
        };
        let network = Arc::new(Self {
            networks: db.networks(),
            events: events.clone(),
            dir,
            options,
            orphan_grace: settings.netns_orphan_grace.0,
            notes: Notes::new(config.state.join("network")),
            root: Mutex::default(),
            identities: Mutex::default(),
            busy: Busy::default(),
            gate: RwLock::default(),
            capabilities: Mutex::default(),
            watchers: Watchers::default(),
        });
        let cleaner = Arc::downgrade(&network);
        db.clean_networks_with(move || cleaner.upgrade().map_or(Ok(0), |it| it.collect_garbage()));
        network
    }

    /// Where namespaces are pinned.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What this kernel can do; found out once.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn capabilities(&self) -> Result<api::CapabilitiesResponse> {
        let root = self.root()?;
        let mut known = lock(&self.capabilities);
        let found = match &*known {
            Some(found) => found.clone(),
            None => known.insert(root.capabilities()?).clone(),
        };
        Ok(api::CapabilitiesResponse {
            kinds: found.kinds.into_iter().collect(),
            bridge_vlan_filtering: found.bridge_vlan_filtering,
            egress_limit: found.egress_limit,
            ingress_limit: found.ingress_limit,
            ipv6: found.ipv6,
        })
    }

    fn root(&self) -> Result<NetnsRoot> {
        let mut root = lock(&self.root);
        if let Some(root) = &*root {
            return Ok(root.clone());
        }
        self.notes.open()?;
        Ok(root.insert(NetnsRoot::open_with(&self.dir, self.options.clone())?).clone())
    }

    /// A handle on what a record stands for.
    fn handle(&self, root: &NetnsRoot, record: &NetnsRecord) -> Result<Netns> {
        match lock(&self.identities).get(&record.pin) {
            Some(id) => Ok(root.recorded(&record.pin.parse()?, id.clone())),
            None => Err(Error::Precondition(format!(
                "network namespace {:?}: its pin is lost, delete it or make it again",
                record.id
            ))),
        }
    }

    /// A handle on the namespace with the id, the host's included.
    fn open(&self, root: &NetnsRoot, namespace: &Namespace, id: &str) -> Result<Netns> {
        if id == HOST {
            return Ok(root.host());
        }
        names::check(id)?;
        self.handle(root, &self.networks.netns(namespace, id)?)
    }

    /// Whether the record is of a creation that is not complete.
    fn is_half_made(&self, record: &NetnsRecord, boot_id: &str) -> bool {
        record.boot_id == boot_id
            && !record.deleting
            && !lock(&self.identities).contains_key(&record.pin)
            && self.notes.is_begun(&record.pin)
    }

    fn tell_netns(&self, namespace: &Namespace, what: &str, record: &NetnsRecord, reason: &str) {
        let event = api::NetnsEvent {
            id: record.id.clone(),
            labels: record.labels.clone(),
            reason: reason.to_owned(),
        };
        self.tell(namespace, &format!("/netns/{what}"), pack(&event));
    }

    fn tell_link(&self, namespace: &Namespace, what: &str, record: &LinkRecord) {
        let event = api::LinkEvent {
            netns: record.netns.clone(),
            id: record.id.clone(),
            name: record.name.clone(),
        };
        self.tell(namespace, &format!("/links/{what}"), pack(&event));
    }

    fn tell(&self, namespace: &Namespace, topic: &str, event: prost_types::Any) {
        if let Err(error) = self.events.publish(namespace, topic, event) {
            tracing::warn!(%error, topic, "event of a network");
        }
    }
}

/// Ends the process as a power cut would, when a test asks for it at this step.
#[cfg(debug_assertions)]
fn crash_point(step: &str) {
    if std::env::var_os("CRATED_CRASH_AT").is_some_and(|at| at == step) {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(not(debug_assertions))]
fn crash_point(_: &str) {}

/// The device group that marks this daemon's links on the host: daemons beside it have others.
fn owner_group(uuid: &str) -> u32 {
    let hash = uuid
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    // Never the default group 0 or the one next to it, which marks what is being removed; and
    // positive, as tools print it.
    (hash & 0x7fff_fffe) | 0x4000_0000
}

/// What the lock guards is whole between any two statements that change it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
