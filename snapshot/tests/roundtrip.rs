//! What a differ writes, an applier turns back into the same tree; and other
//! programs read it the same way.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crated_snapshot::testsuite::{Item, LayerBuilder, TestDir, is_root, may_run};
use crated_snapshot::{
    Applier, ApplyOptions, Compression, DiffOptions, Differ, Mount, TarApplier, Target,
    WalkingDiffer, apply_tar,
};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// One object of a tree to make.
#[derive(Clone, Debug)]
enum Node {
    Dir,
    File(Vec<u8>),
    Link(String),
    HardLink(usize),
    Fifo,
    Device(u32),
}

#[derive(Clone, Debug)]
struct Object {
    path: Vec<usize>,
    node: Node,
    mode: u32,
    uid: u32,
    mtime: i64,
    capability: bool,
}

/// Few names, so that paths of two trees meet.
const NAMES: [&str; 6] = ["a", "b", "c\u{e9}", "dir", "x y", "long-name-of-a-file-that-goes-on"];

fn object() -> impl Strategy<Value = Object> {
    let node = prop_oneof![
        3 => Just(Node::Dir),
        4 => prop::collection::vec(any::<u8>(), 0..700).prop_map(Node::File),
        1 => "[a-z/.]{1,120}".prop_map(Node::Link),
        2 => (0_usize..8).prop_map(Node::HardLink),
        1 => Just(Node::Fifo),
        1 => (1_u32..200).prop_map(Node::Device),
    ];
    let path = prop::collection::vec(0..NAMES.len(), 1..5);
    let mode = prop_oneof![Just(0o644), Just(0o755), Just(0o4755), Just(0o1777), Just(0o600)];
    let uid = prop_oneof![Just(0_u32), Just(1000), Just(3_000_000)];
    // Few times, so that equal ones with other content occur.
    let mtime = prop_oneof![Just(0_i64), Just(-7), Just(1_700_000_000), 1..5_000_000_000_i64];
    (path, node, mode, uid, mtime, any::<bool>()).prop_map(
        |(path, node, mode, uid, mtime, capability)| Object {
            path,
            node,
            mode,
            uid,
            mtime,
            capability,
        },
    )
}

/// Makes the objects; those which do not fit where they should go are left out.
fn build(root: &Path, objects: &[Object]) {
    let mut files: Vec<PathBuf> = Vec::new();
    for object in objects {
        let mut path = root.to_owned();
        path.extend(object.path.iter().map(|&name| NAMES[name]));
        if fs::create_dir_all(path.parent().unwrap()).is_err() {
            continue;
        }
        let made = match &object.node {
            Node::Dir => fs::create_dir(&path).is_ok(),
            Node::File(_) if path.symlink_metadata().is_ok() => false,
            Node::File(data) => fs::write(&path, data).map(|()| files.push(path.clone())).is_ok(),
            Node::Link(target) => symlink(target, &path).is_ok(),
            Node::HardLink(of) => {
                if let Some(of) = files.get(*of) {
                    let _ = fs::hard_link(of, &path);
                }
                false
            }
            Node::Fifo => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).is_ok(),
            Node::Device(minor) => {
                let device = rustix::fs::makedev(1, *minor);
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(CWD, &path, kind, Mode::RUSR, device).is_ok()
            }
        };
        if !made {
            continue;
        }
        std::os::unix::fs::lchown(&path, Some(object.uid), Some(object.uid)).unwrap();
        if object.capability && matches!(object.node, Node::File(_)) {
            let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let flags = XattrFlags::empty();
            rustix::fs::setxattr(&path, "security.capability", &value, flags).unwrap();
        }
        if !matches!(object.node, Node::Link(_)) {
            fs::set_permissions(&path, fs::Permissions::from_mode(object.mode)).unwrap();
        }
        touch(&path, object.mtime);
    }
    settle(root, true);
}

/// Whole seconds only: that is what layers carry.
fn touch(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Gives directories a time which depends only on their name.
fn settle(path: &Path, root: bool) {
    if !path.symlink_metadata().unwrap().is_dir() {
        return;
    }
    for entry in fs::read_dir(path).unwrap() {
        settle(&entry.unwrap().path(), false);
    }
    if !root {
        touch(path, path.file_name().unwrap().len() as i64 * 1000);
    }
}

type Described = BTreeMap<PathBuf, (u32, u32, u64, i64, Vec<u8>, Vec<u8>, Vec<PathBuf>)>;

/// Everything a layer carries, of everything in a tree.
fn describe(root: &Path) -> Described {
    fn walk(
        root: &Path,
        dir: &Path,
        all: &mut Described,
        inodes: &mut BTreeMap<u64, Vec<PathBuf>>,
    ) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let relative = path.strip_prefix(root).unwrap().to_owned();
            let content = if meta.is_file() {
                fs::read(&path).unwrap()
            } else if meta.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_vec()
            } else {
                Vec::new()
            };
            let mut value = [0; 64];
            let length = rustix::fs::lgetxattr(&path, "security.capability", &mut value[..]);
            let capability = value[..length.unwrap_or(0)].to_vec();
            let mode = if meta.is_symlink() { meta.mode() & 0o170_000 } else { meta.mode() };
            let what = (mode, meta.uid(), meta.rdev(), meta.mtime(), content, capability, vec![]);
            if !meta.is_dir() {
                inodes.entry(meta.ino()).or_default().push(relative.clone());
            }
            all.insert(relative, what);
            if meta.is_dir() {
                walk(root, &path, all, inodes);
            }
        }
    }
    let (mut all, mut inodes) = (Described::new(), BTreeMap::new());
    walk(root, root, &mut all, &mut inodes);
    for mut names in inodes.into_values() {
        names.sort();
        for name in &names {
            all.get_mut(name).unwrap().6 = names.clone();
        }
    }
    all
}

fn bind(path: &Path) -> Vec<Mount> {
    vec![Mount {
        kind: "bind".into(),
        source: path.display().to_string(),
        target: String::new(),
        options: vec!["rbind".into(), "rw".into()],
    }]
}

fn dir(temp: &TestDir, name: &str) -> PathBuf {
    let path = temp.path().join(name);
    fs::create_dir(&path).unwrap();
    path
}

fn diff(lower: &[Mount], upper: &Path, compression: Compression) -> Vec<u8> {
    let mut layer = Vec::new();
    let options = DiffOptions { compression, source_date_epoch: None };
    WalkingDiffer::default().diff(lower, &bind(upper), &mut layer, &options).unwrap();
    layer
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn applying_a_difference_gives_the_other_tree(
        before in prop::collection::vec(object(), 0..25),
        after in prop::collection::vec(object(), 0..25),
        common in prop::collection::vec(object(), 0..10),
    ) {
        prop_assume!(may_run(is_root(), "needs root"));
        let temp = TestDir::new();
        let (a, b) = (dir(&temp, "a"), dir(&temp, "b"));
        build(&a, &[common.clone(), before].concat());
        build(&b, &[common, after].concat());
        let layer = diff(&bind(&a), &b, Compression::None);
        prop_assert_eq!(&layer, &diff(&bind(&a), &b, Compression::None), "reproducible");

        // As an upper directory over the first tree, untouched so far.
        let (upper, work, at) = (dir(&temp, "upper"), dir(&temp, "work"), dir(&temp, "mnt"));
        let overlay = [Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![
                format!("workdir={}", work.display()),
                format!("upperdir={}", upper.display()),
                format!("lowerdir={}", a.display()),
                "index=off".into(),
            ],
        }];
        let options = ApplyOptions::default();
        TarApplier::default().apply(&mut &layer[..], &overlay, &options).unwrap();
        let merged = crated_mount::TempMount::attach(&overlay, &at).unwrap();
        let seen = describe(merged.path());
        merged.close().unwrap();
        let wanted = describe(&b);
        prop_assert_eq!(seen, wanted.clone());

        // Into the first tree itself.
        TarApplier::default().apply(&mut &layer[..], &bind(&a), &options).unwrap();
        prop_assert_eq!(describe(&a), wanted);
        // Now nothing differs any more.
        prop_assert_eq!(diff(&bind(&a), &b, Compression::None), vec![0; 1024]);
    }

    /// Case 53: layers unpacked side by side, each alone and without knowing
    /// what is below it, stack up to what unpacking them in turn gives.
    #[test]
    fn layers_unpacked_in_parallel_stack_up_to_the_same_tree(
        states in prop::collection::vec(prop::collection::vec(object(), 0..15), 2..6),
    ) {
        prop_assume!(may_run(is_root(), "needs root"));
        let temp = TestDir::new();
        let trees: Vec<PathBuf> =
            (0..states.len()).map(|at| dir(&temp, &format!("tree{at}"))).collect();
        for (tree, objects) in trees.iter().zip(&states) {
            build(tree, objects);
        }
        let layers: Vec<Vec<u8>> = (0..trees.len())
            .map(|at| {
                let lower = if at == 0 { Vec::new() } else { bind(&trees[at - 1]) };
                diff(&lower, &trees[at], Compression::Gzip)
            })
            .collect();

        let options = ApplyOptions::default();
        let in_turn = dir(&temp, "in-turn");
        for layer in &layers {
            TarApplier::default().apply(&mut &layer[..], &bind(&in_turn), &options).unwrap();
        }
        let alone: Vec<PathBuf> =
            (0..layers.len()).map(|at| dir(&temp, &format!("alone{at}"))).collect();
        let mut assumed = Vec::new();
        std::thread::scope(|scope| {
            let options = &options;
            let unpack = |(layer, upper): (&'_ Vec<u8>, &'_ PathBuf)| {
                TarApplier::default().apply_alone(&mut &layer[..], upper, options).unwrap().1
            };
            let threads: Vec<_> = layers
                .iter()
                .zip(&alone)
                .map(|one| scope.spawn(move || unpack(one)))
                .collect();
            assumed.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
        });
        for at in 0..alone.len() {
            let lowers: Vec<&Path> = alone[..at].iter().rev().map(PathBuf::as_path).collect();
            prop_assert!(assumed[at].settle(&alone[at], &lowers).unwrap());
        }
        let lowers: Vec<String> =
            alone.iter().rev().map(|path| path.display().to_string()).collect();
        let overlay = [Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![format!("lowerdir={}", lowers.join(":"))],
        }];
        let at = dir(&temp, "mnt");
        let merged = crated_mount::TempMount::attach(&overlay, &at).unwrap();
        let seen = describe(merged.path());
        merged.close().unwrap();
        prop_assert_eq!(&seen, &describe(&in_turn));
        prop_assert_eq!(&seen, &describe(trees.last().unwrap()));
    }

    #[test]
    fn an_erofs_image_shows_the_same_tree(
        objects in prop::collection::vec(object(), 0..40),
    ) {
        prop_assume!(may_run(is_root(), "needs root"));
        let temp = TestDir::new();
        let (tree, image) = (dir(&temp, "tree"), temp.path().join("image"));
        build(&tree, &objects);
        crated_snapshot::write_erofs(&tree, &fs::File::create_new(&image).unwrap()).unwrap();
        let mount = Mount {
            kind: "erofs".into(),
            source: image.display().to_string(),
            target: String::new(),
            options: vec!["ro".into()],
        };
        let shown = crated_mount::TempMount::attach(&[mount], &dir(&temp, "mnt")).unwrap();
        let seen = describe(shown.path());
        shown.close().unwrap();
        prop_assert_eq!(seen, describe(&tree));
    }

    #[test]
    fn other_readers_see_the_same_layer(
        objects in prop::collection::vec(object(), 1..30),
    ) {
        prop_assume!(may_run(is_root(), "needs root"));
        let temp = TestDir::new();
        let (tree, gnu, own) = (dir(&temp, "tree"), dir(&temp, "gnu"), dir(&temp, "own"));
        build(&tree, &objects);
        let layer = diff(&[], &tree, Compression::None);
        let file = temp.path().join("layer.tar");
        fs::write(&file, &layer).unwrap();

        gnu_tar(&["-xpf", file.to_str().unwrap(), "-C", gnu.to_str().unwrap()]);
        prop_assert_eq!(describe(&gnu), describe(&tree));
        apply_tar(&mut &layer[..], &Target::directory(&own).unwrap(), &ApplyOptions::default())
            .unwrap();
        prop_assert_eq!(describe(&own), describe(&tree));

        // The tar crate finds the same names and sizes in the same order.
        let mut archive = tar::Archive::new(&layer[..]);
        let listed: Vec<PathBuf> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        prop_assert_eq!(listed.len(), describe(&tree).len());
    }

    #[test]
    fn layers_of_other_writers_are_read(
        objects in prop::collection::vec(object(), 1..30),
        format in prop_oneof![Just("gnu"), Just("pax")],
    ) {
        prop_assume!(may_run(is_root(), "needs root"));
        let temp = TestDir::new();
        let (tree, own) = (dir(&temp, "tree"), dir(&temp, "own"));
        build(&tree, &objects);
        let file = temp.path().join("layer.tar");
        let arguments = [
            "--format", format, "--sparse", "-cf", file.to_str().unwrap(),
            "-C", tree.to_str().unwrap(), ".",
        ];
        gnu_tar(&arguments);
        let layer = fs::read(&file).unwrap();
        apply_tar(&mut &layer[..], &Target::directory(&own).unwrap(), &ApplyOptions::default())
            .unwrap();
        let mut wanted = describe(&tree);
        if format == "gnu" {
            // This format has no place for capabilities.
            wanted.values_mut().for_each(|what| what.5.clear());
        }
        prop_assert_eq!(describe(&own), wanted);
    }

    #[test]
    fn damaged_layers_never_panic(
        objects in prop::collection::vec(object(), 1..10),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        prop_assume!(may_run(is_root(), "needs root"));
        let temp = TestDir::new();
        let (tree, own) = (dir(&temp, "tree"), dir(&temp, "own"));
        build(&tree, &objects);
        let mut layer = diff(&[], &tree, Compression::None);
        for (at, byte) in damage {
            let at = at.index(layer.len());
            layer[at] = byte;
        }
        let target = Target::directory(&own).unwrap();
        let _ = apply_tar(&mut &layer[..], &target, &ApplyOptions::default());
        prop_assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2);
    }
}

fn gnu_tar(arguments: &[&str]) {
    let old = arguments.iter().any(|word| matches!(*word, "gnu" | "--format=gnu"));
    let output = Command::new("tar")
        .arg("--numeric-owner")
        // The old format has no attributes, and tar refuses to be asked.
        .args(if old { &[][..] } else { &["--xattrs", "--xattrs-include=*"] })
        .args(arguments)
        .output()
        .expect("GNU tar");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn sparse_files_of_gnu_tar_are_read_in_every_format() {
    if !may_run(is_root(), "needs root") {
        return;
    }
    let temp = TestDir::new();
    let tree = dir(&temp, "tree");
    let file = fs::File::create(tree.join("sparse")).unwrap();
    file.set_len(50 << 20).unwrap();
    for at in 0..40_u64 {
        use std::os::unix::fs::FileExt;
        file.write_all_at(format!("data {at}").as_bytes(), at * (1 << 20) + 5000).unwrap();
    }
    drop(file);
    let formats: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ];
    for (at, format) in formats.iter().enumerate() {
        let own = dir(&temp, &format!("own{at}"));
        let layer = temp.path().join(format!("{at}.tar"));
        let rest =
            ["--sparse", "-cf", layer.to_str().unwrap(), "-C", tree.to_str().unwrap(), "sparse"];
        gnu_tar(&[*format, &rest[..]].concat());
        let bytes = fs::read(&layer).unwrap();
        assert!(bytes.len() < 2 << 20, "tar did not find the holes");
        let target = Target::directory(&own).unwrap();
        apply_tar(&mut &bytes[..], &target, &ApplyOptions::default()).unwrap();
        let same = fs::read(own.join("sparse")).unwrap() == fs::read(tree.join("sparse")).unwrap();
        assert!(same, "{format:?}");
        let blocks = fs::metadata(own.join("sparse")).unwrap().blocks();
        assert!(blocks * 512 < 2 << 20, "{format:?}: holes were filled");
    }
}

#[test]
fn owners_survive_by_number() {
    if !may_run(is_root(), "needs root") {
        return;
    }
    let temp = TestDir::new();
    let (tree, own) = (dir(&temp, "tree"), dir(&temp, "own"));
    fs::write(tree.join("f"), "").unwrap();
    chown(tree.join("f"), Some(4_000_000_000), Some(2_097_152)).unwrap();
    let layer = diff(&[], &tree, Compression::Zstd);
    TarApplier::default().apply(&mut &layer[..], &bind(&own), &ApplyOptions::default()).unwrap();
    let meta = fs::metadata(own.join("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (4_000_000_000, 2_097_152));
}

/// Unpacks `layer` alone, and in place on `lower`; says whether the first settles there, and what
/// became of both.
fn alone_and_in_place(temp: &TestDir, lower: &Path, layer: &[u8]) -> (bool, Described, Described) {
    let (alone, in_place) = (dir(temp, "alone"), dir(temp, "in-place"));
    let options = ApplyOptions::default();
    let applier = TarApplier::default();
    let (applied, assumed) = applier.apply_alone(&mut &layer[..], &alone, &options).unwrap();
    let target = Target::overlay(&in_place, &[lower], false).unwrap();
    assert_eq!(apply_tar(&mut &layer[..], &target, &options).unwrap(), applied);
    let settled = assumed.settle(&alone, &[lower]).unwrap();
    (settled, describe(&alone), describe(&in_place))
}

#[test]
fn a_directory_passed_through_takes_after_the_one_below_once_that_is_known() {
    if !may_run(is_root(), "needs root") {
        return;
    }
    let temp = TestDir::new();
    let lower = dir(&temp, "lower");
    for (path, mode, time) in [("usr", 0o1750, 5000), ("usr/lib", 0o2711, 6000)] {
        fs::create_dir(lower.join(path)).unwrap();
        chown(lower.join(path), Some(7), Some(8)).unwrap();
        fs::set_permissions(lower.join(path), fs::Permissions::from_mode(mode)).unwrap();
        touch(&lower.join(path), time);
    }
    touch(&lower.join("usr"), 5000);
    fs::write(lower.join("file"), "").unwrap();
    let gone = Item { kind: b'5', name: b"own", mode: 0o700, uid: 3, ..Item::default() };
    let layer = LayerBuilder::new()
        .file("usr/lib/new", b"new")
        .file("usr/.wh.old", b"")
        .file("file/below", b"a file below becomes a directory")
        .item(&gone)
        .file("own/.wh..wh..opq", b"")
        .file("own/deep/er", b"")
        .finish();
    let (settled, alone, in_place) = alone_and_in_place(&temp, &lower, &layer);
    assert!(settled);
    let mut known = alone.clone();
    // Made just now in both, with no model for their times.
    for new in ["file", "own/deep"] {
        known.get_mut(Path::new(new)).unwrap().3 = in_place[Path::new(new)].3;
    }
    assert_eq!(known, in_place);
    assert_eq!(alone[Path::new("usr/lib")].0 & 0o7777, 0o2711);
}

#[test]
fn a_layer_that_means_something_else_on_what_is_below_does_not_settle() {
    if !may_run(is_root(), "needs root") {
        return;
    }
    let through_a_link = LayerBuilder::new().file("lib/new", b"");
    let described_late = LayerBuilder::new().file("dir/new", b"").dir("dir");
    let empties_the_root = LayerBuilder::new().file(".wh..wh..opq", b"").file("new", b"");
    for layer in [through_a_link, described_late, empties_the_root] {
        let temp = TestDir::new();
        let lower = dir(&temp, "lower");
        fs::create_dir_all(lower.join("usr/lib")).unwrap();
        fs::create_dir(lower.join("dir")).unwrap();
        symlink("usr/lib", lower.join("lib")).unwrap();
        let (settled, ..) = alone_and_in_place(&temp, &lower, &layer.finish());
        assert!(!settled);
    }
}
