//! Adopts the namespace of a running process, shows who holds it, and what a
//! restart has to tell apart: live, unmounted and missing pins.
//!
//! `unshare -n -m cargo run --example adopt`

#![allow(clippy::print_stdout, reason = "an example shows what it did")]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use crated_netns::{DeleteOpts, Error, NetnsRoot, Propagation, Source};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join("crated-netns-adopt");
    let root = NetnsRoot::open(dir, Propagation::Private)?;
    let mut process = Command::new("unshare").args(["--net", "sleep", "60"]).spawn()?;
    // The program needs a moment to move into its namespace.
    std::thread::sleep(Duration::from_millis(200));
    let theirs = root.adopt(&"theirs".parse()?, Source::Pid(process.id() as i32))?;
    println!("adopted {:?}", theirs.id());
    for holder in theirs.holders()? {
        println!("held by {} ({}), {:?}", holder.pid, holder.command, holder.kind);
    }
    match theirs.delete(&DeleteOpts::default()) {
        Err(error @ Error::InUse { .. }) => println!("refused: {error}"),
        other => println!("unexpected: {other:?}"),
    }
    process.kill()?;
    process.wait()?;

    // What a daemon does after a restart: list, compare, sweep the unknown.
    for pin in root.list()? {
        println!("{} is {}", pin.name, pin.state);
    }
    let report = root.sweep(&BTreeSet::new(), Duration::ZERO)?;
    println!("swept {:?}", report.removed);
    Ok(())
}
