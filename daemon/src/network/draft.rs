//! Operations, checked and turned into steps before anything is touched.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use crated_api::network as api;
use crated_api::network::operation::Change;
use crated_netns::{LinkChange, LinkSpec, NetnsSpec, Op, SysctlKey};
use prost::Message;

use super::names::{self, Names};
use super::{Error, Result, request, update};
use crate::metadata::network::{HOST, now};
use crate::metadata::{LinkRecord, Namespace, NetnsRecord, NetworkView, Object, Scope, validate};

/// One operation, understood.
#[allow(clippy::large_enum_variant, reason = "a call has few, and each is taken apart at once")]
pub(super) enum Step {
    CreateNetns { record: NetnsRecord, spec: NetnsSpec, source: Option<api::source::From> },
    CreateLink { record: LinkRecord, spec: Box<LinkSpec>, adopt: bool },
    UpdateLink { old: LinkRecord, new: LinkRecord, change: Box<LinkChange> },
    DeleteLink(LinkRecord),
    DeleteNetns { id: String, etag: String, force: bool, wait: Duration },
    Plain { netns: String, op: Op },
}

/// The objects that operations need to themselves: namespaces, and links of the host.
pub(super) fn keys(namespace: &Namespace, operations: &[api::Operation]) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for operation in operations {
        for (netns, link) in subjects(operation) {
            match netns {
                HOST if link.is_empty() => {}
                HOST => drop(keys.insert(format!("{namespace}/{HOST}/{link}"))),
                netns => drop(keys.insert(format!("{namespace}/{netns}"))),
            }
        }
    }
    keys
}

/// The network namespace and link an operation is about; either may be empty.
pub(super) fn subjects(operation: &api::Operation) -> Vec<(&str, &str)> {
    match &operation.change {
        Some(Change::CreateNetns(create)) => {
            create.netns.iter().map(|netns| (netns.id.as_str(), "")).collect()
        }
        Some(Change::DeleteNetns(delete)) => vec![(&delete.id, "")],
        Some(Change::CreateLink(api::CreateLinkRequest { link }))
        | Some(Change::UpdateLink(api::UpdateLinkRequest { link, .. })) => {
            link.iter().map(|link| (link.netns.as_str(), link_id_of(link))).collect()
        }
        Some(Change::DeleteLink(delete)) => vec![(&delete.netns, &delete.id)],
        Some(_) => vec![(&operation.netns, "")],
        None => Vec::new(),
    }
}

/// The link, by namespace and id, that an operation changes or removes.
pub(super) fn changed_link(operation: &api::Operation) -> Option<(String, String)> {
    match &operation.change {
        Some(Change::UpdateLink(_) | Change::DeleteLink(_)) => {
            let (netns, link) = subjects(operation).pop()?;
            Some((netns.to_owned(), link.to_owned()))
        }
        _ => None,
    }
}

fn link_id(link: &api::Link) -> String {
    link_id_of(link).to_owned()
}

/// A link without an id goes by its name.
fn link_id_of(link: &api::Link) -> &str {
    match link.id.as_str() {
        "" => link.spec.as_ref().map_or("", |spec| &spec.name),
        id => id,
    }
}

/// What operations are checked against.
pub(super) struct Draft<'a> {
    scope: &'a Scope,
    boot_id: &'a str,
    netns: HashMap<String, NetnsRecord>,
    links: HashMap<(String, String), LinkRecord>,
    /// Nothing but removals may follow a removal.
    removing: bool,
    /// Namespaces come first.
    changing: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn new(scope: &'a Scope, boot_id: &'a str, view: NetworkView) -> Self {
        Self {
            scope,
            boot_id,
            netns: view.netns.into_iter().map(|row| (row.id.clone(), row)).collect(),
            links: view
                .links
                .into_iter()
                .map(|row| ((row.netns.clone(), row.id.clone()), row))
                .collect(),
            removing: false,
            changing: false,
        }
    }

    /// The record of a namespace that is there, or is made by an earlier step.
    pub(super) fn record(&self, id: &str) -> Option<&NetnsRecord> {
        self.netns.get(id)
    }

    pub(super) fn step(&mut self, operation: api::Operation) -> Result<Step> {
        let api::Operation { netns, change } = operation;
        let change = change.ok_or_else(|| Error::Invalid("operation: names no change".into()))?;
        self.check_order(&change)?;
        let plain = |netns: String, op: Op| Ok(Step::Plain { netns, op });
        Ok(match change {
            Change::CreateNetns(request) => self.create_netns(request.netns.unwrap_or_default())?,
            Change::DeleteNetns(request) => Step::DeleteNetns {
                id: self.known(&request.id)?.id.clone(),
                etag: request.etag,
                force: request.force,
                wait: request.wait_timeout_ms.map_or(WAIT, Duration::from_millis).min(WAIT_MAX),
            },
            Change::CreateLink(request) => self.create_link(request.link.unwrap_or_default())?,
            Change::UpdateLink(request) => self.update_link(request)?,
            Change::DeleteLink(request) => {
                let record = self.link(&request.netns, &request.id)?.clone();
                check_etag("link", &record.id, record.revision, &request.etag)?;
                self.links.remove(&(record.netns.clone(), record.id.clone()));
                Step::DeleteLink(record)
            }
            other => {
                let op = plain_op(other)?;
                if netns != HOST {
                    self.known(&netns)?;
                }
                return plain(netns, op);
            }
        })
    }

    fn check_order(&mut self, change: &Change) -> Result<()> {
        let removal = matches!(change, Change::DeleteNetns(_) | Change::DeleteLink(_));
        let creation = matches!(change, Change::CreateNetns(_));
        let refused = |why: &str| Err(Error::Invalid(format!("order of operations: {why}")));
        if self.removing && !removal {
            return refused("nothing but removals may follow a removal, which cannot be undone");
        }
        if self.changing && creation {
            return refused("network namespaces are made first");
        }
        self.removing |= removal;
        self.changing |= !creation;
        Ok(())
    }

    fn known(&self, id: &str) -> Result<&NetnsRecord> {
        names::check(id)?;
        let missing = || crate::metadata::Error::not_found(Object::Netns, id);
        let record = self.netns.get(id).ok_or_else(missing)?;
        Ok(record)
    }

    fn link(&self, netns: &str, id: &str) -> Result<&LinkRecord> {
        if netns != HOST {
            self.known(netns)?;
        }
        let found = self.links.get(&(netns.to_owned(), id.to_owned()));
        let missing = || crate::metadata::Error::not_found(Object::Link, format!("{netns}/{id}"));
        Ok(found.ok_or_else(missing)?)
    }

    fn create_netns(&mut self, mut netns: api::Netns) -> Result<Step> {
        let pin = names::pin(&self.scope.namespace, &netns.id)?;
        netns.labels.retain(|_, value| !value.is_empty());
        validate::labels(&netns.labels)?;
        let spec = netns_spec(&netns.sysctls, netns.lo_up.unwrap_or(true))?;
        if self.netns.contains_key(&netns.id) {
            return Err(crate::metadata::Error::already_exists(Object::Netns, netns.id).into());
        }
        let source = netns.source.and_then(|source| source.from);
        let record = NetnsRecord {
            id: netns.id.clone(),
            labels: netns.labels,
            sysctls: netns.sysctls,
            lo_up: spec.lo_up,
            pin: pin.to_string(),
            boot_id: self.boot_id.to_owned(),
            leased: self.scope.lease.is_some(),
            deleting: false,
            created_at: now(),
            updated_at: now(),
            revision: 1,
            adopted: source.is_some(),
        };
        self.netns.insert(netns.id, record.clone());
        Ok(Step::CreateNetns { record, spec, source })
    }

    fn create_link(&mut self, mut link: api::Link) -> Result<Step> {
        let id = link_id(&link);
        if link.netns != HOST {
            self.known(&link.netns)?;
        }
        let wanted = link.spec.take().unwrap_or_default();
        let names = Names(&self.scope.namespace);
        let parsed = request::link(&names, &link.netns, &id, &wanted)?;
        validate::identifier("link id", &id)?;
        link.labels.retain(|_, value| !value.is_empty());
        validate::labels(&link.labels)?;
        let at = (link.netns.clone(), id.clone());
        if self.links.contains_key(&at) {
            let text = format!("{}/{id}", link.netns);
            return Err(crate::metadata::Error::already_exists(Object::Link, text).into());
        }
        let (origin_name, origin_netns) = parsed.origin.unwrap_or_default();
        let record = LinkRecord {
            netns: link.netns,
            id,
            labels: link.labels,
            name: wanted.name.clone(),
            host_peer: parsed.host_peer.map(|name| name.to_string()).unwrap_or_default(),
            uses: parsed.uses,
            spec: wanted.encode_to_vec(),
            leased: self.scope.lease.is_some(),
            deleting: false,
            created_at: now(),
            updated_at: now(),
            revision: 1,
            origin_name,
            origin_netns,
            boot_id: self.boot_id.to_owned(),
        };
        self.links.insert(at, record.clone());
        Ok(Step::CreateLink { record, spec: Box::new(parsed.spec), adopt: parsed.adopt })
    }

    fn update_link(&mut self, request: api::UpdateLinkRequest) -> Result<Step> {
        let wanted = request.link.unwrap_or_default();
        let id = link_id(&wanted);
        let old = self.link(&wanted.netns, &id)?.clone();
        check_etag("link", &id, old.revision, &wanted.etag)?;
        let (new, change) = update::link(&old, wanted, request.update_mask)?;
        self.links.insert((new.netns.clone(), new.id.clone()), new.clone());
        Ok(Step::UpdateLink { old, new, change: Box::new(change) })
    }
}

/// What a namespace starts with.
pub(super) fn netns_spec(sysctls: &crate::metadata::Labels, lo_up: bool) -> Result<NetnsSpec> {
    let parse = |(key, value): (&String, &String)| -> Result<(SysctlKey, String)> {
        Ok((key.parse()?, value.clone()))
    };
    Ok(NetnsSpec { sysctls: sysctls.iter().map(parse).collect::<Result<_>>()?, lo_up })
}

pub(super) fn check_etag(what: &str, id: &str, revision: u64, etag: &str) -> Result<()> {
    match etag.is_empty() || etag == revision.to_string() {
        true => Ok(()),
        false => Err(Error::Changed(format!("{what} {id:?}"))),
    }
}

/// The source of a namespace to take over.
pub(super) fn source(from: api::source::From) -> crated_netns::Source {
    match from {
        api::source::From::Path(path) => crated_netns::Source::Path(PathBuf::from(path)),
        api::source::From::Pid(pid) => crated_netns::Source::Pid(pid),
    }
}

fn plain_op(change: Change) -> Result<Op> {
    let address = |given: api::LinkAddress| -> Result<_> {
        let addr = given.address.ok_or_else(|| request::invalid("address", "is missing"))?;
        Ok((given.link.parse()?, request::address(&addr)?))
    };
    Ok(match change {
        Change::AddAddress(given) => {
            let (link, addr) = address(given)?;
            Op::AddAddr { link, addr }
        }
        Change::RemoveAddress(given) => {
            let (link, addr) = address(given)?;
            Op::RemoveAddr { link, addr }
        }
        Change::AddRoute(route) => Op::AddRoute(request::route(&route)?),
        Change::RemoveRoute(route) => Op::RemoveRoute(request::route(&route)?),
        Change::AddRule(rule) => Op::AddRule(request::rule(&rule)?),
        Change::RemoveRule(rule) => Op::RemoveRule(request::rule(&rule)?),
        Change::AddNeighbour(neigh) => Op::AddNeigh(request::neighbour(&neigh)?),
        Change::RemoveNeighbour(neigh) => Op::RemoveNeigh(request::neighbour(&neigh)?),
        Change::AddForwarding(entry) => Op::AddFdb(request::forwarding(&entry)?),
        Change::RemoveForwarding(entry) => Op::RemoveFdb(request::forwarding(&entry)?),
        Change::SetSysctl(setting) => {
            Op::SetSysctl { key: setting.key.parse()?, value: setting.value }
        }
        _ => return Err(Error::Invalid("operation: of another kind".into())),
    })
}

/// How long a deletion waits for the kernel when not told.
const WAIT: Duration = Duration::from_secs(5);

/// How long a deletion waits at most.
const WAIT_MAX: Duration = Duration::from_secs(600);
