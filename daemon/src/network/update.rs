//! Changes to what is there, field by field.

use crated_api::network as api;
use crated_netns::{LinkChange, SysctlKey};
use prost::Message;
use prost_types::FieldMask;

use super::{Error, Network, Result, draft, names, request};
use crate::metadata::network::{HOST, now};
use crate::metadata::{Labels, LinkRecord, NetworkChange, Scope, validate};

/// Fields that an update without a mask replaces.
const LINK_FIELDS: [&str; 15] = [
    "labels",
    "spec.mac",
    "spec.mtu",
    "spec.master",
    "spec.up",
    "spec.tx_queue_len",
    "spec.group",
    "spec.alias",
    "spec.altnames",
    "spec.gso_max_size",
    "spec.gro_max_size",
    "spec.ipv6_auto",
    "spec.addrs",
    "spec.routes",
    "spec.bandwidth",
];

impl Network {
    /// Changes labels and settings of a namespace.
    ///
    /// # Errors
    ///
    /// NotFound, InvalidArgument for a field that cannot be changed, and the kernel's.
    pub fn update_netns(
        &self,
        scope: &Scope,
        wanted: &api::Netns,
        mask: Option<FieldMask>,
    ) -> Result<api::Netns> {
        names::check(&wanted.id)?;
        let root = self.root()?;
        let key = format!("{}/{}", scope.namespace, wanted.id);
        let _busy = self.busy.take(std::collections::BTreeSet::from([key]));
        let mut record = self.networks.netns(&scope.namespace, &wanted.id)?;
        draft::check_etag("network namespace", &record.id, record.revision, &wanted.etag)?;
        let before = record.sysctls.clone();
        for path in paths(mask, &["labels", "sysctls"]) {
            match path.split_once('.') {
                Some(("labels", key)) => put(&mut record.labels, key, &wanted.labels),
                Some(("sysctls", key)) => put(&mut record.sysctls, key, &wanted.sysctls),
                None if path == "labels" => record.labels = wanted.labels.clone(),
                None if path == "sysctls" => record.sysctls = wanted.sysctls.clone(),
                _ => return Err(unknown("network namespace", &path)),
            }
        }
        record.labels.retain(|_, value| !value.is_empty());
        validate::labels(&record.labels)?;
        draft::netns_spec(&record.sysctls, true)?;
        let changed = record.sysctls.iter().filter(|(key, value)| before.get(*key) != Some(*value));
        let netns = self.handle(&root, &record);
        let mut undo: Vec<(SysctlKey, String)> = Vec::new();
        for (key, value) in changed {
            let netns = netns.as_ref().map_err(|error| Error::Precondition(error.to_string()))?;
            let key: SysctlKey = key.parse()?;
            let written = netns.sysctl(&key).and_then(|old| {
                netns.set_sysctl(&key, value)?;
                Ok(old)
            });
            match written {
                Ok(old) => undo.push((key, old)),
                Err(error) => {
                    for (key, old) in undo.into_iter().rev() {
                        if let Err(error) = netns.set_sysctl(&key, &old) {
                            tracing::warn!(%error, %key, "a setting was not taken back");
                        }
                    }
                    return Err(error.into());
                }
            }
        }
        record.revision += 1;
        record.updated_at = now();
        self.networks.commit(scope, vec![NetworkChange::PutNetns(record.clone())])?;
        self.tell_netns(&scope.namespace, "update", &record, "");
        Ok(self.describe(&record))
    }
}

/// The record after an update, and what the kernel has to change.
pub(super) fn link(
    old: &LinkRecord,
    wanted: api::Link,
    mask: Option<FieldMask>,
) -> Result<(LinkRecord, LinkChange)> {
    let mut new = old.clone();
    let mut spec = api::LinkSpec::decode(old.spec.as_slice())
        .map_err(|error| Error::Precondition(format!("record of link {:?}: {error}", old.id)))?;
    let given = wanted.spec.unwrap_or_default();
    let asked = request::settings(&given)?;
    let mut change = LinkChange::default();
    for path in paths(mask, &LINK_FIELDS) {
        match path.as_str() {
            "labels" => new.labels = wanted.labels.clone(),
            "spec.name" => {
                let name: crated_netns::IfName = given.name.parse()?;
                new.name.clone_from(&given.name);
                spec.name.clone_from(&given.name);
                change.rename = (given.name != old.name).then_some(name);
            }
            "spec.mac" => {
                change.mac = asked.mac;
                spec.mac.clone_from(&given.mac);
            }
            "spec.mtu" => (change.mtu, spec.mtu) = (asked.mtu, given.mtu),
            "spec.master" => {
                change.master = Some(asked.master.clone());
                new.uses.retain(|name| *name != spec.master);
                if old.netns == HOST && !given.master.is_empty() {
                    new.uses.push(given.master.clone());
                }
                spec.master.clone_from(&given.master);
            }
            "spec.up" => (change.up, spec.up) = (Some(asked.up), given.up),
            "spec.tx_queue_len" => {
                (change.tx_queue_len, spec.tx_queue_len) = (asked.tx_queue_len, given.tx_queue_len);
            }
            "spec.group" => (change.group, spec.group) = (asked.group, given.group),
            "spec.alias" => {
                let cleared = spec.alias.is_some().then(String::new);
                change.alias = asked.alias.clone().or(cleared);
                spec.alias.clone_from(&given.alias);
            }
            "spec.altnames" => {
                change.altnames = Some(asked.altnames.clone());
                spec.altnames.clone_from(&given.altnames);
            }
            "spec.gso_max_size" => {
                (change.gso_max_size, spec.gso_max_size) = (asked.gso_max_size, given.gso_max_size);
            }
            "spec.gro_max_size" => {
                (change.gro_max_size, spec.gro_max_size) = (asked.gro_max_size, given.gro_max_size);
            }
            "spec.ipv6_auto" => {
                (change.ipv6_auto, spec.ipv6_auto) = (asked.ipv6_auto, given.ipv6_auto);
            }
            "spec.port" => {
                change.port = asked.port.clone();
                spec.port.clone_from(&given.port);
            }
            "spec.addrs" => {
                change.addrs = Some(asked.addrs.clone());
                spec.addrs.clone_from(&given.addrs);
            }
            "spec.routes" => {
                change.routes = Some(asked.routes.clone());
                spec.routes.clone_from(&given.routes);
            }
            "spec.bandwidth" => {
                change.bandwidth = Some(asked.bandwidth);
                spec.bandwidth = given.bandwidth;
            }
            path => match path.strip_prefix("labels.") {
                Some(key) if !key.is_empty() => put(&mut new.labels, key, &wanted.labels),
                _ => return Err(unknown("link", path)),
            },
        }
    }
    if old.netns == HOST && change.group.is_some() {
        return Err(request::invalid("spec.group", "the host's links carry the daemon's mark"));
    }
    new.labels.retain(|_, value| !value.is_empty());
    validate::labels(&new.labels)?;
    new.spec = spec.encode_to_vec();
    new.revision += 1;
    new.updated_at = now();
    Ok((new, change))
}

fn paths(mask: Option<FieldMask>, default: &[&str]) -> Vec<String> {
    match mask {
        Some(mask) if !mask.paths.is_empty() => mask.paths,
        _ => default.iter().map(|path| (*path).to_owned()).collect(),
    }
}

/// Sets one key of a map as it is in another; absent and empty remove it.
fn put(map: &mut Labels, key: &str, from: &Labels) {
    match from.get(key).filter(|value| !value.is_empty()) {
        Some(value) => drop(map.insert(key.to_owned(), value.clone())),
        None => drop(map.remove(key)),
    }
}

fn unknown(object: &str, path: &str) -> Error {
    Error::Invalid(format!("cannot update field {path:?} of {object}"))
}
