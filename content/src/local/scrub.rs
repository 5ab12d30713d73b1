//! Looking for blobs that are no longer what they were.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::local::{Inner, LocalStore};
use crate::{Digest, Hasher};

/// How to read through the whole store.
#[derive(Clone, Debug, Default)]
pub struct Scrub {
    /// Read no faster than this, in bytes per second; `None` reads as fast as the disk allows.
    pub bytes_per_second: Option<u64>,
}

/// A blob that was damaged and is in quarantine now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its name; what it names is no longer in the store.
    pub digest: Digest,
    /// What is wrong with it.
    pub reason: String,
}

/// What a scrub has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Blobs read and found good.
    pub sound: u64,
    /// Bytes read.
    pub size_bytes: u64,
    /// Blobs moved to quarantine.
    pub damaged: Vec<Damage>,
}

impl LocalStore {
    /// Reads one blob through and compares it with its digest. A damaged one is moved to
    /// quarantine, after which the store no longer has it and committing it again heals it.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when it was damaged, [`Error::NotFound`] when it is not in the store,
    /// [`Error::Io`] when nothing could be found out.
    pub fn verify(&self, digest: &Digest) -> Result<()> {
        self.inner.verify(digest, &mut |_| ControlFlow::Continue(())).map(drop)
    }

    /// Verifies every blob. `progress` is called with the number of bytes read since the last call,
    /// at least once per blob, and may stop the scrub.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the directory cannot be listed or a blob not be quarantined; blobs that
    /// cannot be read for another reason than damage are skipped with a warning.
    pub fn scrub(
        &self,
        options: &Scrub,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<ScrubReport> {
        let mut report = ScrubReport::default();
        let mut throttle = Throttle::new(options.bytes_per_second);
        self.inner.each_digest(&mut |digest| {
            let mut size_bytes = 0;
            let verified = self.inner.verify(&digest, &mut |count| {
                size_bytes += count;
                throttle.pass(count);
                progress(count)
            });
            report.size_bytes += size_bytes;
            match verified {
                Ok(Verdict::Sound) => report.sound += 1,
                Ok(Verdict::Interrupted) => return Ok(ControlFlow::Break(())),
                Err(Error::Corrupt { digest, reason }) => {
                    report.damaged.push(Damage { digest, reason });
                }
                Err(Error::NotFound(_)) => {}
                Err(error) => {
                    tracing::warn!(%digest, %error, "scrub skips content it cannot read");
                }
            }
            Ok(progress(0))
        })?;
        Ok(report)
    }
}

enum Verdict {
    Sound,
    Interrupted,
}

impl Inner {
    fn verify(
        &self,
        digest: &Digest,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Verdict> {
        let reason = match self.inspect(digest, progress) {
            Ok(Inspection::Interrupted) => return Ok(Verdict::Interrupted),
            Ok(Inspection::Hashed(actual)) if actual == *digest => return Ok(Verdict::Sound),
            Ok(Inspection::Hashed(actual)) => format!("its bytes hash to {actual}"),
            Ok(Inspection::Unreadable(reason)) | Err(Error::Corrupt { reason, .. }) => reason,
            Err(error) => return Err(error),
        };
        // Deleted or replaced while it was read? Then the verdict is about something gone: look
        // again with everybody else kept away. Rare, so reading twice does not matter.
        let _held = self.busy.hold(digest);
        let again = self.inspect(digest, &mut |_| ControlFlow::Continue(()));
        if matches!(&again, Ok(Inspection::Hashed(actual)) if actual == digest) {
            return Ok(Verdict::Sound);
        }
        if let Err(error @ (Error::NotFound(_) | Error::Io { .. })) = again {
            return Err(error);
        }
        self.layout.set_aside(digest, &reason)?;
        Err(Error::Corrupt { digest: digest.clone(), reason })
    }

    fn inspect(
        &self,
        digest: &Digest,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Inspection> {
        use std::os::unix::fs::FileExt;
        let (file, stat) = self.layout.open_blob(digest)?;
        let size_bytes = stat.st_size as u64;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut buffer = vec![0; READ_SIZE_BYTES];
        while hasher.size_bytes() < size_bytes {
            let count = match file.read_at(&mut buffer, hasher.size_bytes()) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    let at = hasher.size_bytes();
                    return Ok(Inspection::Unreadable(format!("cannot be read at {at}: {error}")));
                }
                Err(error) => {
                    let dir = self.layout.blobs(digest.algorithm());
                    return Err(dir.fail("read", digest.hex())(error));
                }
            };
            hasher.update(&buffer[..count]);
            if progress(count as u64).is_break() {
                return Ok(Inspection::Interrupted);
            }
        }
        Ok(Inspection::Hashed(hasher.digest()))
    }
}

enum Inspection {
    Hashed(Digest),
    Unreadable(String),
    Interrupted,
}

/// Keeps a rate by sleeping whenever it is ahead.
struct Throttle {
    bytes_per_second: Option<u64>,
    started: Instant,
    passed: u64,
}

impl Throttle {
    fn new(bytes_per_second: Option<u64>) -> Self {
        let bytes_per_second = bytes_per_second.map(|rate| rate.max(1));
        Self { bytes_per_second, started: Instant::now(), passed: 0 }
    }

    fn pass(&mut self, count: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        self.passed += count;
        let due = Duration::from_secs_f64(self.passed as f64 / rate as f64);
        thread::sleep(due.saturating_sub(self.started.elapsed()));
    }
}

const READ_SIZE_BYTES: usize = 256 * 1024;
