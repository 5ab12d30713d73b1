//! Group commit: writers that arrive while a commit is under way share the next one.
//!
//! The first writer to find nobody at work leads: it runs its own operation and those of all
//! others waiting in one transaction, commits it, and hands the lead to the first of those who
//! arrived meanwhile. A lone writer therefore pays no thread switch, and the cost of the commit is
//! divided by the number of writers when there are many.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::db::Inner;
use super::txn::{Effects, Tables, WriteTx, storage};
use super::{Error, Result};

/// The operations waiting for a transaction.
#[derive(Default)]
pub(super) struct Batches {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    led: bool,
}

/// One operation: runs in the leader's thread, answers in its own.
struct Job {
    run: Box<dyn FnOnce(&mut WriteTx<'_, '_>) -> bool + Send>,
    seat: Arc<Seat>,
}

/// Where a writer waits.
#[derive(Default)]
struct Seat {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Waiting,
    Lead,
    Done(Result<()>),
}

type Answer<T> = Arc<Mutex<Option<std::thread::Result<Result<T>>>>>;

impl Batches {
    pub(super) fn run<T, F>(&self, inner: &Inner, operation: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut WriteTx<'_, '_>) -> Result<T> + Send + 'static,
    {
        let answer: Answer<T> = Arc::default();
        let seat = Arc::new(Seat::default());
        let job = Job { run: package(operation, answer.clone()), seat: seat.clone() };

        let lead = {
            let mut queue = lock(&self.queue);
            queue.waiting.push_back(job);
            !std::mem::replace(&mut queue.led, true)
        };
        if lead || seat.wait_for_turn() {
            self.lead(inner);
        }
        seat.outcome()?;
        match lock(&answer).take() {
            Some(Ok(result)) => result,
            Some(Err(panic)) => resume_unwind(panic),
            None => Err(Error::Internal { reason: "an operation was dropped unrun".to_owned() }),
        }
    }

    /// Runs everything that waits, this thread's operation first, then passes the lead on.
    fn lead(&self, inner: &Inner) {
        let jobs = {
            let mut queue = lock(&self.queue);
            let count = queue.waiting.len().min(BATCH_LEN_MAX);
            queue.waiting.drain(..count).collect::<Vec<_>>()
        };
        run_batch(inner, jobs);
        let next = {
            let mut queue = lock(&self.queue);
            let next = queue.waiting.front().map(|job| job.seat.clone());
            queue.led = next.is_some();
            next
        };
        if let Some(seat) = next {
            seat.set(State::Lead);
        }
    }
}

/// Boxes an operation so that its answer lands in `answer`; tells whether it succeeded.
fn package<T, F>(
    operation: F,
    answer: Answer<T>,
) -> Box<dyn FnOnce(&mut WriteTx<'_, '_>) -> bool + Send>
where
    T: Send + 'static,
    F: FnOnce(&mut WriteTx<'_, '_>) -> Result<T> + Send + 'static,
{
    Box::new(move |tx| {
        let outcome = catch_unwind(AssertUnwindSafe(|| operation(tx)));
        let kept = matches!(outcome, Ok(Ok(_)));
        *lock(&answer) = Some(outcome);
        kept
    })
}

fn run_batch(inner: &Inner, jobs: Vec<Job>) {
    let mut seats = Vec::with_capacity(jobs.len());
    let mut effects = Vec::with_capacity(jobs.len());
    // A panic below this point is the database's; it must not leave writers waiting for ever.
    let outcome =
        catch_unwind(AssertUnwindSafe(|| transact(inner, jobs, &mut seats, &mut effects)))
            .unwrap_or_else(|panic| Err(Error::Internal { reason: panic_text(panic.as_ref()) }));

    if let Err(error) = outcome {
        tracing::error!(%error, "metadata transaction failed");
        for seat in seats {
            seat.set(State::Done(Err(copy(&error))));
        }
        return;
    }
    for effect in effects {
        if effect.dirty_content || effect.dirty_network || !effect.dirty_snapshotters.is_empty() {
            let mut dirty = lock(&inner.dirty);
            dirty.network |= effect.dirty_network;
            dirty.content |= effect.dirty_content;
            dirty.snapshotters.extend(effect.dirty_snapshotters);
        }
        inner.publish(effect.events);
        if !effect.silent {
            inner.notify(effect.dirty);
        }
    }
    for seat in seats {
        seat.set(State::Done(Ok(())));
    }
}

fn transact(
    inner: &Inner,
    jobs: Vec<Job>,
    seats: &mut Vec<Arc<Seat>>,
    effects: &mut Vec<Effects>,
) -> Result<()> {
    seats.extend(jobs.iter().map(|job| job.seat.clone()));
    lock(&inner.barrier).batch.clear();
    inner.engine.write(|database| {
        let path = &inner.engine.path;
        let transaction = database
            .begin_write()
            .map_err(|error| storage("beginning a transaction on", path, error.into()))?;
        let changed = run_jobs(inner, &transaction, jobs, effects)?;
        if !changed {
            let aborted = transaction.abort();
            return aborted.map_err(|error| storage("leaving", path, error.into()));
        }
        transaction.commit().map_err(|error| storage("committing to", path, error.into()))?;
        inner.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })
}

/// Runs the operations one after the other; tells whether any of them changed something.
fn run_jobs(
    inner: &Inner,
    transaction: &redb::WriteTransaction,
    jobs: Vec<Job>,
    effects: &mut Vec<Effects>,
) -> Result<bool> {
    let mut changed = false;
    let mut tables = Tables::open(transaction, &inner.engine.path)?;
    for job in jobs {
        let mut tx = WriteTx::new(&tables);
        let kept = (job.run)(&mut tx);
        let (staged, effect) = tx.finish();
        if !kept || staged.is_empty() {
            continue;
        }
        changed = true;
        tables.apply(staged)?;
        let mut barrier = lock(&inner.barrier);
        if let Some(log) = &mut barrier.log {
            log.extend(effect.touched.iter().cloned());
        }
        barrier.batch.extend(effect.touched.iter().cloned());
        drop(barrier);
        effects.push(effect);
    }
    Ok(changed)
}

impl Seat {
    fn set(&self, state: State) {
        *lock(&self.state) = state;
        self.changed.notify_all();
    }

    /// Waits until the operation is done (`false`) or has to be led by this thread (`true`).
    fn wait_for_turn(&self) -> bool {
        let mut state = lock(&self.state);
        loop {
            match *state {
                State::Waiting => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                State::Lead => {
                    *state = State::Waiting;
                    return true;
                }
                State::Done(_) => return false,
            }
        }
    }

    /// The outcome, once done.
    fn outcome(&self) -> Result<()> {
        match std::mem::take(&mut *lock(&self.state)) {
            State::Done(outcome) => outcome,
            _ => Err(Error::Internal { reason: "an operation ended without outcome".to_owned() }),
        }
    }
}

/// A panic while one of these locks is held happens in no code of ours that leaves the state
/// half changed, so the state stays usable.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same failure once more, for the next writer of the batch.
fn copy(error: &Error) -> Error {
    match error {
        Error::Storage { step, path, source } => {
            Error::Storage { step, path: path.clone(), source: source.clone() }
        }
        other => Error::Internal { reason: other.to_string() },
    }
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic".to_owned())
}

/// Most operations in one transaction: bounds how long the first waits for the last, far above
/// what piles up behind one commit.
const BATCH_LEN_MAX: usize = 1024;
