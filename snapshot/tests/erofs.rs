//! Every promise, kept by images, plus what only images have to keep.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::{Path, PathBuf};
use std::process::Command;

use crated_mount::{DetachFlags, TempMount};
use crated_snapshot::testsuite::{TestDir, is_root, may_run};
use crated_snapshot::{
    CommitOptions, ErofsOptions, ErofsSnapshotter, Key, Labels, Mount, Name, Result, Snapshotter,
    write_erofs,
};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

fn open(root: &Path) -> Result<ErofsSnapshotter> {
    ErofsSnapshotter::open(ErofsOptions { root: root.to_owned(), ..ErofsOptions::default() })
}

crated_snapshot::snapshotter_testsuite!(open);

fn bench() -> Option<TestDir> {
    may_run(is_root(), "needs root").then(TestDir::new)
}

fn pack(tree: &Path, image: &Path) -> crated_snapshot::Usage {
    write_erofs(tree, &File::create_new(image).unwrap()).unwrap()
}

fn show(image: &Path, temp: &TestDir) -> TempMount {
    let mount = Mount {
        kind: "erofs".into(),
        source: image.display().to_string(),
        target: String::new(),
        options: vec!["ro".into()],
    };
    TempMount::attach(&[mount], &temp.path().join("mounts")).unwrap()
}

/// Everything an image keeps, of everything in a tree.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut all, mut stack) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = stack.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() {
            let bytes = fs::read(&path).unwrap();
            format!("{} bytes {:x}", bytes.len(), sum(&bytes))
        } else if meta.is_symlink() {
            format!("{:?}", fs::read_link(&path).unwrap())
        } else if meta.file_type().is_char_device() || meta.file_type().is_block_device() {
            format!("device {}", meta.rdev())
        } else {
            String::new()
        };
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let text = format!(
            "{:o} {}:{} x{links} {}.{:09} {:?} {content}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            xattrs(&path),
        );
        all.insert(path.strip_prefix(root).unwrap().to_owned(), text);
        if meta.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum * 31 % 1_000_000_007 + u64::from(*byte))
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 70_000];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

/// One of everything that a layer can hold, and the sizes at which layouts change.
fn fill(root: &Path) {
    for size in [0, 1, 1000, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 300_001] {
        let bytes: Vec<u8> = (0..size).map(|at| (at * 7 % 251) as u8).collect();
        fs::write(root.join(format!("file of {size}")), bytes).unwrap();
    }
    let holes = File::create(root.join("holes")).unwrap();
    holes.set_len(50 << 20).unwrap();
    holes.write_all_at(b"in the middle", 20_000_001).unwrap();
    holes.write_all_at(b"at the end", (50 << 20) - 10).unwrap();
    File::create(root.join("only a hole")).unwrap().set_len(1 << 20).unwrap();

    fs::create_dir_all(root.join("dir/deep/er")).unwrap();
    fs::hard_link(root.join("file of 1000"), root.join("dir/deep/same")).unwrap();
    fs::hard_link(root.join("file of 1000"), root.join("same")).unwrap();
    symlink("file of 1", root.join("short link")).unwrap();
    for length in [3900, 4000, 4095] {
        symlink("x/".repeat(length / 2), root.join(format!("link of {length}"))).unwrap();
    }
    fs::create_dir(root.join("many")).unwrap();
    for at in 0..1200 {
        fs::write(root.join(format!("many/{at} {}", "n".repeat(at % 200))), "").unwrap();
    }
    for odd in [&b"!"[..], b"-", b".a", b"..b", b"\xff\xfe", b"new\nline"] {
        fs::write(root.join("dir").join(OsStr::from_bytes(odd)), odd).unwrap();
    }
    fs::write(root.join("dir").join("n".repeat(255)), "long").unwrap();

    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, root.join(name), kind, Mode::RUSR, device).unwrap();
    };
    node("fifo", FileType::Fifo, 0);
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("disk", FileType::BlockDevice, rustix::fs::makedev(259, 70_000));
    node("whiteout", FileType::CharacterDevice, 0);

    fs::set_permissions(root.join("file of 1"), fs::Permissions::from_mode(0o4711)).unwrap();
    chown(root.join("file of 4096"), Some(70_000), Some(3_000_000_000)).unwrap();
    lchown(root.join("short link"), Some(1), Some(2)).unwrap();
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::setxattr(root.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    set("file of 1", "user.empty", b"");
    set("file of 1", "trusted.something", &[7; 300]);
    set("file of 4033", "user.large", &[9; 3000]);
    set("dir", "trusted.overlay.opaque", b"y");
    set(
        "dir/deep",
        "security.capability",
        &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    let time = Timespec { tv_sec: -1000, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, root.join("fifo"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o751)).unwrap();
}

fn tree(temp: &TestDir, name: &str) -> PathBuf {
    let path = temp.path().join(name);
    fs::create_dir(&path).unwrap();
    fill(&path);
    path
}

#[test]
fn an_image_shows_the_tree_it_was_made_of() {
    let Some(temp) = bench() else { return };
    let (tree, image) = (tree(&temp, "tree"), temp.path().join("image"));
    let usage = pack(&tree, &image);
    let shown = show(&image, &temp);
    assert_eq!(describe(shown.path()), describe(&tree));
    let inode = |path: &PathBuf| fs::symlink_metadata(tree.join(path)).unwrap().ino();
    let inodes: BTreeSet<u64> = describe(&tree).keys().map(inode).collect();
    assert_eq!(usage.inodes, inodes.len() as u64);
    // Holes take no room: two megabytes hold all of this.
    assert!(usage.size_bytes < 2 << 20, "{usage:?}");
    let holes = fs::metadata(shown.path().join("holes")).unwrap();
    assert_eq!(holes.len(), 50 << 20);
    shown.close().unwrap();
}

#[test]
fn the_checker_of_erofs_finds_no_fault() {
    let Some(temp) = bench() else { return };
    let tool = Command::new("fsck.erofs").arg("--help").output().is_ok();
    if !may_run(tool, "needs fsck.erofs of erofs-utils") {
        return;
    }
    let image = temp.path().join("image");
    pack(&tree(&temp, "tree"), &image);
    let output = Command::new("fsck.erofs").arg(&image).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn equal_trees_give_equal_images() {
    let Some(temp) = bench() else { return };
    let (tree, one, two) = (tree(&temp, "tree"), temp.path().join("one"), temp.path().join("two"));
    pack(&tree, &one);
    pack(&tree, &two);
    assert!(fs::read(one).unwrap() == fs::read(two).unwrap());
}

#[test]
fn a_hole_of_a_terabyte_is_kept() {
    let Some(temp) = bench() else { return };
    let (tree, image) = (temp.path().join("tree"), temp.path().join("image"));
    fs::create_dir(&tree).unwrap();
    let file = File::create(tree.join("huge")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"far out", (1 << 39) + 1).unwrap();
    let usage = pack(&tree, &image);
    assert!(usage.size_bytes < 16 << 20, "{usage:?}");
    let shown = show(&image, &temp);
    let huge = File::open(shown.path().join("huge")).unwrap();
    assert_eq!(huge.metadata().unwrap().len(), 1 << 40);
    let mut bytes = [1; 9];
    huge.read_exact_at(&mut bytes, 1 << 39).unwrap();
    assert_eq!(&bytes, b"\0far out\0");
    drop(huge);
    shown.close().unwrap();
}

#[test]
fn attributes_beyond_the_format_are_refused() {
    let Some(temp) = bench() else { return };
    // Only some filesystems take a value this large; tmpfs does.
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let value = vec![1; 1 << 16];
    let set = rustix::fs::setxattr(place.path(), "trusted.x", &value, XattrFlags::empty());
    if set.is_err() {
        return;
    }
    let image = File::create_new(temp.path().join("image")).unwrap();
    let refused = write_erofs(place.path(), &image);
    assert!(matches!(refused, Err(crated_snapshot::Error::LimitExceeded { .. })), "{refused:?}");
}

/// Layers `names`, each on the one before, each with a file of its name.
fn chain(s: &ErofsSnapshotter, names: &[&str]) {
    let mut parent: Option<Name> = None;
    for name in names {
        let key = Key::new("work").unwrap();
        let mounts = s.prepare(&key, parent.as_ref(), &Labels::new()).unwrap();
        let options = &mounts[0].options;
        let upper = options.iter().find_map(|o| o.strip_prefix("upperdir="));
        fs::write(Path::new(upper.unwrap_or(&mounts[0].source)).join(name), *name).unwrap();
        let name = Name::new(*name).unwrap();
        s.commit(&name, &key, &CommitOptions::default()).unwrap();
        parent = Some(name);
    }
}

fn view(s: &ErofsSnapshotter, of: &str) -> Vec<Mount> {
    s.view(&Key::new(format!("see {of}")).unwrap(), Some(&Name::new(of).unwrap()), &Labels::new())
        .unwrap()
}

/// Mounts and loop devices that have to do with `path`.
fn attached(path: &Path) -> Vec<String> {
    let path = path.to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Where something is mounted, not what overlays name as their layers.
    let at = |line: &str| line.split(' ').nth(4).is_some_and(|at| at.starts_with(path));
    let mut found: Vec<String> = mounts.lines().filter(|line| at(line)).map(String::from).collect();
    for device in fs::read_dir("/sys/block").unwrap() {
        let backing = device.unwrap().path().join("loop/backing_file");
        found.extend(fs::read_to_string(backing).ok().filter(|text| text.contains(path)));
    }
    found
}

#[test]
fn a_committed_layer_is_one_file() {
    let Some(temp) = bench() else { return };
    let root = temp.path().join("root");
    let s = open(&root).unwrap();
    chain(&s, &["one"]);
    let names = || -> Vec<_> {
        let entries = fs::read_dir(root.join("snapshots/1")).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(names(), ["layer.erofs"]);
    // A crash after the record leaves the files there.
    fs::create_dir_all(root.join("snapshots/1/fs/etc")).unwrap();
    fs::write(root.join("snapshots/1/layer.erofs.new"), "half").unwrap();
    s.cleanup().unwrap();
    assert_eq!(names(), ["layer.erofs"]);
    let shown = TempMount::attach(&view(&s, "one"), &temp.path().join("mounts")).unwrap();
    assert_eq!(fs::read_to_string(shown.path().join("one")).unwrap(), "one");
    shown.close().unwrap();
}

#[test]
fn a_commit_that_was_refused_can_be_repeated() {
    let Some(temp) = bench() else { return };
    let s = open(&temp.path().join("root")).unwrap();
    chain(&s, &["one"]);
    let key = Key::new("work").unwrap();
    let mounts = s.prepare(&key, None, &Labels::new()).unwrap();
    fs::write(Path::new(&mounts[0].source).join("early"), "").unwrap();
    // The directory of a crash between image and record.
    let home = Path::new(&mounts[0].source).parent().unwrap().to_owned();
    fs::write(home.join("layer.erofs"), "of an earlier attempt").unwrap();
    let taken = s.commit(&Name::new("one").unwrap(), &key, &CommitOptions::default());
    assert!(matches!(taken, Err(crated_snapshot::Error::AlreadyExists(_))), "{taken:?}");
    fs::write(Path::new(&mounts[0].source).join("late"), "").unwrap();
    s.commit(&Name::new("two").unwrap(), &key, &CommitOptions::default()).unwrap();
    let shown = TempMount::attach(&view(&s, "two"), &temp.path().join("mounts")).unwrap();
    assert!(shown.path().join("early").exists() && shown.path().join("late").exists());
    shown.close().unwrap();
}

#[test]
fn no_mount_and_no_loop_device_is_left() {
    let Some(temp) = bench() else { return };
    let root = temp.path().join("root");
    let s = open(&root).unwrap();
    chain(&s, &["one", "two", "three"]);
    let mounts = view(&s, "three");
    assert!(!attached(&root).is_empty(), "layers are mounted while they are in use");
    let shown = TempMount::attach(&mounts, &temp.path().join("mounts")).unwrap();
    drop(s);
    assert_eq!(attached(&root.join("layers")), [""; 0]);
    // What was attached before stays whole.
    assert_eq!(fs::read_to_string(shown.path().join("one")).unwrap(), "one");
    shown.close().unwrap();

    let s = open(&root).unwrap();
    let again = s.mounts(&Key::new("see three").unwrap()).unwrap();
    assert_eq!(again, mounts);
    let shown = TempMount::attach(&again, &temp.path().join("mounts")).unwrap();
    assert_eq!(fs::read_to_string(shown.path().join("two")).unwrap(), "two");
    shown.close().unwrap();
    for name in ["see three", "three", "two"] {
        s.remove(name).unwrap();
    }
    s.cleanup().unwrap();
    assert_eq!(attached(&root.join("layers")).len(), 1, "that of the layer which is left");
}

#[test]
fn layers_stay_mounted_over_a_restart_if_asked_to() {
    let Some(temp) = bench() else { return };
    let root = temp.path().join("root");
    let reopen = || {
        let options =
            ErofsOptions { root: root.clone(), keep_mounted: true, ..ErofsOptions::default() };
        ErofsSnapshotter::open(options).unwrap()
    };
    let s = reopen();
    chain(&s, &["one", "two"]);
    let mounts = view(&s, "two");
    drop(s);
    let shown = TempMount::attach(&mounts, &temp.path().join("mounts")).unwrap();
    assert_eq!(fs::read_to_string(shown.path().join("one")).unwrap(), "one");
    shown.close().unwrap();
    // Somebody takes one away: it comes back instead of an empty directory.
    crated_mount::detach(&root.join("layers/1"), DetachFlags::NONE).unwrap();
    let s = reopen();
    let again = s.mounts(&Key::new("see two").unwrap()).unwrap();
    let shown = TempMount::attach(&again, &temp.path().join("mounts")).unwrap();
    assert_eq!(fs::read_to_string(shown.path().join("one")).unwrap(), "one");
    shown.close().unwrap();
    for name in ["see two", "two", "one"] {
        s.remove(name).unwrap();
    }
    assert_eq!(attached(&root), [""; 0]);
}

#[test]
fn a_damaged_image_is_refused_and_holds_no_key() {
    let Some(temp) = bench() else { return };
    let root = temp.path().join("root");
    let s = open(&root).unwrap();
    chain(&s, &["one", "two"]);
    drop(s);
    File::options()
        .write(true)
        .open(root.join("snapshots/1/layer.erofs"))
        .unwrap()
        .set_len(100)
        .unwrap();
    let s = open(&root).unwrap();
    let (key, two) = (Key::new("k").unwrap(), Name::new("two").unwrap());
    for _ in 0..2 {
        let refused = s.prepare(&key, Some(&two), &Labels::new());
        assert!(matches!(refused, Err(crated_snapshot::Error::Mount { .. })), "{refused:?}");
    }
}
