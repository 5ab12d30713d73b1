//! Which entries this very layer wrote.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// Remembers names by directory, sixteen bytes each.
///
/// Names are kept as two hashes under random keys: nobody can craft a layer
/// in which two of them meet, and by chance it takes billions of entries.
pub(crate) struct Written {
    names: HashSet<(u64, u64)>,
    keys: (RandomState, RandomState),
}

impl Written {
    pub(crate) fn new() -> Self {
        Self { names: HashSet::new(), keys: (RandomState::new(), RandomState::new()) }
    }

    pub(crate) fn insert(&mut self, dir: (u64, u64), name: &[u8]) {
        let key = self.key(dir, name);
        self.names.insert(key);
    }

    pub(crate) fn contains(&self, dir: (u64, u64), name: &[u8]) -> bool {
        self.names.contains(&self.key(dir, name))
    }

    fn key(&self, dir: (u64, u64), name: &[u8]) -> (u64, u64) {
        (self.keys.0.hash_one((dir, name)), self.keys.1.hash_one((dir, name)))
    }
}
