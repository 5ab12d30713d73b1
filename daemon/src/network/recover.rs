//! What a start finds of an earlier daemon, or of an earlier boot.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use crated_api::network as api;
use crated_api::network::operation::Change;
use crated_netns::{NetnsRoot, PinState};
use prost::Message;

use super::notes::Note;
use super::{Network, Result, lock};
use crate::metadata::network::HOST;
use crate::metadata::{LinkRecord, Namespace, NetnsRecord, NetworkChange, NetworkView, Scope};

/// A network namespace with this label is made again after a reboot, with its links.
const LABEL_RESTART: &str = "restart";
const RECREATE: &str = "recreate";

impl Network {
    /// Finds what is there of what is recorded. Namespaces are looked at from outside: nothing is
    /// entered and no table of the kernel's is read, so that a start stays quick.
    ///
    /// # Errors
    ///
    /// The records'.
    pub fn recover(&self) -> Result<()> {
        let everything = self.networks.everything()?;
        let mut notes = self.notes.all()?;
        if everything.is_empty() && notes.is_empty() && !self.dir.exists() {
            return Ok(());
        }
        let root = self.root()?;
        let mut known = BTreeSet::new();
        let mut again = Vec::new();
        for (namespace, found) in &everything {
            for record in &found.netns {
                known.insert(record.pin.clone());
                if self.recover_netns(&root, namespace, record, &notes)? == Verdict::NewBoot {
                    again.push((namespace.clone(), record.clone()));
                }
            }
            self.recover_host(&root, namespace, found)?;
        }
        notes.retain(|pin, _| !known.contains(pin));
        self.recover_unrecorded(&root, notes);
        for (namespace, record) in again {
            let recreate = record.labels.get(LABEL_RESTART).is_some_and(|it| it == RECREATE);
            if recreate && let Err(error) = self.recreate(&namespace, &record, &everything) {
                tracing::warn!(%error, id = record.id, "a network namespace was not made again");
            }
        }
        Ok(())
    }

    fn recover_netns(
        &self,
        root: &NetnsRoot,
        namespace: &Namespace,
        record: &NetnsRecord,
        notes: &BTreeMap<String, Note>,
    ) -> Result<Verdict> {
        if record.boot_id != root.boot_id() {
            self.tell_netns(namespace, "lost", record, "the machine was restarted");
            return Ok(Verdict::NewBoot);
        }
        match notes.get(&record.pin) {
            Some(Note::Made(made)) => {
                let found = root.peek(&record.pin.parse()?, &made.identity)?;
                lock(&self.identities).insert(record.pin.clone(), made.identity.clone());
                match found {
                    PinState::Live(_) => {}
                    _ if record.deleting => {}
                    state => {
                        self.tell_netns(namespace, "lost", record, &format!("its pin is {state}"))
                    }
                }
            }
            // A creation or a deletion that was cut off.
            Some(Note::Begun) if !record.deleting => {
                let now = crated_netns::DeleteOpts { wait: Duration::ZERO, force: true };
                let _ = root.delete_all(&[record.pin.parse()?], &now);
                let gone = NetworkChange::RemoveNetns { id: record.id.clone() };
                self.networks.commit(&Scope::new(namespace.clone()), vec![gone])?;
                self.notes.remove(&record.pin);
            }
            Some(Note::Begun) => {}
            None => self.tell_netns(namespace, "lost", record, "its note is missing"),
        }
        Ok(Verdict::SameBoot)
    }

    /// Links of the host that were made in another boot are gone, and their records with them,
    /// unless they are to be made again.
    fn recover_host(
        &self,
        root: &NetnsRoot,
        namespace: &Namespace,
        found: &NetworkView,
    ) -> Result<()> {
        let scope = Scope::new(namespace.clone());
        for link in found.links.iter().filter(|link| link.netns == HOST) {
            if link.boot_id == root.boot_id() {
                continue;
            }
            let gone = NetworkChange::RemoveLink { netns: link.netns.clone(), id: link.id.clone() };
            self.networks.commit(&scope, vec![gone])?;
            let recreate = link.labels.get(LABEL_RESTART).is_some_and(|it| it == RECREATE);
            let made = recreate.then(|| self.one(&scope, creation(link)));
            match made {
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, link = link.id, "a link was not made again");
                    self.tell_link(namespace, "lost", link);
                }
                None => self.tell_link(namespace, "lost", link),
            }
        }
        Ok(())
    }

    fn recreate(
        &self,
        namespace: &Namespace,
        record: &NetnsRecord,
        everything: &[(Namespace, NetworkView)],
    ) -> Result<()> {
        let scope = Scope::new(namespace.clone());
        let gone = NetworkChange::RemoveNetns { id: record.id.clone() };
        self.networks.commit(&scope, vec![gone])?;
        let netns = api::Netns {
            id: record.id.clone(),
            labels: record.labels.clone(),
            sysctls: record.sysctls.clone(),
            lo_up: Some(record.lo_up),
            ..api::Netns::default()
        };
        let create = Change::CreateNetns(api::CreateNetnsRequest { netns: Some(netns) });
        let mut operations = vec![api::Operation { netns: String::new(), change: Some(create) }];
        let links: Vec<&LinkRecord> = everything
            .iter()
            .filter(|(it, _)| it == namespace)
            .flat_map(|(_, it)| &it.links)
            .filter(|link| link.netns == record.id)
            .collect();
        operations.extend(links.iter().copied().map(creation));
        let made = self.apply(&scope, operations, true);
        if made.is_err() {
            // What was asked for is not forgotten: it is lost, and told so.
            let mut kept = vec![NetworkChange::PutNetns(record.clone())];
            kept.extend(links.into_iter().cloned().map(NetworkChange::PutLink));
            self.networks.commit(&scope, kept)?;
        }
        made.map(drop)
    }

    /// Whether the network namespace that a specification joins can be joined.
    ///
    /// # Errors
    ///
    /// What runtimes do not say: that the path is not there, or no network namespace.
    pub fn check_joined(&self, spec: &prost_types::Any) -> Result<()> {
        let Some(path) = crate::metadata::network::network_path(spec) else { return Ok(()) };
        match crated_netns::inspect(Path::new(&path))? {
            PinState::Live(_) => Ok(()),
            state => Err(super::Error::Precondition(format!(
                "network namespace {path}: the file is {state}"
            ))),
        }
    }
}

#[derive(PartialEq)]
enum Verdict {
    SameBoot,
    NewBoot,
}

/// The operation that makes a link as it was asked for.
fn creation(record: &LinkRecord) -> api::Operation {
    let link = api::Link {
        id: record.id.clone(),
        netns: record.netns.clone(),
        labels: record.labels.clone(),
        spec: api::LinkSpec::decode(record.spec.as_slice()).ok(),
        ..api::Link::default()
    };
    let change = Change::CreateLink(api::CreateLinkRequest { link: Some(link) });
    api::Operation { netns: String::new(), change: Some(change) }
}
