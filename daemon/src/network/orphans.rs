//! What is there and has no record.
//!
//! A creation is noted before anything is made, so what it left behind when it was cut off is known
//! and removed. Of everything else nobody can say that it is not in use: the records may be what is
//! missing, after the loss of a database. A live namespace gets a record again; a link is told of
//! and left alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crated_netns::{Error as Refusal, IfName, NetnsId, NetnsName, NetnsRoot, PinState};

use super::notes::{Made, Note, Notes};
use super::{Network, Result, lock, names};
use crate::config::Config;
use crate::metadata::fsck::LABEL_RECREATED;
use crate::metadata::network::{HOST, now};
use crate::metadata::{Namespace, NetnsRecord, NetworkChange, NetworkView, Scope};

/// A namespace that is alive, and its note.
struct Alive {
    namespace: Namespace,
    record: NetnsRecord,
    identity: NetnsId,
}

impl Alive {
    fn new(namespace: Namespace, id: String, pin: &str, identity: NetnsId) -> Self {
        let why = "network namespace without record".to_owned();
        let record = NetnsRecord {
            id,
            labels: [(LABEL_RECREATED.to_owned(), why)].into(),
            lo_up: true,
            pin: pin.to_owned(),
            boot_id: identity.boot_id.clone(),
            created_at: now(),
            updated_at: now(),
            revision: 1,
            adopted: true,
            ..NetnsRecord::default()
        };
        Self { namespace, record, identity }
    }
}

/// Records of the namespaces that are noted and alive, for who looks while no daemon runs. Nothing
/// is touched.
///
/// # Errors
///
/// Those of reading the notes.
pub fn proved(config: &Config) -> Result<Vec<(Namespace, NetnsRecord)>> {
    let boot_id = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let dir = config.state.join("netns");
    let mut proved = Vec::new();
    for (pin, note) in Notes::new(config.state.join("network")).all()? {
        let Note::Made(made) = note else { continue };
        if made.identity.boot_id != boot_id.trim() {
            continue;
        }
        let found = crated_netns::inspect(&dir.join(&pin));
        let alive = |state| matches!(state, PinState::Live(id) if id.inode == made.identity.inode);
        if found.is_ok_and(alive)
            && let Some((namespace, id)) = made.owner(&pin)
        {
            proved.push((namespace.clone(), Alive::new(namespace, id, &pin, made.identity).record));
        }
    }
    Ok(proved)
}

impl Network {
    /// What is noted and not recorded: removed if its creation was cut off, kept if it is alive.
    pub(super) fn recover_unrecorded(&self, root: &NetnsRoot, notes: BTreeMap<String, Note>) {
        let now = crated_netns::DeleteOpts { wait: Duration::ZERO, force: true };
        let mut alive = Vec::new();
        for (pin, note) in notes {
            let Ok(name) = pin.parse::<NetnsName>() else {
                self.notes.remove(&pin);
                continue;
            };
            let made = match note {
                Note::Begun => {
                    // Nobody was told of it.
                    if let Some(Err(error)) = root.delete_all(&[name], &now).pop()
                        && !matches!(error, Refusal::NotFound { .. })
                    {
                        tracing::warn!(pin, %error, "what a creation left behind stays");
                        continue;
                    }
                    self.notes.remove(&pin);
                    continue;
                }
                Note::Made(made) => made,
            };
            match (root.peek(&name, &made.identity), made.owner(&pin)) {
                (Ok(PinState::Live(_)), Some((namespace, id))) => {
                    alive.push(Alive::new(namespace, id, &pin, made.identity));
                }
                (Ok(PinState::Live(_)) | Err(_), _) => {}
                (Ok(_), _) => self.notes.remove(&pin),
            }
        }
        self.record_again(alive);
    }

    /// Gives namespaces that are alive a record.
    fn record_again(&self, alive: Vec<Alive>) {
        let mut changes: HashMap<Namespace, Vec<Alive>> = HashMap::new();
        for it in alive {
            changes.entry(it.namespace.clone()).or_default().push(it);
        }
        for (namespace, alive) in changes {
            let scope = Scope::new(namespace.clone());
            let records =
                alive.iter().map(|it| NetworkChange::CreateNetns(it.record.clone())).collect();
            if let Err(error) = self.networks.commit(&scope, records) {
                tracing::warn!(%namespace, %error, "network namespaces without record stay so");
                continue;
            }
            for Alive { record, identity, .. } in alive {
                let made = Made::new(&namespace, &record, identity.clone());
                if let Err(error) = self.notes.made(&record.pin, &made) {
                    tracing::warn!(%namespace, id = record.id, %error, "cannot note it");
                }
                lock(&self.identities).insert(record.pin.clone(), identity);
                tracing::warn!(
                    %namespace,
                    id = record.id,
                    "a live network namespace without record was recorded again"
                );
                self.tell_netns(&namespace, "create", &record, "it was found without a record");
            }
        }
    }

    /// Begins to look for what nobody has a record of, and goes on with deletions.
    pub fn sweep_in_background(self: &Arc<Self>) {
        let network = Arc::downgrade(self);
        let grace = self.orphan_grace;
        let started = std::thread::Builder::new().name("network-sweep".into()).spawn(move || {
            let Some(it) = network.upgrade() else { return };
            if !it.dir.exists() {
                return;
            }
            if let Err(reason) = it.collect_garbage() {
                tracing::warn!(reason, "a deletion was not completed");
            }
            it.sweep(true);
            drop(it);
            // Files that were too young then.
            std::thread::sleep(grace);
            if let Some(it) = network.upgrade() {
                it.sweep(false);
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "orphans of networks are not looked for");
        }
    }

    fn sweep(&self, links: bool) {
        // Nobody makes anything meanwhile, so that all there is has a record or a note.
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let swept = self.root().and_then(|root| {
            let everything = self.networks.everything()?;
            self.sweep_pins(&root, &everything)?;
            if links { self.sweep_links(&root, &everything) } else { Ok(()) }
        });
        if let Err(error) = swept {
            tracing::warn!(%error, "orphans of networks were not looked for");
        }
    }

    /// Removes plain files, which a crash leaves where a pin was to be. What is mounted stays.
    fn sweep_pins(&self, root: &NetnsRoot, everything: &[(Namespace, NetworkView)]) -> Result<()> {
        let recorded = everything.iter().flat_map(|(_, it)| &it.netns);
        let mut known: BTreeSet<NetnsName> =
            recorded.filter_map(|netns| netns.pin.parse().ok()).collect();
        let mut alive = Vec::new();
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name().into_string().ok();
            let Some(name) = name.and_then(|name| name.parse::<NetnsName>().ok()) else { continue };
            if known.contains(&name) {
                continue;
            }
            let plain = |state: &PinState| matches!(state, PinState::NotMounted);
            match (root.get(&name).map(|it| it.id().cloned()), names::owner(name.as_str())) {
                (Err(Refusal::NotFound { .. }), _) => continue,
                (Err(Refusal::Stale { state, .. }), _) if plain(&state) => continue,
                (Ok(Some(identity)), Some((namespace, id))) => {
                    alive.push(Alive::new(namespace, id, name.as_str(), identity));
                }
                (Ok(_), _) => tracing::warn!(pin = %name, "whose namespace this is is not known"),
                (Err(error), _) => {
                    tracing::warn!(pin = %name, %error, "a pin without record stays")
                }
            }
            known.insert(name);
        }
        self.record_again(alive);
        let report = root.sweep(&known, self.orphan_grace)?;
        for pin in &report.removed {
            tracing::warn!(%pin, "the file of a pin that was not made was removed");
        }
        for (pin, error) in &report.failed {
            tracing::warn!(%pin, %error, "the file of a pin that was not made stays");
        }
        Ok(())
    }

    /// Removes links of the host that carry this daemon's mark and whose creation was cut off.
    fn sweep_links(&self, root: &NetnsRoot, everything: &[(Namespace, NetworkView)]) -> Result<()> {
        let mut known: BTreeSet<IfName> = BTreeSet::new();
        for link in everything.iter().flat_map(|(_, it)| &it.links) {
            let name = if link.netns == HOST { &link.name } else { &link.host_peer };
            known.extend(name.parse().ok());
        }
        let begun = self.notes.begun_links()?;
        let (removed, left) = root.host().sweep_named_links(&known, &begun)?;
        begun.iter().for_each(|name| self.notes.end_link(name.as_str()));
        let list =
            |names: &[IfName]| names.iter().map(IfName::as_str).collect::<Vec<_>>().join(", ");
        if !removed.is_empty() {
            let links = list(&removed);
            tracing::warn!(links, "links of the host whose creation was cut off were removed");
        }
        if !left.is_empty() {
            let links = list(&left);
            tracing::warn!(links, "links of the host have this daemon's mark and no record: kept");
        }
        Ok(())
    }
}

/// Tells one boot from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
