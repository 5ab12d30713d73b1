//! The threads that visit namespaces.
//!
//! ```text
//!  caller ──job──► queue ──► worker thread ──setns──► socket()/write ──setns──► home
//!                              │ panic, or the way home failed
//!                              ▼
//!                           thread ends; the keeper, which never leaves
//!                           home, starts another on the same queue
//! ```

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Socket;
use crate::{Error, Result, sys};

/// Where the calling thread's network namespace can be opened.
pub(crate) const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// Pause before another attempt to start a thread.
const RESTART_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

type Job = Box<dyn FnOnce(&mut Hopper) + Send>;
type Queue = Arc<Mutex<Receiver<Job>>>;

/// Which thread a job runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// One change at a time: the kernel serialises them anyway.
    Change,
    /// Reads, which need not wait for changes.
    Read,
}

/// The two job queues of a root. Dropping it ends the threads.
pub(crate) struct Lanes {
    changes: Sender<Job>,
    reads: Sender<Job>,
}

impl Lanes {
    /// Starts the threads; the calling thread's namespaces become home.
    pub(crate) fn start() -> Result<Self> {
        let (changes, change_queue) = channel();
        let (reads, read_queue) = channel();
        let queues: [Queue; 2] = [change_queue, read_queue].map(|q| Arc::new(Mutex::new(q)));
        thread::Builder::new().name("netns-keeper".into()).spawn(move || keep(&queues)).map_err(
            |error| Error::Kernel {
                step: "start worker thread".into(),
                kernel: crate::KernelError::new(error.raw_os_error().unwrap_or(libc::EAGAIN)),
            },
        )?;
        Ok(Self { changes, reads })
    }

    /// Runs `job` on a worker and waits for its result.
    ///
    /// # Errors
    ///
    /// Those of the job, or [`Error::WorkerLost`] when it panicked.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        step: &'static str,
        job: impl FnOnce(&mut Hopper) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, result) = channel();
        let queue = match lane {
            Lane::Change => &self.changes,
            Lane::Read => &self.reads,
        };
        let boxed: Job = Box::new(move |hopper| {
            let _ = answer.send(job(hopper));
        });
        queue.send(boxed).map_err(|_| Error::WorkerLost { step })?;
        result.recv().map_err(|_| Error::WorkerLost { step })?
    }
}

/// What a job may do with the thread it runs on.
pub(crate) struct Hopper {
    lost: bool,
}

impl Hopper {
    /// A socket in the home namespace.
    pub(crate) fn home_socket(&self) -> Result<Socket> {
        Socket::open()
    }

    /// A socket in the namespace `ns` is open on.
    pub(crate) fn socket_in(&mut self, ns: BorrowedFd<'_>) -> Result<Socket> {
        self.visit(ns, Socket::open)?
    }

    /// Runs `work` inside the namespace `ns` is open on. `work` must start
    /// neither threads nor processes: they would stay there.
    pub(crate) fn visit<T>(&mut self, ns: BorrowedFd<'_>, work: impl FnOnce() -> T) -> Result<T> {
        let back = Return { home: own_netns()?, lost: &mut self.lost };
        move_into_link_name_space(ns, Some(LinkNameSpaceType::Network))
            .map_err(|errno| Error::io("enter", "network namespace", errno))?;
        let result = work();
        drop(back);
        Ok(result)
    }

    /// Runs `work` inside a new network namespace, which lives on only if
    /// `work` pins it.
    pub(crate) fn create<T>(&mut self, work: impl FnOnce() -> T) -> Result<T> {
        let back = Return { home: own_netns()?, lost: &mut self.lost };
        sys::unshare_net().map_err(|errno| Error::io("create", "network namespace", errno))?;
        let result = work();
        drop(back);
        Ok(result)
    }
}

/// Opens the calling thread's network namespace.
pub(crate) fn own_netns() -> Result<OwnedFd> {
    rustix::fs::open(OWN_NETNS, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::io("open", OWN_NETNS, errno))
}

/// Brings the thread home when dropped, or marks it as lost.
struct Return<'a> {
    home: OwnedFd,
    lost: &'a mut bool,
}

impl Drop for Return<'_> {
    fn drop(&mut self) {
        use std::os::fd::AsFd;
        let back = move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network));
        if let Err(error) = back {
            tracing::error!(%error, "worker thread cannot return to its namespace, replacing it");
            *self.lost = true;
        }
    }
}

/// Tells the keeper that a worker ended, however it ended.
struct Farewell {
    place: usize,
    /// Set only when the queue was closed.
    finished: bool,
    keeper: Sender<(usize, bool)>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let _ = self.keeper.send((self.place, self.finished));
    }
}

/// Starts one worker per queue and replaces those that end early. Never
/// leaves home, so the threads it starts are born there.
fn keep(queues: &[Queue; 2]) {
    let (keeper, ended) = channel();
    for place in 0..queues.len() {
        start_worker(place, queues, &keeper);
    }
    let mut running = queues.len();
    while running > 0 {
        let Ok((place, finished)) = ended.recv() else {
            return;
        };
        if finished {
            running -= 1;
        } else {
            start_worker(place, queues, &keeper);
        }
    }
}

fn start_worker(place: usize, queues: &[Queue; 2], keeper: &Sender<(usize, bool)>) {
    let queue = Arc::clone(&queues[place]);
    let farewell = Farewell { place, finished: false, keeper: keeper.clone() };
    let name = ["netns-change", "netns-read"][place];
    let started = thread::Builder::new().name(name.into()).spawn(move || work(&queue, farewell));
    if let Err(error) = started {
        // The dropped closure has said farewell, which brings the keeper back
        // here; wait before that, threads are short.
        tracing::error!(%error, "cannot start worker thread");
        thread::sleep(RESTART_PAUSE);
    }
}

fn work(queue: &Queue, mut farewell: Farewell) {
    let mut hopper = Hopper { lost: false };
    while !hopper.lost {
        // A worker that panicked did so after giving the lock back.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else {
            farewell.finished = true;
            return;
        };
        job(&mut hopper);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::PathBuf;

    use super::*;

    fn root_only() -> bool {
        if rustix::process::geteuid().is_root() {
            return true;
        }
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root");
        false
    }

    fn here() -> PathBuf {
        std::fs::read_link(OWN_NETNS).unwrap()
    }

    #[test]
    fn job_that_panics_costs_its_thread_and_nothing_else() {
        if !root_only() {
            return;
        }
        let lanes = Lanes::start().unwrap();
        let home = here();
        let thread =
            |lanes: &Lanes| lanes.run(Lane::Change, "ask", |_| Ok(thread::current().id())).unwrap();
        assert_eq!(thread(&lanes), thread(&lanes));
        for inside in [false, true] {
            let before = thread(&lanes);
            let result = lanes.run(Lane::Change, "panic", move |hopper| -> Result<()> {
                match inside {
                    // While in another namespace.
                    true => hopper.create(|| panic!("injected"))?,
                    false => panic!("injected"),
                }
            });
            assert!(matches!(result, Err(Error::WorkerLost { step: "panic" })), "{result:?}");
            assert_ne!(before, thread(&lanes));
        }
        let net = lanes.run(Lane::Change, "look", |_| Ok(here())).unwrap();
        assert_eq!(net, home);
    }

    #[test]
    fn thread_that_could_not_return_is_replaced_by_one_at_home() {
        if !root_only() {
            return;
        }
        let lanes = Lanes::start().unwrap();
        let home = here();
        let lost = lanes.run(Lane::Read, "lose", |hopper| {
            // Strand the thread for good, as a failed setns would.
            sys::unshare_net().unwrap();
            hopper.lost = true;
            Ok((thread::current().id(), here()))
        });
        let (lost, elsewhere) = lost.unwrap();
        assert_ne!(elsewhere, home);
        let next = lanes.run(Lane::Read, "look", |_| Ok((thread::current().id(), here())));
        let (next, net) = next.unwrap();
        assert_ne!(next, lost);
        assert_eq!(net, home);
    }

    #[test]
    fn visit_ends_where_it_began_and_sockets_stay_behind() {
        if !root_only() {
            return;
        }
        let lanes = Lanes::start().unwrap();
        let home = here();
        let cookies = lanes.run(Lane::Change, "visit", |hopper| {
            let ns = hopper.create(own_netns)??;
            let inside = hopper.socket_in(ns.as_fd())?;
            let outside = hopper.home_socket()?;
            Ok((inside.cookie()?, outside.cookie()?, hopper.visit(ns.as_fd(), here)?, here()))
        });
        let (inside, outside, visited, after) = cookies.unwrap();
        assert_ne!(inside, outside);
        assert_ne!(visited, home);
        assert_eq!(after, home);
    }
}
