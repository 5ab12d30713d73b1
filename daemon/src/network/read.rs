//! Records merged with what the kernel has.

use std::borrow::Cow;
use std::collections::HashMap;

use crated_api::network as api;
use crated_netns::{Link, LinkSpec, Netns, NetnsRoot, PinState};
use prost::Message;

use super::names::Names;
use super::{Network, Result, answer, lock, request};
use crate::filters::{Adaptor, Filters};
use crate::metadata::network::HOST;
use crate::metadata::{LinkRecord, Namespace, NetnsRecord, Scope};

/// A link as filters see it.
pub struct LinkFilter<'a>(&'a api::Link);

impl Network {
    /// The namespace called `id`, with who is in it.
    ///
    /// # Errors
    ///
    /// NotFound.
    pub fn netns(&self, scope: &Scope, id: &str) -> Result<api::Netns> {
        let root = self.root()?;
        if id == HOST {
            let host = format!("/proc/{}/ns/net", std::process::id());
            let boot_id = root.boot_id().to_owned();
            let id = HOST.to_owned();
            let state = api::State::Ready.into();
            return Ok(api::Netns { id, path: host, state, boot_id, ..api::Netns::default() });
        }
        super::names::check(id)?;
        let record = self.networks.netns(&scope.namespace, id)?;
        if self.is_half_made(&record, root.boot_id()) {
            let object = crate::metadata::Object::Netns;
            return Err(crate::metadata::Error::not_found(object, id).into());
        }
        let mut answer = self.describe(&record);
        answer.containers = self.networks.containers(&scope.namespace, id)?;
        if let Ok(netns) = self.handle(&root, &record) {
            answer.state = state(&record, &netns.verify()?).into();
            if answer.state == i32::from(api::State::Ready) {
                answer.holders = netns.holders()?.iter().map(answer::holder).collect();
                answer.nsid = netns.nsid()?;
            }
        }
        Ok(answer)
    }

    /// All namespaces that pass the filters, in name order.
    ///
    /// # Errors
    ///
    /// The records'.
    pub fn all_netns(&self, scope: &Scope, filters: &Filters) -> Result<Vec<api::Netns>> {
        let root = self.root()?;
        let states: HashMap<String, PinState> =
            root.list()?.into_iter().map(|pin| (pin.name.to_string(), pin.state)).collect();
        let mut all = Vec::new();
        for record in self.networks.all_netns(&scope.namespace)? {
            if self.is_half_made(&record, root.boot_id()) {
                continue;
            }
            let mut answer = self.describe(&record);
            let known = lock(&self.identities).get(&record.pin).cloned();
            if let Some(known) = known {
                answer.state = match states.get(&record.pin) {
                    Some(PinState::Live(found)) if found.cookie != known.cookie => {
                        state(&record, &PinState::Replaced).into()
                    }
                    Some(found) => state(&record, found).into(),
                    None => state(&record, &PinState::Missing).into(),
                };
            }
            if filters.matches(&answer) {
                all.push(answer);
            }
        }
        Ok(all)
    }

    /// The record alone, in the words of the API.
    pub(super) fn describe(&self, record: &NetnsRecord) -> api::Netns {
        let id = lock(&self.identities).get(&record.pin).cloned();
        let state = match (record.deleting, &id) {
            (true, _) => api::State::Deleting,
            (false, Some(_)) => api::State::Ready,
            (false, None) => api::State::Lost,
        };
        api::Netns {
            id: record.id.clone(),
            labels: record.labels.clone(),
            sysctls: record.sysctls.clone(),
            lo_up: Some(record.lo_up),
            source: None,
            path: self.dir.join(&record.pin).display().to_string(),
            state: state.into(),
            nsid: None,
            cookie: id.as_ref().map_or(0, |id| id.cookie),
            inode: id.as_ref().map_or(0, |id| id.inode),
            boot_id: record.boot_id.clone(),
            created_at: record.created_at,
            updated_at: record.updated_at,
            holders: Vec::new(),
            containers: Vec::new(),
            etag: record.revision.to_string(),
        }
    }

    /// One link with its state.
    ///
    /// # Errors
    ///
    /// NotFound when there is neither a record nor a link of that name.
    pub fn link(&self, scope: &Scope, netns: &str, id: &str) -> Result<api::Link> {
        let root = self.root()?;
        let found = self.networks.look(&scope.namespace, &[], &[(netns, id)])?.links.pop();
        if let Some(record) = found {
            let status = self.live(scope, &root, &record);
            return Ok(link(record, status));
        }
        let found = self.open(&root, &scope.namespace, netns)?.link(&id.parse()?)?;
        Ok(foreign(netns, &found))
    }

    /// What the kernel has of a recorded link; nothing when it is gone.
    pub(super) fn live(
        &self,
        scope: &Scope,
        root: &NetnsRoot,
        record: &LinkRecord,
    ) -> Option<api::LinkStatus> {
        let netns = self.open(root, &scope.namespace, &record.netns).ok()?;
        let found = netns.link(&record.name.parse().ok()?).ok()?;
        Some(answer::status(&found, wanted(&scope.namespace, record).as_ref()))
    }

    /// The links of one namespace, those of others included, or all that have a record.
    ///
    /// # Errors
    ///
    /// NotFound, and the kernel's.
    pub fn links(&self, scope: &Scope, netns: &str, filters: &Filters) -> Result<Vec<api::Link>> {
        let root = self.root()?;
        let namespace = &scope.namespace;
        let mut all = Vec::new();
        if !netns.is_empty() {
            let handle = self.open(&root, namespace, netns)?;
            let records = self.networks.all_links(namespace, Some(netns))?;
            all.extend(merged(namespace, netns, records, &handle, true)?);
        } else {
            let mut records: HashMap<String, Vec<LinkRecord>> = HashMap::new();
            for record in self.networks.all_links(namespace, None)? {
                records.entry(record.netns.clone()).or_default().push(record);
            }
            for (netns, records) in records {
                match self.open(&root, namespace, &netns) {
                    Ok(handle) => all.extend(merged(namespace, &netns, records, &handle, false)?),
                    Err(_) => all.extend(records.into_iter().map(|record| link(record, None))),
                }
            }
            all.sort_by(|a, b| (&a.netns, &a.id).cmp(&(&b.netns, &b.id)));
        }
        all.retain(|link| filters.matches(&LinkFilter(link)));
        Ok(all)
    }

    /// Counters of the links of a namespace.
    ///
    /// # Errors
    ///
    /// NotFound, and the kernel's.
    pub fn stats(&self, scope: &Scope, netns: &str, only: &[String]) -> Result<api::StatsResponse> {
        let found = self.open(&self.root()?, &scope.namespace, netns)?.stats()?;
        let wanted = |name: &str| only.is_empty() || only.iter().any(|it| it == name);
        let missing = only
            .iter()
            .find(|name| !found.links.iter().any(|(found, _)| found.as_str() == name.as_str()));
        if let Some(name) = missing {
            let object = crate::metadata::Object::Link;
            return Err(crate::metadata::Error::not_found(object, name).into());
        }
        Ok(api::StatsResponse {
            links: found
                .links
                .iter()
                .filter(|(name, _)| wanted(name.as_str()))
                .map(|(name, stats)| answer::stats(name.as_str(), stats))
                .collect(),
            total: Some(answer::stats("", &found.total)),
        })
    }

    /// Routes of all tables but the local one.
    ///
    /// # Errors
    ///
    /// NotFound, and the kernel's.
    pub fn routes(&self, scope: &Scope, netns: &str) -> Result<Vec<api::Route>> {
        let routes = self.open(&self.root()?, &scope.namespace, netns)?.routes()?;
        Ok(routes.iter().map(answer::route).collect())
    }

    /// Rules that look a table up.
    ///
    /// # Errors
    ///
    /// NotFound, and the kernel's.
    pub fn rules(&self, scope: &Scope, netns: &str) -> Result<Vec<api::Rule>> {
        let rules = self.open(&self.root()?, &scope.namespace, netns)?.rules()?;
        Ok(rules.iter().map(answer::rule).collect())
    }

    /// Neighbours and forwarding entries.
    ///
    /// # Errors
    ///
    /// NotFound, and the kernel's.
    pub fn neighbours(&self, scope: &Scope, netns: &str) -> Result<api::ListNeighboursResponse> {
        let netns = self.open(&self.root()?, &scope.namespace, netns)?;
        Ok(api::ListNeighboursResponse {
            neighbours: netns.neighbours()?.iter().map(answer::neighbour).collect(),
            forwarding: netns.fdb()?.iter().map(answer::forwarding).collect(),
        })
    }
}

/// Records and the links that are there, and with `others` the links without a record.
fn merged(
    namespace: &Namespace,
    netns: &str,
    records: Vec<LinkRecord>,
    handle: &Netns,
    others: bool,
) -> Result<Vec<api::Link>> {
    let mut found: Vec<Link> = match handle.links() {
        Ok(found) => found,
        // A namespace that is lost has no links; what was asked for is still known.
        Err(crated_netns::Error::Stale { .. } | crated_netns::Error::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut all = Vec::new();
    for record in records {
        let at = found.iter().position(|link| link.ifname.as_str() == record.name);
        let live = at.map(|at| found.remove(at));
        let wanted = wanted(namespace, &record);
        let status = live.map(|live| answer::status(&live, wanted.as_ref()));
        all.push(link(record, status));
    }
    if others {
        all.extend(found.iter().map(|link| foreign(netns, link)));
    }
    Ok(all)
}

/// What was asked for.
fn wanted(namespace: &Namespace, record: &LinkRecord) -> Option<LinkSpec> {
    let spec = api::LinkSpec::decode(record.spec.as_slice()).ok()?;
    Some(request::link(&Names(namespace), &record.netns, &record.id, &spec).ok()?.spec)
}

/// A record in the words of the API.
pub(super) fn link(record: LinkRecord, status: Option<api::LinkStatus>) -> api::Link {
    api::Link {
        spec: api::LinkSpec::decode(record.spec.as_slice()).ok(),
        id: record.id,
        netns: record.netns,
        labels: record.labels,
        status,
        created_at: record.created_at,
        updated_at: record.updated_at,
        etag: record.revision.to_string(),
    }
}

/// A link that others made.
fn foreign(netns: &str, link: &Link) -> api::Link {
    api::Link {
        netns: netns.to_owned(),
        status: Some(answer::status(link, None)),
        ..api::Link::default()
    }
}

fn state(record: &NetnsRecord, found: &PinState) -> api::State {
    match found {
        _ if record.deleting => api::State::Deleting,
        PinState::Live(_) => api::State::Ready,
        PinState::Replaced => api::State::Replaced,
        _ => api::State::Lost,
    }
}

impl Adaptor for api::Netns {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "id" => crate::filters::text(&self.id),
            "path" => crate::filters::text(&self.path),
            "state" => crate::filters::text(self.state().as_str_name()),
            "labels" => crate::filters::label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Adaptor for LinkFilter<'_> {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        let status = self.0.status.as_ref();
        match first.as_str() {
            "id" => crate::filters::text(&self.0.id),
            "netns" => crate::filters::text(&self.0.netns),
            "name" => match (status, &self.0.spec) {
                (Some(status), _) => crate::filters::text(&status.ifname),
                (None, Some(spec)) => crate::filters::text(&spec.name),
                (None, None) => None,
            },
            "kind" => crate::filters::text(&status?.kind),
            "labels" => crate::filters::label(&self.0.labels, rest),
            _ => None,
        }
    }
}
