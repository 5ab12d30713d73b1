//! The same layer unpacked by umoci, which applies layers as containerd does, in Go.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::layer::Layer;

/// An image of one layer, in a directory as the OCI lays images out.
#[derive(Debug)]
pub struct Image {
    layout: TempDir,
}

impl Image {
    /// The image of the gzip `layer`, whose uncompressed form is `plain`.
    ///
    /// # Errors
    ///
    /// When there is no room for it.
    pub fn create(layer: &Layer, plain: &Layer) -> io::Result<Self> {
        let layout = tempfile::Builder::new().prefix("crated-bench-").tempdir()?;
        let blobs = layout.path().join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let mut bytes = Vec::new();
        layer.open()?.read_to_end(&mut bytes)?;
        let (layer, layer_size) = store(&blobs, &bytes)?;
        bytes.clear();
        plain.open()?.read_to_end(&mut bytes)?;
        let diff_id = hex(&bytes);
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}},"history":[{{}}]}}"#
        );
        let (config, config_size) = store(&blobs, config.as_bytes())?;
        const TYPE: &str = "application/vnd.oci.image";
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{TYPE}.config.v1+json","digest":"sha256:{config}","size":{config_size}}},"layers":[{{"mediaType":"{TYPE}.layer.v1.tar+gzip","digest":"sha256:{layer}","size":{layer_size}}}]}}"#
        );
        let (manifest, manifest_size) = store(&blobs, manifest.as_bytes())?;
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{TYPE}.manifest.v1+json","digest":"sha256:{manifest}","size":{manifest_size},"annotations":{{"org.opencontainers.image.ref.name":"bench"}}}}]}}"#
        );
        fs::write(layout.path().join("index.json"), index)?;
        fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { layout })
    }

    /// Unpacks it, from the start of the program to its end.
    ///
    /// # Errors
    ///
    /// When umoci cannot be started or fails.
    pub fn unpack(&self, directory: &Path) -> io::Result<Duration> {
        let mut umoci = Command::new("umoci");
        umoci.args(["--log=error", "raw", "unpack", "--image"]);
        umoci.arg(format!("{}:bench", self.layout.path().display()));
        umoci.arg(directory.join("rootfs")).stdin(Stdio::null()).stdout(Stdio::null());
        let start = Instant::now();
        let status = umoci.status()?;
        let time = start.elapsed();
        if !status.success() {
            return Err(io::Error::other(format!("umoci: {status}")));
        }
        Ok(time)
    }
}

/// The name and the size of a blob.
fn store(blobs: &Path, bytes: &[u8]) -> io::Result<(String, usize)> {
    let name = hex(bytes);
    fs::write(blobs.join(&name), bytes)?;
    Ok((name, bytes.len()))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
