//! Pulls an image for this machine into an OCI image layout.
//!
//! ```text
//! cargo run --example pull -- registry.example/library/redis:7 /tmp/layout
//! ```

#![allow(clippy::print_stdout, reason = "it is what an example is for")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use crated_distribution::walk::{WalkOptions, copy};
use crated_distribution::{
    DockerConfig, LayoutResolver, Only, Platform, Progress, Reference, RegistryOptions,
    RegistryResolver, Resolver as _,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: pull <reference> <directory>".into());
    };
    let reference: Reference = name.parse()?;
    let mut options = RegistryOptions::new();
    if let Some(logins) = DockerConfig::of_user(Duration::from_secs(20)) {
        options = options.with_credentials(logins);
    }
    let registry = RegistryResolver::new(options)?;
    let image = registry.resolve(&reference).await?.descriptor;
    let fetcher = Arc::from(registry.fetcher(&reference).await?);

    let layout = LayoutResolver::open(directory).await?;
    // Pinned, so that only the root gets the tag.
    let pinned = reference.with_digest(image.digest.clone());
    let pusher = layout.pusher(&pinned).await?;
    let progress = Progress::new();
    let mut watch = progress.watch();
    let best = WalkOptions::best(Only::new(&Platform::host()));
    let copied = copy(fetcher, &*pusher, &image, &best, &progress);
    tokio::pin!(copied);
    loop {
        tokio::select! {
            done = &mut copied => {
                done?;
                break;
            }
            () = tokio::time::sleep(Duration::from_millis(300)) => {
                for entry in watch.take() {
                    println!("{} {}/{}", entry.name, entry.done_bytes, entry.total_bytes);
                }
            }
        }
    }
    println!("{reference} is {}", image.digest);
    Ok(())
}
