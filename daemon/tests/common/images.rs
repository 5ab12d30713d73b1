//! Images made for tests, put into a registry of this process.
#![allow(dead_code, unreachable_pub, reason = "every test uses a part of it")]

use std::io::Write as _;

use crated_distribution::testsuite::MemoryRegistry;
use crated_distribution::{Descriptor, Digest};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A layer: its compressed bytes and the digest of the tar inside.
pub struct Layer {
    pub gzip: Vec<u8>,
    pub diff_id: Digest,
}

impl Layer {
    /// A layer of files with their modes and contents.
    pub fn of(files: &[(&str, u32, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, mode, data) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(*mode);
            header.set_mtime(1_000_000_000);
            builder.append_data(&mut header, path, *data).unwrap();
        }
        Self::of_tar(&builder.into_inner().unwrap())
    }

    /// A layer of a finished tar.
    pub fn of_tar(tar: &[u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(tar).unwrap();
        Self { gzip: encoder.finish().unwrap(), diff_id: Digest::of(tar) }
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> Value {
        json!({"mediaType": LAYER, "digest": Digest::of(&self.gzip).as_str(), "size": self.gzip.len()})
    }
}

/// The configuration of an image of `layers` for `architecture`.
pub fn config(architecture: &str, layers: &[&Layer]) -> Vec<u8> {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    json!({
        "architecture": architecture, "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

/// The manifest of an image.
pub fn manifest(config: &[u8], layers: &[Value]) -> Vec<u8> {
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {
            "mediaType": CONFIG, "digest": Digest::of(config).as_str(), "size": config.len(),
        },
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}

/// Puts a whole image into the registry as `repository:tag`.
pub fn put(
    registry: &MemoryRegistry,
    repository: &str,
    tag: Option<&str>,
    architecture: &str,
    layers: &[&Layer],
) -> Descriptor {
    let config = config(architecture, layers);
    let descriptors: Vec<Value> = layers.iter().map(|layer| layer.descriptor()).collect();
    for layer in layers {
        registry.put_blob(repository, layer.gzip.clone());
    }
    let document = manifest(&config, &descriptors);
    registry.put_blob(repository, config);
    registry.put_manifest(repository, tag, MANIFEST, document)
}

/// The architecture of this machine, as images name it.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
