//! Layers made to break out, to lie, or to eat the machine. The numbers are
//! those of the project's list of fault cases.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crated_snapshot::testsuite::{Item, LayerBuilder, TestDir, header, is_root, may_run, seal};
use crated_snapshot::{
    Applied, Applier, ApplyOptions, CommitOptions, Compression, Error, Key, Labels, Mount, Name,
    OverlayOptions, OverlaySnapshotter, Result, Snapshotter, TarApplier, Target, apply_tar,
};

/// A target beside something that must not change.
struct Site {
    temp: TestDir,
}

impl Site {
    fn new() -> Option<Self> {
        may_run(is_root(), "needs root").then(|| {
            let temp = TestDir::new();
            fs::create_dir(temp.path().join("root")).unwrap();
            fs::create_dir(temp.path().join("outside")).unwrap();
            fs::write(temp.path().join("outside/file"), "untouched").unwrap();
            Self { temp }
        })
    }

    fn root(&self) -> PathBuf {
        self.temp.path().join("root")
    }

    fn outside(&self) -> PathBuf {
        self.temp.path().join("outside")
    }

    fn apply(&self, layer: LayerBuilder) -> Result<Applied> {
        self.apply_bytes(&layer.finish())
    }

    fn apply_bytes(&self, layer: &[u8]) -> Result<Applied> {
        self.apply_with(layer, &ApplyOptions::default())
    }

    fn apply_with(&self, layer: &[u8], options: &ApplyOptions) -> Result<Applied> {
        let target = Target::directory(&self.root())?;
        let result = apply_tar(&mut &layer[..], &target, options);
        self.assert_outside_is_untouched();
        result
    }

    fn apply_compressed(&self, layer: &[u8], options: &ApplyOptions) -> Result<Applied> {
        let mounts = [Mount {
            kind: "bind".into(),
            source: self.root().display().to_string(),
            target: String::new(),
            options: vec!["rw".into(), "rbind".into()],
        }];
        let result = TarApplier::default().apply(&mut &layer[..], &mounts, options);
        self.assert_outside_is_untouched();
        result
    }

    fn assert_outside_is_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.temp.path()).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let outside = fs::metadata(self.outside()).unwrap();
        assert_eq!(outside.mode() & 0o7777, 0o755);
        assert_eq!(fs::read_dir(self.outside()).unwrap().count(), 1);
        let file = fs::metadata(self.outside().join("file")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.uid(), file.nlink()), (0o644, 0, 1));
        assert_eq!(fs::read(self.outside().join("file")).unwrap(), b"untouched");
    }
}

macro_rules! site {
    () => {
        match Site::new() {
            Some(site) => site,
            None => return,
        }
    };
}

fn refuses(result: Result<Applied>, what: &str) {
    assert!(matches!(result, Err(Error::InvalidArchive { .. })), "{what}: {result:?}");
}

fn limits(result: Result<Applied>, what: &str) {
    assert!(matches!(result, Err(Error::LimitExceeded { .. })), "{what}: {result:?}");
}

fn raw_name(name: &[u8]) -> LayerBuilder {
    LayerBuilder::new().pax(&[("path", name)]).file("placeholder", b"x")
}

#[test]
fn case_33_names_that_escape_are_refused_and_others_kept_as_bytes() {
    let site = site!();
    for name in [&b"../x"[..], b"a/../../x", b"/../x", b"a\0b", &[b'x'; 5000], &b"d/".repeat(3000)]
    {
        refuses(site.apply(raw_name(name)), &name[..name.len().min(9)].escape_ascii().to_string());
    }
    for name in [&b""[..], b".", b"./", b"/"] {
        let root = Item { kind: b'5', name, mode: 0o755, ..Item::default() };
        site.apply(LayerBuilder::new().item(&root)).unwrap();
    }
    site.apply(raw_name(b"/absolute")).unwrap();
    site.apply(raw_name(b"a/../lexical")).unwrap();
    site.apply(raw_name(b"\xff\xfe \n")).unwrap();
    use std::os::unix::ffi::OsStrExt;
    let bytes = std::ffi::OsStr::from_bytes(b"\xff\xfe \n");
    for name in [Path::new("absolute"), Path::new("lexical"), Path::new(bytes)] {
        assert!(site.root().join(name).is_file(), "{}", name.display());
    }
    assert!(!site.root().join("a").exists());
}

#[test]
fn case_34_links_in_the_middle_stay_inside() {
    let site = site!();
    let outside = site.outside().display().to_string();
    for target in [outside.as_str(), "..", "../outside", "/", "../../../../../.."] {
        let layer = LayerBuilder::new()
            .symlink("a", target)
            .file("a/planted", b"x")
            .dir("a/dir")
            .file("a/dir/planted", b"x")
            .hard_link("a/hard", "a/planted");
        let _ = site.apply(layer);
    }
    // The target of a link is resolved as if the root were "/".
    assert!(site.root().join("planted").exists());

    let site = site!();
    let mut layer = LayerBuilder::new().dir("end");
    for at in 0..50 {
        let next = if at == 49 { "end".into() } else { format!("l{}", at + 1) };
        layer = layer.symlink(&format!("l{at}"), &next);
    }
    refuses(site.apply(layer.clone().file("l0/x", b"")), "fifty links");
    site.apply(layer.file("l15/x", b"")).unwrap();
    assert!(site.root().join("end/x").exists());
    refuses(site.apply(LayerBuilder::new().symlink("me", "me").file("me/x", b"")), "loop");
}

#[test]
fn case_34_a_link_that_becomes_a_directory_and_back_is_not_remembered() {
    let site = site!();
    let outside = site.outside().display().to_string();
    let layer = LayerBuilder::new()
        .dir("d")
        .file("d/one", b"1")
        .symlink("d", &outside)
        .file("d/two", b"2")
        .dir("d")
        .file("d/three", b"3")
        .symlink("d", &outside)
        .file("d/file", b"overwritten");
    site.apply(layer).unwrap();
    assert!(fs::symlink_metadata(site.root().join("d")).unwrap().is_symlink());
}

#[test]
fn case_35_hard_links_stay_inside() {
    let site = site!();
    let outside = site.outside().join("file").display().to_string();
    for target in
        [outside.as_str(), "../outside/file", "missing", "dir", "self", "/", "", "Cargo.toml"]
    {
        let layer = LayerBuilder::new().dir("dir").file("self", b"");
        let layer = match target {
            "self" => layer.hard_link("self", "self"),
            _ => layer.hard_link("link", target),
        };
        refuses(site.apply(layer), target);
    }
    // Of a link to the outside, the link itself gets a second name.
    let layer = LayerBuilder::new()
        .symlink("soft", &outside)
        .hard_link("hard", "soft")
        .item(&Item { name: b"hard", mode: 0o4777, data: b"new", ..Item::default() });
    site.apply(layer).unwrap();
    assert!(fs::symlink_metadata(site.root().join("soft")).unwrap().is_symlink());
    assert_eq!(fs::read(site.root().join("hard")).unwrap(), b"new");
}

#[test]
fn case_35_a_hard_link_into_a_lower_layer_is_refused_in_an_overlay() {
    let site = site!();
    fs::write(site.root().join("below"), "text").unwrap();
    let upper = TestDir::new();
    let target = Target::overlay(upper.path(), &[&site.root()], false).unwrap();
    let layer = LayerBuilder::new().hard_link("link", "below").finish();
    refuses(apply_tar(&mut &layer[..], &target, &ApplyOptions::default()), "lower layer");
    assert_eq!(fs::read_dir(upper.path()).unwrap().count(), 0);
}

#[test]
fn case_36_the_root_is_a_directory_and_stays_the_one_held() {
    let site = site!();
    let before = fs::metadata(site.root()).unwrap().ino();
    for name in [&b"."[..], b"./", b"/", b"", b"./."] {
        for kind in [b'2', b'0', b'1', b'3', b'6'] {
            // An old writer's file whose name ends in a slash is a directory.
            if kind == b'0' && name.ends_with(b"/") {
                continue;
            }
            let item = Item { kind, name, link: b"/", device: (1, 3), ..Item::default() };
            refuses(site.apply(LayerBuilder::new().item(&item)), "root entry");
        }
    }
    let closed = Item { kind: b'5', name: b"./", mode: 0, uid: 9, ..Item::default() };
    site.apply(LayerBuilder::new().item(&closed).file("inside", b"x")).unwrap();
    let root = fs::metadata(site.root()).unwrap();
    assert_eq!((root.ino(), root.mode() & 0o7777, root.uid()), (before, 0, 9));
    assert!(site.root().join("inside").exists());
}

#[test]
fn case_37_a_directory_entry_does_not_change_what_a_link_points_to() {
    let site = site!();
    let outside = site.outside().display().to_string();
    let open = Item { kind: b'5', name: b"l", mode: 0o777, uid: 5, ..Item::default() };
    site.apply(LayerBuilder::new().symlink("l", &outside).item(&open)).unwrap();
    let entry = fs::symlink_metadata(site.root().join("l")).unwrap();
    assert!(entry.is_dir());
    assert_eq!(entry.mode() & 0o7777, 0o777);
}

#[test]
fn case_38_only_harmless_attributes_are_set() {
    let site = site!();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let records = [
        ("SCHILY.xattr.user.fine", &b"1"[..]),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.anything", b"1"),
        ("SCHILY.xattr.security.selinux", b"system_u:object_r:etc_t:s0"),
        ("SCHILY.xattr.security.capability", &capability),
    ];
    let file = Item { name: b"f", mode: 0o6755, uid: 12, gid: 13, ..Item::default() };
    site.apply(LayerBuilder::new().pax(&records).item(&file)).unwrap();
    let path = site.root().join("f");
    let names = xattr_names(&path);
    assert_eq!(names, ["security.capability", "user.fine"]);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6755);

    let large = vec![b'v'; 70_000];
    let layer = LayerBuilder::new().pax(&[("SCHILY.xattr.user.large", &large)]).file("g", b"");
    assert!(site.apply(layer).is_err());
    let many: Vec<(String, &[u8])> =
        (0..10_000).map(|at| (format!("SCHILY.xattr.user.{at}"), &b""[..])).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    assert!(site.apply(LayerBuilder::new().pax(&many).file("h", b"")).is_err());
}

fn xattr_names(path: &Path) -> Vec<String> {
    let mut list = [0; 4096];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let text = String::from_utf8(list[..length].to_vec()).unwrap();
    let mut names: Vec<_> = text.split_terminator('\0').map(String::from).collect();
    names.sort();
    names
}

#[test]
fn case_39_whiteouts_delete_only_what_they_name() {
    let site = site!();
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", ".wh.d/x"] {
        refuses(site.apply(LayerBuilder::new().file(name, b"")), name);
    }
    for name in [".wh..wh.plnk/1.2", ".wh..wh.aufs", ".wh..wh.orph/x"] {
        site.apply(LayerBuilder::new().file(name, b"")).unwrap();
    }
    assert_eq!(fs::read_dir(site.root()).unwrap().count(), 0);

    // Whatever type it has, a whiteout is one; links are not followed.
    for kind in [b'0', b'1', b'2', b'5'] {
        let site = site!();
        let outside = site.outside();
        std::os::unix::fs::symlink(&outside, site.root().join("l")).unwrap();
        let link = outside.join("file").display().to_string();
        let item = Item { kind, name: b".wh.l", link: link.as_bytes(), ..Item::default() };
        site.apply(LayerBuilder::new().item(&item)).unwrap();
        assert_eq!(fs::read_dir(site.root()).unwrap().count(), 0);
    }
    let site = site!();
    let device = Item { kind: b'3', name: b"x", device: (0, 0), ..Item::default() };
    refuses(site.apply(LayerBuilder::new().item(&device)), "0:0");
}

#[test]
fn case_39_whiteouts_in_an_upper_directory_hide_the_same_in_any_order() {
    let parts: [fn(LayerBuilder) -> LayerBuilder; 3] = [
        |layer| layer.file(".wh.gone", b"").file(".wh.dir", b"").file("opq/.wh..wh..opq", b""),
        |layer| layer.dir("dir/").file("dir/new", b"").file("opq/sub/new", b""),
        |layer| layer.file("gone2/x", b"").file(".wh.gone2", b""),
    ];
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
        let site = site!();
        let lower = site.root();
        for dir in ["dir", "opq/sub", "gone2"] {
            fs::create_dir_all(lower.join(dir)).unwrap();
            fs::write(lower.join(dir).join("old"), "").unwrap();
        }
        fs::write(lower.join("gone"), "").unwrap();
        fs::set_permissions(lower.join("opq"), fs::Permissions::from_mode(0o701)).unwrap();
        let work = TestDir::new();
        let dir = |name: &str| {
            let path = work.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (upper, scratch) = (dir("upper"), dir("work"));
        let mounts = [Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![
                format!("workdir={}", scratch.display()),
                format!("upperdir={}", upper.display()),
                format!("lowerdir={}", lower.display()),
            ],
        }];
        let layer = order.iter().fold(LayerBuilder::new(), |layer, &part| parts[part](layer));
        let layer = layer.finish();
        let options = ApplyOptions::default();
        TarApplier::default().apply(&mut &layer[..], &mounts, &options).unwrap();
        let gone = fs::symlink_metadata(upper.join("gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);

        let merged = crated_mount::TempMount::attach(&mounts, &work.path().join("mounts")).unwrap();
        let mut found = tree(merged.path());
        found.sort();
        let expected = ["dir", "dir/new", "gone2", "gone2/x", "opq", "opq/sub", "opq/sub/new"];
        assert_eq!(found, expected, "{order:?}");
        let opaque = fs::metadata(merged.path().join("opq")).unwrap();
        assert_eq!(opaque.mode() & 0o7777, 0o701, "copied from the layer below");
        merged.close().unwrap();
    }
}

fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(root).unwrap().display().to_string());
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                walk(root, &path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found
}

#[test]
fn case_39_parents_below_an_overlay_are_followed_as_overlayfs_shows_them() {
    let site = site!();
    let lower = site.root();
    fs::create_dir_all(lower.join("usr/lib")).unwrap();
    fs::set_permissions(lower.join("usr/lib"), fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink("usr/lib", lower.join("lib")).unwrap();
    let upper = TestDir::new();
    let target = Target::overlay(upper.path(), &[&lower], false).unwrap();
    let layer = LayerBuilder::new().file("lib/x", b"").finish();
    apply_tar(&mut &layer[..], &target, &ApplyOptions::default()).unwrap();
    let mut found = tree(upper.path());
    found.sort();
    assert_eq!(found, ["usr", "usr/lib", "usr/lib/x"]);
    let made = fs::metadata(upper.path().join("usr/lib")).unwrap();
    assert_eq!(made.mode() & 0o7777, 0o750);
}

#[test]
fn case_40_device_numbers_are_checked_and_nodes_can_be_left_out() {
    let site = site!();
    let node = |kind, device| Item { kind, name: b"n", device, ..Item::default() };
    refuses(site.apply(LayerBuilder::new().item(&node(b'3', (0x1000, 0)))), "major");
    refuses(site.apply(LayerBuilder::new().item(&node(b'4', (1, 0x10_0000)))), "minor");
    let layer = LayerBuilder::new().item(&node(b'3', (1, 3))).file("f", b"").finish();
    let options = ApplyOptions { skip_devices: true, ..ApplyOptions::default() };
    site.apply_with(&layer, &options).unwrap();
    assert_eq!(tree(&site.root()), ["f"]);
    for kind in [b'M', b'V', b'D', b'Z', b'A', 0xff] {
        refuses(site.apply(LayerBuilder::new().item(&node(kind, (0, 0)))), "type");
    }
}

#[test]
fn case_41_extended_headers_are_strict() {
    let site = site!();
    let bad: [&[(&str, &[u8])]; 9] = [
        &[("size", b"-1")],
        &[("size", b"")],
        &[("size", b"99999999999999999999")],
        &[("size", b"1"), ("size", b"1")],
        &[("path", b"")],
        &[("path", b"a"), ("path", b"b")],
        &[("uid", b"4294967295")],
        &[("uid", b"-1")],
        &[("mtime", b"yesterday")],
    ];
    for records in bad {
        refuses(site.apply(LayerBuilder::new().pax(records).file("f", b"x")), records[0].0);
    }
    // Two sizes: refused, whichever is larger.
    for size in [&b"5"[..], b"600"] {
        refuses(site.apply(LayerBuilder::new().pax(&[("size", size)]).file("f", b"abc")), "sizes");
    }
    // No size in the header: the extended one counts.
    let mut layer = LayerBuilder::new().pax(&[("size", b"3")]);
    layer = layer.raw(&header(&Item { name: b"f", ..Item::default() }, 0)).data(b"abc");
    site.apply(layer.file("g", b"")).unwrap();
    assert_eq!(fs::read(site.root().join("f")).unwrap(), b"abc");

    let extended = |data: &[u8], size: u64| {
        let item = Item { kind: b'x', name: b"x", ..Item::default() };
        LayerBuilder::new().raw(&header(&item, size)).data(data).file("f", b"")
    };
    for data in [&b"12 path=a/b"[..], b"9 path=ab\n", b"path=a\n", b"1\n", b"99 path=a\n"] {
        refuses(site.apply(extended(data, data.len() as u64)), &data.escape_ascii().to_string());
    }
    limits(site.apply(extended(b"", (1 << 20) + 1)), "header of more than a megabyte");
    let global = |record: &[u8]| {
        let item = Item { kind: b'g', name: b"g", data: record, ..Item::default() };
        LayerBuilder::new().item(&item).file("f", b"")
    };
    site.apply(global(b"13 comment=x\n")).unwrap();
    refuses(site.apply(global(b"10 size=5\n")), "global size");
    refuses(site.apply(global(b"10 path=x\n")), "global path");
    let twice = LayerBuilder::new().pax(&[("uid", b"1")]).pax(&[("gid", b"1")]).file("f", b"");
    refuses(site.apply(twice), "two headers");
}

fn long(kind: u8, data: &[u8]) -> LayerBuilder {
    LayerBuilder::new().item(&Item { kind, name: b"././@LongLink", data, ..Item::default() })
}

#[test]
fn case_42_long_names_are_bounded_and_belong_to_an_entry() {
    let site = site!();
    let name = [b"d/".repeat(80), b"file\0".to_vec()].concat();
    site.apply(long(b'L', &name).file("short", b"x")).unwrap();
    assert!(tree(&site.root()).iter().any(|path| path.ends_with("d/file")));

    let huge = header(&Item { kind: b'L', name: b"x", ..Item::default() }, 2 << 30);
    limits(site.apply(LayerBuilder::new().raw(&huge)), "two gigabytes of name");
    refuses(site.apply(long(b'L', b"dangling\0")), "name without an entry");
    refuses(site.apply_bytes(&long(b'K', b"dangling\0").unfinished()), "link without an entry");
    refuses(site.apply(long(b'L', b"a\0b\0").file("f", b"")), "two names in one");
    refuses(site.apply(long(b'L', b"\0").file("f", b"")), "empty");
    refuses(site.apply(long(b'L', b"a\0").pax(&[("path", b"b")]).file("f", b"")), "two names");
    let twice = long(b'L', b"a\0").raw(&long(b'L', b"b\0").unfinished()).file("f", b"");
    refuses(site.apply(twice), "two long names");
}

/// An old GNU sparse header.
fn gnu_sparse(regions: &[(u64, u64)], real_size: u64, stored: u64, extended: bool) -> [u8; 512] {
    let mut block = header(&Item { kind: b'S', name: b"sparse", ..Item::default() }, stored);
    block[257..265].copy_from_slice(b"ustar  \0");
    block[329..345].fill(0);
    for (at, (offset, length)) in regions.iter().enumerate() {
        block[386 + at * 24..][..24]
            .copy_from_slice(format!("{offset:011o}\0{length:011o}\0").as_bytes());
    }
    block[482] = u8::from(extended);
    block[483..495].copy_from_slice(format!("{real_size:011o}\0").as_bytes());
    seal(&mut block);
    block
}

#[test]
fn case_42_all_four_sparse_formats_give_the_same_file() {
    let mut expected = vec![0; 10_000];
    expected[1000..1005].copy_from_slice(b"hello");
    expected[9000..9003].copy_from_slice(b"end");
    let data = b"helloend";
    let map_1_0 = [&b"2\n1000\n5\n9000\n3\n"[..], &[0; 496]].concat();
    let map_1_0 = &map_1_0[..512];
    let common = |extra: &[(&'static str, &'static [u8])]| extra.to_vec();
    let formats: [(&str, LayerBuilder); 4] = [
        (
            "old",
            LayerBuilder::new()
                .raw(&gnu_sparse(&[(1000, 5), (9000, 3)], 10_000, 8, false))
                .data(data),
        ),
        (
            "0.0",
            LayerBuilder::new()
                .pax(&common(&[
                    ("GNU.sparse.size", b"10000"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.offset", b"1000"),
                    ("GNU.sparse.numbytes", b"5"),
                    ("GNU.sparse.offset", b"9000"),
                    ("GNU.sparse.numbytes", b"3"),
                ]))
                .file("sparse", data),
        ),
        (
            "0.1",
            LayerBuilder::new()
                .pax(&common(&[
                    ("GNU.sparse.name", b"sparse"),
                    ("GNU.sparse.size", b"10000"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.map", b"1000,5,9000,3"),
                ]))
                .file("GNUSparseFile.1/sparse", data),
        ),
        (
            "1.0",
            LayerBuilder::new()
                .pax(&common(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"sparse"),
                    ("GNU.sparse.realsize", b"10000"),
                ]))
                .file("GNUSparseFile.1/sparse", &[map_1_0, data].concat()),
        ),
    ];
    for (format, layer) in formats {
        let site = site!();
        site.apply(layer.file("after", b"next")).unwrap_or_else(|e| panic!("{format}: {e}"));
        assert_eq!(fs::read(site.root().join("sparse")).unwrap(), expected, "{format}");
        assert_eq!(fs::read(site.root().join("after")).unwrap(), b"next", "{format}");
    }
}

#[test]
fn case_42_impossible_sparse_maps_are_refused() {
    let site = site!();
    let old = |regions: &[(u64, u64)], real: u64, stored: &[u8]| {
        LayerBuilder::new()
            .raw(&gnu_sparse(regions, real, stored.len() as u64, false))
            .data(stored)
            .finish()
    };
    for (what, layer) in [
        ("overlap", old(&[(0, 4), (2, 4)], 100, b"12345678")),
        ("order", old(&[(50, 4), (0, 4)], 100, b"12345678")),
        ("beyond the end", old(&[(98, 4)], 100, b"1234")),
        ("less data", old(&[(0, 4)], 100, b"12")),
        ("more data", old(&[(0, 4)], 100, b"12345678")),
        ("no size", old(&[(0, 4)], 0, b"1234")),
    ] {
        refuses(site.apply_bytes(&layer), what);
    }
    let pax = |records: &[(&str, &[u8])], data: &[u8]| {
        LayerBuilder::new().pax(records).file("f", data).finish()
    };
    let one: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")];
    let counted = |text: &[u8]| {
        let mut data = text.to_vec();
        data.resize(512, 0);
        pax(&one, &data)
    };
    limits(site.apply_bytes(&counted(b"1000000000\n")), "a billion regions");
    for text in [&b"x\n"[..], b"-1\n", b"2\n1\n", b"\n", b"99999999999999999999999999\n"] {
        refuses(site.apply_bytes(&counted(text)), &text.escape_ascii().to_string());
    }
    refuses(site.apply_bytes(&pax(&one, b"")), "map without data");
    refuses(site.apply_bytes(&pax(&[("GNU.sparse.major", b"2")], b"")), "unknown version");
    refuses(site.apply_bytes(&pax(&[("GNU.sparse.map", b"1,2,3")], b"")), "odd map");
    refuses(site.apply_bytes(&pax(&[("GNU.sparse.offset", b"1")], b"")), "half a region");
    refuses(site.apply_bytes(&pax(&[("GNU.sparse.surprise", b"1")], b"")), "unknown record");
    let orphan = LayerBuilder::new().pax(&one).symlink("f", "x");
    refuses(site.apply(orphan), "sparse link");
}

#[test]
fn case_43_a_tar_inside_a_tar_stays_inside() {
    let site = site!();
    let inner = LayerBuilder::new().file("smuggled", b"x").finish();
    // Readers that believe the header's zero would find the inner entries.
    let size = inner.len().to_string();
    let layer = LayerBuilder::new()
        .pax(&[("size", size.as_bytes())])
        .raw(&header(&Item { name: b"inner.tar", ..Item::default() }, 0))
        .data(&inner)
        .file("outer", b"")
        .finish();
    site.apply_bytes(&layer).unwrap();
    let mut found = tree(&site.root());
    found.sort();
    assert_eq!(found, ["inner.tar", "outer"]);
    assert_eq!(fs::read(site.root().join("inner.tar")).unwrap(), inner);

    // Data where none may be would hide entries from other readers.
    for kind in [b'1', b'2', b'3', b'5', b'6'] {
        let item = Item { kind, name: b"n", link: b"f", device: (1, 3), ..Item::default() };
        let layer =
            LayerBuilder::new().file("f", b"").raw(&header(&item, inner.len() as u64)).data(&inner);
        refuses(site.apply(layer), "data without a file");
    }
}

#[test]
fn case_44_broken_headers_are_errors() {
    let site = site!();
    let good = header(&Item { name: b"f", ..Item::default() }, 0);
    let mut bad = good;
    bad[0] = b'g';
    refuses(site.apply_bytes(&bad), "checksum");
    for (at, text) in [
        (124, &b"\x80\0\0\x01\0\0\0\0\0\0\0\0"[..]),
        (124, &[0xff; 12]),
        (108, &[0xff; 8]),
        (100, b"99999999"),
        (136, b"x2345678901\0"),
    ] {
        let mut bad = good;
        bad[at..at + text.len()].copy_from_slice(text);
        seal(&mut bad);
        refuses(site.apply_bytes(&bad), &text.escape_ascii().to_string());
    }
    let full = LayerBuilder::new().file("f", &[1; 1000]).finish();
    for length in [1, 511, 513, 1024, 1500] {
        refuses(site.apply_bytes(&full[..length]), "truncated");
    }
    let lone = LayerBuilder::new().raw(&[0; 512]).file("f", b"");
    refuses(site.apply(lone), "lone block of zeros");
    site.apply_bytes(&[0; 512]).unwrap();
    site.apply_bytes(b"").unwrap();
    let mut base_256 = good;
    base_256[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    seal(&mut base_256);
    site.apply(LayerBuilder::new().raw(&base_256).data(b"abc")).unwrap();
    assert_eq!(fs::read(site.root().join("f")).unwrap(), b"abc");
}

fn compress(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = compression.encoder(Vec::new()).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn case_45_compressed_streams_are_read_to_their_very_end() {
    let layer = LayerBuilder::new().file("f", b"text").finish();
    let options = ApplyOptions::default();
    let (front, back) = layer.split_at(700);
    let site = site!();
    let plain = site.apply_bytes(&layer).unwrap();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let parts = [compress(compression, front), compress(compression, back)].concat();
        assert_eq!(site.apply_compressed(&parts, &options).unwrap(), plain, "{compression:?}");

        let whole = compress(compression, &layer);
        let garbage = [&whole[..], b"garbage"].concat();
        let result = site.apply_compressed(&garbage, &options);
        assert!(matches!(result, Err(Error::Stream { .. })), "{compression:?}: {result:?}");
        let result = site.apply_compressed(&whole[..whole.len() - 1], &options);
        assert!(matches!(result, Err(Error::Stream { .. })), "{compression:?}: {result:?}");
    }
    let mut crc = compress(Compression::Gzip, &layer);
    let at = crc.len() - 8;
    crc[at] ^= 1;
    assert!(matches!(site.apply_compressed(&crc, &options), Err(Error::Stream { .. })));
    // A name of a gigabyte, without an end.
    let name = [&[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3][..], &vec![b'n'; 1 << 20]].concat();
    assert!(matches!(site.apply_compressed(&name, &options), Err(Error::Stream { .. })));
    let skippable =
        [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip", &compress(Compression::Zstd, &layer)]
            .concat();
    assert_eq!(site.apply_compressed(&skippable, &options).unwrap(), plain);
    // A frame header that asks for a window of two gigabytes.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    assert!(matches!(site.apply_compressed(&window, &options), Err(Error::Stream { .. })));
    assert_eq!(site.apply_compressed(b"", &options).unwrap().size_bytes, 0);
}

#[test]
fn case_46_bombs_end_at_the_budget() {
    let site = site!();
    let small =
        ApplyOptions { size_bytes_max: 1 << 20, entries_max: 100, ..ApplyOptions::default() };
    let layer = LayerBuilder::new().file("zeros", &vec![0; 2 << 20]).finish();
    limits(site.apply_with(&layer, &small), "plain");
    for compression in [Compression::Gzip, Compression::Zstd] {
        limits(site.apply_compressed(&compress(compression, &layer), &small), "compressed");
    }
    let trailing = [&LayerBuilder::new().finish()[..], &vec![0; 2 << 20]].concat();
    limits(site.apply_with(&trailing, &small), "after the end");
    let many = (0..101).fold(LayerBuilder::new(), |layer, at| layer.file(&format!("f{at}"), b""));
    limits(site.apply_with(&many.finish(), &small), "many entries");

    let petabyte = LayerBuilder::new().pax(&[
        ("GNU.sparse.map", b""),
        ("GNU.sparse.size", b"1125899906842624"),
        ("GNU.sparse.numblocks", b"0"),
    ]);
    limits(site.apply(petabyte.file("f", b"")), "a petabyte of hole");
}

/// Endless zeros behind one compressed byte after another.
#[test]
fn case_46_a_ratio_no_file_has_ends_the_stream() {
    let site = site!();
    // One file of eight gigabytes of zeros, 700 kilobytes in zstd.
    let zeros = vec![0; 64 << 20];
    let start = LayerBuilder::new()
        .raw(&header(&Item { name: b"zeros", ..Item::default() }, (8 << 30) - 1))
        .unfinished();
    let block = compress(Compression::Zstd, &zeros);
    let mut bomb = compress(Compression::Zstd, &start);
    for _ in 0..17 {
        bomb.extend_from_slice(&block);
    }
    let result = site.apply_compressed(&bomb, &ApplyOptions::default());
    fs::remove_file(site.root().join("zeros")).unwrap();
    limits(result, "ratio");
}

#[test]
fn case_47_names_that_differ_in_case_or_normal_form_are_different() {
    let site = site!();
    let names = ["a", "A", "\u{e9}", "e\u{301}"];
    let layer = names.iter().fold(LayerBuilder::new(), |layer, name| layer.file(name, b""));
    site.apply(layer).unwrap();
    assert_eq!(tree(&site.root()).len(), 4);
}

#[test]
fn case_48_times_are_clamped_and_owners_never_wrap() {
    let site = site!();
    for (time, expected) in [
        (&b"-5"[..], -5),
        (b"-99999999999999999999", -0x8000_0000),
        (b"1099511627776", 0x3_7fff_ffff),
        (b"99999999999999999999.5", 0x3_7fff_ffff),
        (b"7.999999999999", 7),
    ] {
        site.apply(LayerBuilder::new().pax(&[("mtime", time)]).file("f", b"")).unwrap();
        let mtime = fs::metadata(site.root().join("f")).unwrap().mtime();
        assert_eq!(mtime, expected, "{}", time.escape_ascii());
    }
    for id in [&b"4294967295"[..], b"4294967296", b"18446744073709551616", b"-1", b"0x0"] {
        for key in ["uid", "gid"] {
            let layer = LayerBuilder::new().pax(&[(key, id)]).file("f", b"");
            refuses(site.apply(layer), &id.escape_ascii().to_string());
        }
    }
    let most = LayerBuilder::new().pax(&[("uid", b"4294967294")]).file("f", b"");
    site.apply(most).unwrap();
    assert_eq!(fs::metadata(site.root().join("f")).unwrap().uid(), u32::MAX - 1);
}

#[test]
fn case_49_somebody_renaming_in_the_target_changes_nothing_outside() {
    let site = site!();
    let root = site.root();
    fs::create_dir(root.join("d")).unwrap();
    let mut layer = LayerBuilder::new();
    for at in 0..3000 {
        layer = match at % 3 {
            0 => layer.file(&format!("d/f{at}"), b"x"),
            1 => layer.dir(&format!("d/s{at}")).file(&format!("d/s{at}/f"), b"x"),
            _ => layer.file(&format!("d/.wh.f{}", at - 2), b""),
        };
    }
    let layer = layer.finish();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let outside = site.outside();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = fs::rename(root.join("d"), root.join("hidden"));
                let _ = std::os::unix::fs::symlink(&outside, root.join("d"));
                let _ = fs::remove_file(root.join("d"));
                let _ = fs::rename(root.join("hidden"), root.join("d"));
            }
        });
        for _ in 0..5 {
            // Any outcome is fine, as long as it stays inside.
            let _ = site.apply_bytes(&layer);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    site.assert_outside_is_untouched();
}

#[test]
fn case_52_a_failed_application_leaves_no_thread_behind() {
    let site = site!();
    let bad = LayerBuilder::new().file("../x", b"").file("zeros", &vec![0; 8 << 20]).finish();
    let started = std::time::Instant::now();
    let bad = compress(Compression::Gzip, &bad);
    refuses(site.apply_compressed(&bad, &ApplyOptions::default()), "escape");
    assert!(started.elapsed() < std::time::Duration::from_secs(30));
}

#[test]
fn case_50_a_full_filesystem_is_an_error_and_trying_again_works() {
    let site = site!();
    let small = Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        target: String::new(),
        options: vec!["size=1m".into(), "nr_inodes=50".into()],
    };
    let mounted = crated_mount::TempMount::attach(&[small], &site.root().join("mounts")).unwrap();
    let root = mounted.path().join("snapshot");
    let apply = |layer: LayerBuilder| {
        fs::create_dir(&root).unwrap();
        let layer = layer.finish();
        let target = Target::directory(&root).unwrap();
        let result = apply_tar(&mut &layer[..], &target, &ApplyOptions::default());
        crated_snapshot::remove_tree(&root).unwrap();
        result
    };
    let full = |result: Result<Applied>| {
        let storage_full = |e: &std::io::Error| e.kind() == std::io::ErrorKind::StorageFull;
        assert!(
            matches!(&result, Err(Error::Io { source, .. }) if storage_full(source)),
            "{result:?}"
        );
    };
    full(apply(LayerBuilder::new().file("large", &vec![1; 2 << 20])));
    full(apply((0..60).fold(LayerBuilder::new(), |layer, at| layer.dir(&format!("d{at}")))));
    apply(LayerBuilder::new().file("fits", &[1; 1000])).unwrap();
    mounted.close().unwrap();
}

/// The victim of case 51: unpacks what arrives on its standard input until it is killed. Runs only
/// when this test starts itself again.
#[test]
fn case_51_victim() {
    let Some(root) = std::env::var_os("CRATED_HOSTILE_VICTIM") else { return };
    let snapshots = open_snapshots(Path::new(&root));
    let mounts = snapshots.prepare(&key(), None, &Labels::new()).unwrap();
    let mut layer = std::io::stdin().lock();
    let _ = TarApplier::default().apply(&mut layer, &mounts, &ApplyOptions::default());
    snapshots.commit(&name(), &key(), &CommitOptions::default()).unwrap();
}

#[test]
fn case_51_a_layer_whose_applier_was_killed_is_absent_and_can_be_applied_again() {
    let site = site!();
    let data = vec![7; 100_000];
    let layer = (0..20)
        .fold(LayerBuilder::new(), |layer, at| layer.file(&format!("f{at}"), &data))
        .finish();
    for part in [0, 512, 60_000, layer.len() / 2, layer.len() - 1024] {
        let root = site.root().join(part.to_string());
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "case_51_victim", "--nocapture"])
            .env("CRATED_HOSTILE_VICTIM", &root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The pipe stays open, so the victim waits for the rest in the middle of the layer.
        let mut stdin = victim.stdin.take().unwrap();
        stdin.write_all(&layer[..part]).unwrap();
        victim.kill().unwrap();
        victim.wait().unwrap();
        drop(stdin);

        let snapshots = open_snapshots(&root);
        let found = snapshots.stat(name().as_str());
        assert!(matches!(found, Err(Error::NotFound(_))), "{part}: {found:?}");
        match snapshots.remove(key().as_str()) {
            Ok(()) | Err(Error::NotFound(_)) => {}
            Err(error) => panic!("{part}: {error}"),
        }
        snapshots.cleanup().unwrap();
        let mounts = snapshots.prepare(&key(), None, &Labels::new()).unwrap();
        TarApplier::default().apply(&mut &layer[..], &mounts, &ApplyOptions::default()).unwrap();
        snapshots.commit(&name(), &key(), &CommitOptions::default()).unwrap();
        let mounts = snapshots.view(&key(), Some(&name()), &Labels::new()).unwrap();
        assert_eq!(tree(Path::new(&mounts[0].source)).len(), 20);
    }
}

fn open_snapshots(root: &Path) -> OverlaySnapshotter {
    let options = OverlayOptions { root: root.to_owned(), ..OverlayOptions::default() };
    OverlaySnapshotter::open(options).expect("opens after a kill")
}

fn key() -> Key {
    Key::new("work").unwrap()
}

fn name() -> Name {
    Name::new("layer").unwrap()
}

/// How layers stack up when unpacked side by side is a property test of the round trips.
#[test]
fn case_53_in_turn_side_by_side_and_after_a_failure_the_tree_is_the_same() {
    let site = site!();
    let layer = (0..60)
        .fold(LayerBuilder::new(), |layer, at| {
            layer.dir(&format!("d{}/", at % 7)).file(&format!("d{}/f{at}", at % 7), &[at; 3000])
        })
        .symlink("link", "d0/f0")
        .hard_link("hard", "d0/f0")
        .finish();
    let apply = |root: &Path, layer: &[u8]| {
        fs::create_dir_all(root).unwrap();
        let target = Target::directory(root).unwrap();
        apply_tar(&mut &layer[..], &target, &ApplyOptions::default())
    };
    let seen = |root: &Path| {
        let mut found = tree(root);
        found.sort();
        let with_data = |path: String| {
            let meta = fs::symlink_metadata(root.join(&path)).unwrap();
            let data =
                if meta.is_file() { fs::read(root.join(&path)).unwrap() } else { Vec::new() };
            (path, meta.mode(), meta.nlink(), meta.mtime(), data)
        };
        found.into_iter().map(with_data).collect::<Vec<_>>()
    };
    let in_turn = site.root().join("in-turn");
    apply(&in_turn, &layer).unwrap();
    for workers in [2, 5, 16] {
        let roots: Vec<PathBuf> =
            (0..workers).map(|at| site.root().join(format!("{workers}-{at}"))).collect();
        std::thread::scope(|scope| {
            for root in &roots {
                scope.spawn(|| apply(root, &layer).unwrap());
            }
        });
        for root in &roots {
            assert!(seen(root) == seen(&in_turn), "{}", root.display());
        }
    }
    let again = site.root().join("again");
    apply(&again, &layer[..layer.len() / 2]).unwrap_err();
    apply(&again, &layer).unwrap();
    assert!(seen(&again) == seen(&in_turn));
}
