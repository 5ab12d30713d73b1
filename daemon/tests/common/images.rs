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

    /// A layer of entries of several kinds.
    pub fn of_entries(entries: &[Entry<'_>]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        for entry in entries {
            let mut header = tar::Header::new_ustar();
            header.set_mtime(1_000_000_000);
            match entry {
                Entry::Dir(path, mode) => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    builder.append_data(&mut header, path, &[][..]).unwrap();
                }
                Entry::File(path, data) => {
                    header.set_size(data.len() as u64);
                    header.set_mode(0o644);
                    builder.append_data(&mut header, path, *data).unwrap();
                }
                Entry::Link(path, target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    builder.append_link(&mut header, path, target).unwrap();
                }
            }
        }
        Self::of_tar(&builder.into_inner().unwrap())
    }

    /// A layer whose files are not worth compressing.
    pub fn stored(files: &[(&str, u32, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, mode, data) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(*mode);
            builder.append_data(&mut header, path, *data).unwrap();
        }
        let tar = builder.into_inner().unwrap();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
        encoder.write_all(&tar).unwrap();
        Self { gzip: encoder.finish().unwrap(), diff_id: Digest::of(&tar) }
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> Value {
        json!({"mediaType": LAYER, "digest": Digest::of(&self.gzip).as_str(), "size": self.gzip.len()})
    }
}

/// What a layer may hold.
pub enum Entry<'e> {
    Dir(&'e str, u32),
    File(&'e str, &'e [u8]),
    Link(&'e str, &'e str),
}

/// Bytes that nothing compresses, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
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
