//! Files on their way to disk while the layer is still being unpacked.
//!
//! Whatever makes the layer durable afterwards waits for the disk. Without this the disk idles
//! until then, and all of the layer lies in memory as dirty pages.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::error::{Error, Result};
use crate::sys;

/// A thread that asks the kernel to begin writing files.
pub(super) struct EarlyWriter {
    files: Option<SyncSender<OwnedFd>>,
    thread: Option<JoinHandle<()>>,
}

/// Smaller files are left to the flush at the end: asking costs more than it gains.
const BYTES_MIN: u64 = 32 << 10;
/// Files that may wait. When the disk is behind that far, whoever unpacks waits for it.
const FILES_MAX: usize = 64;

impl EarlyWriter {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when no thread can be had.
    pub(super) fn start() -> Result<Self> {
        let (files, waiting) = sync_channel::<OwnedFd>(FILES_MAX);
        let thread = std::thread::Builder::new()
            .name("layer-write".into())
            .spawn(move || {
                for file in waiting {
                    // Only a hint: what is not written now is written by the flush, which
                    // reports what goes wrong.
                    let _ = sys::begin_writing(file.as_fd());
                }
            })
            .map_err(|e| Error::io("spawn", "writing thread", e))?;
        Ok(Self { files: Some(files), thread: Some(thread) })
    }

    /// Takes a file that is whole; waits when [`FILES_MAX`] wait already.
    pub(super) fn take(&self, file: OwnedFd, size_bytes: u64) {
        if size_bytes >= BYTES_MIN
            && let Some(files) = &self.files
        {
            let _ = files.send(file);
        }
    }
}

impl Drop for EarlyWriter {
    /// No file is open any more afterwards: what they lie on may have to be unmounted.
    fn drop(&mut self) {
        self.files = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
