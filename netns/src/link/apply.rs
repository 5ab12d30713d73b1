//! Makes, changes and removes links through a session's sockets.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rustix::fs::{Mode, OFlags};

use super::change::LinkChange;
use super::decode::{KindInfo, RawLink};
use super::encode::{self, Birth};
use super::kinds::{LinkKind, Parent, PeerSpec, Place, TunOpts};
use super::read;
use super::spec::{LinkSettings, LinkSpec};
use crate::error::{Step, Subject};
use crate::namespace::At;
use crate::netlink::{Request, Socket};
use crate::session::Session;
use crate::{Bandwidth, Error, IfName, OWN_PROTOCOL, Rate, Result, bandwidth, sys};

const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const REPLACE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
/// Smallest and largest MTU of Ethernet devices without hardware.
const MTU_BOUNDS: (u32, u32) = (68, 65_535);

/// Makes a link with all its settings, or nothing.
pub(crate) fn create(session: &mut Session<'_>, at: &At, spec: &LinkSpec) -> Result<()> {
    spec.check()?;
    check_new(session, at, spec)?;
    let done = match &spec.kind {
        LinkKind::Tap(opts) => tun(session, at, &spec.name, opts, libc::IFF_TAP)?,
        LinkKind::Tun(opts) => tun(session, at, &spec.name, opts, libc::IFF_TUN)?,
        LinkKind::Existing { .. } => {
            return Err(Error::refused("create link", "it exists and has to be moved"));
        }
        LinkKind::Veth { peer } | LinkKind::Netkit { peer, .. } => pair(session, at, spec, peer)?,
        _ => single(session, at, spec)?,
    };
    let finished =
        finish(session, at, &spec.name, &spec.settings, &done).and_then(|()| match &spec.kind {
            LinkKind::Veth { peer } | LinkKind::Netkit { peer, .. } => {
                let place = session.resolve(at, &peer.place)?;
                finish(session, &place, &peer.name, &peer.settings, &done.peer())
            }
            _ => Ok(()),
        });
    finished.inspect_err(|_| undo_create(session, at, spec))
}

/// What the message that made a link has already done.
#[derive(Default, Clone, Copy)]
struct Done {
    attributes: bool,
    master: bool,
    up: bool,
    peer_master: bool,
    peer_up: bool,
}

impl Done {
    fn peer(self) -> Self {
        Self { attributes: true, master: self.peer_master, up: self.peer_up, ..Self::default() }
    }
}

fn undo_create(session: &mut Session<'_>, at: &At, spec: &LinkSpec) {
    if let Err(error) = delete(session, at, &spec.name) {
        tracing::warn!(%error, link = %spec.name, "cannot take back a half-made link");
    }
}

/// Checks what needs to know where the link will be.
fn check_new(session: &Session<'_>, at: &At, spec: &LinkSpec) -> Result<()> {
    let mut ends = vec![(at.clone(), &spec.settings)];
    if let LinkKind::Veth { peer } | LinkKind::Netkit { peer, .. } = &spec.kind {
        let place = match &peer.place {
            Place::Host => At::Home,
            _ => at.clone(),
        };
        if peer.place == Place::Here && peer.name == spec.name {
            return Err(Error::AlreadyExists {
                object: format!("link {} as its own peer", spec.name),
                kernel: None,
            });
        }
        ends.push((place, &peer.settings));
    }
    for (place, settings) in ends {
        let owner = session.inner.options.owner_group;
        let marked = settings.group.is_some_and(|group| group != owner);
        if place == At::Home && marked {
            return Err(Error::value("group", "the host's links carry the ownership mark"));
        }
        let bounded = matches!(spec.kind, LinkKind::Veth { .. } | LinkKind::Bridge(_));
        if let (Some(mtu), true) = (settings.mtu, bounded) {
            check_mtu(mtu, MTU_BOUNDS.0, MTU_BOUNDS.1)?;
        }
    }
    Ok(())
}

fn check_mtu(mtu: u32, min: u32, max: u32) -> Result<()> {
    if mtu < min || (max > 0 && mtu > max) {
        return Err(Error::OutOfRange {
            field: "mtu",
            value: mtu.into(),
            min: Some(min.into()),
            max: (max > 0).then_some(max.into()),
            kernel: None,
        });
    }
    Ok(())
}

/// A link that is made alone, perhaps on a parent elsewhere.
fn single(session: &mut Session<'_>, at: &At, spec: &LinkSpec) -> Result<Done> {
    let (birthplace, parent) = match &spec.kind {
        LinkKind::Macvlan { parent, .. }
        | LinkKind::Macvtap { parent, .. }
        | LinkKind::Ipvlan { parent, .. }
        | LinkKind::Vlan { parent, .. } => {
            let Parent { name, place } = parent;
            (session.resolve(at, place)?, Some(name))
        }
        LinkKind::Vxlan(opts) => (session.resolve(at, &opts.underlay)?, opts.dev.as_ref()),
        _ => (at.clone(), None),
    };
    let elsewhere = birthplace != *at;
    let netns = if elsewhere { Some(session.fd(at)?) } else { None };
    let settings = &spec.settings;
    let group = group(session, at, settings);
    let socket = session.socket(&birthplace)?;
    let parent = match parent {
        Some(name) => Some(read::index(socket, name)?),
        None => None,
    };
    let up = settings.up && !elsewhere && settings.ipv6_auto.is_none();
    let master = if elsewhere { None } else { master(socket, settings)? };
    let birth = Birth { name: &spec.name, settings, group, master, up, netns };
    let mut message = birth.message();
    message.attributes.extend(encode::kind_attributes(&spec.kind, parent, None));
    socket.change(new_link(message, spec))?;
    Ok(Done { attributes: true, master: master.is_some(), up, ..Done::default() })
}

/// A pair, made where the peer lives with our end born in its own place.
fn pair(session: &mut Session<'_>, at: &At, spec: &LinkSpec, peer: &PeerSpec) -> Result<Done> {
    let place = session.resolve(at, &peer.place)?;
    let elsewhere = place != *at;
    let netns = if elsewhere { Some(session.fd(at)?) } else { None };
    let (own_group, peer_group) =
        (group(session, at, &spec.settings), group(session, &place, &peer.settings));
    let socket = session.socket(&place)?;
    let up = peer.settings.up && peer.settings.ipv6_auto.is_none();
    let master = master(socket, &peer.settings)?;
    let own = Birth {
        name: &spec.name,
        settings: &spec.settings,
        group: own_group,
        master: None,
        up: false,
        netns,
    };
    let other = Birth {
        name: &peer.name,
        settings: &peer.settings,
        group: peer_group,
        master,
        up,
        netns: None,
    };
    let mut message = other.message();
    message.attributes.extend(encode::kind_attributes(&spec.kind, None, Some(own.message())));
    socket.change(new_link(message, spec))?;
    Ok(Done { attributes: true, peer_master: master.is_some(), peer_up: up, ..Done::default() })
}

fn new_link(message: LinkMessage, spec: &LinkSpec) -> Request {
    let object = match &spec.kind {
        LinkKind::Veth { peer } => format!("link {} or its peer {}", spec.name, peer.name),
        kind => format!("link {} of kind {}", spec.name, kind.name().unwrap_or("device")),
    };
    Request {
        message: RouteNetlinkMessage::NewLink(message),
        flags: CREATE,
        step: Step::new(Subject::Link, "create", object),
    }
}

/// The group of a new link: the ownership mark in the home namespace.
fn group(session: &Session<'_>, at: &At, settings: &LinkSettings) -> Option<u32> {
    let owner = session.inner.options.owner_group;
    settings.group.or((*at == At::Home).then_some(owner))
}

fn master(socket: &mut Socket, settings: &LinkSettings) -> Result<Option<u32>> {
    settings.master.as_ref().map(|name| master_index(socket, name)).transpose()
}

/// The index of a link that can take ports.
fn master_index(socket: &mut Socket, name: &IfName) -> Result<u32> {
    let master = read::raw(socket, name)?.link;
    let takes_ports = match &master.kind {
        KindInfo::Bridge(_) | KindInfo::Vrf { .. } => true,
        KindInfo::Other(kind) => matches!(kind.as_str(), "bond" | "team" | "openvswitch" | "hsr"),
        _ => false,
    };
    if !takes_ports {
        return Err(Error::refused(format!("set master {name}"), "it takes no ports"));
    }
    Ok(master.ifindex)
}

fn tun(
    session: &mut Session<'_>,
    at: &At,
    name: &IfName,
    opts: &TunOpts,
    kind: libc::c_int,
) -> Result<Done> {
    let mut flags = kind;
    flags |= if opts.multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    flags |= if opts.vnet_header { libc::IFF_VNET_HDR } else { 0 };
    flags |= if opts.packet_info { 0 } else { libc::IFF_NO_PI };
    // Without this flag the ioctl would attach to a device that exists.
    flags |= libc::IFF_TUN_EXCL;
    let path = "/dev/net/tun";
    let step = Step::new(Subject::Link, "create", format!("link {name} of kind tun"));
    let (name, owner, group) = (name.to_string(), opts.owner, opts.group);
    session.inside(at, move || {
        let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let file = file.map_err(|errno| match errno {
            rustix::io::Errno::NOENT | rustix::io::Errno::NODEV => {
                Error::Unsupported { what: "tun".into(), kernel: Some(errno.into()) }
            }
            errno => Error::io("open", path, errno),
        })?;
        let request = sys::TunRequest { name: &name, flags: flags as i16, owner, group };
        sys::tun_persist(file, &request).map_err(|errno| match errno {
            // What the ioctl answers when the name is another device's.
            rustix::io::Errno::BUSY | rustix::io::Errno::INVAL => {
                Error::AlreadyExists { object: format!("link {name}"), kernel: Some(errno.into()) }
            }
            errno => step.error(errno.into()),
        })
    })??;
    Ok(Done::default())
}

/// Applies what the creating message could not.
fn finish(
    session: &mut Session<'_>,
    at: &At,
    name: &IfName,
    settings: &LinkSettings,
    done: &Done,
) -> Result<()> {
    let mut rest = LinkChange::from(settings);
    if done.attributes {
        (rest.mac, rest.mtu, rest.group, rest.tx_queue_len) = (None, None, None, None);
        (rest.gso_max_size, rest.gro_max_size) = (None, None);
    } else if *at == At::Home {
        rest.group = Some(session.inner.options.owner_group);
    }
    if done.master {
        rest.master = None;
    }
    if done.up {
        rest.up = None;
    }
    if rest == LinkChange::default() {
        return Ok(());
    }
    apply(session, at, name, &rest, true)
}

/// Changes a link. Not atomic: an error may leave part of it done.
pub(crate) fn change(
    session: &mut Session<'_>,
    at: &At,
    name: &IfName,
    change: &LinkChange,
) -> Result<()> {
    change.check()?;
    let Some(to) = &change.move_to else {
        return apply(session, at, name, change, false);
    };
    let to = session.resolve(at, to)?;
    let new_name = change.rename.as_ref().unwrap_or(name);
    move_link(session, at, name, &to, new_name)?;
    let mut rest = LinkChange { rename: None, move_to: None, ..change.clone() };
    if to == At::Home && rest.group.is_none() {
        rest.group = Some(session.inner.options.owner_group);
    }
    apply(session, &to, new_name, &rest, false)
}

/// Everything but the move. A fresh link has nothing to be compared with.
fn apply(
    session: &mut Session<'_>,
    at: &At,
    name: &IfName,
    change: &LinkChange,
    fresh: bool,
) -> Result<()> {
    let socket = session.socket(at)?;
    let RawLink { link, .. } = read::raw(socket, name)?;
    let index = link.ifindex;
    if let Some(mtu) = change.mtu {
        check_mtu(mtu, link.mtu_min, link.mtu_max)?;
    }
    let mut batch = Batch { name, requests: Vec::new() };
    let rename = change.rename.as_ref();
    let mut own_name = name.clone();
    attributes(&mut batch, index, change);
    match &change.master {
        Some(Some(master)) => {
            let master = master_index(socket, master)?;
            let message = encode::set(index, LinkAttribute::Controller(master));
            batch.push(message, 0, Subject::Master, "set master of", format!("link {name}"));
        }
        Some(None) => {
            let message = encode::set(index, LinkAttribute::Controller(0));
            batch.push(message, 0, Subject::Master, "release", format!("link {name}"));
        }
        None => {}
    }
    if let Some(port) = encode::port(index, &change.port) {
        batch.push(port, 0, Subject::Master, "set port flags of", format!("link {name}"));
    }
    for vlan in &change.port.vlans {
        let message = encode::port_vlan(index, vlan);
        let object = format!("VLAN {} of link {name}", vlan.id);
        batch.push(message, 0, Subject::Link, "add", object);
    }
    if let Some(rename) = rename {
        let message = encode::set(index, LinkAttribute::IfName(rename.to_string()));
        batch.push(message, 0, Subject::Link, "rename", format!("link {name} to {rename}"));
        own_name = rename.clone();
    }
    if let Some(altnames) = &change.altnames {
        for gone in link.altnames.iter().filter(|old| !altnames.contains(old)) {
            let message = encode::altname(index, gone, false);
            batch.push(message, 0, Subject::Link, "remove", format!("name {gone} of {name}"));
        }
        for new in altnames.iter().filter(|new| !link.altnames.contains(new)) {
            let message = encode::altname(index, new, true);
            let flags = CREATE | libc::NLM_F_APPEND as u16;
            batch.push(message, flags, Subject::Link, "add", format!("name {new} of {name}"));
        }
    }
    if let Some(up) = change.up {
        let verb = if up { "bring up" } else { "bring down" };
        batch.push(encode::up(index, up), 0, Subject::Link, verb, format!("link {name}"));
    }
    if let Some(wanted) = &change.addrs {
        addrs(&mut batch, socket, index, wanted, fresh)?;
    }
    if let (Some(wanted), true) = (&change.routes, fresh) {
        // In one go with the addresses they need: a refusal takes the whole link back.
        routes(&mut batch, socket, &own_name, index, wanted, fresh)?;
    }
    batch.run(socket)?;
    if let (Some(wanted), false) = (&change.routes, fresh) {
        let mut batch = Batch { name: &own_name, requests: Vec::new() };
        routes(&mut batch, socket, &own_name, index, wanted, fresh)?;
        batch.run(socket)?;
    }
    if let Some(wanted) = &change.bandwidth {
        limits(session, at, &own_name, index, wanted, fresh)?;
    }
    Ok(())
}

/// Plain attributes, one message each so that a refusal names its own.
fn attributes(batch: &mut Batch<'_>, index: u32, change: &LinkChange) {
    let object = format!("link {}", batch.name);
    if let Some(on) = change.ipv6_auto {
        let message = encode::ipv6_auto(index, on);
        batch.push(message, 0, Subject::Link, "set IPv6 address mode of", object.clone());
    }
    let list = [
        (change.mac.map(encode::mac), "set mac of"),
        (change.mtu.map(LinkAttribute::Mtu), "set mtu of"),
        (change.tx_queue_len.map(LinkAttribute::TxQueueLen), "set queue length of"),
        (change.group.map(LinkAttribute::Group), "set group of"),
        (change.alias.as_deref().map(encode::alias), "set alias of"),
        (change.gso_max_size.map(LinkAttribute::GsoMaxSize), "set gso size of"),
        (change.gro_max_size.map(LinkAttribute::GroMaxSize), "set gro size of"),
    ];
    for (attribute, verb) in list {
        if let Some(attribute) = attribute {
            batch.push(encode::set(index, attribute), 0, Subject::Link, verb, object.clone());
        }
    }
}

/// Brings the addresses made by us to `wanted`.
fn addrs(
    batch: &mut Batch<'_>,
    socket: &mut Socket,
    index: u32,
    wanted: &[crate::Addr],
    fresh: bool,
) -> Result<()> {
    let present = if fresh { Vec::new() } else { read::addrs(socket, index)? };
    for (_, addr) in &present {
        let unwanted = !wanted.iter().any(|new| new.key() == addr.key());
        if addr.protocol == OWN_PROTOCOL && unwanted {
            let message = RouteNetlinkMessage::DelAddress(addr.removal(index));
            batch.push(message, 0, Subject::Addr, "delete", format!("address {addr}"));
        }
    }
    for addr in wanted {
        let flags = if present.iter().any(|(_, old)| old.key() == addr.key()) {
            libc::NLM_F_REPLACE as u16
        } else {
            CREATE
        };
        let message = RouteNetlinkMessage::NewAddress(addr.message(index));
        batch.push(message, flags, Subject::Addr, "add", format!("address {addr}"));
    }
    Ok(())
}

/// Brings the routes of our protocol through a link to `wanted`.
fn routes(
    batch: &mut Batch<'_>,
    socket: &mut Socket,
    name: &IfName,
    index: u32,
    wanted: &[crate::Route],
    fresh: bool,
) -> Result<()> {
    let wanted: Vec<crate::Route> = wanted
        .iter()
        .map(|route| match route.multipath.is_empty() {
            true => crate::Route { dev: Some(name.clone()), ..route.clone() },
            false => route.clone(),
        })
        .collect();
    if !fresh {
        let names = std::collections::HashMap::from([(index, name.clone())]);
        for route in read::routes(socket, &names)? {
            let ours = route.protocol == OWN_PROTOCOL && route.dev.as_ref() == Some(name);
            if ours && !wanted.iter().any(|new| new.key() == route.key()) {
                let message = RouteNetlinkMessage::DelRoute(route.message(|_| Ok(index))?);
                batch.push(message, 0, Subject::Route, "delete", format!("route {}", route.dst));
            }
        }
    }
    for route in &wanted {
        let message = route.message(|dev| match dev == name {
            true => Ok(index),
            false => read::index(socket, dev),
        })?;
        let message = RouteNetlinkMessage::NewRoute(message);
        let flags = if fresh { CREATE } else { REPLACE };
        batch.push(message, flags, Subject::Route, "add", format!("route {}", route.dst));
    }
    Ok(())
}

/// Brings the limits of rate to `wanted`.
fn limits(
    session: &mut Session<'_>,
    at: &At,
    name: &IfName,
    index: u32,
    wanted: &Bandwidth,
    fresh: bool,
) -> Result<()> {
    limit(session.socket(at)?, name, index, wanted.egress.as_ref(), fresh)?;
    let ifb = bandwidth::ifb_name(index);
    let Some(rate) = &wanted.ingress else {
        return if fresh { Ok(()) } else { unlimit_ingress(session.socket(at)?, &ifb, index) };
    };
    let socket = session.socket(at)?;
    let ifb_index = match read::index(socket, &ifb) {
        Ok(found) => found,
        Err(Error::NotFound { .. }) => {
            single(session, at, &LinkSpec::new(ifb.clone(), LinkKind::Ifb))?;
            bring_up_quietly(session.socket(at)?, &ifb)?
        }
        Err(error) => return Err(error),
    };
    let socket = session.socket(at)?;
    limit(socket, &ifb, ifb_index, Some(rate), false)?;
    let step = |verb| Step::new(Subject::Qdisc, verb, format!("ingress queue of link {name}"));
    let request = |message, verb| Request { message, flags: CREATE, step: step(verb) };
    match socket.change(request(bandwidth::ingress(index), "create")) {
        Ok(()) => socket.change(request(bandwidth::redirect(index, ifb_index), "filter")),
        // Set up before; the rate was all there was to change.
        Err(Error::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Brings a device up that should have no address of its own.
fn bring_up_quietly(socket: &mut Socket, name: &IfName) -> Result<u32> {
    let index = read::index(socket, name)?;
    let request = |message, verb| Request {
        message,
        flags: 0,
        step: Step::new(Subject::Link, verb, format!("link {name}")),
    };
    // Refused where IPv6 is missing, which is as good.
    let _ = socket.change(request(encode::ipv6_auto(index, false), "silence"));
    socket.change(request(encode::up(index, true), "bring up"))?;
    Ok(index)
}

fn limit(
    socket: &mut Socket,
    name: &IfName,
    index: u32,
    rate: Option<&Rate>,
    fresh: bool,
) -> Result<()> {
    let object = format!("bandwidth limit of link {name}");
    match rate {
        Some(rate) => socket.change(Request {
            message: bandwidth::limit(index, rate),
            flags: REPLACE,
            step: Step::new(Subject::Qdisc, "set", object),
        }),
        None if fresh => Ok(()),
        None => absent_is_fine(socket.change(Request {
            message: bandwidth::unlimit(index),
            flags: 0,
            step: Step::new(Subject::Qdisc, "remove", object),
        })),
    }
}

fn unlimit_ingress(socket: &mut Socket, ifb: &IfName, index: u32) -> Result<()> {
    let Ok(ifb_index) = read::index(socket, ifb) else { return Ok(()) };
    absent_is_fine(socket.change(Request {
        message: bandwidth::uningress(index),
        flags: 0,
        step: Step::new(Subject::Qdisc, "remove", format!("ingress queue beside {ifb}")),
    }))?;
    remove(socket, ifb, ifb_index)
}

/// Removing a queue that is not there, or not ours, is no failure.
fn absent_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error)
            if error
                .kernel()
                .is_some_and(|kernel| matches!(kernel.errno, libc::ENOENT | libc::EINVAL)) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Moves a link to another namespace under a name, in one message.
fn move_link(
    session: &mut Session<'_>,
    from: &At,
    name: &IfName,
    to: &At,
    new_name: &IfName,
) -> Result<()> {
    if from == to && name == new_name {
        return Ok(());
    }
    let target = session.fd(to)?;
    let socket = session.socket(from)?;
    let mut message = encode::by_index(read::index(socket, name)?);
    message.attributes.push(LinkAttribute::NetNsFd(target));
    message.attributes.push(LinkAttribute::IfName(new_name.to_string()));
    socket.change(Request {
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
        step: Step::new(Subject::Link, "move", format!("link {name} as {new_name}")),
    })
}

/// Removes a link, and the device that shaped what arrived at it.
pub(crate) fn delete(session: &mut Session<'_>, at: &At, name: &IfName) -> Result<()> {
    let socket = session.socket(at)?;
    let link = read::raw(socket, name)?.link;
    if link.loopback {
        return Err(Error::refused(format!("delete link {name}"), "it belongs to its namespace"));
    }
    remove(socket, name, link.ifindex)?;
    let ifb = bandwidth::ifb_name(link.ifindex);
    match read::index(socket, &ifb) {
        Ok(index) => remove(socket, &ifb, index),
        Err(_) => Ok(()),
    }
}

fn remove(socket: &mut Socket, name: &IfName, index: u32) -> Result<()> {
    socket.change(Request {
        message: RouteNetlinkMessage::DelLink(encode::by_index(index)),
        flags: 0,
        step: Step::new(Subject::Link, "delete", format!("link {name}")),
    })
}

/// Requests that are sent together; later ones are harmless after a refusal.
struct Batch<'a> {
    name: &'a IfName,
    requests: Vec<Request>,
}

impl Batch<'_> {
    fn push(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        subject: Subject,
        verb: &'static str,
        object: String,
    ) {
        self.requests.push(Request { message, flags, step: Step::new(subject, verb, object) });
    }

    fn run(self, socket: &mut Socket) -> Result<()> {
        let outcomes = socket.batch(&self.requests)?;
        for (request, outcome) in self.requests.iter().zip(outcomes) {
            if let Some(kernel) = outcome {
                return Err(request.step.error(kernel));
            }
        }
        Ok(())
    }
}
