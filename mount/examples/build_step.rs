//! One step of a build tool: run a command on top of layers, keep what it wrote.
//!
//! `cargo run --example build_step` as root makes two layers of its own.
#![allow(clippy::print_stdout, reason = "a program that talks to its user")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crated_mount::{Mount, TempMount, escape_layer};

fn main() -> Result<(), Box<dyn Error>> {
    let state = tempfile::tempdir()?;
    let state = state.path();
    for dir in ["base/etc", "tools", "upper", "work"] {
        fs::create_dir_all(state.join(dir))?;
    }
    fs::write(state.join("base/etc/motd"), "from the base\n")?;
    fs::write(state.join("tools/compiler"), "#!/bin/sh\n")?;

    // Nearest layer first, as in every list of layers here.
    let layers = [state.join("tools"), state.join("base")];
    let step = overlay(&layers, &state.join("upper"), &state.join("work"));
    let tree = TempMount::attach(&[step], &state.join("mounts"))?;
    let status = Command::new("sh")
        .args(["-c", "cat etc/motd && echo built > result && rm compiler"])
        .current_dir(tree.path())
        .status()?;
    tree.close()?;

    println!("the step ended with {status}; as a layer, it wrote:");
    for entry in fs::read_dir(state.join("upper"))? {
        // `compiler` is here too: a character device says that it is deleted.
        println!("  {:?}", entry?.file_name());
    }
    // The scratch directory is deleted here. Everything in it is detached by now,
    // on every way out, so that cannot reach into a mount.
    Ok(())
}

fn overlay(layers: &[PathBuf], upper: &Path, work: &Path) -> Mount {
    let escaped = |path: &Path| escape_layer(&path.to_string_lossy());
    let layers: Vec<_> = layers.iter().map(|path| escaped(path)).collect();
    Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("workdir={}", escaped(work)),
            format!("upperdir={}", escaped(upper)),
            format!("lowerdir={}", layers.join(":")),
            // A step that is interrupted is run again, so nothing needs syncing.
            "volatile".into(),
        ],
        ..Mount::default()
    }
}
