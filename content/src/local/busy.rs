use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::Digest;

/// Digests some thread is publishing, labelling or deleting right now.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    held: Mutex<HashSet<Digest>>,
    released: Condvar,
}

impl Busy {
    /// Waits for `digest` to be free and holds it until the guard is dropped. A thread holds at
    /// most one.
    pub(crate) fn hold(&self, digest: &Digest) -> Held<'_> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.contains(digest) {
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.insert(digest.clone());
        Held { busy: self, digest: digest.clone() }
    }

    /// Whether somebody holds `digest`.
    pub(crate) fn is_held(&self, digest: &Digest) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }
}

/// The right to change what is stored under one digest.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    busy: &'a Busy,
    digest: Digest,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.busy.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.digest);
        self.busy.released.notify_all();
    }
}
