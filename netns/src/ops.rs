//! What can be done to and asked of one namespace.

use std::collections::{BTreeSet, HashMap};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;

use crate::error::{Step, Subject};
use crate::link::read;
use crate::netlink::{Lane, Request, Socket};
use crate::plan::Op;
use crate::{
    Addr, Fdb, IfName, Link, LinkChange, LinkSpec, Neigh, Netns, NetnsStats, Plan, Result, Route,
    Rule, Stats,
};

impl Netns {
    /// Every link with its addresses, routes, limits and counters, in order of
    /// index. Links made by others included.
    pub fn links(&self) -> Result<Vec<Link>> {
        self.read("read links", read::all)
    }

    /// One link, by name or alternative name.
    pub fn link(&self, name: &IfName) -> Result<Link> {
        let name = name.clone();
        self.read("read link", move |socket| read::full(socket, &name))
    }

    /// Makes a link with all its settings, or nothing; answers with what came
    /// of it.
    ///
    /// # Errors
    ///
    /// [`crate::Error::AlreadyExists`] when a name is taken,
    /// [`crate::Error::Unsupported`] when the kernel lacks the kind; the others
    /// name the setting.
    pub fn create_link(&self, spec: &LinkSpec) -> Result<Link> {
        self.perform(Op::CreateLink(Box::new(spec.clone())))?;
        self.link(&spec.name)
    }

    /// Changes a link; on failure it is brought back to what it was. Links of
    /// the host must be ours, see [`Netns::adopt_link`].
    pub fn change_link(&self, name: &IfName, change: &LinkChange) -> Result<()> {
        self.perform(Op::ChangeLink { link: name.clone(), change: Box::new(change.clone()) })
    }

    /// Removes a link. Links of the host must be ours.
    pub fn delete_link(&self, name: &IfName) -> Result<()> {
        self.perform(Op::DeleteLink { link: name.clone() })
    }

    /// Marks a link of the host, made by somebody else, as ours.
    pub fn adopt_link(&self, name: &IfName) -> Result<()> {
        let (at, name) = (self.at.clone(), name.clone());
        self.job(Lane::Change, "adopt link", move |session| {
            let owner = session.inner.options.owner_group;
            let socket = session.socket(&at)?;
            let index = read::index(socket, &name)?;
            socket.change(Request {
                message: crate::link::set(index, LinkAttribute::Group(owner)),
                flags: 0,
                step: Step::new(Subject::Link, "adopt", format!("link {name}")),
            })
        })
    }

    /// Removes links that carry our mark and are not in `known`: what a crash
    /// left behind. Answers with their names. For the host's namespace.
    pub fn sweep_links(&self, known: &BTreeSet<IfName>) -> Result<Vec<IfName>> {
        let (at, known) = (self.at.clone(), known.clone());
        self.job(Lane::Change, "sweep links", move |session| {
            let owner = session.inner.options.owner_group;
            let socket = session.socket(&at)?;
            let (orphans, _) = unknown(socket, owner, &known, &|_| true)?;
            remove(socket, owner, orphans)
        })
    }

    /// As [`Netns::sweep_links`], but removes only what is in `doomed`: links that somebody wrote
    /// down before making them. Of what is in neither set nobody can say that it is not in use, so
    /// it stays. Answers with the names of what was removed, and of what stays.
    pub fn sweep_named_links(
        &self,
        known: &BTreeSet<IfName>,
        doomed: &BTreeSet<IfName>,
    ) -> Result<(Vec<IfName>, Vec<IfName>)> {
        let (at, known, doomed) = (self.at.clone(), known.clone(), doomed.clone());
        self.job(Lane::Change, "sweep links", move |session| {
            let owner = session.inner.options.owner_group;
            let socket = session.socket(&at)?;
            let named = |name: &IfName| doomed.contains(name);
            let (orphans, left) = unknown(socket, owner, &known, &named)?;
            Ok((remove(socket, owner, orphans)?, left))
        })
    }

    /// Adds an address to a link.
    pub fn add_addr(&self, link: &IfName, addr: &Addr) -> Result<()> {
        self.perform(Op::AddAddr { link: link.clone(), addr: addr.clone() })
    }

    /// Removes an address from a link.
    pub fn remove_addr(&self, link: &IfName, addr: &Addr) -> Result<()> {
        self.perform(Op::RemoveAddr { link: link.clone(), addr: addr.clone() })
    }

    /// Routes of all tables but the local one.
    pub fn routes(&self) -> Result<Vec<Route>> {
        self.read("read routes", |socket| {
            let names = names(socket)?;
            read::routes(socket, &names)
        })
    }

    /// Adds a route.
    pub fn add_route(&self, route: &Route) -> Result<()> {
        self.perform(Op::AddRoute(route.clone()))
    }

    /// Removes a route.
    pub fn remove_route(&self, route: &Route) -> Result<()> {
        self.perform(Op::RemoveRoute(route.clone()))
    }

    /// Rules of both families that look a table up.
    pub fn rules(&self) -> Result<Vec<Rule>> {
        self.read("read rules", |socket| {
            let step = Step::new(Subject::Rule, "read", "rules");
            let mut rules = Vec::new();
            for ipv6 in [false, true] {
                let objects = match socket.dump(&Rule::dump(ipv6), &step) {
                    Ok(objects) => objects,
                    Err(crate::Error::Unsupported { .. }) => continue,
                    Err(error) => return Err(error),
                };
                rules.extend(objects.iter().filter_map(|object| match object {
                    RouteNetlinkMessage::NewRule(message) => Rule::read(message),
                    _ => None,
                }));
            }
            Ok(rules)
        })
    }

    /// Adds a rule.
    pub fn add_rule(&self, rule: &Rule) -> Result<()> {
        self.perform(Op::AddRule(rule.clone()))
    }

    /// Removes a rule.
    pub fn remove_rule(&self, rule: &Rule) -> Result<()> {
        self.perform(Op::RemoveRule(rule.clone()))
    }

    /// Neighbours of both families, those the kernel found included.
    pub fn neighbours(&self) -> Result<Vec<Neigh>> {
        self.read("read neighbours", |socket| {
            let names = names(socket)?;
            let step = Step::new(Subject::Neigh, "read", "neighbours");
            let mut list = Vec::new();
            for ipv6 in [false, true] {
                let objects = socket.dump(&Neigh::dump(ipv6), &step)?;
                list.extend(objects.iter().filter_map(|object| match object {
                    RouteNetlinkMessage::NewNeighbour(message) => {
                        Neigh::read(message, |index| names.get(&index).cloned())
                    }
                    _ => None,
                }));
            }
            Ok(list)
        })
    }

    /// Adds a permanent neighbour.
    pub fn add_neighbour(&self, neigh: &Neigh) -> Result<()> {
        self.perform(Op::AddNeigh(neigh.clone()))
    }

    /// Removes a neighbour.
    pub fn remove_neighbour(&self, neigh: &Neigh) -> Result<()> {
        self.perform(Op::RemoveNeigh(neigh.clone()))
    }

    /// Forwarding entries of bridges and VXLAN devices, learned ones included.
    pub fn fdb(&self) -> Result<Vec<Fdb>> {
        self.read("read forwarding entries", |socket| {
            let names = names(socket)?;
            let step = Step::new(Subject::Neigh, "read", "forwarding entries");
            let objects = socket.dump(&Fdb::dump(), &step)?;
            Ok(objects
                .iter()
                .filter_map(|object| match object {
                    RouteNetlinkMessage::NewNeighbour(message) => {
                        Fdb::read(message, |index| names.get(&index).cloned())
                    }
                    _ => None,
                })
                .collect())
        })
    }

    /// Adds a forwarding entry.
    pub fn add_fdb(&self, fdb: &Fdb) -> Result<()> {
        self.perform(Op::AddFdb(fdb.clone()))
    }

    /// Removes a forwarding entry.
    pub fn remove_fdb(&self, fdb: &Fdb) -> Result<()> {
        self.perform(Op::RemoveFdb(fdb.clone()))
    }

    /// Counters of every link and their sum.
    pub fn stats(&self) -> Result<NetnsStats> {
        let mut all = NetnsStats { links: Vec::new(), total: Stats::default() };
        for link in self.read("read counters", read::with_counters)? {
            if !link.loopback {
                all.total.add(&link.stats);
            }
            all.links.push((link.ifname, link.stats));
        }
        Ok(all)
    }

    fn perform(&self, op: Op) -> Result<()> {
        Plan::new().step(self, op).execute().map(drop).map_err(|failed| *failed.error)
    }

    fn read<T: Send + 'static>(
        &self,
        step: &'static str,
        read: impl FnOnce(&mut Socket) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let at = self.at.clone();
        self.job(Lane::Read, step, move |session| read(session.socket(&at)?))
    }
}

/// Names of all links by index.
fn names(socket: &mut Socket) -> Result<HashMap<u32, IfName>> {
    let links = read::dump_links(socket, false)?;
    Ok(links.into_iter().map(|raw| (raw.link.ifindex, raw.link.ifname)).collect())
}

/// Links that carry our mark and are not known: those that `doomed` picks with what shapes them,
/// and the names of the others.
fn unknown(
    socket: &mut Socket,
    owner: u32,
    known: &BTreeSet<IfName>,
    doomed: &dyn Fn(&IfName) -> bool,
) -> Result<(Vec<Link>, Vec<IfName>)> {
    let links: Vec<Link> =
        read::dump_links(socket, false)?.into_iter().map(|raw| raw.link).collect();
    // A device that shapes what a link receives belongs to it.
    let shaping = |wanted: &dyn Fn(&IfName) -> bool| -> BTreeSet<IfName> {
        let wanted = links.iter().filter(|link| wanted(&link.ifname));
        wanted.map(|link| crate::bandwidth::ifb_name(link.ifindex)).collect()
    };
    let picked = |name: &IfName| !known.contains(name) && doomed(name);
    let (shaping_picked, shaping_others) = (shaping(&picked), shaping(&|name| !picked(name)));
    let (mut orphans, mut left) = (Vec::new(), Vec::new());
    for link in links {
        let name = &link.ifname;
        if link.group != owner || known.contains(name) || shaping_others.contains(name) {
            continue;
        }
        match picked(name) || shaping_picked.contains(name) {
            true => orphans.push(link),
            false => left.push(link.ifname),
        }
    }
    Ok((orphans, left))
}

/// Removes links by one message, in the time one link would take.
fn remove(socket: &mut Socket, owner: u32, orphans: Vec<Link>) -> Result<Vec<IfName>> {
    if orphans.is_empty() {
        return Ok(Vec::new());
    }
    let doomed = owner ^ 1;
    let step = |name: &IfName| Step::new(Subject::Link, "sweep", format!("link {name}"));
    let marks: Vec<Request> = orphans
        .iter()
        .map(|link| Request {
            message: crate::link::set(link.ifindex, LinkAttribute::Group(doomed)),
            flags: 0,
            step: step(&link.ifname),
        })
        .collect();
    // A link that vanished meanwhile needs no mark.
    socket.batch(&marks)?;
    let mut message = crate::link::by_index(0);
    message.attributes.push(LinkAttribute::Group(doomed));
    let removal = Request {
        message: RouteNetlinkMessage::DelLink(message),
        flags: 0,
        step: Step::new(Subject::Link, "delete", "swept links"),
    };
    match socket.change(removal) {
        Ok(()) | Err(crate::Error::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(orphans.into_iter().map(|link| link.ifname).collect())
}
