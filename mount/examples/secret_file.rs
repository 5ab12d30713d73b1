//! A secret for one step: a file in memory, bound read-only into a root
//! filesystem that nobody trusts, and gone afterwards.
//!
//! Run as root; it makes a root filesystem of its own to play with.
#![allow(clippy::print_stdout, reason = "a program that talks to its user")]

use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;

use crated_mount::{Mount, TempMount, attach_all, detach_recursive};

fn main() -> Result<(), Box<dyn Error>> {
    let state = tempfile::tempdir()?;
    let rootfs = state.path().join("rootfs");
    fs::create_dir_all(rootfs.join("run/secrets"))?;
    fs::write(rootfs.join("run/secrets/token"), "")?;
    // An image may hold a link like this, to have the secret end up elsewhere.
    symlink("/run/secrets", rootfs.join("secrets"))?;

    let memory = Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        options: vec!["mode=0700".into(), "size=64k".into()],
        ..Mount::default()
    };
    let memory = TempMount::attach(&[memory], &state.path().join("memory"))?;
    fs::write(memory.path().join("token"), "hunter2")?;

    let secret = Mount {
        kind: "bind".into(),
        source: memory.path().join("token").display().to_string(),
        // Resolved inside the root filesystem, links and all.
        target: "/secrets/token".into(),
        options: ["bind", "ro", "nosuid", "nodev", "noexec", "private"].map(Into::into).into(),
    };
    attach_all(&[secret], &rootfs)?;

    let seen = rootfs.join("run/secrets/token");
    let read = fs::read_to_string(&seen);
    let written = fs::write(&seen, "stolen");
    // Before any `?`: a mount without a TempMount is ours to detach.
    detach_recursive(&rootfs)?;
    memory.close()?;

    println!("the step reads {:?}", read?);
    println!("writing it is refused: {:?}", written.map_err(|error| error.kind()));
    println!("afterwards it reads {:?}", fs::read_to_string(&seen)?);
    Ok(())
}
