//! The running hash of a direct ingest, computed on a second core where there is one.
//!
//! Copying into a write buffer costs a sixth of hashing it. Done in turn by one thread both would
//! add up; instead the thread that takes the bytes in only copies, and hands each full buffer to a
//! thread that only hashes. Buffers are shared, so nothing is copied for it.

use std::collections::VecDeque;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use crate::Hasher;
use crate::sys::Buffer;

/// The hash of what was handed over so far.
#[derive(Debug)]
pub(crate) struct Hashing {
    place: Place,
    /// A state is kept at every multiple of this many bytes.
    interval: u64,
    /// States kept and not yet asked for, oldest first.
    kept: VecDeque<Hasher>,
}

#[derive(Debug)]
enum Place {
    /// On the thread that calls.
    Here(Box<Hasher>),
    Beside(Beside),
}

impl Hashing {
    /// Continues `hasher`; `beside` asks for a thread of its own.
    pub(crate) fn new(hasher: Hasher, interval: u64, beside: bool) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let beside = (beside && cores > 1).then(|| Beside::start(hasher.clone(), interval));
        let place = match beside.flatten() {
            Some(beside) => Place::Beside(beside),
            None => Place::Here(Box::new(hasher)),
        };
        Self { place, interval, kept: VecDeque::new() }
    }

    /// Whether bytes are best handed over in small pieces, while they are in the cache of this
    /// core.
    pub(crate) fn is_here(&self) -> bool {
        matches!(self.place, Place::Here(_))
    }

    /// Hashes `range` of `buffer`, now or soon. A state is kept only where a range ends, so no
    /// range may cross a multiple of the interval.
    pub(crate) fn update(&mut self, buffer: &Arc<Buffer>, range: Range<usize>) -> io::Result<()> {
        match &mut self.place {
            Place::Here(hasher) => {
                hasher.update(&buffer[range]);
                if hasher.size_bytes() % self.interval == 0 {
                    self.kept.push_back((**hasher).clone());
                }
                Ok(())
            }
            Place::Beside(beside) => beside.send(Job::Hash(Arc::clone(buffer), range)),
        }
    }

    /// The hash of everything handed over, once it has been computed.
    pub(crate) fn state(&mut self) -> io::Result<Hasher> {
        match &mut self.place {
            Place::Here(hasher) => Ok((**hasher).clone()),
            Place::Beside(beside) => {
                beside.send(Job::Report)?;
                loop {
                    match beside.reply()? {
                        Reply::Hashed(state) => self.kept.extend(state.map(|state| *state)),
                        Reply::State(state) => return Ok(*state),
                    }
                }
            }
        }
    }

    /// Waits until one more buffer is hashed and let go.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        if let Place::Beside(beside) = &mut self.place
            && let Reply::Hashed(state) = beside.reply()?
        {
            self.kept.extend(state.map(|state| *state));
        }
        Ok(())
    }

    /// The newest kept state that covers no more than `landed` bytes; forgets older ones.
    pub(crate) fn newest(&mut self, landed: u64) -> Option<Hasher> {
        if let Place::Beside(beside) = &self.place {
            while let Ok(reply) = beside.replies.try_recv() {
                if let Reply::Hashed(state) = reply {
                    self.kept.extend(state.map(|state| *state));
                }
            }
        }
        let mut newest = None;
        while self.kept.front().is_some_and(|state| state.size_bytes() <= landed) {
            newest = self.kept.pop_front();
        }
        newest
    }
}

/// A thread that hashes one buffer after the other.
#[derive(Debug)]
struct Beside {
    /// Taken when it is to end.
    jobs: Option<Sender<Job>>,
    replies: Receiver<Reply>,
    thread: Option<JoinHandle<()>>,
}

enum Job {
    Hash(Arc<Buffer>, Range<usize>),
    Report,
}

enum Reply {
    /// A buffer is done; the state where it has to be kept.
    Hashed(Option<Box<Hasher>>),
    State(Box<Hasher>),
}

impl Beside {
    /// Starts the thread; `None` where none can be had.
    fn start(hasher: Hasher, interval: u64) -> Option<Self> {
        let (jobs, queue) = channel();
        let (sender, replies) = channel();
        let thread = thread::Builder::new()
            .name("crated-hash".to_owned())
            .spawn(move || hash(hasher, interval, &queue, &sender))
            .inspect_err(|error| tracing::debug!(%error, "no thread to hash beside"));
        Some(Self { jobs: Some(jobs), replies, thread: Some(thread.ok()?) })
    }

    fn send(&self, job: Job) -> io::Result<()> {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        sent.and_then(Result::ok).ok_or_else(ended)
    }

    fn reply(&self) -> io::Result<Reply> {
        self.replies.recv().map_err(|_| ended())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the hook.
            let _ = thread.join();
        }
    }
}

fn hash(mut hasher: Hasher, interval: u64, jobs: &Receiver<Job>, replies: &Sender<Reply>) {
    for job in jobs {
        let reply = match job {
            Job::Hash(buffer, range) => {
                hasher.update(&buffer[range]);
                // Before the reply says that the buffer is free.
                drop(buffer);
                let keep = hasher.size_bytes().is_multiple_of(interval);
                Reply::Hashed(keep.then(|| Box::new(hasher.clone())))
            }
            Job::Report => Reply::State(Box::new(hasher.clone())),
        };
        if replies.send(reply).is_err() {
            return;
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("the hashing thread has ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{BUFFER_SIZE_BYTES, Lane};
    use crate::{Algorithm, Digest};

    #[test]
    fn a_thread_beside_computes_the_same_states_and_lets_buffers_go() {
        let mut lane = match Lane::new() {
            Ok(lane) => lane,
            Err(error) => return crate::testing::skip(&format!("no io_uring here: {error}")),
        };
        let mut bytes = Vec::new();
        let start = || Hasher::new(Algorithm::Sha256);
        let interval = 2 * BUFFER_SIZE_BYTES as u64;
        let mut hashings =
            [Hashing::new(start(), interval, true), Hashing::new(start(), interval, false)];
        for round in 0..4 {
            let buffer = lane.fill(0).expect("free again");
            buffer.fill(round);
            bytes.extend_from_slice(buffer);
            for hashing in &mut hashings {
                // In two parts, as when somebody asks for the digest in between.
                hashing.update(lane.buffer(0), 0..1000).unwrap();
                assert_eq!(hashing.state().unwrap().size_bytes() % 1_048_576, 1000);
                hashing.update(lane.buffer(0), 1000..BUFFER_SIZE_BYTES).unwrap();
                assert_eq!(hashing.state().unwrap().digest(), Digest::of(&bytes));
            }
        }
        for hashing in &mut hashings {
            assert!(hashing.newest(interval - 1).is_none());
            let newest = hashing.newest(interval + 1).expect("the first is covered");
            assert_eq!(newest.digest(), Digest::of(&bytes[..interval as usize]));
            assert_eq!(hashing.newest(u64::MAX).unwrap().size_bytes(), 2 * interval);
            assert!(hashing.newest(u64::MAX).is_none(), "each once");
        }
    }
}
