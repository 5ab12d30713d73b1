use std::{
    fs,
    os::fd::OwnedFd,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
    process,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    fs::{Gid, Mode, OFlags, Uid, fchown, open},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};
use tokio::{
    io::unix::AsyncFd,
    task::{AbortHandle, JoinSet},
};

use super::{Logger, Sink, Target, pump, watch_read, watch_write};
use crate::{Error, Result, Stdio, console::Console, reaper::Reaper};

/// What is the same for all processes of a container.
#[derive(Clone, Debug, Default)]
pub struct IoConfig {
    /// For loggers.
    pub container_id: String,
    /// For loggers.
    pub namespace: String,
    /// Owner of the pipes the process sees.
    pub uid: u32,
    /// Group of the pipes the process sees.
    pub gid: u32,
}

/// What a process is given as descriptors 0, 1 and 2.
#[derive(Debug)]
pub struct ChildStdio {
    /// Descriptor 0.
    pub stdin: process::Stdio,
    /// Descriptor 1.
    pub stdout: process::Stdio,
    /// Descriptor 2.
    pub stderr: process::Stdio,
}

impl ChildStdio {
    /// Nowhere.
    pub fn null() -> Self {
        let null = process::Stdio::null;
        ChildStdio { stdin: null(), stdout: null(), stderr: null() }
    }
}

/// The stdio of one process: what copies it, and what must stay open for it.
#[derive(Debug, Default)]
pub struct ProcessIo {
    copies: Mutex<JoinSet<()>>,
    /// The writing end of the input FIFO: without it a client that detaches
    /// would end the input.
    input_keeper: Mutex<Option<OwnedFd>>,
    /// What copies a client's keys to the terminal.
    terminal_input: Mutex<Option<AbortHandle>>,
    loggers: Mutex<Vec<Logger>>,
    console: Mutex<Option<Arc<Console>>>,
}

impl ProcessIo {
    /// Opens the three streams of a process without a terminal and starts to copy.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an address, [`Error::Io`] for a path.
    pub async fn open(
        stdio: &Stdio,
        config: &IoConfig,
        reaper: &Arc<Reaper>,
    ) -> Result<(Self, ChildStdio)> {
        let io = ProcessIo::default();
        let mut child = ChildStdio::null();
        if let Target::Path(path) = Target::parse(&stdio.stdin)? {
            child.stdin = io.input(&path, config)?;
        }
        let (out, err) = (Target::parse(&stdio.stdout)?, Target::parse(&stdio.stderr)?);
        if let Target::Binary { path, args } = &out {
            let ((out_read, out_write), (err_read, err_write)) = (pipe(config)?, pipe(config)?);
            let logger = Logger::start(reaper, path, args, config, (out_read, err_read)).await?;
            lock(&io.loggers).push(logger);
            (child.stdout, child.stderr) = (out_write.into(), err_write.into());
            return Ok((io, child));
        }
        let mut first = None;
        if out != Target::Null {
            let sink = open_sink(&out).await?;
            child.stdout = io.output(sink.clone(), config)?;
            first = Some(sink);
        }
        if err != Target::Null {
            // Two openings of one FIFO would be closed at different times.
            let sink = match first {
                Some(sink) if err == out => sink,
                _ => open_sink(&err).await?,
            };
            child.stderr = io.output(sink, config)?;
        }
        Ok((io, child))
    }

    /// Starts to copy between a terminal and the addresses.
    ///
    /// # Errors
    ///
    /// As [`ProcessIo::open`].
    pub async fn attach_console(
        &self,
        console: Console,
        stdio: &Stdio,
        config: &IoConfig,
        reaper: &Arc<Reaper>,
    ) -> Result<()> {
        let console = Arc::new(console);
        let sink = match Target::parse(&stdio.stdout)? {
            Target::Null => Sink::File(Arc::new(null()?)),
            Target::Binary { path, args } => {
                let ((out_read, out_write), (err_read, _)) = (pipe(config)?, pipe(config)?);
                let logger =
                    Logger::start(reaper, &path, &args, config, (out_read, err_read)).await?;
                lock(&self.loggers).push(logger);
                let write = watch_write(out_write).map_err(|e| Error::io("watch", path, e))?;
                Sink::Pipe(Arc::new(write))
            }
            target => open_sink(&target).await?,
        };
        if let Target::Path(path) = Target::parse(&stdio.stdin)? {
            let source = self.open_input(&path)?;
            let sink = Sink::Pipe(console.descriptor());
            // Not among the copies: a client that keeps its end open must not keep the drain
            // waiting. It goes on until the client ends it or the output has been delivered.
            let copy = tokio::spawn(async move {
                report("stdin", pump(&source, &sink).await);
            });
            *lock(&self.terminal_input) = Some(copy.abort_handle());
        }
        let source = console.descriptor();
        lock(&self.copies).spawn(async move {
            report("terminal", pump(&source, &sink).await);
            close_sink(sink).await;
        });
        *lock(&self.console) = Some(console);
        Ok(())
    }

    /// The terminal, if there is one.
    pub fn console(&self) -> Option<Arc<Console>> {
        lock(&self.console).clone()
    }

    /// Lets the input end once the client has closed it.
    pub fn close_stdin(&self) {
        *lock(&self.input_keeper) = None;
    }

    /// Waits until all output is delivered, at most `deadline`, then gives up
    /// the rest and ends the loggers.
    pub async fn drain(&self, deadline: Duration) {
        self.close_stdin();
        let mut copies = std::mem::take(&mut *lock(&self.copies));
        let delivered = async { while copies.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, delivered).await.is_err() {
            tracing::warn!(?deadline, "output still on its way was given up");
        }
        copies.shutdown().await;
        if let Some(input) = lock(&self.terminal_input).take() {
            input.abort();
        }
        *lock(&self.console) = None;
        let loggers = std::mem::take(&mut *lock(&self.loggers));
        for logger in loggers {
            logger.end(LOGGER_PATIENCE).await;
        }
    }

    fn input(&self, path: &Path, config: &IoConfig) -> Result<process::Stdio> {
        let source = self.open_input(path)?;
        let (read, write) = pipe(config)?;
        let sink = watch_write(write).map_err(|e| Error::io("watch", path, e))?;
        let sink = Sink::Pipe(Arc::new(sink));
        // Not among the copies: a client that never closes its end must not
        // keep the drain waiting. It ends with the process's end of the pipe.
        tokio::spawn(async move {
            let Sink::Pipe(pipe) = &sink else { return };
            tokio::select! {
                result = pump(&source, &sink) => report("stdin", result),
                () = broken(pipe) => {}
            }
        });
        Ok(read.into())
    }

    fn open_input(&self, path: &Path) -> Result<AsyncFd<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let read =
            open(path, flags, Mode::empty()).map_err(|e| Error::io("open stdin", path, e))?;
        if is_fifo(path) {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let keeper =
                open(path, flags, Mode::empty()).map_err(|e| Error::io("open stdin", path, e))?;
            *lock(&self.input_keeper) = Some(keeper);
        }
        let path = path.to_owned();
        match watch_read(read) {
            // Regular files and /dev/null cannot be watched; a pipe can.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => feed(&path),
            other => other.map_err(|e| Error::io("watch", path, e)),
        }
    }

    fn output(&self, sink: Sink, config: &IoConfig) -> Result<process::Stdio> {
        let (read, write) = pipe(config)?;
        let source = watch_read(read).map_err(|e| Error::io("watch", "output", e))?;
        lock(&self.copies).spawn(async move {
            report("output", pump(&source, &sink).await);
            close_sink(sink).await;
        });
        Ok(write.into())
    }
}

/// A pipe fed with what the file at `path` holds.
fn feed(path: &Path) -> Result<AsyncFd<OwnedFd>> {
    let io = |e: std::io::Error| Error::io("open stdin", path, e);
    let mut file = fs::File::open(path).map_err(io)?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| io(e.into()))?;
    tokio::task::spawn_blocking(move || {
        // A process that does not want its input closes the pipe.
        let _ = std::io::copy(&mut file, &mut fs::File::from(write));
    });
    watch_read(read).map_err(io)
}

async fn open_sink(target: &Target) -> Result<Sink> {
    let path = match target {
        Target::File(path) => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
            }
            let file = fs::OpenOptions::new().append(true).create(true).mode(0o640).open(path);
            return Ok(Sink::File(Arc::new(file.map_err(|e| Error::io("open", path, e))?)));
        }
        Target::Path(path) => path,
        Target::Null => return Ok(Sink::File(Arc::new(null()?))),
        Target::Binary { path, .. } => {
            let text = format!("logger {} can only serve both outputs", path.display());
            return Err(Error::InvalidArgument(text));
        }
    };
    if !is_fifo(path) {
        let flags = OFlags::NOCTTY.bits() as i32;
        let file = fs::OpenOptions::new().append(true).custom_flags(flags).open(path);
        return Ok(Sink::File(Arc::new(file.map_err(|e| Error::io("open", path, e))?)));
    }
    let first = await_reader(path).await?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fifo = open(path, flags, Mode::empty()).map_err(|e| Error::io("open", path, e))?;
    // Closed only now: a reader that saw the FIFO without any writer would take
    // that for the end of the output.
    drop(first);
    let fifo = watch_write(fifo).map_err(|e| Error::io("watch", path, e))?;
    Ok(Sink::Pipe(Arc::new(fifo)))
}

/// Waits for the client to open its end, but not forever: both ends are held
/// afterwards, and what nobody reads then fills the pipe and stops the writer.
/// Returns the descriptor that met the reader.
async fn await_reader(path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let until = tokio::time::Instant::now() + READER_DEADLINE;
    loop {
        match open(path, flags, Mode::empty()) {
            Err(Errno::NXIO) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(READER_PAUSE).await;
            }
            Ok(fifo) => return Ok(Some(fifo)),
            Err(Errno::NXIO) => return Ok(None),
            Err(e) => return Err(Error::io("open", path, e)),
        }
    }
}

/// Closing makes a FIFO's reader see the end, after it read what is in it.
async fn close_sink(sink: Sink) {
    drop(sink);
}

/// Resolves when the reader of a pipe is gone.
async fn broken(pipe: &AsyncFd<OwnedFd>) {
    while let Ok(mut ready) = pipe.ready(tokio::io::Interest::WRITABLE).await {
        if ready.ready().is_write_closed() {
            return;
        }
        ready.clear_ready_matching(tokio::io::Ready::WRITABLE);
    }
}

fn pipe(config: &IoConfig) -> Result<(OwnedFd, OwnedFd)> {
    let io = |e| Error::io("make pipe for", "stdio", e);
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(io)?;
    if config.uid != 0 || config.gid != 0 {
        let owner = (Some(Uid::from_raw(config.uid)), Some(Gid::from_raw(config.gid)));
        fchown(&read, owner.0, owner.1).map_err(io)?;
        fchown(&write, owner.0, owner.1).map_err(io)?;
    }
    Ok((read, write))
}

fn is_fifo(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo())
}

fn null() -> Result<fs::File> {
    let path = "/dev/null";
    fs::OpenOptions::new().write(true).open(path).map_err(|e| Error::io("open", path, e))
}

fn report(stream: &str, result: std::io::Result<u64>) {
    match result {
        Ok(size_bytes) => tracing::debug!(stream, size_bytes, "copied"),
        Err(error) => tracing::debug!(stream, %error, "copying ended"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long an output FIFO waits for its reader. Clients open theirs before
/// they ask for the process, so only a dead one takes this long.
const READER_DEADLINE: Duration = Duration::from_secs(3);

/// How often to look for the reader.
const READER_PAUSE: Duration = Duration::from_millis(5);

/// How long a logger has to end by itself once its inputs are closed.
const LOGGER_PATIENCE: Duration = Duration::from_secs(10);
