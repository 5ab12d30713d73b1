//! Reads whole views of a namespace from its socket.

use std::collections::HashMap;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::tc::{TcAttribute, TcStats2};

use super::decode::{KindInfo, Link, RawLink, link};
use super::encode::{by_index, lookup};
use crate::error::{Step, Subject};
use crate::netlink::Socket;
use crate::{Addr, IfName, Result, Route, bandwidth};

/// Routing table of the kernel's own local and broadcast routes.
const LOCAL_TABLE: u32 = 255;

fn step(subject: Subject, object: impl Into<String>) -> Step {
    Step::new(subject, "read", object)
}

/// The message about one link, found by name, without its counters.
pub(crate) fn raw(socket: &mut Socket, name: &IfName) -> Result<RawLink> {
    let step = step(Subject::Link, format!("link {name}"));
    one(socket, lookup(name.as_str(), false), &step)
}

fn one(socket: &mut Socket, message: RouteNetlinkMessage, step: &Step) -> Result<RawLink> {
    let missing = || crate::Error::not_found(step.object.clone());
    match socket.one(message, step)? {
        RouteNetlinkMessage::NewLink(message) => link(&message).ok_or_else(missing),
        _ => Err(missing()),
    }
}

/// The index of the link with this name.
pub(crate) fn index(socket: &mut Socket, name: &IfName) -> Result<u32> {
    Ok(raw(socket, name)?.link.ifindex)
}

/// One link with everything that belongs to it.
pub(crate) fn full(socket: &mut Socket, name: &IfName) -> Result<Link> {
    let asked = step(Subject::Link, format!("link {name}"));
    let RawLink { mut link, master } = one(socket, lookup(name.as_str(), true), &asked)?;
    if let Some(index) = master {
        let step = step(Subject::Link, format!("master of {name}"));
        let message = RouteNetlinkMessage::GetLink(by_index(index));
        link.master = Some(one(socket, message, &step)?.link.ifname);
    }
    let index = link.ifindex;
    let own = link.ifname.clone();
    let found = addrs(socket, index)?.into_iter();
    link.addrs = found.map(|(_, addr)| addr.without_plain_label(own.as_str())).collect();
    let names = HashMap::from([(index, own.clone())]);
    let routes = routes(socket, &names)?;
    link.routes = routes.into_iter().filter(|route| uses(route, &own)).collect();
    let mut links = [link];
    queues(socket, &mut links)?;
    let [mut link] = links;
    // The device that shapes what arrives carries the other limit.
    if let Ok(ifb) = raw(socket, &bandwidth::ifb_name(index)) {
        let mut ifb = [ifb.link];
        queues(socket, &mut ifb)?;
        link.bandwidth.ingress = ifb[0].bandwidth.egress;
    }
    Ok(link)
}

/// All links with everything that belongs to them, in order of index.
pub(crate) fn all(socket: &mut Socket) -> Result<Vec<Link>> {
    let raws = dump_links(socket, true)?;
    let names: HashMap<u32, IfName> =
        raws.iter().map(|raw| (raw.link.ifindex, raw.link.ifname.clone())).collect();
    let mut links: Vec<Link> = raws
        .into_iter()
        .map(|raw| Link { master: raw.master.and_then(|i| names.get(&i).cloned()), ..raw.link })
        .collect();
    links.sort_by_key(|link| link.ifindex);
    let place: HashMap<u32, usize> =
        links.iter().enumerate().map(|(place, link)| (link.ifindex, place)).collect();
    for (index, addr) in addrs(socket, 0)? {
        if let Some(place) = place.get(&index) {
            let link = &mut links[*place];
            link.addrs.push(addr.without_plain_label(link.ifname.as_str()));
        }
    }
    for route in routes(socket, &names)? {
        for link in &mut links {
            if uses(&route, &link.ifname) {
                link.routes.push(route.clone());
            }
        }
    }
    queues(socket, &mut links)?;
    let limits: HashMap<IfName, bandwidth::Bandwidth> = links
        .iter()
        .filter(|link| link.kind == KindInfo::Ifb)
        .map(|link| (link.ifname.clone(), link.bandwidth))
        .collect();
    for link in &mut links {
        if let Some(limit) = limits.get(&bandwidth::ifb_name(link.ifindex)) {
            link.bandwidth.ingress = limit.egress;
        }
    }
    Ok(links)
}

/// All links alone.
pub(crate) fn dump_links(socket: &mut Socket, stats: bool) -> Result<Vec<RawLink>> {
    let mut message = LinkMessage::default();
    if !stats {
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    }
    let step = step(Subject::Link, "links");
    let objects = socket.dump(&RouteNetlinkMessage::GetLink(message), &step)?;
    Ok(objects
        .iter()
        .filter_map(|object| match object {
            RouteNetlinkMessage::NewLink(message) => link(message),
            _ => None,
        })
        .collect())
}

/// Addresses of one link, or of all for index 0.
pub(crate) fn addrs(socket: &mut Socket, ifindex: u32) -> Result<Vec<(u32, Addr)>> {
    let objects = socket.dump(&Addr::dump(ifindex), &step(Subject::Addr, "addresses"))?;
    let read = |object: &RouteNetlinkMessage| match object {
        RouteNetlinkMessage::NewAddress(message) => Addr::read(message),
        _ => None,
    };
    let found = objects.iter().filter_map(read);
    Ok(found.filter(|(index, _)| ifindex == 0 || *index == ifindex).collect())
}

/// Routes of all tables but the local one.
pub(crate) fn routes(socket: &mut Socket, names: &HashMap<u32, IfName>) -> Result<Vec<Route>> {
    let objects = socket.dump(&Route::dump(), &step(Subject::Route, "routes"))?;
    let read = |object: &RouteNetlinkMessage| match object {
        RouteNetlinkMessage::NewRoute(message) => {
            Route::read(message, |index| names.get(&index).cloned())
        }
        _ => None,
    };
    let found = objects.iter().filter_map(read);
    Ok(found.filter(|route| route.table != LOCAL_TABLE).collect())
}

fn uses(route: &Route, link: &IfName) -> bool {
    let hops = route.multipath.iter().filter_map(|hop| hop.dev.as_ref());
    route.dev.iter().chain(hops).any(|dev| dev == link)
}

/// Fills in limits of rate and what queues dropped.
fn queues(socket: &mut Socket, links: &mut [Link]) -> Result<()> {
    let step = step(Subject::Qdisc, "queues");
    let objects = match socket.dump(&bandwidth::dump(), &step) {
        Ok(objects) => objects,
        // A kernel without packet scheduler has no queues.
        Err(crate::Error::Unsupported { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    for object in &objects {
        let RouteNetlinkMessage::NewQueueDiscipline(message) = object else { continue };
        let index = message.header.index as u32;
        let Some(link) = links.iter_mut().find(|link| link.ifindex == index) else { continue };
        if let Some(rate) = bandwidth::read(message) {
            link.bandwidth.egress = Some(rate);
        }
        for attribute in &message.attributes {
            let TcAttribute::Stats2(list) = attribute else { continue };
            for stats in list {
                if let TcStats2::Queue(queue) = stats {
                    link.stats.queue_dropped += u64::from(queue.drops);
                }
            }
        }
    }
    Ok(())
}

/// All links with their counters, but not what belongs to them.
pub(crate) fn with_counters(socket: &mut Socket) -> Result<Vec<Link>> {
    let mut links: Vec<Link> = dump_links(socket, true)?.into_iter().map(|raw| raw.link).collect();
    links.sort_by_key(|link| link.ifindex);
    queues(socket, &mut links)?;
    Ok(links)
}
