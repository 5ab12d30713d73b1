//! One change at a time to each object.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Condvar, Mutex, PoisonError};

use super::lock;

/// The objects that are being changed.
#[derive(Default)]
pub(super) struct Busy {
    taken: Mutex<HashSet<String>>,
    freed: Condvar,
}

/// Objects that nobody else changes, until dropped.
pub(super) struct Taken<'a> {
    busy: &'a Busy,
    keys: BTreeSet<String>,
}

impl Busy {
    /// Waits until none of `keys` is taken, and takes all: nobody ever waits holding some.
    pub(super) fn take(&self, keys: BTreeSet<String>) -> Taken<'_> {
        let mut taken = lock(&self.taken);
        while keys.iter().any(|key| taken.contains(key)) {
            taken = self.freed.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        taken.extend(keys.iter().cloned());
        Taken { busy: self, keys }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut taken = lock(&self.busy.taken);
        for key in &self.keys {
            taken.remove(key);
        }
        self.busy.freed.notify_all();
    }
}
