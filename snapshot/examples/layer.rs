//! Runs a command in a fresh snapshot and writes what it changed as a layer.
//!
//! ```text
//! cargo run --example layer -- <state dir> <layer.tar.gz> <command> [<argument>...]
//! ```
//!
//! The command runs with the snapshot as its working directory. Needs root,
//! because it mounts.

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::process::Command;

use crated_mount::TempMount;
use crated_snapshot::{
    CommitOptions, Compression, DiffOptions, Differ, Key, Labels, Name, OverlayOptions,
    OverlaySnapshotter, Snapshotter, WalkingDiffer,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state, layer, command, rest @ ..] = &arguments[..] else {
        return Err("usage: layer <state dir> <layer.tar.gz> <command> [<argument>...]".into());
    };
    let state = Path::new(state);
    let root = state.join("overlay");
    let snapshots = OverlaySnapshotter::open(OverlayOptions { root, ..Default::default() })?;
    let unique = format!("{}-{}", std::process::id(), snapshots.root().display());
    let key = Key::new(format!("work {unique}"))?;
    let mounts = snapshots.prepare(&key, None, &Labels::new())?;

    let mounted = TempMount::attach(&mounts, &state.join("mounts"))?;
    let status = Command::new(command).args(rest).current_dir(mounted.path()).status()?;
    mounted.close()?;
    if !status.success() {
        snapshots.remove(key.as_str())?;
        return Err(format!("{command} failed: {status}").into());
    }

    let out = BufWriter::new(File::create(layer)?);
    let options = DiffOptions { compression: Compression::Gzip, source_date_epoch: None };
    let differ = WalkingDiffer::new(state.join("mounts"));
    let diffed = differ.diff(&[], &mounts, &mut { out }, &options)?;
    snapshots.commit(
        &Name::new(format!("{} {unique}", diffed.diff_id))?,
        &key,
        &CommitOptions::default(),
    )?;
    show(&format!("diff id {}", diffed.diff_id));
    show(&format!("digest  {} ({} bytes)", diffed.digest, diffed.size_bytes));
    Ok(())
}

#[allow(clippy::print_stdout, reason = "this is a program")]
fn show(line: &str) {
    println!("{line}");
}
