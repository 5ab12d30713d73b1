//! Identical work once: whoever comes second waits, and then finds it done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// Work under way, by what it produces. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Flights {
    table: Arc<Mutex<HashMap<String, Gate>>>,
}

type Gate = Arc<tokio::sync::Mutex<()>>;

impl Flights {
    /// Waits until nobody else works on `key`; nobody will until the flight is dropped.
    ///
    /// Those who wait are let in one by one, in the order they came. Each looks first whether the
    /// work is done: whoever was in before may have failed or gone away.
    pub async fn enter(&self, key: impl Into<String>) -> Flight {
        let key = key.into();
        let gate = Gate::clone(self.lock().entry(key.clone()).or_default());
        let mut flight =
            Flight { flights: self.clone(), key, gate: Some(gate.clone()), inside: None };
        flight.inside = Some(match Gate::clone(&gate).try_lock_owned() {
            Ok(inside) => (inside, false),
            Err(_) => (gate.lock_owned().await, true),
        });
        flight
    }

    /// How many things are being worked on or waited for.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Gate>> {
        // A map is whole between its methods, so a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to work on something, until dropped.
#[derive(Debug)]
pub struct Flight {
    flights: Flights,
    key: String,
    gate: Option<Gate>,
    inside: Option<(OwnedMutexGuard<()>, bool)>,
}

impl Flight {
    /// Whether somebody else was inside before.
    pub fn waited(&self) -> bool {
        self.inside.as_ref().is_some_and(|(_, waited)| *waited)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut table = self.flights.lock();
        drop((self.inside.take(), self.gate.take()));
        // Gates are cloned under the table's lock only: one left alone stays alone.
        if table.get(&self.key).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            table.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_works_on_a_key_and_nothing_is_left() {
        let flights = Flights::default();
        let inside = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..50 {
            let (flights, inside) = (flights.clone(), Arc::clone(&inside));
            tasks.spawn(async move {
                let flight = flights.enter(format!("key-{}", number % 2)).await;
                assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(flight);
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn one_who_stops_waiting_leaves_nothing() {
        let flights = Flights::default();
        let first = flights.enter("key").await;
        assert!(!first.waited());
        let waiting = tokio::spawn({
            let flights = flights.clone();
            async move { flights.enter("key").await }
        });
        tokio::task::yield_now().await;
        waiting.abort();
        let _ = waiting.await;
        assert_eq!(flights.len(), 1);
        drop(first);
        assert!(flights.is_empty());
    }
}
