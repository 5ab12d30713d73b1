//! A disk that cannot take what the page cache has promised.
//!
//! The image of the disk is larger than the memory it lies in, so writes fail long before the
//! filesystem on it is full. Needs root and `mkfs.ext4`.

use std::io::Write;
use std::path::PathBuf;

use crated_content::local::Backend;
use crated_content::write_blob;
use crated_content::{Commit, Digest, Error, Ingest, Ingester, LocalStore, Provider, read_blob};
use tempfile::TempDir;

use crate::power_cut::command;
use crate::skip;
use crate::workload::bytes;

#[test]
fn bytes_the_disk_lost_are_reported_and_never_become_a_blob() {
    for backend in [Backend::Auto, Backend::Buffered] {
        let Some(disk) = FailingDisk::new() else { return };
        let store = LocalStore::builder().backend(backend).open(disk.path("store")).unwrap();
        let kept = write_blob(&store, "kept", b"before the disk failed").unwrap();

        let large = bytes(7, LARGE_SIZE_BYTES);
        let digest = Digest::of(&large);
        let stored = store.writer(&Ingest::new("large")).and_then(|mut writer| {
            writer.write_all(&large).map_err(|source| Error::Io {
                op: "write",
                path: "large".into(),
                source,
            })?;
            writer.commit(&Commit::expecting(digest.clone()))
        });

        let error = stored.expect_err("more was acknowledged than the disk holds");
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert!(matches!(store.info(&digest), Err(Error::NotFound(_))));
        assert_eq!(read_blob(&store, &kept, 100).unwrap(), b"before the disk failed");
    }
}

/// An ext4 on a loop device over a file in too little memory.
struct FailingDisk {
    dir: TempDir,
    device: String,
}

impl FailingDisk {
    /// `None`, with a message, where the means are missing.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("a failing disk needs root, for mounting");
            return None;
        }
        if std::process::Command::new("mkfs.ext4").arg("-V").output().is_err() {
            skip("a failing disk needs mkfs.ext4");
            return None;
        }
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut disk = Self { dir, device: String::new() };
        let (memory, mounted) = (disk.path("memory"), disk.path("disk"));
        for path in [&memory, &mounted] {
            std::fs::create_dir(path).unwrap();
        }
        let (memory, mounted) = (memory.to_str().unwrap(), mounted.to_str().unwrap());
        command(&["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", memory]).unwrap();
        let image = format!("{memory}/disk.img");
        std::fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        let lazily = "lazy_itable_init=1,lazy_journal_init=1";
        command(&["mkfs.ext4", "-q", "-J", "size=4", "-E", lazily, &image]).unwrap();
        let device = command(&["losetup", "--find", "--show", &image]).unwrap();
        disk.device = device.trim().to_owned();
        command(&["mount", "-o", "noatime", &disk.device, mounted]).unwrap();
        Some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        match name {
            "store" => self.dir.path().join("disk/store"),
            _ => self.dir.path().join(name),
        }
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let (memory, mounted) = (self.path("memory"), self.path("disk"));
        // Whatever was mounted: this runs after a failure half-way, too.
        let _ = command(&["umount", "-l", mounted.to_str().unwrap()]);
        if !self.device.is_empty() {
            let _ = command(&["losetup", "-d", &self.device]);
        }
        let _ = command(&["umount", "-l", memory.to_str().unwrap()]);
    }
}

/// Twice what the memory holds, and a quarter of what the filesystem thinks it has.
const LARGE_SIZE_BYTES: usize = 64 << 20;
