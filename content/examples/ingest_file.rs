//! Ingests a file, resuming an interrupted attempt, and reads it back.
//!
//! Run with `cargo run --example ingest_file [FILE [STORE]]`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use crated_content::{
    Algorithm, Commit, Error, Hasher, Ingest, Ingester, LocalStore, Provider, copy, reader,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let path = match arguments.next() {
        Some(path) => path,
        None => std::env::current_exe()?,
    };
    let scratch = tempfile::tempdir()?;
    let root = arguments.next().unwrap_or_else(|| scratch.path().join("store"));

    let store = LocalStore::open(root)?;
    let mut file = File::open(&path)?;
    let ingest = Ingest::new(path.display().to_string()).total(file.metadata()?.len());
    let writer = store.writer(&ingest)?;
    // Not 0 when an earlier attempt was interrupted: only the rest is copied.
    file.seek(SeekFrom::Start(writer.status().offset))?;
    let digest = match copy(&mut file, writer, &Commit::default()) {
        Ok(info) => info.digest,
        Err(Error::AlreadyExists(digest)) => digest,
        Err(error) => return Err(error.into()),
    };

    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut blob = reader(store.reader(&digest)?);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = blob.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    hasher.verify(&digest)?;
    writeln!(std::io::stdout(), "{digest} {} bytes", hasher.size_bytes())?;
    Ok(())
}
