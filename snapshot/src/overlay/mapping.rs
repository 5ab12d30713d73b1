//! The ids a snapshot will be used with, from its labels.

use crate::error::{Error, Result};
use crate::overlay::{GID_MAPPING_LABEL, UID_MAPPING_LABEL};
use crate::snapshotter::Labels;

/// User and group id mappings, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    container: u32,
    host: u32,
    size: u32,
}

/// What the kernel takes in one map.
const RANGES_MAX: usize = 340;

impl Mapping {
    /// The mapping in `labels`, if both halves are there.
    pub(crate) fn of(labels: &Labels) -> Result<Option<Self>> {
        match (labels.get(UID_MAPPING_LABEL), labels.get(GID_MAPPING_LABEL)) {
            (Some(uids), Some(gids)) => Ok(Some(Self { uids: parse(uids)?, gids: parse(gids)? })),
            _ => Ok(None),
        }
    }

    /// The user and group on the host that are root in the container.
    pub(crate) fn root(&self) -> Result<(u32, u32)> {
        let root = |ranges: &[Range]| {
            ranges.iter().find(|range| range.container == 0).map(|range| range.host)
        };
        match (root(&self.uids), root(&self.gids)) {
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            _ => Err(Error::invalid("id mapping", "id 0 is not mapped")),
        }
    }

    /// Options of an id-mapped mount.
    pub(crate) fn mount_options(&self) -> [String; 2] {
        [format!("uidmap={}", text(&self.uids)), format!("gidmap={}", text(&self.gids))]
    }
}

fn text(ranges: &[Range]) -> String {
    let ranges: Vec<String> =
        ranges.iter().map(|r| format!("{}:{}:{}", r.container, r.host, r.size)).collect();
    ranges.join(",")
}

fn parse(list: &str) -> Result<Vec<Range>> {
    let refuse = |reason: &str| Error::invalid("id mapping", format!("{reason} in {list:?}"));
    let mut ranges: Vec<Range> = Vec::new();
    for part in list.split(',') {
        if ranges.len() == RANGES_MAX {
            return Err(refuse("more than 340 ranges"));
        }
        let mut numbers = part.split(':').map(number);
        let (Some(Some(container)), Some(Some(host)), Some(Some(size)), None) =
            (numbers.next(), numbers.next(), numbers.next(), numbers.next())
        else {
            return Err(refuse("not container:host:size"));
        };
        let range = Range { container, host, size };
        if size == 0 || container.checked_add(size).is_none() || host.checked_add(size).is_none() {
            return Err(refuse("empty or too large range"));
        }
        if ranges.iter().any(|other| range.overlaps(other)) {
            return Err(refuse("overlapping ranges"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// Digits only: no sign, no blank.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

impl Range {
    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: u32, b: u32| a < b.saturating_add(other.size) && b < a + self.size;
        meet(self.container, other.container) || meet(self.host, other.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_checked() {
        assert_eq!(parse("0:1000:1,1:100000:65535").unwrap().len(), 2);
        for bad in
            ["", "0:0", "0:0:0", "0:0:1:1", "-1:0:1", "0:4294967295:2", "0:5:10,3:50:2", "a:b:c"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
