//! Reading, inflating, hashing and unpacking side by side.
//!
//! ```text
//!  caller: read + inflate ──► layer-hash: diff id ──► layer-apply: unpack
//!      ▲                                                   │
//!      └──────────────────── buffers ──────────────────────┘
//! ```
//!
//! The calling thread owns the reader. Buffers go round in a fixed pool, so a slow stage stops the
//! others, and memory is the same whatever the layer's size.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use sha2::{Digest, Sha256};

use crate::diff::{
    Applied, ApplyOptions, Compression, RATIO_FREE_BYTES, SNIFF_BYTES, Target, digest_string,
};
use crate::error::{Error, Result};

/// Buffers in the pool: three megabytes bridge the pauses of a writeback.
const BUFFERS: usize = 12;
const BUFFER_BYTES: usize = 256 << 10;

/// What is read of the compressed stream at once.
const INPUT_BYTES: usize = 128 << 10;

/// A full buffer, an empty one at the end, or what went wrong.
type Piece = io::Result<Vec<u8>>;

/// Unpacks a layer whose compression its first bytes tell.
pub(crate) fn apply(
    layer: &mut dyn Read,
    target: &Target,
    options: &ApplyOptions,
) -> Result<Applied> {
    let mut head = [0; SNIFF_BYTES];
    let filled =
        read_full(layer, &mut head).map_err(|source| Error::Stream { op: "read", source })?;
    let compression = Compression::detect(&head[..filled]);
    let mut layer = (&head[..filled]).chain(layer);

    let (full_tx, full_rx) = sync_channel(BUFFERS);
    let (hashed_tx, hashed_rx) = sync_channel(BUFFERS);
    let (free_tx, free_rx) = channel();
    for _ in 0..BUFFERS {
        // Both ends are here: this cannot fail.
        let _ = free_tx.send(Vec::new());
    }
    std::thread::scope(|scope| {
        let unpacker = spawn(scope, "layer-apply", move || {
            let mut pipe = Pipe { full: hashed_rx, free: free_tx, current: Vec::new(), at: 0 };
            super::unpack_tar(&mut pipe, target, options)
        })?;
        let hasher = spawn(scope, "layer-hash", move || hash(&full_rx, &hashed_tx))?;
        inflate(&mut layer, compression, options, &full_tx, &free_rx);
        drop((full_tx, free_rx));
        let diff_id = join(hasher);
        let size_bytes = join(unpacker)?;
        Ok(Applied { diff_id, size_bytes })
    })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, work)
        .map_err(|e| Error::io("spawn", format!("thread {name}"), e))
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Hashes what passes, until the end or until nobody listens any more.
fn hash(full: &Receiver<Piece>, hashed: &SyncSender<Piece>) -> String {
    let mut hasher = Sha256::new();
    for piece in full {
        if let Ok(buffer) = &piece {
            hasher.update(buffer);
        }
        if hashed.send(piece).is_err() {
            break;
        }
    }
    digest_string(&hasher.finalize())
}

/// Inflates until the end, an error, or until nobody listens any more. Errors
/// travel with the data, so that they arrive where they belong.
fn inflate(
    layer: &mut dyn Read,
    compression: Compression,
    options: &ApplyOptions,
    full: &SyncSender<Piece>,
    free: &Receiver<Vec<u8>>,
) {
    let compressed = Cell::new(0);
    let input = BufReader::with_capacity(INPUT_BYTES, Counted { inner: layer, count: &compressed });
    let mut decoder = match compression.decoder(input) {
        Ok(decoder) => decoder,
        Err(error) => return drop(full.send(Err(error))),
    };
    let mut inflated = 0_u64;
    while let Ok(mut buffer) = free.recv() {
        buffer.resize(BUFFER_BYTES, 0);
        let result = read_full(&mut *decoder, &mut buffer).and_then(|length| {
            inflated += length as u64;
            if compression != Compression::None {
                check_ratio(inflated, compressed.get(), options)?;
            }
            buffer.truncate(length);
            Ok(buffer)
        });
        let last = !matches!(&result, Ok(buffer) if !buffer.is_empty());
        if full.send(result).is_err() || last {
            return;
        }
    }
}

fn check_ratio(inflated: u64, compressed: u64, options: &ApplyOptions) -> io::Result<()> {
    let max = options.ratio_max;
    if inflated > RATIO_FREE_BYTES && inflated / compressed.max(1) > max {
        let limit = "uncompressed bytes per compressed byte";
        return Err(io::Error::other(Error::LimitExceeded { limit, max }));
    }
    Ok(())
}

/// Fills `buffer` unless the reader ends first; then how much of it is filled.
fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The unpacking thread's end of the pool.
struct Pipe {
    full: Receiver<Piece>,
    free: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            let next = match self.full.recv() {
                Ok(next) => next?,
                // An empty buffer or an error was the last word before.
                Err(_) => return Ok(0),
            };
            let used = std::mem::replace(&mut self.current, next);
            self.at = 0;
            // The first one is a placeholder, and the inflater may have ended.
            if used.capacity() > 0 {
                let _ = self.free.send(used);
            }
        }
        let rest = &self.current[self.at..];
        let length = rest.len().min(into.len());
        into[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}

struct Counted<'a> {
    inner: &'a mut dyn Read,
    count: &'a Cell<u64>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count.set(self.count.get() + length as u64);
        Ok(length)
    }
}
