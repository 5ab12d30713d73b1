//! Saves images of a registry as one archive, and lists what an archive holds.
//!
//! Usage: `archive save FILE REFERENCE...` or `archive list FILE`

use crated_distribution::archive::{ArchiveLimits, ArchiveReader, Contents, Export};
use crated_distribution::walk::WalkOptions;
use crated_distribution::{
    Hasher, Progress, Reference, RegistryOptions, RegistryResolver, Resolver as _, annotation,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["save", file, names @ ..] if !names.is_empty() => save(file, names).await,
        ["list", file] => list(file).await,
        _ => Err("usage: archive save FILE REFERENCE... | archive list FILE".into()),
    }
}

/// One archive per call; the images have to be in one repository, as one fetcher reads them all.
async fn save(file: &str, names: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    let resolver = RegistryResolver::new(RegistryOptions::new())?;
    let first: Reference = names[0].parse()?;
    let mut export = Export::new(WalkOptions::all());
    for name in names {
        let reference: Reference = name.parse()?;
        if reference.locator() != first.locator() {
            return Err(format!("{name} is in another repository than {}", names[0]).into());
        }
        let image = resolver.resolve(&reference).await?.descriptor;
        export.image(Some(name), &image);
    }
    let fetcher = resolver.fetcher(&first).await?;
    let mut file = tokio::fs::File::create(file).await?;
    export.write(&*fetcher, &mut file, &Progress::new()).await?;
    Ok(())
}

#[allow(clippy::print_stdout, reason = "it is what the example is for")]
async fn list(file: &str) -> Result<(), Box<dyn std::error::Error>> {
    let file = tokio::fs::File::open(file).await?;
    let mut archive = ArchiveReader::new(file, ArchiveLimits::default());
    while let Some(mut blob) = archive.next().await? {
        let mut hasher = Hasher::new(blob.algorithm());
        while let Some(bytes) = blob.chunk().await? {
            hasher.update(&bytes);
        }
        println!("{:>12} {}", blob.len_bytes(), blob.path());
        blob.stored(hasher.finish())?;
    }
    match archive.finish().await? {
        Contents::Oci(contents) => {
            for image in &contents.index.manifests {
                let name = image.annotations.get(annotation::IMAGE_NAME);
                println!("{} {}", image.digest, name.map_or("", String::as_str));
            }
        }
        Contents::Docker(images) => {
            for image in &images {
                println!("{} {}", image.config.digest, image.names.join(" "));
            }
        }
    }
    Ok(())
}
