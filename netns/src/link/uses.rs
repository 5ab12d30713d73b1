//! What a device is used for already, for the message when the kernel calls it busy.

use super::{KindInfo, LinkKind, read};
use crate::namespace::At;
use crate::plan::Op;
use crate::session::Session;
use crate::{Error, IfName};

/// Adds the other use to the kernel's refusal, where it can be found.
pub(crate) fn explain(session: &mut Session<'_>, at: &At, op: &Op, error: Error) -> Error {
    let Error::Busy { step, kernel } = error else { return error };
    let other = match op {
        Op::CreateLink(spec) => parent_as_port(session, at, &spec.kind),
        Op::ChangeLink { link, .. } => children(session, at, link),
        _ => None,
    };
    let step = match other {
        Some(other) => format!("{step}, {other}"),
        None => step,
    };
    Error::Busy { step, kernel }
}

/// Says whose port the parent of a new link is.
fn parent_as_port(session: &mut Session<'_>, at: &At, kind: &LinkKind) -> Option<String> {
    let (LinkKind::Macvlan { parent, .. }
    | LinkKind::Macvtap { parent, .. }
    | LinkKind::Ipvlan { parent, .. }) = kind
    else {
        return None;
    };
    let place = session.resolve(at, &parent.place).ok()?;
    let master = read::full(session.socket(&place).ok()?, &parent.name).ok()?.master?;
    Some(format!("whose parent {} is a port of {master}", parent.name))
}

/// Says which links stand on one that was to be a port. Those in other namespaces are not seen.
fn children(session: &mut Session<'_>, at: &At, link: &IfName) -> Option<String> {
    let socket = session.socket(at).ok()?;
    let index = read::index(socket, link).ok()?;
    let stands_on = |kind: &KindInfo| {
        matches!(kind, KindInfo::Macvlan(_) | KindInfo::Macvtap(_) | KindInfo::Ipvlan(_))
    };
    let links = read::dump_links(socket, false).ok()?.into_iter().map(|raw| raw.link);
    let names: Vec<String> = links
        .filter(|it| stands_on(&it.kind))
        .filter(|it| it.lower.is_some_and(|low| low.ifindex == index && low.nsid.is_none()))
        .map(|it| it.ifname.to_string())
        .collect();
    (!names.is_empty()).then(|| format!("which is the parent of {}", names.join(", ")))
}
