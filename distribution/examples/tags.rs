//! Lists the tags of a repository.
//!
//! ```text
//! cargo run --example tags -- localhost:5000/team/app
//! ```

#![allow(clippy::print_stdout, reason = "it is what an example is for")]

use std::error::Error;

use crated_distribution::{RegistryOptions, RegistryResolver};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).ok_or("usage: tags <repository>")?;
    let registry = RegistryResolver::new(RegistryOptions::new())?;
    for tag in registry.tags(&name.parse()?).await? {
        println!("{tag}");
    }
    Ok(())
}
