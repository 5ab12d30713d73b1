//! Who holds what of a backend right now.
//!
//! An operation that is about to make a backend object, or to rely on one that no record names
//! yet, holds the object's key until its record is durable. The collector removes an object only
//! while it holds the key alone. So nothing is removed under a running operation, whichever of
//! the two looked at the database first, and operations on different objects never wait for one
//! another, however long a backend takes.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::batch::lock;

/// The table of holds. Shared by every decorator of one database.
#[derive(Clone, Default)]
pub(super) struct Holders {
    table: Arc<Table>,
}

#[derive(Default)]
struct Table {
    holds: Mutex<HashMap<Object, Hold>>,
    released: Condvar,
}

/// An object of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Object {
    /// A blob, by digest.
    Blob(String),
    /// An ingest, by backend reference.
    Ingest(String),
    /// A snapshot, by snapshotter and backend key.
    Snapshot(String, String),
    /// A client's name of a snapshot: namespace, snapshotter, key. Keeps two operations on one
    /// name apart while the backend works.
    Name(String, String, String),
    /// A snapshot by the same three, which an operation builds on. Only ever shared: it keeps the
    /// collector from removing the record, and nobody from anything else.
    Parent(String, String, String),
}

#[derive(Default)]
struct Hold {
    shared: usize,
    exclusive: bool,
}

/// A hold, given back on drop.
pub(super) struct Held {
    table: Arc<Table>,
    object: Object,
    exclusive: bool,
}

impl Holders {
    /// Holds `object` together with other operations; waits while it is held alone.
    pub(super) fn share(&self, object: Object) -> Held {
        let mut holds = lock(&self.table.holds);
        while holds.get(&object).is_some_and(|hold| hold.exclusive) {
            holds = self.table.released.wait(holds).unwrap_or_else(PoisonError::into_inner);
        }
        holds.entry(object.clone()).or_default().shared += 1;
        Held { table: self.table.clone(), object, exclusive: false }
    }

    /// Holds `object` alone; waits until nobody else does.
    pub(super) fn own(&self, object: Object) -> Held {
        let mut holds = lock(&self.table.holds);
        while holds.contains_key(&object) {
            holds = self.table.released.wait(holds).unwrap_or_else(PoisonError::into_inner);
        }
        holds.insert(object.clone(), Hold { shared: 0, exclusive: true });
        Held { table: self.table.clone(), object, exclusive: true }
    }

    /// Holds `object` alone, or nothing when anybody holds it.
    pub(super) fn try_own(&self, object: Object) -> Option<Held> {
        let mut holds = lock(&self.table.holds);
        if holds.contains_key(&object) {
            return None;
        }
        holds.insert(object.clone(), Hold { shared: 0, exclusive: true });
        Some(Held { table: self.table.clone(), object, exclusive: true })
    }
}

impl Holders {
    /// The snapshots that operations work on or build on: namespace, snapshotter, key.
    pub(super) fn names(&self) -> Vec<(String, String, String)> {
        let holds = lock(&self.table.holds);
        holds
            .keys()
            .filter_map(|object| match object {
                Object::Name(namespace, snapshotter, key)
                | Object::Parent(namespace, snapshotter, key) => {
                    Some((namespace.clone(), snapshotter.clone(), key.clone()))
                }
                _ => None,
            })
            .collect()
    }
}

impl Holders {
    /// What is held and how, a line each.
    pub(super) fn lines(&self) -> Vec<String> {
        let holds = lock(&self.table.holds);
        let mut lines: Vec<String> = holds
            .iter()
            .map(|(object, hold)| match hold.exclusive {
                true => format!("{object:?}, by one alone"),
                false => format!("{object:?}, by {}", hold.shared),
            })
            .collect();
        lines.sort_unstable();
        lines
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut holds = lock(&self.table.holds);
        let free = match holds.get_mut(&self.object) {
            Some(hold) if self.exclusive => {
                hold.exclusive = false;
                hold.shared == 0
            }
            Some(hold) => {
                hold.shared -= 1;
                hold.shared == 0
            }
            None => false,
        };
        if free {
            holds.remove(&self.object);
            drop(holds);
            self.table.released.notify_all();
        }
    }
}
