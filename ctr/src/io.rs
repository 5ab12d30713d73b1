//! The streams of a process: named pipes that this program creates and the shim opens.
//!
//! The daemon never sees the bytes. Each stream is copied by a thread of its own, because a
//! pipe's opening waits for the other side.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::Mode;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// Bytes copied at once.
const COPY_BYTES: usize = 64 << 10;

/// Where a process's streams lead.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paths {
    /// Read by the process; empty for none.
    pub(crate) stdin: String,
    /// Written by the process; empty for none.
    pub(crate) stdout: String,
    /// Written by the process; empty for none and with a terminal.
    pub(crate) stderr: String,
}

impl Paths {
    /// Sends output to a logger, as `binary://`, `file://` or another address the shim knows.
    pub(crate) fn log(uri: &str) -> Self {
        Self { stdin: String::new(), stdout: uri.to_owned(), stderr: uri.to_owned() }
    }
}

/// Named pipes in a private directory, removed when this value goes.
#[derive(Debug)]
pub(crate) struct Fifos {
    folder: PathBuf,
    paths: Paths,
}

impl Fifos {
    /// Creates the pipes of process `id` below `base`.
    pub(crate) fn create(base: &Path, id: &str, terminal: bool) -> Result<Self> {
        std::fs::create_dir_all(base).map_err(Error::io("create", base.display()))?;
        let folder = private_folder(base)?;
        let fifos = Self { paths: paths(&folder, id, terminal), folder };
        for path in [&fifos.paths.stdin, &fifos.paths.stdout, &fifos.paths.stderr] {
            if !path.is_empty() {
                rustix::fs::mkfifoat(rustix::fs::CWD, path, Mode::from(0o600))
                    .map_err(|error| Error::io("create", path)(error.into()))?;
            }
        }
        Ok(fifos)
    }

    /// Where the shim finds them.
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Leaves the pipes in place, for somebody who attaches later.
    pub(crate) fn keep(mut self) {
        self.folder = PathBuf::new();
    }

    /// Starts copying this program's streams.
    pub(crate) fn attach(&self) -> Attached {
        attach(&self.paths)
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        if self.folder.as_os_str().is_empty() {
            return;
        }
        for path in [&self.paths.stdin, &self.paths.stdout, &self.paths.stderr] {
            // An absent pipe was never created; the folder's removal tells of anything else.
            let _ = std::fs::remove_file(path);
        }
        let _ = std::fs::remove_dir(&self.folder);
    }
}

fn private_folder(base: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut seed = [0_u8; 8];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut seed))
        .map_err(Error::io("read", "/dev/urandom"))?;
    let folder = base.join(format!("{:016x}", u64::from_ne_bytes(seed)));
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .map_err(Error::io("create", folder.display()))?;
    Ok(folder)
}

fn paths(folder: &Path, id: &str, terminal: bool) -> Paths {
    let path = |stream: &str| folder.join(format!("{id}-{stream}")).display().to_string();
    let stderr = if terminal { String::new() } else { path("stderr") };
    Paths { stdin: path("stdin"), stdout: path("stdout"), stderr }
}

/// Copying in progress.
#[derive(Debug)]
pub(crate) struct Attached {
    /// Each resolves when the shim has closed one of the process's outputs and all was written.
    pub(crate) outputs: Vec<oneshot::Receiver<()>>,
    /// Resolves when this program's input ended and all of it was passed on.
    pub(crate) stdin_ended: oneshot::Receiver<()>,
}

/// Waits until the process's outputs have ended and were written.
pub(crate) async fn drained(outputs: Vec<oneshot::Receiver<()>>) {
    for output in outputs {
        // Nothing is ever sent: the sender goes with its thread.
        let _ = output.await;
    }
}

/// Copies this program's streams through the pipes at `paths`.
pub(crate) fn attach(paths: &Paths) -> Attached {
    let (ended, stdin_ended) = oneshot::channel();
    let mut outputs = Vec::new();
    let stdin = paths.stdin.clone();
    if !stdin.is_empty() {
        thread::spawn(move || {
            if let Ok(pipe) = OpenOptions::new().write(true).open(stdin) {
                copy(io::stdin(), pipe);
            }
            // The receiver is gone when nobody waits for the end of the input.
            let _ = ended.send(());
        });
    }
    let stdout = paths.stdout.clone();
    if !stdout.is_empty() {
        outputs.push(drain(stdout, io::stdout()));
    }
    let stderr = paths.stderr.clone();
    if !stderr.is_empty() {
        outputs.push(drain(stderr, io::stderr()));
    }
    Attached { outputs, stdin_ended }
}

/// Starts to copy one output. The receiver resolves when that is done.
fn drain(path: String, out: impl Write + Send + 'static) -> oneshot::Receiver<()> {
    let (done, drained) = oneshot::channel::<()>();
    thread::spawn(move || {
        if let Ok(pipe) = File::open(path) {
            copy(pipe, out);
        }
        drop(done);
    });
    drained
}

/// Copies until either side ends: a reader that went away is no error of the process.
fn copy(mut from: impl Read, mut to: impl Write) {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// This program's terminal, passing keys on unread until it is dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Switches the terminal on standard input over.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when standard input is no terminal.
    pub(crate) fn enter() -> Result<Self> {
        let refused = |_| Error::Refused("provided file is not a console".to_owned());
        let before = termios::tcgetattr(io::stdin()).map_err(refused)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)
            .map_err(|error| Error::io("set", "terminal")(error.into()))?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone by now.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The size of this program's terminal in columns and rows, if it has one.
pub(crate) fn terminal_size() -> Option<(u32, u32)> {
    let size = termios::tcgetwinsize(io::stdin()).ok()?;
    Some((size.ws_col.into(), size.ws_row.into()))
}
