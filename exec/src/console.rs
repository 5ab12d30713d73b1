//! Terminals of containers.
//!
//! The runtime makes the terminal inside the container and sends its master
//! over a socket; see [`ConsoleSocket`].

use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{Error, Result, Size};

/// The master of a terminal.
#[derive(Debug)]
pub struct Console {
    master: Arc<AsyncFd<OwnedFd>>,
}

impl Console {
    /// Sets the size; one with a zero in it is ignored.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn resize(&self, size: Size) -> Result<()> {
        if size.width == 0 || size.height == 0 {
            return Ok(());
        }
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.master.get_ref(), size).map_err(|e| Error::io("resize", "terminal", e))
    }

    pub(crate) fn descriptor(&self) -> Arc<AsyncFd<OwnedFd>> {
        Arc::clone(&self.master)
    }
}

/// Where a runtime sends the master to; its file goes away with it.
#[derive(Debug)]
pub struct ConsoleSocket {
    path: PathBuf,
    listener: tokio::net::UnixListener,
}

impl ConsoleSocket {
    /// Makes the socket `name` in a folder only we may enter.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn bind(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let fail = |e: std::io::Error| Error::io("make console socket", &path, e);
        let folder = std::fs::File::open(folder).map_err(fail)?;
        let _ = std::fs::remove_file(&path);
        // An address has 108 bytes; this one is short wherever the folder is.
        let short = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
        let listener = UnixListener::bind(short).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(fail)?;
        Ok(ConsoleSocket { path, listener })
    }

    /// Path of the socket's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Receives the master, within [`RECEIVE_DEADLINE`].
    ///
    /// # Errors
    ///
    /// [`Error::DeadlineExceeded`], [`Error::Io`], [`Error::Unknown`] for a
    /// message without a terminal.
    pub async fn receive(&self) -> Result<Console> {
        let receive = async {
            let (stream, _) = self.listener.accept().await?;
            loop {
                stream.readable().await?;
                let took = stream.try_io(Interest::READABLE, || take_fd(&stream));
                match took {
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                    other => return other,
                }
            }
        };
        let received = tokio::time::timeout(RECEIVE_DEADLINE, receive).await;
        let master = received
            .map_err(|_| Error::DeadlineExceeded("runtime sent no terminal".into()))?
            .map_err(|e| Error::io("receive terminal on", &self.path, e))?
            .ok_or_else(|| Error::Unknown("runtime sent no terminal".into()))?;
        plain_newlines(&master)?;
        super::io::watch_read_write(master)
            .map(|master| Console { master: Arc::new(master) })
            .map_err(|e| Error::io("watch", "terminal", e))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // A file left behind is removed with its folder.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Clients' terminals add carriage returns themselves.
fn plain_newlines(master: &OwnedFd) -> Result<()> {
    let fail = |e| Error::io("configure", "terminal", e);
    let mut attributes = tcgetattr(master).map_err(fail)?;
    attributes.output_modes.remove(OutputModes::ONLCR);
    tcsetattr(master, OptionalActions::Now, &attributes).map_err(fail)
}

fn take_fd(stream: &tokio::net::UnixStream) -> std::io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; NAME_MAX_BYTES];
    let mut parts = [IoSliceMut::new(&mut name)];
    recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok(fds.flatten().next())
}

/// How long a runtime may take to send the terminal.
pub const RECEIVE_DEADLINE: Duration = Duration::from_secs(10);

/// Runtimes send the terminal's name beside it.
const NAME_MAX_BYTES: usize = 4096;
