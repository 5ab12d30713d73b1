//! Unpacks a layer, compressed or not, into a directory and prints its diff id.
//!
//! ```text
//! cargo run --example unpack -- <layer> <directory>
//! ```

use std::error::Error;
use std::fs::File;

use crated_snapshot::{Applier, ApplyOptions, Mount, TarApplier};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [layer, directory] = &arguments[..] else {
        return Err("usage: unpack <layer> <directory>".into());
    };
    std::fs::create_dir_all(directory)?;
    let mounts = [Mount {
        kind: "bind".into(),
        source: directory.clone(),
        target: String::new(),
        options: vec!["rbind".into(), "rw".into()],
    }];
    let options = ApplyOptions { sync_fs: true, ..ApplyOptions::default() };
    let applied = TarApplier::default().apply(&mut File::open(layer)?, &mounts, &options)?;
    show(&format!("{} ({} bytes)", applied.diff_id, applied.size_bytes));
    Ok(())
}

#[allow(clippy::print_stdout, reason = "this is a program")]
fn show(line: &str) {
    println!("{line}");
}
