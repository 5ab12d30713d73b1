//! Every promise, kept by overlayfs, plus its own mechanics.

use std::path::Path;

use crated_snapshot::{OverlayOptions, OverlaySnapshotter, Result};

fn open(root: &Path) -> Result<OverlaySnapshotter> {
    OverlaySnapshotter::open(OverlayOptions { root: root.to_owned(), ..OverlayOptions::default() })
}

crated_snapshot::snapshotter_testsuite!(open);

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use crated_snapshot::testsuite::{TestDir, is_root, may_run};
use crated_snapshot::{
    CommitOptions, Error, GID_MAPPING_LABEL, Key, Kind, LabelUpdate, Labels, Mount, Name,
    Snapshotter, SyncMode, UID_MAPPING_LABEL, UPPERDIR_LABEL,
};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn bench() -> Option<(TestDir, OverlayOptions)> {
    may_run(is_root(), "needs root").then(|| {
        let temp = TestDir::new();
        let options =
            OverlayOptions { root: temp.path().join("root"), ..OverlayOptions::default() };
        (temp, options)
    })
}

fn layer(s: &OverlaySnapshotter, to: &str, parent: Option<&str>) {
    s.prepare(&key("layer"), parent.map(name).as_ref(), &Labels::new()).unwrap();
    s.commit(&name(to), &key("layer"), &CommitOptions::default()).unwrap();
}

fn upper(mount: &Mount) -> String {
    let option = |prefix: &str| mount.options.iter().find_map(|o| o.strip_prefix(prefix));
    option("upperdir=").unwrap_or(&mount.source).to_owned()
}

#[test]
fn mounts_have_the_shapes_clients_parse() {
    let Some((_temp, options)) = bench() else { return };
    let at = |id: u64, dir: &str| {
        options.root.join(format!("snapshots/{id}/{dir}")).display().to_string()
    };
    let s = OverlaySnapshotter::open(options.clone()).unwrap();
    layer(&s, "one", None);
    layer(&s, "two", Some("one"));
    let none = Labels::new();
    let shape = |mounts: Vec<Mount>| {
        let [mount] = &mounts[..] else { panic!("one mount: {mounts:?}") };
        let options: Vec<String> =
            mount.options.iter().filter(|option| *option != "index=off").cloned().collect();
        (mount.kind.clone(), mount.source.clone(), options)
    };
    let bind = |source: String, access: &str| {
        ("bind".to_owned(), source, vec![access.to_owned(), "rbind".to_owned()])
    };
    let overlay = |options: Vec<String>| ("overlay".to_owned(), "overlay".to_owned(), options);

    assert_eq!(shape(s.prepare(&key("a0"), None, &none).unwrap()), bind(at(3, "fs"), "rw"));
    assert_eq!(shape(s.view(&key("v0"), None, &none).unwrap()), bind(at(4, "fs"), "ro"));
    let one = Some(name("one"));
    assert_eq!(
        shape(s.prepare(&key("a1"), one.as_ref(), &none).unwrap()),
        overlay(vec![
            format!("workdir={}", at(5, "work")),
            format!("upperdir={}", at(5, "fs")),
            format!("lowerdir={}", at(1, "fs")),
        ])
    );
    assert_eq!(shape(s.view(&key("v1"), one.as_ref(), &none).unwrap()), bind(at(1, "fs"), "ro"));
    let two = Some(name("two"));
    assert_eq!(
        shape(s.view(&key("v2"), two.as_ref(), &none).unwrap()),
        overlay(vec![format!("lowerdir={}:{}", at(2, "fs"), at(1, "fs"))])
    );
    let mode = |path: String| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(options.root.display().to_string()), 0o700);
    assert_eq!((mode(at(5, "fs")), mode(at(5, "work"))), (0o755, 0o711));
}

#[test]
fn removal_leaves_directories_to_cleanup_unless_told_otherwise() {
    let Some((_temp, mut options)) = bench() else { return };
    for sync_remove in [false, true] {
        options.sync_remove = sync_remove;
        let s = OverlaySnapshotter::open(options.clone()).unwrap();
        let mounts = s.prepare(&key("a"), None, &Labels::new()).unwrap();
        let dir = Path::new(&upper(&mounts[0])).parent().unwrap().to_owned();
        fs::write(dir.join("fs/file"), "").unwrap();
        s.remove("a").unwrap();
        assert_eq!(dir.exists(), !sync_remove);
        s.cleanup().unwrap();
        assert!(!dir.exists());
    }
}

#[test]
fn leftovers_of_a_crash_are_cleaned_up_and_do_not_block_ids() {
    let Some((_temp, options)) = bench() else { return };
    let s = OverlaySnapshotter::open(options.clone()).unwrap();
    layer(&s, "one", None);
    let snapshots = options.root.join("snapshots");
    for left in ["new-1-2-3", "rm-9", "2", "77", "rubbish"] {
        fs::create_dir_all(snapshots.join(left).join("fs/deep")).unwrap();
    }
    // Id 2 is next: what stands there came from a record that was lost.
    let mounts = s.prepare(&key("a"), None, &Labels::new()).unwrap();
    assert_eq!(upper(&mounts[0]), snapshots.join("2/fs").display().to_string());
    assert_eq!(fs::read_dir(snapshots.join("2/fs")).unwrap().count(), 0);
    s.cleanup().unwrap();
    let mut left: Vec<_> =
        fs::read_dir(&snapshots).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["1", "2"]);
}

#[test]
fn a_second_opener_is_refused() {
    let Some((_temp, options)) = bench() else { return };
    let first = OverlaySnapshotter::open(options.clone()).unwrap();
    let second = OverlaySnapshotter::open(options.clone());
    assert!(matches!(second, Err(Error::Metadata { .. })), "{second:?}");
    drop(first);
    OverlaySnapshotter::open(options).unwrap();
}

#[test]
fn a_root_others_can_write_to_is_refused() {
    let Some((temp, options)) = bench() else { return };
    let refused = |options: OverlayOptions| {
        let opened = OverlaySnapshotter::open(options);
        assert!(matches!(opened, Err(Error::InvalidArgument { .. })), "{opened:?}");
    };
    fs::create_dir(&options.root).unwrap();
    fs::set_permissions(&options.root, fs::Permissions::from_mode(0o777)).unwrap();
    refused(options.clone());
    fs::set_permissions(&options.root, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&options.root, Some(1234), None).unwrap();
    refused(options.clone());
    let link = temp.path().join("link");
    std::os::unix::fs::symlink(temp.path(), &link).unwrap();
    refused(OverlayOptions { root: link, ..options.clone() });
    for name in ["a:b", "a,b", "a\\b"] {
        refused(OverlayOptions { root: temp.path().join(name), ..options.clone() });
    }
}

#[test]
fn the_upper_directory_is_shown_and_never_stored() {
    let Some((_temp, mut options)) = bench() else { return };
    options.upperdir_label = true;
    let s = OverlaySnapshotter::open(options.clone()).unwrap();
    let mounts = s.prepare(&key("a"), None, &Labels::new()).unwrap();
    let info = s.stat("a").unwrap();
    assert_eq!(info.labels[UPPERDIR_LABEL], upper(&mounts[0]));
    let updated = s.update("a", &LabelUpdate::Replace(info.labels.clone())).unwrap();
    assert_eq!(updated.labels, info.labels);
    let mut walked = Vec::new();
    s.walk(&mut |info| {
        walked.push(info.labels);
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(walked, [info.labels]);
    drop(s);
    options.upperdir_label = false;
    let s = OverlaySnapshotter::open(options).unwrap();
    assert_eq!(s.stat("a").unwrap().labels, Labels::new());
}

#[test]
fn owners_come_from_the_mapping_or_the_parent() {
    let Some((_temp, options)) = bench() else { return };
    let s = OverlaySnapshotter::open(options).unwrap();
    let map = |uids: &str, gids: &str| -> Labels {
        [(UID_MAPPING_LABEL, uids), (GID_MAPPING_LABEL, gids)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    };
    let mounts = s.prepare(&key("parent"), None, &Labels::new()).unwrap();
    chown(upper(&mounts[0]), Some(77), Some(78)).unwrap();
    s.commit(&name("base"), &key("parent"), &CommitOptions::default()).unwrap();
    let base = Some(name("base"));
    let mounts = s.prepare(&key("child"), base.as_ref(), &Labels::new()).unwrap();
    let owner = |mount: &Mount| {
        let meta = fs::metadata(upper(mount)).unwrap();
        (meta.uid(), meta.gid())
    };
    assert_eq!(owner(&mounts[0]), (77, 78));

    let labels = map("0:100000:65536", "0:200000:65536");
    let mounts = s.prepare(&key("mapped"), base.as_ref(), &labels).unwrap();
    assert_eq!(owner(&mounts[0]), (100_000, 200_000), "the upper layer itself is not id-mapped");
    if s.remaps_ids() {
        let map = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"];
        assert_eq!(mounts[0].options[..2], map);
    }
    let bad = s.prepare(&key("bad"), None, &map("0:0:0", "0:0:1"));
    assert!(matches!(bad, Err(Error::InvalidArgument { .. })), "{bad:?}");
}

#[test]
fn deferred_commits_are_complete_or_absent_after_a_crash() {
    let Some((temp, mut options)) = bench() else { return };
    options.sync = SyncMode::Deferred;
    let s = OverlaySnapshotter::open(options.clone()).unwrap();
    layer(&s, "synced", None);
    s.sync().unwrap();
    layer(&s, "not yet", Some("synced"));
    s.remove("not yet").unwrap();
    layer(&s, "again", Some("synced"));
    // What a power cut would leave: the file as it is, and no more.
    let cut = temp.path().join("cut");
    fs::create_dir(&cut).unwrap();
    fs::set_permissions(&cut, fs::Permissions::from_mode(0o700)).unwrap();
    fs::copy(options.root.join("metadata.db"), cut.join("metadata.db")).unwrap();
    let after = OverlaySnapshotter::open(OverlayOptions { root: cut, ..options.clone() }).unwrap();
    assert_eq!(after.stat("synced").unwrap().kind, Kind::Committed);
    assert!(matches!(after.stat("again"), Err(Error::NotFound(_))));
    assert!(matches!(after.stat("not yet"), Err(Error::NotFound(_))));
    // Here everything is known.
    assert_eq!(s.stat("again").unwrap().parent, Some(name("synced")));
    drop(s);
    let s = OverlaySnapshotter::open(options).unwrap();
    s.cleanup().unwrap();
    s.prepare(&key("on"), Some(&name("synced")), &Labels::new()).unwrap();
}

#[test]
fn id_mapped_snapshots_show_the_layers_below_with_mapped_owners() {
    let Some((temp, options)) = bench() else { return };
    let overlay = OverlaySnapshotter::open(options).unwrap();
    let packed = crated_snapshot::ErofsSnapshotter::open(crated_snapshot::ErofsOptions {
        root: temp.path().join("packed"),
        ..Default::default()
    })
    .unwrap();
    if !overlay.remaps_ids() {
        return;
    }
    for s in [&overlay as &dyn Snapshotter, &packed] {
        let mounts = s.prepare(&key("k"), None, &Labels::new()).unwrap();
        fs::write(Path::new(&mounts[0].source).join("file"), "of root").unwrap();
        s.commit(&name("base"), &key("k"), &CommitOptions::default()).unwrap();
        let labels: Labels = [
            (UID_MAPPING_LABEL.to_owned(), "0:100000:65536".to_owned()),
            (GID_MAPPING_LABEL.to_owned(), "0:200000:65536".to_owned()),
        ]
        .into();
        let mounts = s.prepare(&key("mapped"), Some(&name("base")), &labels).unwrap();
        let mount = crated_mount::TempMount::attach(&mounts, &temp.path().join("mounts")).unwrap();
        let owner = |name: &str| {
            let meta = fs::metadata(mount.path().join(name)).unwrap();
            (meta.uid(), meta.gid())
        };
        assert_eq!(owner("file"), (100_000, 200_000));
        assert_eq!(owner(""), (100_000, 200_000));
        // Its owner is the container's root, who may change it.
        fs::write(mount.path().join("file"), "changed").unwrap();
        assert_eq!(owner("file"), (100_000, 200_000));
        mount.close().unwrap();
        s.remove("mapped").unwrap();
        assert!(matches!(s.mounts(&key("mapped")), Err(Error::NotFound(_))));
    }
}

#[test]
fn a_quota_limits_one_snapshot_or_is_refused_with_the_reason() {
    let Some((temp, _)) = bench() else { return };
    let image = temp.path().join("image");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let mkfs = |features: &str| {
        let mut mkfs = std::process::Command::new("mkfs.ext4");
        let made = mkfs.args(["-q", "-F", "-O", features]).arg(&image).status();
        assert!(made.unwrap().success());
    };
    let attach = |options: &[&str]| {
        let mount = Mount {
            kind: "ext4".into(),
            source: image.display().to_string(),
            target: String::new(),
            options: options.iter().copied().map(String::from).collect(),
        };
        crated_mount::TempMount::attach(&[mount], &temp.path().join("disk"))
    };
    mkfs("project,quota");
    // Kernels without quotas refuse to mount a filesystem that has them.
    let (disk, limits) = match attach(&["loop", "prjquota"]) {
        Ok(disk) => (disk, true),
        Err(_) => {
            mkfs("^project,^quota");
            (attach(&["loop"]).unwrap(), false)
        }
    };
    let options = OverlayOptions { root: disk.path().join("root"), ..OverlayOptions::default() };
    let s = OverlaySnapshotter::open(options).unwrap();
    let limited: Labels = [(crated_snapshot::QUOTA_LABEL.to_owned(), (4 << 20).to_string())].into();
    let prepared = s.prepare(&key("limited"), None, &limited);
    let bad: Labels = [(crated_snapshot::QUOTA_LABEL.to_owned(), "4M".to_owned())].into();
    let refused = s.prepare(&key("bad"), None, &bad);
    assert!(matches!(refused, Err(Error::InvalidArgument { .. })), "{refused:?}");
    if limits {
        let at = prepared.unwrap()[0].source.clone();
        fs::write(Path::new(&at).join("little"), vec![1; 1 << 20]).unwrap();
        let mut much = fs::File::create(Path::new(&at).join("much")).unwrap();
        let error = std::io::Write::write_all(&mut much, &vec![1; 8 << 20])
            .and_then(|()| much.sync_all())
            .unwrap_err();
        let codes = [rustix::io::Errno::DQUOT, rustix::io::Errno::NOSPC];
        assert!(codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error())));
        let usage = s.usage("limited").unwrap();
        assert!((1 << 20..5 << 20).contains(&usage.size_bytes), "{usage:?}");
        let at = s.prepare(&key("free"), None, &Labels::new()).unwrap()[0].source.clone();
        fs::write(Path::new(&at).join("much"), vec![1; 8 << 20]).unwrap();
        s.remove("limited").unwrap();
    } else {
        let Err(Error::Unsupported { reason }) = prepared else { panic!("{prepared:?}") };
        assert!(reason.contains("quota"), "{reason}");
        assert!(matches!(s.stat("limited"), Err(Error::NotFound(_))), "nothing is left of it");
    }
    drop(s);
    disk.close().unwrap();
}
