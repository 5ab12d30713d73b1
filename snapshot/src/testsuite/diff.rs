//! Promises of [`Differ`].
#![allow(missing_docs, reason = "each promise is its name")]
#![allow(clippy::missing_panics_doc, reason = "a broken promise panics")]
#![allow(clippy::disallowed_methods, reason = "what a container does is what is tested")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crated_mount::{Mount, TempMount};
use sha2::{Digest, Sha256};

use crate::diff::{Compression, DiffOptions, Diffed, Differ, digest_string};
use crate::tar::{Entry, EntryKind, Stream, TarReader};
use crate::testsuite::TestDir;

/// Two trees side by side, equal at first.
struct Pair(TestDir);

impl Pair {
    /// Fills both with the same content, times included.
    fn of(fill: impl Fn(&Path)) -> Self {
        let temp = TestDir::new();
        let pair = Self(temp);
        for root in [pair.lower(), pair.upper()] {
            fs::create_dir(&root).unwrap();
            fill(&root);
            settle(&root);
        }
        pair
    }

    fn lower(&self) -> std::path::PathBuf {
        self.0.path().join("lower")
    }

    fn upper(&self) -> std::path::PathBuf {
        self.0.path().join("upper")
    }

    fn diff(&self, differ: &dyn Differ) -> Vec<Entry> {
        let options = DiffOptions::default();
        entries(&layer(differ, &bind(&self.lower()), &bind(&self.upper()), &options).0)
    }
}

/// Gives everything the same time.
fn settle(path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap();
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            settle(&entry.unwrap().path());
        }
    }
    touch(path, OLD);
}

fn touch(path: &Path, time: i64) {
    let time = crate::tree::timespec((time, 5));
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}

const OLD: i64 = 1_000_000_000;

fn bind(path: &Path) -> Vec<Mount> {
    vec![Mount {
        kind: "bind".to_owned(),
        source: path.display().to_string(),
        target: String::new(),
        options: vec!["rbind".to_owned(), "rw".to_owned()],
    }]
}

fn layer(
    differ: &dyn Differ,
    lower: &[Mount],
    upper: &[Mount],
    options: &DiffOptions,
) -> (Vec<u8>, Diffed) {
    let mut bytes = Vec::new();
    let diffed = differ.diff(lower, upper, &mut bytes, options).expect("diff");
    (bytes, diffed)
}

fn entries(mut bytes: &[u8]) -> Vec<Entry> {
    let mut tar = TarReader::new(Stream::new(&mut bytes, u64::MAX));
    std::iter::from_fn(|| tar.next_entry().expect("readable layer")).collect()
}

fn paths(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| std::str::from_utf8(&entry.path).unwrap()).collect()
}

pub fn equal_trees_differ_in_nothing(differ: &dyn Differ) {
    let pair = Pair::of(|root| {
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/file"), "text").unwrap();
        symlink("dir", root.join("link")).unwrap();
    });
    assert_eq!(pair.diff(differ), []);
    let (bytes, _) = layer(differ, &[], &[], &DiffOptions::default());
    assert_eq!(bytes, [0; 1024]);
}

pub fn each_change_becomes_an_entry(differ: &dyn Differ) {
    let pair = Pair::of(|root| {
        for name in ["content", "mode", "owner", "same", "size", "time", "type"] {
            fs::write(root.join(name), "text").unwrap();
        }
        symlink("old", root.join("link")).unwrap();
    });
    let up = pair.upper();
    fs::write(up.join("content"), "TEXT").unwrap();
    touch(&up.join("content"), OLD + 1);
    fs::set_permissions(up.join("mode"), fs::Permissions::from_mode(0o4755)).unwrap();
    chown(up.join("owner"), Some(5), Some(6)).unwrap();
    fs::write(up.join("size"), "longer text").unwrap();
    touch(&up.join("size"), OLD);
    touch(&up.join("time"), OLD + 2);
    fs::remove_file(up.join("type")).unwrap();
    fs::create_dir(up.join("type")).unwrap();
    fs::remove_file(up.join("link")).unwrap();
    symlink("new", up.join("link")).unwrap();
    fs::write(up.join("added"), "").unwrap();
    let entries = pair.diff(differ);
    let expected = ["added", "content", "link", "mode", "owner", "size", "time", "type/"];
    assert_eq!(paths(&entries), expected);
    assert_eq!(entries[2].link, b"new");
    assert_eq!(entries[3].mode, 0o4755);
    assert_eq!((entries[4].uid, entries[4].gid), (5, 6));
    assert_eq!(entries[6].mtime, (OLD + 2, 0));
    assert_eq!(entries[7].kind, EntryKind::Directory);
}

pub fn parents_of_changes_are_written_once(differ: &dyn Differ) {
    let pair = Pair::of(|root| {
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/1"), "1").unwrap();
        fs::write(root.join("a/b/2"), "2").unwrap();
    });
    for name in ["a/b/1", "a/b/2"] {
        fs::write(pair.upper().join(name), "changed").unwrap();
    }
    assert_eq!(paths(&pair.diff(differ)), ["a/", "a/b/", "a/b/1", "a/b/2"]);
}

pub fn deletions_become_whiteouts(differ: &dyn Differ) {
    let pair = Pair::of(|root| {
        fs::create_dir_all(root.join("dir/sub")).unwrap();
        fs::write(root.join("dir/sub/file"), "").unwrap();
        fs::write(root.join("dir/file"), "").unwrap();
    });
    fs::remove_dir_all(pair.upper().join("dir/sub")).unwrap();
    fs::remove_file(pair.upper().join("dir/file")).unwrap();
    touch(&pair.upper().join("dir"), OLD);
    let entries = pair.diff(differ);
    assert_eq!(paths(&entries), ["dir/", "dir/.wh.file", "dir/.wh.sub"]);
    assert_eq!(entries[1].mtime, (0, 0));
    assert_eq!((entries[1].kind, entries[1].size), (EntryKind::File, 0));
}

pub fn hard_links_are_written_as_links(differ: &dyn Differ) {
    let pair = Pair::of(|root| fs::write(root.join("m"), "text").unwrap());
    let up = pair.upper();
    // One name before and one behind the one that is there already.
    fs::hard_link(up.join("m"), up.join("a")).unwrap();
    fs::hard_link(up.join("m"), up.join("z")).unwrap();
    let entries = pair.diff(differ);
    assert_eq!(paths(&entries), ["a", "m", "z"]);
    assert_eq!(entries[0].kind, EntryKind::File);
    for link in &entries[1..] {
        assert_eq!((link.kind, &link.link[..]), (EntryKind::HardLink, &b"a"[..]));
    }
}

pub fn the_same_input_gives_the_same_bytes(differ: &dyn Differ) {
    let fill = |root: &Path| {
        for name in ["z", "b", "a", "\u{e9}"] {
            fs::write(root.join(name), name).unwrap();
        }
    };
    let (one, two) = (Pair::of(fill), Pair::of(fill));
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let options = DiffOptions { compression, ..DiffOptions::default() };
        let first = layer(differ, &[], &bind(&one.upper()), &options);
        let second = layer(differ, &[], &bind(&two.upper()), &options);
        assert_eq!(first, second);
    }
}

pub fn times_after_the_epoch_are_capped(differ: &dyn Differ) {
    let pair = Pair::of(|root| fs::write(root.join("gone"), "").unwrap());
    fs::remove_file(pair.upper().join("gone")).unwrap();
    fs::write(pair.upper().join("new"), "").unwrap();
    fs::write(pair.upper().join("old"), "").unwrap();
    touch(&pair.upper().join("old"), 77);
    let epoch = UNIX_EPOCH + Duration::from_secs(1000);
    let options = DiffOptions { source_date_epoch: Some(epoch), ..DiffOptions::default() };
    let entries = entries(&layer(differ, &bind(&pair.lower()), &bind(&pair.upper()), &options).0);
    let times: Vec<_> = entries.iter().map(|entry| entry.mtime.0).collect();
    assert_eq!(paths(&entries), [".wh.gone", "new", "old"]);
    assert_eq!(times, [1000, 1000, 77]);
    assert!(SystemTime::now() > epoch);
}

pub fn an_overlay_gives_the_same_bytes_as_a_walk(differ: &dyn Differ) {
    let pair = Pair::of(|root| {
        for dir in ["changed/deep", "emptied", "gone", "same", "opaque/sub"] {
            fs::create_dir_all(root.join(dir)).unwrap();
            fs::write(root.join(dir).join("file"), "text").unwrap();
        }
        fs::write(root.join("linked"), "text").unwrap();
    });
    let (lower, temp) = (pair.lower(), pair.0.path());
    let dir = |name: &str| {
        let path = temp.join(name);
        fs::create_dir_all(&path).unwrap();
        path.display().to_string()
    };
    let overlay = vec![Mount {
        kind: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: String::new(),
        options: vec![
            format!("workdir={}", dir("work")),
            format!("upperdir={}", dir("fs")),
            format!("lowerdir={}", lower.display()),
            "index=off".to_owned(),
        ],
    }];
    let mount = TempMount::attach(&overlay, &temp.join("mounts")).unwrap();
    let root = mount.path();
    fs::write(root.join("changed/deep/file"), "changed").unwrap();
    fs::remove_file(root.join("emptied/file")).unwrap();
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_dir_all(root.join("opaque")).unwrap();
    fs::create_dir_all(root.join("opaque/sub")).unwrap();
    fs::write(root.join("opaque/new"), "").unwrap();
    fs::hard_link(root.join("linked"), root.join("another")).unwrap();
    fs::set_permissions(root.join("same"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(root.join("same"), fs::Permissions::from_mode(0o755)).unwrap();

    let options = DiffOptions::default();
    let quick = layer(differ, &bind(&lower), &overlay, &options);
    // Bound, the overlay does not show its upper directory.
    let walked = layer(differ, &bind(&lower), &bind(root), &options);
    mount.close().unwrap();
    assert_eq!(paths(&entries(&quick.0)), paths(&entries(&walked.0)));
    assert_eq!(quick, walked);
    let entries = entries(&quick.0);
    for expected in ["emptied/.wh.file", ".wh.gone", "opaque/.wh.file", "opaque/sub/.wh.file"] {
        let there = paths(&entries).contains(&expected);
        assert_eq!(there, expected != "opaque/.wh.file", "{expected}: {:?}", paths(&entries));
    }
}

pub fn digests_are_those_of_the_bytes(differ: &dyn Differ) {
    let pair = Pair::of(|root| fs::write(root.join("file"), [7; 70_000]).unwrap());
    let plain = layer(differ, &[], &bind(&pair.upper()), &DiffOptions::default());
    assert_eq!(plain.1.diff_id, plain.1.digest);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let options = DiffOptions { compression, ..DiffOptions::default() };
        let (bytes, diffed) = layer(differ, &[], &bind(&pair.upper()), &options);
        assert_eq!(diffed.digest, digest_string(&Sha256::digest(&bytes)));
        assert_eq!(diffed.size_bytes, bytes.len() as u64);
        assert_eq!(diffed.diff_id, plain.1.diff_id);
        assert_eq!(diffed.size_bytes_uncompressed, plain.0.len() as u64);
        assert_eq!(Compression::detect(&bytes), compression);
    }
}
