//! Carrying operations out: kernel and records side by side, all or none.

use std::collections::HashMap;

use crated_api::network as api;
use crated_api::network::result::Outcome;
use crated_netns::{Error as Refusal, LinkChange, LinkKind, Netns, NetnsRoot, Op, Place, Plan};

use super::draft::{self, Draft, Step};
use super::notes::Made;
use super::{Error, Network, Result, crash_point, lock, names};
use crate::metadata::network::HOST;
use crate::metadata::{self, LinkRecord, Namespace, NetnsRecord, NetworkChange, Object, Scope};

/// Most operations of one call: a limit against mistakes.
const OPERATIONS_MAX: usize = 10_000;

impl Network {
    /// Carries out `operations`: all or none when `atomic`, else each by itself. One result each.
    ///
    /// # Errors
    ///
    /// When `atomic`, why none of them took effect.
    pub fn apply(
        &self,
        scope: &Scope,
        operations: Vec<api::Operation>,
        atomic: bool,
    ) -> Result<Vec<Result<Outcome>>> {
        if operations.len() > OPERATIONS_MAX {
            return Err(Error::Invalid(format!("operations: more than {OPERATIONS_MAX}")));
        }
        if atomic {
            let several = operations.len() > 1;
            let done = self.transact(scope, operations);
            let done = done.map_err(|error| match error {
                Error::Step { cause, .. } if !several => *cause,
                error => error,
            })?;
            return Ok(done.into_iter().map(Ok).collect());
        }
        Ok(operations.into_iter().map(|operation| self.one(scope, operation)).collect())
    }

    /// Carries out one operation.
    ///
    /// # Errors
    ///
    /// Why it took no effect.
    pub fn one(&self, scope: &Scope, operation: api::Operation) -> Result<Outcome> {
        match self.transact(scope, vec![operation]) {
            Ok(mut done) => Ok(done.pop().unwrap_or(Outcome::Done(()))),
            Err(Error::Step { cause, .. }) => Err(*cause),
            Err(error) => Err(error),
        }
    }

    fn transact(&self, scope: &Scope, operations: Vec<api::Operation>) -> Result<Vec<Outcome>> {
        if operations.is_empty() {
            return Ok(Vec::new());
        }
        let root = self.root()?;
        let namespace = &scope.namespace;
        let _busy = self.busy.take(draft::keys(namespace, &operations));
        let gate = self.gate.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let boot_id = root.boot_id();
        let view = {
            let subjects: Vec<(&str, &str)> = operations.iter().flat_map(draft::subjects).collect();
            let netns: Vec<&str> = subjects.iter().map(|(netns, _)| *netns).collect();
            let links: Vec<_> = subjects.iter().filter(|(_, link)| !link.is_empty()).collect();
            let links: Vec<(&str, &str)> = links.into_iter().copied().collect();
            self.networks.look(namespace, &netns, &links)?
        };
        let mut draft = Draft::new(scope, boot_id, view);
        let mut steps = Vec::with_capacity(operations.len());
        for (at, operation) in operations.into_iter().enumerate() {
            let changed = draft::changed_link(&operation);
            let step = draft.step(operation).map_err(|error| match changed {
                Some((netns, id)) => {
                    at_step(at, self.not_ours(&root, namespace, &netns, &id, error))
                }
                None => at_step(at, error),
            });
            steps.push(step?);
        }
        let work = Work { network: self, scope, root: &root, draft: &draft };
        let made = work.run(&steps)?;
        drop(gate);
        self.finish(scope, &root, steps, &made)
    }

    /// Why a link without a record is not changed: it may be there, and somebody else's.
    fn not_ours(
        &self,
        root: &NetnsRoot,
        namespace: &Namespace,
        netns: &str,
        id: &str,
        error: Error,
    ) -> Error {
        let missing = matches!(
            &error,
            Error::Records(metadata::Error::NotFound { object: Object::Link, .. })
        );
        let found = || self.open(root, namespace, netns)?.link(&id.parse()?).map_err(Error::from);
        let found = if missing { found().ok() } else { None };
        let Some(found) = found else { return error };
        let step = format!("change link {netns}/{id}");
        if found.loopback {
            let reason = "the loopback device belongs to its namespace".to_owned();
            return Refusal::Refused { step, reason, kernel: None }.into();
        }
        Refusal::Permission { step, needs: "the link to be adopted first", kernel: None }.into()
    }

    /// Tells of what was done, and makes the deletions that were kept for last.
    fn finish(
        &self,
        scope: &Scope,
        root: &NetnsRoot,
        steps: Vec<Step>,
        made: &HashMap<String, Netns>,
    ) -> Result<Vec<Outcome>> {
        let namespace = &scope.namespace;
        let alone = steps.len() == 1;
        let mut outcomes = Vec::with_capacity(steps.len());
        for (at, step) in steps.into_iter().enumerate() {
            outcomes.push(match step {
                Step::CreateNetns { record, .. } => {
                    self.tell_netns(namespace, "create", &record, "");
                    let mut answer = self.describe(&record);
                    if let (true, Some(netns)) = (alone, made.get(&record.id)) {
                        answer.nsid = netns.nsid().ok().flatten();
                    }
                    Outcome::Netns(answer)
                }
                Step::CreateLink { record, .. } => {
                    self.tell_link(namespace, "create", &record);
                    Outcome::Link(self.answer(scope, root, record, alone))
                }
                Step::UpdateLink { new, .. } => {
                    self.tell_link(namespace, "update", &new);
                    Outcome::Link(self.answer(scope, root, new, alone))
                }
                Step::DeleteLink(record) => {
                    self.tell_link(namespace, "delete", &record);
                    Outcome::Done(())
                }
                Step::Plain { .. } => Outcome::Done(()),
                Step::DeleteNetns { id, etag, force, wait } => {
                    self.delete(scope, root, &id, &etag, force, wait)
                        .map_err(|error| at_step(at, error))?;
                    Outcome::Done(())
                }
            });
        }
        Ok(outcomes)
    }

    fn answer(&self, scope: &Scope, root: &NetnsRoot, row: LinkRecord, read: bool) -> api::Link {
        let status = read.then(|| self.live(scope, root, &row)).flatten();
        super::read::link(row, status)
    }
}

fn at_step(at: usize, error: Error) -> Error {
    Error::Step { at, cause: Box::new(error), left: String::new() }
}

/// One set of steps on its way.
struct Work<'a> {
    network: &'a Network,
    scope: &'a Scope,
    root: &'a NetnsRoot,
    draft: &'a Draft<'a>,
}

impl Work<'_> {
    /// Makes all but the deletions of namespaces, or nothing.
    fn run(&self, steps: &[Step]) -> Result<HashMap<String, Netns>> {
        let changes: Vec<NetworkChange> = steps.iter().filter_map(change).collect();
        let creations = steps.iter().all(|step| {
            matches!(step, Step::CreateNetns { .. } | Step::CreateLink { .. } | Step::Plain { .. })
        });
        if changes.is_empty() {
            return self.kernel(steps);
        }
        self.begin(steps)?;
        crash_point("noted");
        if !creations {
            // What a crash leaves behind here is a link that differs from its record.
            let made = self.kernel(steps).inspect_err(|_| self.forget(steps))?;
            if let Err(error) = self.network.networks.commit(self.scope, changes) {
                self.take_back(steps, &made);
                self.forget(steps);
                return Err(error.into());
            }
            return self.complete(steps, made);
        }
        // Both take about as long as the other, and neither needs the other's outcome.
        let (recorded, made) = std::thread::scope(|scope| {
            let recorded = scope.spawn(|| self.network.networks.commit(self.scope, changes));
            let made = self.kernel(steps);
            let recorded = recorded.join().unwrap_or_else(|_| {
                Err(crate::metadata::Error::Internal { reason: "a commit panicked".to_owned() })
            });
            (recorded, made)
        });
        match (recorded, made) {
            (Ok(()), Ok(made)) => {
                crash_point("recorded");
                self.complete(steps, made)
            }
            (Ok(()), Err(error)) => {
                self.network
                    .networks
                    .commit(self.scope, steps.iter().filter_map(undo).collect())?;
                self.forget(steps);
                Err(error)
            }
            (Err(error), made) => {
                if let Ok(made) = made {
                    self.take_back(steps, &made);
                }
                self.forget(steps);
                Err(error.into())
            }
        }
    }

    /// Notes what is going to be made, so that a start after a crash finds it and may remove it.
    fn begin(&self, steps: &[Step]) -> Result<()> {
        let notes = &self.network.notes;
        for (at, step) in steps.iter().enumerate() {
            let noted = match step {
                Step::CreateNetns { record, .. } => {
                    // Somebody's already: a note would give it up to the next start.
                    if self.root.dir().join(&record.pin).symlink_metadata().is_ok() {
                        let object = format!("namespace {}", record.pin);
                        let taken = Refusal::AlreadyExists { object, kernel: None };
                        self.forget(&steps[..at]);
                        return Err(at_step(at, taken.into()));
                    }
                    notes.begin(&record.pin)
                }
                step => on_host(step).map_or(Ok(()), |name| notes.begin_link(name)),
            };
            if let Err(error) = noted {
                self.forget(&steps[..=at]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Notes that all is made and recorded: from here on a start after a crash keeps it.
    fn complete(
        &self,
        steps: &[Step],
        made: HashMap<String, Netns>,
    ) -> Result<HashMap<String, Netns>> {
        let notes = &self.network.notes;
        for step in steps {
            let Step::CreateNetns { record, .. } = step else { continue };
            let Some(id) = made.get(&record.id).and_then(|netns| netns.id().cloned()) else {
                continue;
            };
            let note = Made::new(&self.scope.namespace, record, id);
            if let Err(error) = notes.made(&record.pin, &note) {
                self.take_back(steps, &made);
                let undone = steps.iter().filter_map(undo).collect();
                self.network.networks.commit(self.scope, undone)?;
                self.forget(steps);
                return Err(error);
            }
        }
        crash_point("told");
        steps.iter().filter_map(on_host).for_each(|name| notes.end_link(name));
        Ok(made)
    }

    fn forget(&self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::CreateNetns { record, .. } => {
                    lock(&self.network.identities).remove(&record.pin);
                    // What could not be taken back is left to the next start.
                    if self.root.dir().join(&record.pin).symlink_metadata().is_err() {
                        self.network.notes.remove(&record.pin);
                    }
                }
                step => {
                    on_host(step).into_iter().for_each(|name| self.network.notes.end_link(name));
                }
            }
        }
    }

    /// The kernel's part of all steps, or none of it.
    fn kernel(&self, steps: &[Step]) -> Result<HashMap<String, Netns>> {
        let mut made = HashMap::new();
        for (at, step) in steps.iter().enumerate() {
            let Step::CreateNetns { record, spec, source } = step else { continue };
            match self.create(record, spec, source.as_ref()) {
                Ok(netns) => drop(made.insert(record.id.clone(), netns)),
                Err(error) => {
                    self.take_back(&[], &made);
                    return Err(at_step(at, error));
                }
            }
        }
        crash_point("pinned");
        if let Err(error) = self.plan(steps, &made) {
            self.take_back(&[], &made);
            return Err(error);
        }
        crash_point("linked");
        for step in steps {
            let Step::CreateNetns { record, .. } = step else { continue };
            let Some(id) = made.get(&record.id).and_then(|netns| netns.id().cloned()) else {
                continue;
            };
            lock(&self.network.identities).insert(record.pin.clone(), id);
        }
        crash_point("made");
        Ok(made)
    }

    fn create(
        &self,
        record: &NetnsRecord,
        spec: &crated_netns::NetnsSpec,
        source: Option<&api::source::From>,
    ) -> Result<Netns> {
        let pin = record.pin.parse()?;
        let Some(source) = source else { return Ok(self.root.create(&pin, spec)?) };
        let netns = self.root.adopt(&pin, draft::source(source.clone()))?;
        for (key, value) in &spec.sysctls {
            if let Err(error) = netns.set_sysctl(key, value) {
                self.take_back(&[], &HashMap::from([(record.id.clone(), netns)]));
                return Err(error.into());
            }
        }
        Ok(netns)
    }

    fn plan(&self, steps: &[Step], made: &HashMap<String, Netns>) -> Result<()> {
        let (mut plan, mut places) = (Plan::new(), Vec::new());
        let mut adopted = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            let ops = self.ops(step, made).map_err(|error| at_step(at, error))?;
            if let Step::CreateLink { record, adopt: true, .. } = step
                && record.origin_netns == HOST
            {
                let name =
                    record.origin_name.parse().map_err(|e: Refusal| at_step(at, e.into()))?;
                self.root.host().adopt_link(&name).map_err(|error| at_step(at, error.into()))?;
                adopted.push(name);
            }
            for (netns, op) in ops {
                plan = plan.step(&netns, op);
                places.push(at);
            }
        }
        let failed = match plan.execute() {
            Ok(_) => return Ok(()),
            Err(failed) => failed,
        };
        for name in adopted {
            let given_back = LinkChange { group: Some(0), ..LinkChange::default() };
            if let Err(error) = self.root.host().change_link(&name, &given_back) {
                tracing::warn!(%error, link = %name, "a device that was taken stays marked");
            }
        }
        let at = places.get(failed.step).copied().unwrap_or_default();
        // A link that is gone already need not be removed: its record goes.
        let gone = matches!(*failed.error, Refusal::NotFound { .. });
        if gone && steps.len() == 1 && matches!(steps[0], Step::DeleteLink(_)) {
            return Ok(());
        }
        let left = failed.left_over.iter().map(|(step, error)| {
            let at = places.get(*step).copied().unwrap_or_default();
            format!("; operation {at} was not taken back: {error}")
        });
        let left = left.collect();
        Err(Error::Step { at, cause: Box::new((*failed.error).into()), left })
    }

    /// What a step asks of the kernel.
    fn ops(&self, step: &Step, made: &HashMap<String, Netns>) -> Result<Vec<(Netns, Op)>> {
        let open = |netns: &str| self.handle(netns, made);
        Ok(match step {
            Step::CreateNetns { .. } | Step::DeleteNetns { .. } => Vec::new(),
            Step::CreateLink { record, spec, .. } => {
                let netns = open(&record.netns)?;
                match &spec.kind {
                    // It stays where it is: only its settings are ours.
                    LinkKind::Existing { name, .. } if record.origin_netns == record.netns => {
                        let rename = (*name != spec.name).then(|| spec.name.clone());
                        let change = LinkChange { rename, ..LinkChange::from(&spec.settings) };
                        vec![(netns, Op::ChangeLink { link: name.clone(), change: change.into() })]
                    }
                    _ => vec![(netns, Op::CreateLink(spec.clone()))],
                }
            }
            Step::UpdateLink { old, change, .. } => {
                let op = Op::ChangeLink { link: old.name.parse()?, change: change.clone() };
                vec![(open(&old.netns)?, op)]
            }
            Step::DeleteLink(record) => {
                let Ok(netns) = open(&record.netns) else { return Ok(Vec::new()) };
                vec![(netns, removal(self.scope, record)?)]
            }
            Step::Plain { netns, op } => vec![(open(netns)?, op.clone())],
        })
    }

    fn handle(&self, netns: &str, made: &HashMap<String, Netns>) -> Result<Netns> {
        if netns == HOST {
            return Ok(self.root.host());
        }
        if let Some(netns) = made.get(netns) {
            return Ok(netns.clone());
        }
        match self.draft.record(netns) {
            Some(record) => self.network.handle(self.root, record),
            None => self.network.open(self.root, &self.scope.namespace, netns),
        }
    }

    /// Removes what was made, after something else failed.
    fn take_back(&self, steps: &[Step], made: &HashMap<String, Netns>) {
        for step in steps.iter().rev() {
            let Step::CreateLink { record, .. } = step else { continue };
            if made.contains_key(&record.netns) {
                continue;
            }
            let undone = self.ops(&Step::DeleteLink(record.clone()), made).and_then(|ops| {
                let plan = ops.into_iter().fold(Plan::new(), |plan, (at, op)| plan.step(&at, op));
                plan.execute().map(drop).map_err(|failed| (*failed.error).into())
            });
            if let Err(error) = undone {
                tracing::warn!(%error, link = record.name, "cannot take back a link");
            }
        }
        let now = crated_netns::DeleteOpts { wait: std::time::Duration::ZERO, force: true };
        for netns in made.values() {
            if let Err(error) = netns.delete(&now) {
                tracing::warn!(%error, ?netns, "cannot take back a network namespace");
            }
        }
    }
}

/// What removes a link, or gives a device back.
pub(super) fn removal(scope: &Scope, record: &LinkRecord) -> Result<Op> {
    let link = record.name.parse()?;
    if record.origin_name.is_empty() {
        return Ok(Op::DeleteLink { link });
    }
    let moved = record.origin_netns != record.netns;
    let to_host = record.origin_netns == HOST;
    let place = match to_host {
        true => Place::Host,
        false => Place::Named(names::pin(&scope.namespace, &record.origin_netns)?),
    };
    let change = LinkChange {
        rename: (record.origin_name != record.name)
            .then(|| record.origin_name.parse())
            .transpose()?,
        move_to: moved.then_some(place),
        // On the host the group is our mark.
        group: to_host.then_some(0),
        ..LinkChange::default()
    };
    Ok(Op::ChangeLink { link, change: Box::new(change) })
}

/// The link of the host that a step makes. A device that was there before is nobody's to remove.
fn on_host(step: &Step) -> Option<&str> {
    let Step::CreateLink { record, .. } = step else { return None };
    let name = if record.netns == HOST { &record.name } else { &record.host_peer };
    (record.origin_name.is_empty() && !name.is_empty()).then_some(name)
}

fn change(step: &Step) -> Option<NetworkChange> {
    Some(match step {
        Step::CreateNetns { record, .. } => NetworkChange::CreateNetns(record.clone()),
        Step::CreateLink { record, .. } => NetworkChange::CreateLink(record.clone()),
        Step::UpdateLink { new, .. } => NetworkChange::PutLink(new.clone()),
        Step::DeleteLink(record) => {
            NetworkChange::RemoveLink { netns: record.netns.clone(), id: record.id.clone() }
        }
        Step::DeleteNetns { .. } | Step::Plain { .. } => return None,
    })
}

fn undo(step: &Step) -> Option<NetworkChange> {
    Some(match step {
        Step::CreateNetns { record, .. } => NetworkChange::RemoveNetns { id: record.id.clone() },
        Step::CreateLink { record, .. } => {
            NetworkChange::RemoveLink { netns: record.netns.clone(), id: record.id.clone() }
        }
        _ => return None,
    })
}
