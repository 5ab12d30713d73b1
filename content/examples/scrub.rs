//! Reads through a store, sets damaged blobs aside and says which have to be fetched again.
//!
//! Run with `cargo run --example scrub [STORE]`; without a store one is made and damaged.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crated_content::local::Scrub;
use crated_content::{LocalStore, write_blob};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let store = match std::env::args_os().nth(1) {
        Some(root) => LocalStore::open(PathBuf::from(root))?,
        None => damaged_store(scratch.path())?,
    };

    // Slow enough to leave the disk to others.
    let scrub = Scrub { bytes_per_second: Some(50 << 20) };
    let report = store.scrub(&scrub, &mut |_| ControlFlow::Continue(()))?;

    let mut out = std::io::stdout();
    writeln!(out, "{} sound, {} bytes read", report.sound, report.size_bytes)?;
    for damage in report.damaged {
        writeln!(out, "fetch again: {}: {}", damage.digest, damage.reason)?;
    }
    Ok(())
}

fn damaged_store(root: &Path) -> Result<LocalStore, Box<dyn std::error::Error>> {
    let store = LocalStore::open(root)?;
    write_blob(&store, "sound", b"sound")?;
    let digest = write_blob(&store, "damaged", b"damaged")?;
    let path = root.join("blobs/sha256").join(digest.hex());
    std::fs::remove_file(&path)?;
    std::fs::write(&path, b"dama9ed")?;
    Ok(store)
}
