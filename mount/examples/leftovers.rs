//! Find what an interrupted program left mounted below a directory, and detach it.
//!
//! `leftovers DIR` lists; `leftovers DIR --detach`, as root, detaches. Nothing is
//! ever deleted.
#![allow(clippy::print_stdout, reason = "a program that talks to its user")]

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use crated_mount::{detach_recursive, holders, mountinfo};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let root = PathBuf::from(arguments.next().unwrap_or_else(|| "/tmp".to_owned()));
    let root = root.canonicalize()?;
    let text = fs::read("/proc/thread-self/mountinfo")?;
    for mount in mountinfo::parse(&text)? {
        if !mount.mount_point.starts_with(&root) {
            continue;
        }
        println!("{} of type {}", mount.mount_point.display(), mount.kind);
        for holder in holders(&mount.mount_point) {
            println!("  in use by {holder}");
        }
    }
    if arguments.next().as_deref() == Some("--detach") {
        detach_recursive(&root)?;
        println!("nothing is mounted below {} any more", root.display());
    }
    Ok(())
}
