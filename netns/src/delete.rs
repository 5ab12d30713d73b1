//! The end of namespaces: all pins first, then one wait for all.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::monitor::Deaths;
use crate::namespace::{holders_of_all, unpin};
use crate::netlink::{Hopper, Lane, Socket};
use crate::root::{Inner, same};
use crate::session::{assign_nsid, nsid_of};
use crate::{DeleteOpts, Deleted, Error, Holder, HolderKind, NetnsId, NetnsName, PinState, Result};

use rustix::io::Errno;

/// How one deletion went until the wait: the id whose end to wait for, if there is one.
type Unpinned = Result<(Deleted, Option<i32>)>;

impl Inner {
    /// Unpins all, then waits once; see [`crate::Netns::delete`]. The wait is the caller's: changes
    /// go on meanwhile.
    pub(crate) fn delete(
        self: &Arc<Self>,
        wanted: Vec<(NetnsName, Option<NetnsId>)>,
        opts: DeleteOpts,
    ) -> Vec<Result<Deleted>> {
        let (inner, count, wait) = (Arc::clone(self), wanted.len(), opts.wait);
        let job = self.lanes.run(Lane::Change, "delete namespaces", move |hopper| {
            let deaths = if wait.is_zero() { None } else { Some(Deaths::watch()?) };
            Ok((inner.unpin_all(&wanted, &opts, hopper)?, deaths))
        });
        let waited = job.and_then(|(mut results, deaths)| {
            let Some(mut deaths) = deaths else { return Ok(results) };
            let nsids = results.iter().flatten().filter_map(|(_, nsid)| *nsid).collect();
            let gone = deaths.wait(nsids, wait)?;
            for (deleted, nsid) in results.iter_mut().flatten() {
                deleted.gone = nsid.is_some_and(|nsid| gone.contains(&nsid));
            }
            Ok(results)
        });
        match waited {
            Ok(results) => {
                results.into_iter().map(|result| result.map(|(deleted, _)| deleted)).collect()
            }
            Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
        }
    }

    /// Looks at all, asks once who is in them, then removes the pins.
    fn unpin_all(
        &self,
        wanted: &[(NetnsName, Option<NetnsId>)],
        opts: &DeleteOpts,
        hopper: &mut Hopper,
    ) -> Result<Vec<Unpinned>> {
        let mut home = hopper.home_socket()?;
        let found: Vec<Result<PinState>> = wanted
            .iter()
            .map(|(name, expected)| self.find(name, expected.as_ref(), hopper))
            .collect();
        let mut holders = std::collections::HashMap::new();
        if !opts.force || !opts.wait.is_zero() {
            let inode = |state: &PinState| match state {
                PinState::Live(id) => Some(id.inode),
                _ => None,
            };
            let inodes: BTreeSet<u64> = found.iter().flatten().filter_map(inode).collect();
            if !inodes.is_empty() {
                holders = holders_of_all(&inodes);
            }
        }
        let mut results = Vec::with_capacity(wanted.len());
        for ((name, _), found) in wanted.iter().zip(found) {
            results.push(found.and_then(|state| {
                let inside = match &state {
                    PinState::Live(id) => holders.remove(&id.inode).unwrap_or_default(),
                    _ => Vec::new(),
                };
                self.unpin_one(name, &state, inside, opts, &mut home)
            }));
        }
        Ok(results)
    }

    /// What is at the name, unless it is another namespace than expected or nothing.
    fn find(
        &self,
        name: &NetnsName,
        expected: Option<&NetnsId>,
        hopper: &mut Hopper,
    ) -> Result<PinState> {
        let state = match expected {
            // Only the namespace itself can tell its cookie.
            Some(_) => self.look(name, hopper)?,
            None => self.glance(name)?,
        };
        match (&state, expected) {
            (PinState::Live(found), Some(expected)) if !same(found, expected) => {
                Err(Error::Stale { netns: name.to_string(), state: PinState::Replaced })
            }
            (PinState::Missing, _) => Err(Error::not_found(format!("namespace {name}"))),
            _ => Ok(state),
        }
    }

    fn unpin_one(
        &self,
        name: &NetnsName,
        state: &PinState,
        holders: Vec<Holder>,
        opts: &DeleteOpts,
        home: &mut Socket,
    ) -> Unpinned {
        let members = holders.iter().filter(|holder| holder.kind == HolderKind::Member);
        let pids: Vec<i32> = members.map(|holder| holder.pid).collect();
        if !opts.force && !pids.is_empty() {
            return Err(Error::InUse { netns: name.to_string(), pids });
        }
        let mut nsid = None;
        if matches!(state, PinState::Live(_))
            && !opts.wait.is_zero()
            && let Ok(fd) = self.open_pin(name)?
        {
            nsid = nsid_of(home, fd.as_raw_fd())?;
            if nsid.is_none() {
                assign_nsid(home, fd.as_raw_fd())?;
                nsid = nsid_of(home, fd.as_raw_fd())?;
            }
        }
        unpin(&self.pin_path(name))?;
        if let Some(dir) = &self.options.expose_in {
            let link = dir.join(name.as_str());
            if self.is_our_link(name, &link) {
                match rustix::fs::unlink(&link) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(Error::io("unlink", link, errno)),
                }
            }
        }
        Ok((Deleted { gone: false, holders }, nsid))
    }
}
