use std::io::{Read, Write};

use crate::error::{Error, Result};
use crate::{Commit, Digest, Info, Ingest, Ingester, Provider, Writer};

/// Stores `bytes` durably under their sha256 digest. Already being there counts as success.
///
/// # Errors
///
/// As [`Ingester::writer`] and [`Writer::commit`], apart from [`Error::AlreadyExists`].
pub fn write_blob(
    store: &(impl Ingester + ?Sized),
    reference: &str,
    bytes: &[u8],
) -> Result<Digest> {
    let digest = Digest::of(bytes);
    let ingest = Ingest::new(reference).total(bytes.len() as u64).expected(digest.clone());
    let stored = store.writer(&ingest).and_then(|mut writer| {
        writer.truncate()?;
        writer.write_all(bytes).map_err(|source| write_failed(reference, source))?;
        writer.commit(&Commit::expecting(digest.clone()))
    });
    match stored {
        Ok(_) | Err(Error::AlreadyExists(_)) => Ok(digest),
        Err(error) => Err(error),
    }
}

/// Copies a stream into an open writer and commits it.
///
/// `source` must stand at the writer's offset. On an error of the source or the storage what
/// arrived stays for the next writer of the same reference.
///
/// # Errors
///
/// [`Error::Io`] for the source or the storage; otherwise as [`Writer::commit`].
pub fn copy(
    source: &mut (impl Read + ?Sized),
    mut writer: Box<dyn Writer>,
    commit: &Commit,
) -> Result<Info> {
    let mut buffer = vec![0; COPY_SIZE_BYTES];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let path = writer.status().reference.into();
                return Err(Error::Io { op: "read the source of ingest", path, source: error });
            }
        };
        if let Err(error) = writer.write_all(&buffer[..count]) {
            return Err(write_failed(&writer.status().reference, error));
        }
    }
    writer.commit(commit)
}

/// Whether `provider` holds `digest`, readable.
///
/// # Errors
///
/// As [`Provider::info`], apart from [`Error::NotFound`].
pub fn exists(provider: &(impl Provider + ?Sized), digest: &Digest) -> Result<bool> {
    match provider.info(digest) {
        Ok(_) => Ok(true),
        Err(Error::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn write_failed(reference: &str, source: std::io::Error) -> Error {
    Error::Io { op: "write to ingest", path: reference.into(), source }
}

/// Large enough that a system call per piece costs nothing, small enough to stay in cache.
const COPY_SIZE_BYTES: usize = 256 * 1024;
