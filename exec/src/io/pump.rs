use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    pipe::{SpliceFlags, splice},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Most bytes moved at once, the usual capacity of a pipe.
const CHUNK_BYTES: usize = 64 << 10;

/// Buffer where splice does not work: terminals and files.
const BUFFER_BYTES: usize = 16 << 10;

/// Where a pump writes.
#[derive(Clone, Debug)]
pub(crate) enum Sink {
    /// A FIFO, pipe or terminal; it may be full.
    Pipe(Arc<AsyncFd<OwnedFd>>),
    /// A regular file or a device that never makes anyone wait.
    File(Arc<File>),
}

/// Watches a descriptor for input.
pub(crate) fn watch_read(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    set_nonblocking(&fd)?;
    crate::sys::watch(fd, Interest::READABLE)
}

/// Watches a descriptor for room.
pub(crate) fn watch_write(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    set_nonblocking(&fd)?;
    crate::sys::watch(fd, Interest::WRITABLE)
}

/// Watches a descriptor for both.
pub(crate) fn watch_read_write(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    set_nonblocking(&fd)?;
    crate::sys::watch(fd, Interest::READABLE | Interest::WRITABLE)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = fcntl_getfl(fd)?;
    Ok(fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// Moves bytes until the source ends. Returns how many, unless writing fails.
pub(crate) async fn pump(source: &AsyncFd<OwnedFd>, sink: &Sink) -> io::Result<u64> {
    match sink {
        Sink::Pipe(sink) => match pump_splice(source, sink).await {
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                pump_copy(source, &Sink::Pipe(Arc::clone(sink))).await
            }
            other => other,
        },
        Sink::File(_) => pump_copy(source, sink).await,
    }
}

/// Between pipes nothing is copied. Fails with EINVAL, before moving
/// anything, where one side is not a pipe.
async fn pump_splice(source: &AsyncFd<OwnedFd>, sink: &AsyncFd<OwnedFd>) -> io::Result<u64> {
    let mut moved = 0;
    loop {
        let mut readable = source.readable().await?;
        match splice(source, None, sink, None, CHUNK_BYTES, SpliceFlags::NONBLOCK) {
            Ok(0) => return Ok(moved),
            Ok(size) => moved += size as u64,
            Err(Errno::AGAIN) if has_input(source) => {
                let mut writable = sink.writable().await?;
                if !has_room(sink) {
                    writable.clear_ready();
                }
            }
            Err(Errno::AGAIN) => readable.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn pump_copy(source: &AsyncFd<OwnedFd>, sink: &Sink) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut moved = 0;
    loop {
        let mut readable = source.readable().await?;
        let size = match rustix::io::read(source.get_ref(), &mut buffer[..]) {
            // A terminal nobody has open on the other side says EIO.
            Ok(0) | Err(Errno::IO) => return Ok(moved),
            Ok(size) => size,
            Err(Errno::AGAIN) => {
                readable.clear_ready();
                continue;
            }
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        write_all(sink, &buffer[..size]).await?;
        moved += size as u64;
    }
}

async fn write_all(sink: &Sink, mut bytes: &[u8]) -> io::Result<()> {
    let fd = match sink {
        Sink::File(file) => return (&**file).write_all(bytes),
        Sink::Pipe(fd) => fd,
    };
    while !bytes.is_empty() {
        let mut writable = fd.writable().await?;
        match rustix::io::write(fd.get_ref(), bytes) {
            Ok(size) => bytes = &bytes[size..],
            Err(Errno::AGAIN) => writable.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn has_input(fd: &AsyncFd<OwnedFd>) -> bool {
    polls(fd, PollFlags::IN)
}

fn has_room(fd: &AsyncFd<OwnedFd>) -> bool {
    polls(fd, PollFlags::OUT)
}

/// Whether the descriptor is ready now; a hang-up counts, as a call would tell.
pub(super) fn polls(fd: &AsyncFd<OwnedFd>, flags: PollFlags) -> bool {
    let mut set = [PollFd::from_borrowed_fd(fd.get_ref().as_fd(), flags)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut set, Some(&now)), Ok(ready) if ready > 0)
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[tokio::test]
    async fn a_slow_reader_gets_every_byte() {
        let (from, into) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (out, sink) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let writer = std::thread::spawn(move || {
            let block: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
            let mut file = File::from(into);
            (0..4).for_each(|_| file.write_all(&block).unwrap());
        });
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut file = File::from(out);
            io::Read::read_to_end(&mut file, &mut bytes).unwrap();
            bytes
        });
        let source = watch_read(from).unwrap();
        let sink = Sink::Pipe(Arc::new(watch_write(sink).unwrap()));
        assert_eq!(pump(&source, &sink).await.unwrap(), 4 << 20);
        drop(sink);
        writer.join().unwrap();
        let bytes = reader.join().unwrap();
        assert_eq!(bytes.len(), 4 << 20);
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (at % 256) as u8));
    }

    #[tokio::test]
    async fn a_reader_that_leaves_ends_the_pump_with_an_error() {
        let (from, into) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (out, sink) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(out);
        rustix::io::write(&into, b"x").unwrap();
        let source = watch_read(from).unwrap();
        let sink = Sink::Pipe(Arc::new(watch_write(sink).unwrap()));
        let error = pump(&source, &sink).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
