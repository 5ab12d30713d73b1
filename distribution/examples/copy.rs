//! Copies an image, for all platforms, from one registry to another.
//!
//! ```text
//! cargo run --example copy -- localhost:5000/team/app:v1 localhost:5001/team/app:v1
//! ```

#![allow(clippy::print_stdout, reason = "it is what an example is for")]

use std::error::Error;
use std::sync::Arc;

use crated_distribution::walk::{WalkOptions, copy};
use crated_distribution::{Progress, Reference, RegistryOptions, RegistryResolver, Resolver as _};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(from), Some(to)) = (arguments.next(), arguments.next()) else {
        return Err("usage: copy <from> <to>".into());
    };
    let (from, to): (Reference, Reference) = (from.parse()?, to.parse()?);
    let registry = RegistryResolver::new(RegistryOptions::new())?;
    let image = registry.resolve(&from).await?.descriptor;
    let fetcher = Arc::from(registry.fetcher(&from).await?);
    let pusher = registry.pusher(&to.with_digest(image.digest.clone())).await?;
    let progress = Progress::new();
    copy(fetcher, &*pusher, &image, &WalkOptions::all(), &progress).await?;
    for entry in progress.snapshot() {
        println!("{:?} {} of {} bytes", entry.state, entry.name, entry.total_bytes);
    }
    Ok(())
}
