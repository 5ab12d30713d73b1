//! The bytes of one blob, from the wire into the store and on to whoever unpacks them.
//!
//! ```text
//!  async: body ──queue──► thread: write + sha256 ──queue──► thread: inflate ──► thread: apply
//! ```
//!
//! Both queues are short, so the bytes in flight are bounded whatever the blob's size: the slowest
//! stage sets the pace of all. Pieces are passed on, never copied.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use crated_content::{Commit, Store, Writer};
use tokio::sync::mpsc;

use super::{Error, Result};

/// Pieces in a queue. A piece is what one read of a socket brings, at most some hundred KiB.
pub(super) const QUEUE_LEN_MAX: usize = 8;

/// Where the bytes go besides the store.
pub(super) struct Tee(mpsc::Sender<Bytes>);

/// The other end: the bytes of the blob as they arrive.
pub(super) struct Arriving {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
    ended: bool,
}

/// A way from the store's thread to the one that unpacks.
pub(super) fn tee() -> (Tee, Arriving) {
    let (sender, pieces) = mpsc::channel(QUEUE_LEN_MAX);
    (Tee(sender), Arriving { pieces, current: Bytes::new(), ended: false })
}

impl Read for Arriving {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.pieces.blocking_recv() {
                // An empty piece says that the blob is whole: a closed queue alone does not.
                Some(piece) if piece.is_empty() => self.ended = true,
                Some(piece) => self.current = piece,
                None => {
                    let reason = "the blob did not arrive whole";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
                }
            }
        }
        let length = self.current.len().min(into.len());
        into[..length].copy_from_slice(&self.current[..length]);
        self.current.advance(length);
        Ok(length)
    }
}

/// Writes what arrives; commits when the body was whole, keeps it for later when it was not.
/// Whoever listens at the tee may go away: the blob is stored all the same.
pub(super) fn receive(
    store: &dyn Store,
    mut writer: Box<dyn Writer>,
    key: &str,
    mut queue: mpsc::Receiver<Bytes>,
    commit: &Commit,
    mut tee: Option<Tee>,
) -> Result<()> {
    while let Some(piece) = queue.blocking_recv() {
        if piece.is_empty() {
            // Whoever unpacks goes on while the blob is verified and made durable; what comes of
            // it counts only if both succeed.
            if let Some(Tee(sender)) = tee {
                let _ = sender.blocking_send(piece);
            }
            return finish(store, writer, key, commit);
        }
        write(&mut *writer, key, &piece)?;
        tee = tee.filter(|Tee(sender)| sender.blocking_send(piece).is_ok());
    }
    Ok(())
}

pub(super) fn write(writer: &mut dyn Writer, key: &str, bytes: &[u8]) -> Result<()> {
    writer.write_all(bytes).map_err(|source| {
        Error::content(key)(crated_content::Error::Io { op: "write", path: key.into(), source })
    })
}

/// Commits. Bytes that turn out to be wrong are dropped, so that nobody resumes from them.
pub(super) fn finish(
    store: &dyn Store,
    writer: Box<dyn Writer>,
    key: &str,
    commit: &Commit,
) -> Result<()> {
    use crated_content::Error::{AlreadyExists, DigestMismatch, SizeMismatch};
    match writer.commit(commit) {
        Ok(_) | Err(AlreadyExists(_)) => Ok(()),
        Err(error @ (DigestMismatch { .. } | SizeMismatch { .. })) => {
            if let Err(left) = store.abort(key) {
                tracing::warn!(ingest = key, error = %left, "wrong bytes were not dropped");
            }
            Err(Error::content(key)(error))
        }
        Err(error) => Err(Error::content(key)(error)),
    }
}

/// The same for bytes whose digest may be known only now: then that digest.
pub(super) fn receive_any(
    store: &dyn Store,
    mut writer: Box<dyn Writer>,
    key: &str,
    mut queue: mpsc::Receiver<Bytes>,
    commit: &Commit,
) -> Result<Option<crated_content::Digest>> {
    while let Some(piece) = queue.blocking_recv() {
        if piece.is_empty() {
            let digest = writer.digest().map_err(Error::content(key))?;
            finish(store, writer, key, commit)?;
            return Ok(Some(digest));
        }
        write(&mut *writer, key, &piece)?;
    }
    Ok(None)
}
