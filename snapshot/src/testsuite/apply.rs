//! Promises of [`Applier`].
#![allow(missing_docs, reason = "each promise is its name")]
#![allow(clippy::missing_panics_doc, reason = "a broken promise panics")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crated_mount::Mount;
use sha2::{Digest, Sha256};

use crate::diff::{Applied, Applier, ApplyOptions, Compression, digest_string};
use crate::error::{Error, Result};
use crate::testsuite::{Item, LayerBuilder, TestDir};

/// A writable bind of a directory.
fn bind(path: &Path) -> Vec<Mount> {
    vec![Mount {
        kind: "bind".to_owned(),
        source: path.display().to_string(),
        target: String::new(),
        options: vec!["rbind".to_owned(), "rw".to_owned()],
    }]
}

fn apply(applier: &dyn Applier, layer: &[u8], to: &Path) -> Result<Applied> {
    applier.apply(&mut &layer[..], &bind(to), &ApplyOptions::default())
}

pub fn every_kind_of_entry_is_made(applier: &dyn Applier) {
    let temp = TestDir::new();
    let root = temp.path();
    let node =
        |kind, name, device| Item { kind, name, device, mode: 0o600, uid: 7, ..Item::default() };
    let layer = LayerBuilder::new()
        .dir("dir/")
        .item(&Item {
            name: b"dir/file",
            data: b"text",
            mode: 0o4711,
            uid: 1000,
            gid: 1001,
            ..Item::default()
        })
        .hard_link("hard", "dir/file")
        .symlink("soft", "/dir/file")
        .item(&node(b'3', b"char", (1, 3)))
        .item(&node(b'4', b"block", (7, 200)))
        .item(&node(b'6', b"fifo", (0, 0)))
        .pax(&[("mtime", b"1234567890.123456789"), ("SCHILY.xattr.user.k", b"v")])
        .file("extended", b"")
        .finish();
    apply(applier, &layer, root).unwrap();

    let file = fs::metadata(root.join("dir/file")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o4711, 1000, 1001));
    assert_eq!(fs::read(root.join("dir/file")).unwrap(), b"text");
    assert_eq!(fs::metadata(root.join("hard")).unwrap().ino(), file.ino());
    assert_eq!(fs::read_link(root.join("soft")).unwrap(), Path::new("/dir/file"));
    let kind = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert!(kind("char").file_type().is_char_device());
    assert_eq!(kind("char").rdev(), rustix::fs::makedev(1, 3));
    assert!(kind("block").file_type().is_block_device());
    assert_eq!(kind("block").rdev(), rustix::fs::makedev(7, 200));
    assert!(kind("fifo").file_type().is_fifo());
    assert_eq!((kind("fifo").uid(), kind("fifo").mode() & 0o7777), (7, 0o600));
    let extended = kind("extended");
    assert_eq!((extended.mtime(), extended.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!(kind("soft").mtime(), 1_000_000_000);
}

pub fn the_diff_id_covers_everything(applier: &dyn Applier) {
    for trailing in [&b""[..], &[0; 8192], b"garbage after the end"] {
        let temp = TestDir::new();
        let layer = [LayerBuilder::new().file("f", b"x").finish(), trailing.to_vec()].concat();
        let applied = apply(applier, &layer, temp.path()).unwrap();
        assert_eq!(applied.diff_id, digest_string(&Sha256::digest(&layer)));
        assert_eq!(applied.size_bytes, layer.len() as u64);
    }
}

pub fn compression_is_told_from_the_bytes(applier: &dyn Applier) {
    let layer = LayerBuilder::new().file("f", &[7; 100_000]).finish();
    let plain = digest_string(&Sha256::digest(&layer));
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let temp = TestDir::new();
        let mut encoder = compression.encoder(Vec::new()).unwrap();
        encoder.write_all(&layer).unwrap();
        let applied = apply(applier, &encoder.finish().unwrap(), temp.path()).unwrap();
        assert_eq!(applied.diff_id, plain);
        assert_eq!(fs::read(temp.path().join("f")).unwrap(), [7; 100_000]);
    }
}

pub fn whiteouts_work_in_any_order(applier: &dyn Applier) {
    let parts: [fn(LayerBuilder) -> LayerBuilder; 3] = [
        |layer| layer.file(".wh.gone", b"").file(".wh.dir", b"").file(".wh.again", b""),
        |layer| layer.dir("dir/").file("dir/new", b""),
        |layer| layer.file("again", b"new"),
    ];
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
        let temp = TestDir::new();
        let root = temp.path();
        fs::create_dir(root.join("dir")).unwrap();
        for old in ["gone", "again", "kept", "dir/old"] {
            fs::write(root.join(old), "old").unwrap();
        }
        let layer = order.iter().fold(LayerBuilder::new(), |layer, &part| parts[part](layer));
        apply(applier, &layer.finish(), root).unwrap();
        assert!(!root.join("gone").exists(), "{order:?}");
        assert!(!root.join("dir/old").exists(), "{order:?}");
        assert!(root.join("dir/new").exists(), "{order:?}");
        assert_eq!(fs::read(root.join("again")).unwrap(), b"new", "{order:?}");
        assert_eq!(fs::read(root.join("kept")).unwrap(), b"old", "{order:?}");
    }
}

pub fn opaque_directories_keep_what_the_layer_has(applier: &dyn Applier) {
    for opaque_first in [true, false] {
        let temp = TestDir::new();
        let root = temp.path();
        fs::create_dir_all(root.join("dir/sub")).unwrap();
        fs::write(root.join("dir/old"), "").unwrap();
        fs::write(root.join("dir/sub/old"), "").unwrap();
        let new = |layer: LayerBuilder| layer.file("dir/sub/new", b"");
        let opaque = |layer: LayerBuilder| layer.file("dir/.wh..wh..opq", b"");
        let layer = LayerBuilder::new().dir("dir/");
        let layer = if opaque_first { new(opaque(layer)) } else { opaque(new(layer)) };
        apply(applier, &layer.finish(), root).unwrap();
        assert!(!root.join("dir/old").exists());
        assert!(!root.join("dir/sub/old").exists());
        assert!(root.join("dir/sub/new").exists());
    }
}

pub fn a_layer_cannot_leave_its_target(applier: &dyn Applier) {
    let temp = TestDir::new();
    let (root, outside) = (temp.path().join("root"), temp.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let absolute = outside.display().to_string();
    for target in [absolute.as_str(), "../outside", "../../../../../../../.."] {
        let layer = LayerBuilder::new()
            .symlink("escape", target)
            .item(&Item { kind: b'5', name: b"escape", mode: 0o777, ..Item::default() })
            .symlink("link", target)
            .file("link/planted", b"")
            .file("link/.wh.secret", b"")
            .finish();
        // Refused, or kept inside; both are fine.
        let _ = apply(applier, &layer, &root);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{target}");
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
    }
    for name in ["../outside/planted", "a/../../outside/planted"] {
        let layer = LayerBuilder::new().file(name, b"").finish();
        assert!(apply(applier, &layer, &root).is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{name}");
    }
}

pub fn missing_parents_are_made(applier: &dyn Applier) {
    let temp = TestDir::new();
    let layer = LayerBuilder::new().file("/a/b/c", b"x").finish();
    apply(applier, &layer, temp.path()).unwrap();
    let parent = fs::metadata(temp.path().join("a/b")).unwrap();
    assert_eq!(parent.mode() & 0o7777, 0o755);
}

pub fn types_replace_each_other(applier: &dyn Applier) {
    let temp = TestDir::new();
    let root = temp.path();
    fs::create_dir(root.join("was-dir")).unwrap();
    fs::write(root.join("was-dir/inside"), "").unwrap();
    fs::write(root.join("was-file"), "").unwrap();
    fs::create_dir(root.join("stays")).unwrap();
    fs::write(root.join("stays/inside"), "").unwrap();
    std::os::unix::fs::symlink("stays", root.join("was-link")).unwrap();
    let layer = LayerBuilder::new()
        .file("was-dir", b"file")
        .dir("was-file")
        .dir("stays")
        .dir("was-link")
        .finish();
    apply(applier, &layer, root).unwrap();
    assert_eq!(fs::read(root.join("was-dir")).unwrap(), b"file");
    assert!(root.join("was-file").is_dir());
    assert!(root.join("stays/inside").exists());
    assert!(fs::symlink_metadata(root.join("was-link")).unwrap().is_dir());
}

pub fn times_of_directories_are_kept(applier: &dyn Applier) {
    let temp = TestDir::new();
    let layer = LayerBuilder::new()
        .dir("dir/")
        .dir("dir/sub/")
        .file("dir/sub/file", b"")
        .file("dir/file", b"")
        .finish();
    apply(applier, &layer, temp.path()).unwrap();
    for dir in ["dir", "dir/sub"] {
        assert_eq!(fs::metadata(temp.path().join(dir)).unwrap().mtime(), 1_000_000_000);
    }
}

pub fn a_broken_stream_is_an_error(applier: &dyn Applier) {
    let layer = LayerBuilder::new().file("f", &[7; 5000]).finish();
    for length in [100, 512, 600, 4000] {
        let temp = TestDir::new();
        let applied = apply(applier, &layer[..length], temp.path());
        assert!(matches!(applied, Err(Error::InvalidArchive { .. })), "{length}: {applied:?}");
    }
    for compression in [Compression::Gzip, Compression::Zstd] {
        let temp = TestDir::new();
        let mut encoder = compression.encoder(Vec::new()).unwrap();
        encoder.write_all(&layer).unwrap();
        let bytes = encoder.finish().unwrap();
        let applied = apply(applier, &bytes[..bytes.len() - 5], temp.path());
        assert!(matches!(applied, Err(Error::Stream { .. })), "{compression:?}: {applied:?}");
    }
}
