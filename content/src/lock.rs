use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::error::{Error, Result};

/// One writer per reference: the table belongs to a store, an entry to a live writer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks {
    held: Arc<Mutex<HashMap<String, SystemTime>>>,
}

impl Locks {
    /// Takes `reference` until the guard is dropped.
    pub(crate) fn take(&self, reference: &str) -> Result<Guard> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = held.get(reference) {
            return Err(Error::Locked { reference: reference.to_owned(), since: *since });
        }
        held.insert(reference.to_owned(), SystemTime::now());
        Ok(Guard { locks: self.clone(), reference: reference.to_owned() })
    }
}

/// Holds a reference for one writer.
#[derive(Debug)]
pub(crate) struct Guard {
    locks: Locks,
    reference: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.reference);
    }
}
