//! Ordered changes over several namespaces, taken back when one fails.

use std::fmt;

use netlink_packet_route::RouteNetlinkMessage;
use serde::{Deserialize, Serialize};

use crate::error::{Step, Subject};
use crate::link::{LinkChange, LinkSpec, Place, apply, read};
use crate::namespace::At;
use crate::netlink::{Lane, Request};
use crate::session::Session;
use crate::{Addr, Error, Fdb, IfName, Link, Neigh, Netns, Result, Route, Rule, SysctlKey};

const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
/// Most steps of one plan; a limit against mistakes.
const STEPS_MAX: usize = 10_000;

/// One change to one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are what each variant is about")]
pub enum Op {
    /// Make a link.
    CreateLink(Box<LinkSpec>),
    /// Change a link.
    ChangeLink { link: IfName, change: Box<LinkChange> },
    /// Remove a link. Cannot be taken back, so nothing but other removals of
    /// links may follow it.
    DeleteLink { link: IfName },
    /// Add an address.
    AddAddr { link: IfName, addr: Addr },
    /// Remove an address.
    RemoveAddr { link: IfName, addr: Addr },
    /// Add a route.
    AddRoute(Route),
    /// Remove a route.
    RemoveRoute(Route),
    /// Add a rule.
    AddRule(Rule),
    /// Remove a rule.
    RemoveRule(Rule),
    /// Add a permanent neighbour.
    AddNeigh(Neigh),
    /// Remove a neighbour.
    RemoveNeigh(Neigh),
    /// Add a forwarding entry.
    AddFdb(Fdb),
    /// Remove a forwarding entry.
    RemoveFdb(Fdb),
    /// Write a setting.
    SetSysctl { key: SysctlKey, value: String },
}

/// Changes in the order they are to be made.
#[derive(Debug, Clone, Default)]
#[must_use = "a plan does nothing until executed"]
pub struct Plan {
    steps: Vec<(Netns, Op)>,
}

/// A plan that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// How many steps it had.
    pub steps: usize,
}

/// A plan that failed.
#[derive(Debug, Clone)]
pub struct PlanError {
    /// Place of the failed step, from 0.
    pub step: usize,
    /// Why it failed.
    pub error: Box<Error>,
    /// How many of the steps before it were taken back.
    pub undone: usize,
    /// Steps that could not be taken back, and why.
    pub left_over: Vec<(usize, Error)>,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} failed: {}", self.step, self.error)?;
        for (step, error) in &self.left_over {
            write!(f, "; step {step} was not taken back: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PlanError {}

impl Plan {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a step.
    pub fn step(mut self, netns: &Netns, op: Op) -> Self {
        self.steps.push((netns.clone(), op));
        self
    }

    /// Adds the making of a link.
    pub fn create_link(self, netns: &Netns, spec: LinkSpec) -> Self {
        self.step(netns, Op::CreateLink(Box::new(spec)))
    }

    /// Adds a change to a link.
    pub fn change_link(self, netns: &Netns, link: IfName, change: LinkChange) -> Self {
        self.step(netns, Op::ChangeLink { link, change: Box::new(change) })
    }

    /// Adds the removal of a link.
    pub fn delete_link(self, netns: &Netns, link: IfName) -> Self {
        self.step(netns, Op::DeleteLink { link })
    }

    /// Carries out all steps, or none.
    ///
    /// # Errors
    ///
    /// [`PlanError`] with the step that failed; the steps before it are taken
    /// back, last first. A crash half-way leaves what was done until then.
    pub fn execute(self) -> Result<Applied, PlanError> {
        let early =
            |error| PlanError { step: 0, error: Box::new(error), undone: 0, left_over: Vec::new() };
        let Some((first, _)) = self.steps.first() else { return Ok(Applied { steps: 0 }) };
        let inner = std::sync::Arc::clone(&first.inner);
        if let Err((step, error)) = self.check() {
            return Err(PlanError { step, ..early(error) });
        }
        let outcome =
            inner.job(Lane::Change, "execute plan", move |session| Ok(run(session, &self.steps)));
        outcome.map_err(early)?
    }

    /// Carries out every step by itself; a failed one stops nothing. One
    /// result per step.
    pub fn execute_each(self) -> Vec<Result<()>> {
        let Some((first, _)) = self.steps.first() else { return Vec::new() };
        let (inner, count) = (std::sync::Arc::clone(&first.inner), self.steps.len());
        let outcome = inner.job(Lane::Change, "execute steps", move |session| {
            let one = |(netns, op): &(Netns, Op)| perform(session, &netns.at, op).map(drop);
            Ok(self.steps.iter().map(one).collect())
        });
        match outcome {
            Ok(results) => results,
            Err(error) => vec![Err(error); count],
        }
    }

    fn check(&self) -> Result<(), (usize, Error)> {
        if self.steps.len() > STEPS_MAX {
            return Err((STEPS_MAX, Error::value("plan", "more than 10000 steps")));
        }
        let mut removing = false;
        for (place, (netns, op)) in self.steps.iter().enumerate() {
            if !std::sync::Arc::ptr_eq(&netns.inner, &self.steps[0].0.inner) {
                return Err((place, Error::value("plan", "namespaces of different roots")));
            }
            let removal = matches!(op, Op::DeleteLink { .. });
            if removing && !removal {
                let reason = "follows the removal of a link, which cannot be taken back";
                return Err((place, Error::value("plan", reason)));
            }
            removing |= removal;
        }
        Ok(())
    }
}

fn run(session: &mut Session<'_>, steps: &[(Netns, Op)]) -> Result<Applied, PlanError> {
    let mut undo: Vec<(usize, At, Op)> = Vec::new();
    for (place, (netns, op)) in steps.iter().enumerate() {
        match perform(session, &netns.at, op) {
            Ok(reverse) => undo.extend(reverse.map(|(at, op)| (place, at, op))),
            Err(error) => {
                let error = crate::link::uses::explain(session, &netns.at, op, error);
                let mut failed = PlanError {
                    step: place,
                    error: Box::new(error),
                    undone: 0,
                    left_over: Vec::new(),
                };
                for (step, at, op) in undo.into_iter().rev() {
                    match perform(session, &at, &op) {
                        Ok(_) => failed.undone += 1,
                        Err(error) => failed.left_over.push((step, error)),
                    }
                }
                return Err(failed);
            }
        }
    }
    Ok(Applied { steps: steps.len() })
}

/// Carries out one step, whole or not at all; answers with its reverse.
fn perform(session: &mut Session<'_>, at: &At, op: &Op) -> Result<Option<(At, Op)>> {
    let reverse = match op {
        Op::CreateLink(spec) => return create(session, at, spec).map(Some),
        Op::ChangeLink { link, change } => return change_link(session, at, link, change).map(Some),
        Op::DeleteLink { link } => {
            owned(session, at, link)?;
            return apply::delete(session, at, link).map(|()| None);
        }
        Op::AddAddr { link, addr } => {
            addr.check()?;
            address(session, at, link, addr, true)?;
            Op::RemoveAddr { link: link.clone(), addr: addr.clone() }
        }
        Op::RemoveAddr { link, addr } => {
            let found = find_addr(session, at, link, addr)?;
            address(session, at, link, &found, false)?;
            Op::AddAddr { link: link.clone(), addr: found }
        }
        Op::AddRoute(route) => {
            route.check()?;
            self::route(session, at, route, true)?;
            Op::RemoveRoute(route.clone())
        }
        Op::RemoveRoute(route) => {
            self::route(session, at, route, false)?;
            Op::AddRoute(route.clone())
        }
        Op::AddRule(rule) => {
            rule.check()?;
            let message = RouteNetlinkMessage::NewRule(rule.message());
            send(session, at, message, CREATE, Subject::Rule, "add", describe(rule))?;
            Op::RemoveRule(rule.clone())
        }
        Op::RemoveRule(rule) => {
            let message = RouteNetlinkMessage::DelRule(rule.message());
            send(session, at, message, 0, Subject::Rule, "delete", describe(rule))?;
            Op::AddRule(rule.clone())
        }
        Op::AddNeigh(neigh) => {
            if neigh.mac.is_none() {
                return Err(Error::value("mac", "a neighbour needs one"));
            }
            neighbour(session, at, neigh, true)?;
            Op::RemoveNeigh(neigh.clone())
        }
        Op::RemoveNeigh(neigh) => {
            neighbour(session, at, neigh, false)?;
            Op::AddNeigh(neigh.clone())
        }
        Op::AddFdb(fdb) => {
            forwarding(session, at, fdb, true)?;
            Op::RemoveFdb(fdb.clone())
        }
        Op::RemoveFdb(fdb) => {
            forwarding(session, at, fdb, false)?;
            Op::AddFdb(fdb.clone())
        }
        Op::SetSysctl { key, value } => {
            let old = session.inside(at, || key.read())??;
            session.inside(at, || key.write(value))??;
            Op::SetSysctl { key: key.clone(), value: old }
        }
    };
    Ok(Some((at.clone(), reverse)))
}

fn create(session: &mut Session<'_>, at: &At, spec: &LinkSpec) -> Result<(At, Op)> {
    if let crate::LinkKind::Existing { name, from } = &spec.kind {
        spec.check()?;
        let source = session.resolve(at, from)?;
        let change = LinkChange {
            rename: Some(spec.name.clone()),
            move_to: Some(at.place()),
            ..LinkChange::from(&spec.settings)
        };
        return change_link(session, &source, name, &change);
    }
    apply::create(session, at, spec)?;
    Ok((at.clone(), Op::DeleteLink { link: spec.name.clone() }))
}

/// Changes a link and restores it when that fails half-way.
fn change_link(
    session: &mut Session<'_>,
    at: &At,
    link: &IfName,
    change: &LinkChange,
) -> Result<(At, Op)> {
    change.check()?;
    owned(session, at, link)?;
    let before = read::full(session.socket(at)?, link)?;
    let reverse = reverse_of(&before, change, at);
    let now = change.rename.clone().unwrap_or_else(|| link.clone());
    let target = match &change.move_to {
        Some(place) => session.resolve(at, place)?,
        None => at.clone(),
    };
    let Err(error) = apply::change(session, at, link, change) else {
        return Ok((target, Op::ChangeLink { link: now, change: Box::new(reverse) }));
    };
    if let Err(undo) = restore(session, at, &target, &before, &now, reverse) {
        tracing::warn!(%undo, %link, "cannot restore a half-changed link");
    }
    Err(error)
}

/// Brings a link back after a change that failed somewhere on its way.
fn restore(
    session: &mut Session<'_>,
    at: &At,
    target: &At,
    before: &Link,
    now: &IfName,
    reverse: LinkChange,
) -> Result<()> {
    let socket = session.socket(at)?;
    for name in [&before.ifname, now] {
        if read::index(socket, name).is_ok_and(|index| index == before.ifindex) {
            let reverse = LinkChange { move_to: None, ..reverse };
            return apply::change(session, at, name, &reverse);
        }
    }
    apply::change(session, target, now, &reverse)
}

/// The change that brings the fields of `change` back to what `link` has.
fn reverse_of(link: &Link, change: &LinkChange, at: &At) -> LinkChange {
    let own = |protocol| protocol == crate::OWN_PROTOCOL;
    let port = match (&link.port, change.port.is_empty()) {
        (Some(port), false) => port.clone(),
        _ => crate::PortSettings::default(),
    };
    let addrs = || link.addrs.iter().filter(|addr| own(addr.protocol)).cloned().collect();
    let routes = || link.routes.iter().filter(|route| own(route.protocol)).cloned().collect();
    // Going down costs the routes, moving costs more.
    let moved = change.move_to.is_some();
    let lost = moved || (change.up == Some(false) && link.up);
    let lost = lost.then_some(());
    LinkChange {
        mac: change.mac.and(link.mac),
        mtu: change.mtu.map(|_| link.mtu),
        master: (moved || change.master.is_some()).then(|| link.master.clone()),
        up: (moved || change.up.is_some()).then_some(link.up),
        tx_queue_len: change.tx_queue_len.map(|_| link.tx_queue_len),
        group: (moved || change.group.is_some()).then_some(link.group),
        alias: change.alias.as_ref().map(|_| link.alias.clone().unwrap_or_default()),
        altnames: change.altnames.as_ref().map(|_| link.altnames.clone()),
        gso_max_size: change.gso_max_size.map(|_| link.gso_max_size),
        gro_max_size: change.gro_max_size.map(|_| link.gro_max_size),
        ipv6_auto: change.ipv6_auto.and(link.ipv6_auto),
        port,
        addrs: change.addrs.as_ref().map(drop).or(lost).map(|()| addrs()),
        routes: change.routes.as_ref().map(drop).or(lost).map(|()| routes()),
        bandwidth: change.bandwidth.map(|_| link.bandwidth),
        rename: change.rename.as_ref().map(|_| link.ifname.clone()),
        move_to: change.move_to.as_ref().map(|_| at.place()),
    }
}

/// Refuses to touch links of the host that are not ours.
fn owned(session: &mut Session<'_>, at: &At, link: &IfName) -> Result<()> {
    if *at != At::Home {
        return Ok(());
    }
    let owner = session.inner.options.owner_group;
    let found = read::raw(session.socket(at)?, link)?.link;
    if found.group != owner {
        return Err(Error::Permission {
            step: format!("touch link {link} of the host"),
            needs: "the link to be adopted first",
            kernel: None,
        });
    }
    Ok(())
}

fn send(
    session: &mut Session<'_>,
    at: &At,
    message: RouteNetlinkMessage,
    flags: u16,
    subject: Subject,
    verb: &'static str,
    object: String,
) -> Result<()> {
    let step = Step::new(subject, verb, object);
    session.socket(at)?.change(Request { message, flags, step })
}

fn address(
    session: &mut Session<'_>,
    at: &At,
    link: &IfName,
    addr: &Addr,
    add: bool,
) -> Result<()> {
    owned(session, at, link)?;
    let index = read::index(session.socket(at)?, link)?;
    let object = format!("address {addr} of link {link}");
    let (message, flags, verb) = match add {
        true => (RouteNetlinkMessage::NewAddress(addr.message(index)), CREATE, "add"),
        false => (RouteNetlinkMessage::DelAddress(addr.removal(index)), 0, "delete"),
    };
    send(session, at, message, flags, Subject::Addr, verb, object)
}

/// The address as it is, so that it can be put back.
fn find_addr(session: &mut Session<'_>, at: &At, link: &IfName, addr: &Addr) -> Result<Addr> {
    let socket = session.socket(at)?;
    let index = read::index(socket, link)?;
    let found = read::addrs(socket, index)?.into_iter().find(|(_, a)| a.key() == addr.key());
    let missing = || Error::not_found(format!("address {addr} of link {link}"));
    found.map(|(_, addr)| addr.without_plain_label(link.as_str())).ok_or_else(missing)
}

fn route(session: &mut Session<'_>, at: &At, route: &Route, add: bool) -> Result<()> {
    let socket = session.socket(at)?;
    let message = route.message(|dev| read::index(socket, dev))?;
    let object = format!("route {}", route.dst);
    let (message, flags, verb) = match add {
        true => (RouteNetlinkMessage::NewRoute(message), CREATE, "add"),
        false => (RouteNetlinkMessage::DelRoute(message), 0, "delete"),
    };
    send(session, at, message, flags, Subject::Route, verb, object)
}

fn neighbour(session: &mut Session<'_>, at: &At, neigh: &Neigh, add: bool) -> Result<()> {
    let message = neigh.message(read::index(session.socket(at)?, &neigh.dev)?);
    let object = format!("neighbour {} of link {}", neigh.ip, neigh.dev);
    let (message, flags, verb) = match add {
        true => (RouteNetlinkMessage::NewNeighbour(message), CREATE, "add"),
        false => (RouteNetlinkMessage::DelNeighbour(message), 0, "delete"),
    };
    send(session, at, message, flags, Subject::Neigh, verb, object)
}

fn forwarding(session: &mut Session<'_>, at: &At, fdb: &Fdb, add: bool) -> Result<()> {
    let message = fdb.message(read::index(session.socket(at)?, &fdb.dev)?);
    let object = format!("forwarding entry {:02x?} of link {}", fdb.mac, fdb.dev);
    // Several destinations of one address are appended, as for broadcasts.
    let append = (libc::NLM_F_CREATE | libc::NLM_F_APPEND) as u16;
    let new = if fdb.own_table && fdb.mac == [0; 6] { append } else { CREATE };
    let (message, flags, verb) = match add {
        true => (RouteNetlinkMessage::NewNeighbour(message), new, "add"),
        false => (RouteNetlinkMessage::DelNeighbour(message), 0, "delete"),
    };
    send(session, at, message, flags, Subject::Neigh, verb, object)
}

fn describe(rule: &Rule) -> String {
    match rule.priority {
        Some(priority) => format!("rule {priority} for table {}", rule.table),
        None => format!("rule for table {}", rule.table),
    }
}

impl At {
    /// This namespace as a place any description can name.
    fn place(&self) -> Place {
        match self {
            Self::Home => Place::Host,
            Self::Pin { name, .. } => Place::Named(name.clone()),
        }
    }
}
