//! The end of namespaces, asked for or found to be due.

use std::collections::BTreeSet;
use std::time::Duration;

use crated_api::network as api;
use crated_netns::{DeleteOpts, Deleted, Error as Refusal, NetnsRoot, Plan};

use super::apply::removal;
use super::{Error, Network, Result, answer, crash_point, draft, lock, names};
use crate::metadata::network::HOST;
use crate::metadata::{LinkRecord, NetnsRecord, NetworkChange, Scope};

impl Network {
    /// Deletes a namespace.
    ///
    /// # Errors
    ///
    /// NotFound; FailedPrecondition when a container or, unless forced, a process is in it.
    pub fn delete_netns(
        &self,
        scope: &Scope,
        request: &api::DeleteNetnsRequest,
    ) -> Result<api::DeleteNetnsResponse> {
        names::check(&request.id)?;
        let root = self.root()?;
        let key = format!("{}/{}", scope.namespace, request.id);
        let _busy = self.busy.take(BTreeSet::from([key]));
        let wait = request.wait_timeout_ms.map_or(Duration::from_secs(5), Duration::from_millis);
        let wait = wait.min(Duration::from_secs(600));
        let deleted = self.delete(scope, &root, &request.id, &request.etag, request.force, wait)?;
        Ok(api::DeleteNetnsResponse {
            gone: deleted.gone,
            holders: deleted.holders.iter().map(answer::holder).collect(),
        })
    }

    /// Deletes a namespace that the caller has taken.
    pub(super) fn delete(
        &self,
        scope: &Scope,
        root: &NetnsRoot,
        id: &str,
        etag: &str,
        force: bool,
        wait: Duration,
    ) -> Result<Deleted> {
        let record = self.networks.netns(&scope.namespace, id)?;
        draft::check_etag("network namespace", id, record.revision, etag)?;
        let begun = self.networks.begin_delete(scope, id, force);
        let (record, links) = begun.map_err(|error| self.with_pids(root, &record, error))?;
        crash_point("deleting");
        let deleted = self.unmake(scope, root, &record, &links, &DeleteOpts { wait, force });
        match deleted {
            Ok(deleted) => {
                crash_point("unpinned");
                self.drop_record(scope, &record)?;
                crash_point("forgotten");
                Ok(deleted)
            }
            Err(error) => {
                // It lives on, and can be used again.
                let record = NetnsRecord { deleting: false, ..record };
                self.networks.commit(scope, vec![NetworkChange::PutNetns(record)])?;
                Err(error)
            }
        }
    }

    fn with_pids(
        &self,
        root: &NetnsRoot,
        record: &NetnsRecord,
        error: crate::metadata::Error,
    ) -> Error {
        let holders = self.handle(root, record).and_then(|netns| Ok(netns.holders()?));
        let pids: Vec<i32> = holders.unwrap_or_default().iter().map(|holder| holder.pid).collect();
        match error {
            crate::metadata::Error::FailedPrecondition { object, id, reason }
                if !pids.is_empty() =>
            {
                let reason = format!("{reason}, processes {pids:?}");
                crate::metadata::Error::FailedPrecondition { object, id, reason }.into()
            }
            error => error.into(),
        }
    }

    /// The kernel's part: moved devices go back, the pin goes.
    fn unmake(
        &self,
        scope: &Scope,
        root: &NetnsRoot,
        record: &NetnsRecord,
        links: &[LinkRecord],
        opts: &DeleteOpts,
    ) -> Result<Deleted> {
        let pin = record.pin.parse()?;
        let netns = self.handle(root, record);
        if let Ok(netns) = &netns {
            // What lost its pin may be gone, and its number another namespace's by now.
            let pinned = matches!(netns.verify()?, crated_netns::PinState::Live(_));
            if !opts.force && pinned {
                let members = netns.holders()?.into_iter();
                let members = members.filter(|h| h.kind == crated_netns::HolderKind::Member);
                let pids: Vec<i32> = members.map(|holder| holder.pid).collect();
                if !pids.is_empty() {
                    return Err(Refusal::InUse { netns: record.id.clone(), pids }.into());
                }
            }
            // One by one: a device that cannot go back must not keep the others.
            for link in links.iter().filter(|link| !link.origin_name.is_empty()) {
                let back = removal(scope, link).and_then(|op| {
                    let plan = Plan::new().step(netns, op).execute();
                    plan.map(drop).map_err(|failed| (*failed.error).into())
                });
                match back {
                    Ok(())
                    | Err(Error::Kernel(Refusal::NotFound { .. } | Refusal::Stale { .. })) => {}
                    Err(error) if opts.force => {
                        tracing::warn!(%error, link = link.name, "a device does not go back");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        let deleted = match &netns {
            Ok(netns) => netns.delete(&DeleteOpts { wait: opts.wait, force: true }),
            // Nobody knows what was there: whatever it is, it is not what the record meant.
            Err(_) => root
                .delete_all(&[pin], &DeleteOpts { wait: Duration::ZERO, force: true })
                .pop()
                .unwrap_or_else(|| Ok(Deleted { gone: false, holders: Vec::new() })),
        };
        match deleted {
            Ok(deleted) => Ok(deleted),
            // Gone already; or another one in its place, which is not ours to touch.
            Err(Refusal::NotFound { .. } | Refusal::Stale { .. }) => {
                Ok(Deleted { gone: true, holders: Vec::new() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets a namespace that is gone.
    fn drop_record(&self, scope: &Scope, record: &NetnsRecord) -> Result<()> {
        let id = record.id.clone();
        self.networks.commit(scope, vec![NetworkChange::RemoveNetns { id }])?;
        lock(&self.identities).remove(&record.pin);
        self.notes.remove(&record.pin);
        self.tell_netns(&scope.namespace, "delete", record, "");
        Ok(())
    }

    /// Goes on with deletions that have begun, a collection's and those a crash cut off: all pins
    /// first, nobody waits for each. Answers with how many objects are gone.
    pub(super) fn collect_garbage(&self) -> Result<usize, String> {
        let mut failures = Vec::new();
        let mut removed = 0;
        let everything = self.networks.everything().map_err(|error| error.to_string())?;
        for (namespace, found) in everything {
            let scope = Scope::new(namespace);
            let doomed: Vec<_> = found.netns.iter().filter(|netns| netns.deleting).collect();
            for netns in doomed {
                let links: Vec<LinkRecord> =
                    found.links.iter().filter(|link| link.netns == netns.id).cloned().collect();
                match self.resume(&scope, netns, &links) {
                    Ok(()) => removed += 1,
                    Err(error) => failures.push(format!("{}: {error}", netns.id)),
                }
            }
            let alone = |link: &&LinkRecord| {
                link.deleting && !found.netns.iter().any(|it| it.deleting && it.id == link.netns)
            };
            for link in found.links.iter().filter(alone) {
                match self.resume_link(&scope, link) {
                    Ok(()) => removed += 1,
                    Err(error) => failures.push(format!("{}/{}: {error}", link.netns, link.id)),
                }
            }
        }
        if failures.is_empty() { Ok(removed) } else { Err(failures.join("; ")) }
    }

    fn resume(&self, scope: &Scope, netns: &NetnsRecord, links: &[LinkRecord]) -> Result<()> {
        let root = self.root()?;
        let key = format!("{}/{}", scope.namespace, netns.id);
        let _busy = self.busy.take(BTreeSet::from([key]));
        let again = self.networks.look(&scope.namespace, &[&netns.id], &[])?.netns.pop();
        let Some(record) = again.filter(|record| record.deleting) else { return Ok(()) };
        let opts = DeleteOpts { wait: Duration::ZERO, force: false };
        match self.unmake(scope, &root, &record, links, &opts) {
            Ok(_) => self.drop_record(scope, &record),
            Err(error @ Error::Kernel(Refusal::InUse { .. })) => {
                let record = NetnsRecord { deleting: false, ..record };
                self.networks.commit(scope, vec![NetworkChange::PutNetns(record)])?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn resume_link(&self, scope: &Scope, link: &LinkRecord) -> Result<()> {
        let root = self.root()?;
        let key = match link.netns.as_str() {
            HOST => format!("{}/{HOST}/{}", scope.namespace, link.id),
            netns => format!("{}/{netns}", scope.namespace),
        };
        let _busy = self.busy.take(BTreeSet::from([key]));
        let netns = self.open(&root, &scope.namespace, &link.netns)?;
        let plan = Plan::new().step(&netns, removal(scope, link)?);
        match plan.execute().map_err(|failed| *failed.error) {
            Ok(_) | Err(Refusal::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let gone = NetworkChange::RemoveLink { netns: link.netns.clone(), id: link.id.clone() };
        self.networks.commit(scope, vec![gone])?;
        self.tell_link(&scope.namespace, "delete", link);
        Ok(())
    }
}
