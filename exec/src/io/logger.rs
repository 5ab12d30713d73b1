use std::{
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::time::timeout;

use super::{IoConfig, pump::watch_read};
use crate::{
    Error, Result,
    reaper::{Claim, Reaper},
};

/// A program that reads the output of one process.
#[derive(Debug)]
pub struct Logger {
    claim: Claim,
}

impl Logger {
    /// Starts the program and waits until it is ready. `stdout` and `stderr`
    /// are what it reads.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be run, [`Error::DeadlineExceeded`] if it is
    /// not ready in time.
    pub async fn start(
        reaper: &Arc<Reaper>,
        path: &Path,
        args: &[String],
        config: &IoConfig,
        (stdout, stderr): (OwnedFd, OwnedFd),
    ) -> Result<Self> {
        let (ready, readying) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::io("make pipe for", path, e))?;
        let mut command = Command::new(path);
        command
            .args(args)
            .env("CONTAINER_ID", &config.container_id)
            .env("CONTAINER_NAMESPACE", &config.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        crate::sys::pass_fds(&mut command, vec![stdout, stderr, readying]);
        let (_, claim) = reaper.spawn(&mut command)?;
        // Closes our copy of the writing end, or the wait below never ends.
        drop(command);
        let logger = Logger { claim };
        let ready = watch_read(ready).map_err(|e| Error::io("watch", path, e))?;
        match timeout(READY_DEADLINE, ready.readable()).await {
            Ok(Ok(_)) => Ok(logger),
            Ok(Err(e)) => Err(Error::io("wait for", path, e)),
            Err(_) => {
                logger.end(Duration::ZERO).await;
                let text = format!("logger {} is not ready", path.display());
                Err(Error::DeadlineExceeded(text))
            }
        }
    }

    /// Ends the program, whose inputs are closed by now: it has `patience` to
    /// end by itself, then SIGTERM, then SIGKILL.
    pub async fn end(mut self, patience: Duration) {
        for (signal, patience) in [(TERM, patience), (KILL, TERM_PATIENCE)] {
            if timeout(patience, self.claim.wait()).await.is_ok() {
                return;
            }
            if self.claim.signal(signal).is_err() {
                break;
            }
        }
        // After SIGKILL the end is the kernel's business and comes soon.
        let _ = timeout(TERM_PATIENCE, self.claim.wait()).await;
    }
}

const TERM: u32 = 15;
const KILL: u32 = 9;

/// Loggers open files or connections first.
const READY_DEADLINE: Duration = Duration::from_secs(10);

/// How long a logger has after SIGTERM.
const TERM_PATIENCE: Duration = Duration::from_secs(2);
