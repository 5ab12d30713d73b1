//! Id-mapped mounts: one tree shown with other owners.
//!
//! A range `container:host:size` shows what is stored as `container` as `host`.
//! The kernel takes the mapping as a user namespace, which only a process can
//! make: one is started, and ended once the namespace is held.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::{Error, Result, sys};

/// Mappings for users and groups.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdMap {
    /// `uidmap=`
    pub uids: Ranges,
    /// `gidmap=`
    pub gids: Ranges,
}

/// Checked ranges: none empty, none past the last id, no two overlapping.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ranges(Vec<Range>);

/// `size` ids, stored from `container` on and shown from `host` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    /// First id as stored in the tree.
    pub container: u32,
    /// First id as shown.
    pub host: u32,
    /// How many; never zero.
    pub size: u32,
}

impl IdMap {
    /// Whether the owner of a tree's root directory is mapped, without which a
    /// root filesystem is of no use.
    pub fn maps_root(&self) -> bool {
        self.uids.maps_root() && self.gids.maps_root()
    }

    /// A user namespace with these mappings and nobody in it.
    pub(crate) fn user_namespace(&self) -> Result<OwnedFd> {
        let child = sys::clone_into_user_namespace()
            .map_err(|cause| Error::io("make a user namespace for", Path::new("idmap"), cause))?;
        let namespace = self.write_and_open(child.pid);
        end(&child);
        namespace
    }

    fn write_and_open(&self, pid: u32) -> Result<OwnedFd> {
        let dir = Path::new("/proc").join(pid.to_string());
        for (name, ranges) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            let path = dir.join(name);
            fs::write(&path, ranges.kernel_text())
                .map_err(|cause| Error::io("write id mapping", &path, cause))?;
        }
        let path = dir.join("ns/user");
        let file = fs::File::open(&path).map_err(|e| Error::io("open namespace", &path, e))?;
        Ok(file.into())
    }
}

impl Ranges {
    /// Checks and takes `ranges`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] naming the range that cannot be.
    pub fn new(ranges: Vec<Range>) -> Result<Self> {
        if ranges.is_empty() || ranges.len() > RANGES_MAX {
            let reason = format!("holds {} ranges, not 1 to {RANGES_MAX}", ranges.len());
            return Err(Error::invalid("id map", Self(ranges).to_string(), reason));
        }
        for range in &ranges {
            range.check()?;
        }
        for side in [|r: &Range| r.container, |r: &Range| r.host] {
            let mut sorted: Vec<_> = ranges.iter().collect();
            sorted.sort_by_key(|range| side(range));
            let clash = sorted.windows(2).find(|pair| side(pair[1]) - side(pair[0]) < pair[0].size);
            if let Some(pair) = clash {
                let reason = format!("overlaps {}", pair[0]);
                return Err(Error::invalid("id map", pair[1].to_string(), reason));
            }
        }
        let checked = Self(ranges);
        if checked.kernel_text().len() >= MAP_TEXT_MAX_BYTES {
            let reason = format!("needs {MAP_TEXT_MAX_BYTES} bytes or more as text");
            return Err(Error::invalid("id map", checked.to_string(), reason));
        }
        Ok(checked)
    }

    /// The ranges, in the order given.
    pub fn as_slice(&self) -> &[Range] {
        &self.0
    }

    fn maps_root(&self) -> bool {
        self.0.iter().any(|range| range.container == 0)
    }

    fn kernel_text(&self) -> String {
        let line = |r: &Range| format!("{} {} {}\n", r.container, r.host, r.size);
        self.0.iter().map(line).collect()
    }
}

impl Range {
    fn check(&self) -> Result<()> {
        let past_end = |first: u32| first.checked_add(self.size).is_none();
        let reason = if self.size == 0 {
            "is empty"
        } else if past_end(self.container) || past_end(self.host) {
            // 4294967295 itself means "no id" everywhere.
            "runs past the last id"
        } else {
            return Ok(());
        };
        Err(Error::invalid("id map", self.to_string(), reason))
    }
}

impl FromStr for Ranges {
    type Err = Error;

    /// Reads `container:host:size`, several separated by commas.
    fn from_str(text: &str) -> Result<Self> {
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            if digits { part.parse::<u32>().ok() } else { None }
        };
        let range = |text: &str| {
            let mut parts = text.split(':').map(number);
            let mut next = || parts.next().flatten();
            let range = Range { container: next()?, host: next()?, size: next()? };
            parts.next().is_none().then_some(range)
        };
        // One more than allowed is enough to say so without reading on.
        let ranges: Option<Vec<_>> = text.split(',').take(RANGES_MAX + 1).map(range).collect();
        match ranges {
            Some(ranges) => Self::new(ranges),
            None => Err(Error::invalid("id map", text, "is not container:host:size,…")),
        }
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.container, self.host, self.size)
    }
}

/// Ends the child and takes its exit status. Neither can fail in a way that
/// matters: a child that is gone, or that someone else waited for, is ended.
fn end(child: &sys::NamespaceChild) {
    let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
    let options = WaitIdOptions::EXITED | WALL;
    loop {
        match waitid(WaitId::PidFd(child.pidfd.as_fd()), options) {
            Err(errno) if io::Error::from(errno).kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
}

/// `__WALL`: children without an exit signal too.
const WALL: WaitIdOptions = WaitIdOptions::from_bits_retain(0x4000_0000);

/// The kernel keeps this many ranges per map (`UID_GID_MAP_MAX_EXTENTS`).
pub const RANGES_MAX: usize = 340;

/// A map is written with one call of less than a page.
const MAP_TEXT_MAX_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read_in_order() {
        let ranges: Ranges = "0:100000:65536,65536:0:1".parse().unwrap();

        let expected = [
            Range { container: 0, host: 100_000, size: 65_536 },
            Range { container: 65_536, host: 0, size: 1 },
        ];
        assert_eq!(ranges.as_slice(), expected);
    }

    #[test]
    fn impossible_ranges_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "container:host:size"),
            ("0:1", "container:host:size"),
            ("0:1:2:3", "container:host:size"),
            ("0:+1:2", "container:host:size"),
            ("0:-1:2", "container:host:size"),
            ("0:1:4294967296", "container:host:size"),
            ("0:1:0", "empty"),
            ("4294967295:0:1", "past the last id"),
            ("0:4294967290:10", "past the last id"),
            ("0:10:5,4:100:5", "overlaps"),
            ("0:10:5,100:14:5", "overlaps"),
        ] {
            let error = text.parse::<Ranges>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn more_ranges_than_the_kernel_keeps_are_refused() {
        let text = |count: u32| {
            let ranges: Vec<_> = (0..count).map(|n| format!("{n}:{n}:1")).collect();
            ranges.join(",")
        };
        assert!(text(340).parse::<Ranges>().is_ok());
        assert!(text(341).parse::<Ranges>().is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(text in "[0-9:,]{0,40}") {
            if let Ok(ranges) = text.parse::<Ranges>() {
                prop_assert_eq!(ranges.to_string().parse::<Ranges>().unwrap(), ranges);
            }
        }
    }
}
