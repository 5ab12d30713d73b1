//! Show a tree with other owners, without a single chown.
//!
//! `shift_owners DIR` as root lists DIR as a container would see it whose root
//! is user 100000; without an argument it makes a directory to show.
#![allow(clippy::print_stdout, reason = "a program that talks to its user")]

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crated_mount::{Error as MountError, Mount, TempMount};

fn main() -> Result<(), Box<dyn Error>> {
    let state = tempfile::tempdir()?;
    let state = state.path();
    let given = std::env::args().nth(1);
    let tree = match &given {
        Some(path) => PathBuf::from(path),
        None => {
            fs::create_dir_all(state.join("tree"))?;
            fs::write(state.join("tree/file"), "owned by root")?;
            state.join("tree")
        }
    };
    let shifted = Mount {
        kind: "bind".into(),
        source: tree.display().to_string(),
        options: ["rbind", "ro", "uidmap=0:100000:65536", "gidmap=0:100000:65536"]
            .map(Into::into)
            .into(),
        ..Mount::default()
    };
    match TempMount::attach(&[shifted], &state.join("mounts")) {
        Ok(view) => {
            list(&tree)?;
            list(view.path())?;
            view.close()?;
        }
        // A decision for the caller: copying with chown is the other way.
        Err(error @ MountError::Unsupported(_)) => println!("not here: {error}"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn list(dir: &Path) -> std::io::Result<()> {
    println!("{}:", dir.display());
    for entry in fs::read_dir(dir)?.take(10) {
        let entry = entry?;
        let data = entry.metadata()?;
        println!("  {:>6}:{:<6} {:?}", data.uid(), data.gid(), entry.file_name());
    }
    Ok(())
}
