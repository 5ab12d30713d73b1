//! What several resolvers may use together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::options::Limits;
use crate::error::{Error, Result};

/// A bound on connections and memory that resolvers share.
///
/// Every resolver has one of its own unless it is given another's; a program that makes a
/// resolver for each image it pulls gives all of them the same. Clones are the same quota.
#[derive(Debug, Clone)]
pub struct Quota {
    /// One permit per open body.
    bodies: Arc<Semaphore>,
    /// One permit per [`UNIT_BYTES`] held ahead of a reader.
    ahead: Arc<Semaphore>,
    ahead_units_max: u32,
}

impl Quota {
    /// A quota of [`Limits::open_bodies_max`] and [`Limits::ahead_bytes_max`].
    pub fn new(limits: &Limits) -> Self {
        // Room for one range at least, or nothing would ever move.
        let units = limits.ahead_bytes_max.max(limits.range_bytes).div_ceil(UNIT_BYTES).max(1);
        let units = u32::try_from(units).unwrap_or(u32::MAX).min(UNITS_MAX);
        Self {
            bodies: Arc::new(Semaphore::new(limits.open_bodies_max.clamp(1, UNITS_MAX as usize))),
            ahead: Arc::new(Semaphore::new(units as usize)),
            ahead_units_max: units,
        }
    }

    /// A place for a body, when there is one.
    pub(crate) async fn body(&self) -> Result<OwnedSemaphorePermit> {
        self.bodies.clone().acquire_owned().await.map_err(|_| closed())
    }

    /// A place for a body, if there is one now.
    pub(crate) fn body_now(&self) -> Option<OwnedSemaphorePermit> {
        self.bodies.clone().try_acquire_owned().ok()
    }

    /// Room for `bytes` bytes, when there is some. More than all the room counts as all of it.
    pub(crate) async fn ahead(&self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        let units = self.units(bytes);
        self.ahead.clone().acquire_many_owned(units).await.map_err(|_| closed())
    }

    /// The same, if there is some now.
    pub(crate) fn ahead_now(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        self.ahead.clone().try_acquire_many_owned(self.units(bytes)).ok()
    }

    fn units(&self, bytes: u64) -> u32 {
        let units = bytes.div_ceil(UNIT_BYTES).max(1);
        u32::try_from(units).unwrap_or(u32::MAX).min(self.ahead_units_max)
    }
}

/// Semaphores of this crate are never closed.
fn closed() -> Error {
    Error::Unsupported { what: "fetching after the resolver was closed".into() }
}

/// Permits are counted in 32 bits, bytes are not.
const UNIT_BYTES: u64 = 64 * 1024;
/// 32 TiB, and within what semaphores count to everywhere.
const UNITS_MAX: u32 = 1 << 29;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_limit_is_so_odd_that_nothing_fits() {
        let mut limits = Limits::default();
        for (open, ahead, range) in [(0, 0, 0), (1, 1, u64::MAX), (usize::MAX, u64::MAX, 1)] {
            limits.open_bodies_max = open;
            limits.ahead_bytes_max = ahead;
            limits.range_bytes = range;
            let quota = Quota::new(&limits);
            let body = quota.body().await.unwrap();
            let room = quota.ahead(u64::MAX).await.unwrap();
            assert!(quota.ahead_now(1).is_none(), "all the room is taken");
            drop((body, room));
            assert!(quota.body_now().is_some() && quota.ahead_now(u64::MAX).is_some());
        }
    }
}
