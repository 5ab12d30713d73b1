//! Policy routing rules.

use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use crate::{Error, IfName, OWN_PROTOCOL, Prefix, Result};

/// A rule: packets that match look up `table`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// IPv6 instead of IPv4. Follows `from` and `to` where given.
    pub ipv6: bool,
    /// Order among rules, lower first; chosen by the kernel when absent.
    pub priority: Option<u32>,
    /// Source network.
    pub from: Option<Prefix>,
    /// Destination network.
    pub to: Option<Prefix>,
    /// Link the packet came in by.
    pub iif: Option<IfName>,
    /// Link the packet's socket is bound to.
    pub oif: Option<IfName>,
    /// Firewall mark and the mask to compare it under.
    pub mark: Option<(u32, u32)>,
    /// Table to look up.
    pub table: u32,
    /// Who made it: [`OWN_PROTOCOL`] for rules made here. Ignored when adding.
    pub protocol: u8,
}

impl Rule {
    pub(crate) fn check(&self) -> Result<()> {
        for prefix in self.from.iter().chain(&self.to) {
            if prefix.ip().is_ipv6() != self.ipv6 {
                return Err(Error::value("rule", format!("{prefix} is of another family")));
            }
        }
        if self.table == 0 {
            return Err(Error::value("table", "0 names no table"));
        }
        Ok(())
    }

    pub(crate) fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = rule_family(self.ipv6);
        message.header.action = RuleAction::ToTable;
        message.header.table = u8::try_from(self.table).unwrap_or(0);
        let list = &mut message.attributes;
        list.push(RuleAttribute::Table(self.table));
        list.push(RuleAttribute::Protocol(OWN_PROTOCOL.into()));
        list.extend(self.priority.map(RuleAttribute::Priority));
        if let Some(from) = self.from {
            message.header.src_len = from.bits();
            list.push(RuleAttribute::Source(from.ip()));
        }
        if let Some(to) = self.to {
            message.header.dst_len = to.bits();
            list.push(RuleAttribute::Destination(to.ip()));
        }
        list.extend(self.iif.as_ref().map(|n| RuleAttribute::Iifname(n.to_string())));
        list.extend(self.oif.as_ref().map(|n| RuleAttribute::Oifname(n.to_string())));
        if let Some((mark, mask)) = self.mark {
            list.push(RuleAttribute::FwMark(mark));
            list.push(RuleAttribute::FwMask(mask));
        }
        message
    }

    pub(crate) fn read(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let ipv6 = match header.family {
            AddressFamily::Inet => false,
            AddressFamily::Inet6 => true,
            _ => return None,
        };
        if header.action != RuleAction::ToTable {
            return None;
        }
        let mut rule = Self { ipv6, table: header.table.into(), ..Self::default() };
        let (mut mark, mut mask) = (None, u32::MAX);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::Priority(priority) => rule.priority = Some(*priority),
                RuleAttribute::Source(ip) => rule.from = Prefix::new(*ip, header.src_len).ok(),
                RuleAttribute::Destination(ip) => rule.to = Prefix::new(*ip, header.dst_len).ok(),
                RuleAttribute::Iifname(name) => rule.iif = name.parse().ok(),
                RuleAttribute::Oifname(name) => rule.oif = name.parse().ok(),
                RuleAttribute::FwMark(value) => mark = Some(*value),
                RuleAttribute::FwMask(value) => mask = *value,
                RuleAttribute::Protocol(number) => rule.protocol = (*number).into(),
                _ => {}
            }
        }
        rule.mark = mark.map(|mark| (mark, mask));
        Some(rule)
    }

    pub(crate) fn dump(ipv6: bool) -> RouteNetlinkMessage {
        let mut message = RuleMessage::default();
        message.header.family = rule_family(ipv6);
        RouteNetlinkMessage::GetRule(message)
    }
}

fn rule_family(ipv6: bool) -> AddressFamily {
    if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}
