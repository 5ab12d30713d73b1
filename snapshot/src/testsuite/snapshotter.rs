//! Promises of [`Snapshotter`].
#![allow(missing_docs, reason = "each promise is its name")]
#![allow(clippy::missing_panics_doc, reason = "a broken promise panics")]
#![allow(clippy::disallowed_methods, reason = "what a container does is what is tested")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use crated_mount::{Mount, TempMount};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::error::{Error, Result};
use crate::snapshotter::{
    CommitOptions, Info, Key, Kind, LabelUpdate, Labels, Name, Snapshotter, Usage,
};
use crate::testsuite::Bench;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// Mounts, lets `work` look or write, unmounts.
fn with<T>(bench: &Bench<'_>, mounts: &[Mount], work: impl FnOnce(&Path) -> T) -> T {
    let mount = TempMount::attach(mounts, &bench.temp.path().join("mounts")).expect("attach");
    let result = work(mount.path());
    mount.close().expect("detach");
    result
}

/// Commits `to` on `parent` with what `write` does.
fn layer(
    bench: &Bench<'_>,
    s: &dyn Snapshotter,
    to: &str,
    parent: Option<&str>,
    write: impl FnOnce(&Path),
) {
    let active = key(&format!("layer {to}"));
    let parent = parent.map(name);
    let mounts = s.prepare(&active, parent.as_ref(), &Labels::new()).expect("prepare");
    with(bench, &mounts, write);
    s.commit(&name(to), &active, &CommitOptions::default()).expect("commit");
}

/// Looks at a committed snapshot through a view that is removed again.
fn look<T>(bench: &Bench<'_>, s: &dyn Snapshotter, at: &str, work: impl FnOnce(&Path) -> T) -> T {
    let view = key(&format!("look at {at}"));
    let mounts = s.view(&view, Some(&name(at)), &Labels::new()).expect("view");
    let result = with(bench, &mounts, work);
    s.remove(view.as_str()).expect("remove view");
    result
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "lost+found")
        .collect();
    names.sort();
    names
}

fn all(s: &dyn Snapshotter) -> BTreeMap<String, Info> {
    let mut all = BTreeMap::new();
    s.walk(&mut |info| {
        assert!(all.insert(info.name.clone(), info).is_none(), "visited twice");
        ControlFlow::Continue(())
    })
    .unwrap();
    all
}

macro_rules! refused {
    ($result:expr, $error:pat) => {{
        let result = $result;
        assert!(matches!(result, Err($error)), "expected {}, got {result:?}", stringify!($error));
    }};
}

pub fn prepare_gives_an_empty_writable_filesystem(bench: &Bench<'_>) {
    let s = bench.open();
    let mounts = s.prepare(&key("a"), None, &Labels::new()).unwrap();
    with(bench, &mounts, |root| {
        assert_eq!(names(root), [""; 0]);
        fs::write(root.join("file"), "text").unwrap();
    });
    with(bench, &mounts, |root| {
        assert_eq!(fs::read(root.join("file")).unwrap(), b"text");
    });
    let info = s.stat("a").unwrap();
    assert_eq!((info.kind, info.parent), (Kind::Active, None));
}

pub fn children_see_what_parents_committed(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "one", None, |root| fs::write(root.join("1"), "one").unwrap());
    layer(bench, &*s, "two", Some("one"), |root| fs::write(root.join("2"), "two").unwrap());
    look(bench, &*s, "two", |root| {
        assert_eq!(names(root), ["1", "2"]);
        assert_eq!(fs::read(root.join("1")).unwrap(), b"one");
    });
    assert_eq!(s.stat("two").unwrap().parent, Some(name("one")));
}

pub fn children_do_not_change_their_parents(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "one", None, |root| {
        fs::write(root.join("kept"), "one").unwrap();
        fs::write(root.join("gone"), "one").unwrap();
    });
    layer(bench, &*s, "two", Some("one"), |root| {
        fs::write(root.join("kept"), "two").unwrap();
        fs::remove_file(root.join("gone")).unwrap();
        fs::write(root.join("new"), "two").unwrap();
    });
    look(bench, &*s, "one", |root| {
        assert_eq!(names(root), ["gone", "kept"]);
        assert_eq!(fs::read(root.join("kept")).unwrap(), b"one");
    });
    look(bench, &*s, "two", |root| {
        assert_eq!(names(root), ["kept", "new"]);
        assert_eq!(fs::read(root.join("kept")).unwrap(), b"two");
    });
}

pub fn siblings_do_not_see_each_other(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "base", None, |root| fs::write(root.join("file"), "base").unwrap());
    let one = s.prepare(&key("1"), Some(&name("base")), &Labels::new()).unwrap();
    let two = s.prepare(&key("2"), Some(&name("base")), &Labels::new()).unwrap();
    with(bench, &one, |root| fs::write(root.join("file"), "one").unwrap());
    with(bench, &two, |root| {
        assert_eq!(fs::read(root.join("file")).unwrap(), b"base");
    });
}

pub fn views_show_their_parent_and_refuse_writes(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "one", None, |root| fs::write(root.join("file"), "one").unwrap());
    layer(bench, &*s, "two", Some("one"), |root| fs::write(root.join("more"), "two").unwrap());
    for parent in ["one", "two"] {
        let view = key(&format!("view of {parent}"));
        let mounts = s.view(&view, Some(&name(parent)), &Labels::new()).unwrap();
        with(bench, &mounts, |root| {
            assert_eq!(fs::read(root.join("file")).unwrap(), b"one");
            let error = fs::write(root.join("new"), "").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
            fs::write(root.join("file"), "changed").unwrap_err();
        });
        assert_eq!(s.stat(view.as_str()).unwrap().kind, Kind::View);
    }
}

pub fn a_view_of_nothing_is_empty(bench: &Bench<'_>) {
    let s = bench.open();
    let mounts = s.view(&key("v"), None, &Labels::new()).unwrap();
    with(bench, &mounts, |root| {
        assert_eq!(names(root), [""; 0]);
        fs::write(root.join("new"), "").unwrap_err();
    });
}

pub fn a_taken_key_is_refused(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "base", None, |_| {});
    s.prepare(&key("active"), None, &Labels::new()).unwrap();
    s.view(&key("view"), None, &Labels::new()).unwrap();
    for taken in ["base", "active", "view"] {
        for parent in [None, Some(&name("base"))] {
            refused!(s.prepare(&key(taken), parent, &Labels::new()), Error::AlreadyExists(_));
            refused!(s.view(&key(taken), parent, &Labels::new()), Error::AlreadyExists(_));
        }
    }
    assert_eq!(all(&*s).len(), 3);
}

pub fn a_missing_parent_is_not_found(bench: &Bench<'_>) {
    let s = bench.open();
    let missing = name("missing");
    refused!(s.prepare(&key("a"), Some(&missing), &Labels::new()), Error::NotFound(_));
    refused!(s.view(&key("a"), Some(&missing), &Labels::new()), Error::NotFound(_));
    assert_eq!(all(&*s).len(), 0);
}

pub fn a_parent_must_be_committed(bench: &Bench<'_>) {
    let s = bench.open();
    s.prepare(&key("active"), None, &Labels::new()).unwrap();
    s.view(&key("view"), None, &Labels::new()).unwrap();
    for parent in ["active", "view"] {
        let parent = name(parent);
        refused!(
            s.prepare(&key("a"), Some(&parent), &Labels::new()),
            Error::InvalidArgument { .. }
        );
        refused!(s.view(&key("a"), Some(&parent), &Labels::new()), Error::InvalidArgument { .. });
    }
}

pub fn a_taken_name_is_refused_and_the_key_stays(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "base", None, |_| {});
    s.prepare(&key("a"), None, &Labels::new()).unwrap();
    s.prepare(&key("b"), None, &Labels::new()).unwrap();
    for taken in ["base", "b", "a"] {
        let commit = s.commit(&name(taken), &key("a"), &CommitOptions::default());
        refused!(commit, Error::AlreadyExists(_));
    }
    assert_eq!(s.stat("a").unwrap().kind, Kind::Active);
    s.commit(&name("free"), &key("a"), &CommitOptions::default()).unwrap();
}

pub fn committing_what_is_missing_is_not_found(bench: &Bench<'_>) {
    let s = bench.open();
    let commit = s.commit(&name("n"), &key("missing"), &CommitOptions::default());
    refused!(commit, Error::NotFound(_));
}

pub fn only_active_snapshots_are_committed(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "base", None, |_| {});
    s.view(&key("view"), Some(&name("base")), &Labels::new()).unwrap();
    for committed in ["view", "base"] {
        let commit = s.commit(&name("n"), &key(committed), &CommitOptions::default());
        refused!(commit, Error::FailedPrecondition { .. });
    }
}

pub fn a_committed_key_is_gone(bench: &Bench<'_>) {
    let s = bench.open();
    s.prepare(&key("a"), None, &Labels::new()).unwrap();
    s.commit(&name("n"), &key("a"), &CommitOptions::default()).unwrap();
    refused!(s.stat("a"), Error::NotFound(_));
    refused!(s.mounts(&key("a")), Error::NotFound(_));
    refused!(s.commit(&name("m"), &key("a"), &CommitOptions::default()), Error::NotFound(_));
    assert_eq!(s.stat("n").unwrap().kind, Kind::Committed);
    s.prepare(&key("a"), None, &Labels::new()).unwrap();
}

pub fn parents_outlive_their_children(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "one", None, |_| {});
    layer(bench, &*s, "two", Some("one"), |_| {});
    s.prepare(&key("active"), Some(&name("two")), &Labels::new()).unwrap();
    s.view(&key("view"), Some(&name("two")), &Labels::new()).unwrap();
    for (parent, child) in [("one", "active"), ("two", "view"), ("one", "two")] {
        refused!(s.remove(parent), Error::FailedPrecondition { .. });
        s.remove(child).unwrap();
    }
    s.remove("one").unwrap();
    assert_eq!(all(&*s).len(), 0);
}

pub fn what_is_missing_is_not_found(bench: &Bench<'_>) {
    let s = bench.open();
    refused!(s.stat("missing"), Error::NotFound(_));
    refused!(s.usage("missing"), Error::NotFound(_));
    refused!(s.mounts(&key("missing")), Error::NotFound(_));
    refused!(s.remove("missing"), Error::NotFound(_));
    refused!(s.update("missing", &LabelUpdate::Replace(Labels::new())), Error::NotFound(_));
}

pub fn committed_snapshots_have_no_mounts(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "base", None, |_| {});
    refused!(s.mounts(&key("base")), Error::FailedPrecondition { .. });
}

pub fn mounts_stay_the_same(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "one", None, |_| {});
    layer(bench, &*s, "two", Some("one"), |_| {});
    for parent in [None, Some(name("one")), Some(name("two"))] {
        let prepared = s.prepare(&key("a"), parent.as_ref(), &Labels::new()).unwrap();
        assert_eq!(s.mounts(&key("a")).unwrap(), prepared);
        let viewed = s.view(&key("v"), parent.as_ref(), &Labels::new()).unwrap();
        assert_eq!(s.mounts(&key("v")).unwrap(), viewed);
        s.remove("a").unwrap();
        s.remove("v").unwrap();
    }
}

pub fn everything_survives_reopening(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "base", None, |root| fs::write(root.join("file"), "base").unwrap());
    let set = labels([("k", "v")]);
    s.prepare(&key("active"), Some(&name("base")), &set).unwrap();
    s.view(&key("view"), Some(&name("base")), &set).unwrap();
    let state = |s: &dyn Snapshotter| {
        let mounts = ["active", "view"].map(|k| s.mounts(&key(k)).unwrap().len());
        (all(s), mounts, s.usage("base").unwrap())
    };
    let before = state(&*s);
    drop(s);
    let s = bench.open();
    assert_eq!(state(&*s), before);
    let mounts = s.mounts(&key("active")).unwrap();
    with(bench, &mounts, |root| {
        assert_eq!(fs::read(root.join("file")).unwrap(), b"base");
    });
}

pub fn labels_are_replaced_and_merged(bench: &Bench<'_>) {
    let s = bench.open();
    let old = labels([("a", "1"), ("b", "2")]);
    s.prepare(&key("k"), None, &old).unwrap();
    assert_eq!(s.stat("k").unwrap().labels, old);

    let changes = [("a".to_owned(), None), ("c".to_owned(), Some("3".to_owned()))];
    let merged = s.update("k", &LabelUpdate::Merge(changes.into())).unwrap();
    assert_eq!(merged.labels, labels([("b", "2"), ("c", "3")]));
    assert_eq!(s.stat("k").unwrap(), merged);

    let new = labels([("d", "4")]);
    let replaced = s.update("k", &LabelUpdate::Replace(new.clone())).unwrap();
    assert_eq!(replaced.labels, new);
    assert!(replaced.updated_at >= replaced.created_at);
}

pub fn commit_keeps_no_label_of_the_key(bench: &Bench<'_>) {
    let s = bench.open();
    s.prepare(&key("k"), None, &labels([("old", "1")])).unwrap();
    let options = CommitOptions { labels: labels([("new", "2")]), parent: None };
    s.commit(&name("n"), &key("k"), &options).unwrap();
    assert_eq!(s.stat("n").unwrap().labels, options.labels);
    let changed = s.update("n", &LabelUpdate::Replace(labels([("later", "3")]))).unwrap();
    assert_eq!(changed.labels, labels([("later", "3")]));
}

pub fn commit_starts_new_times(bench: &Bench<'_>) {
    let s = bench.open();
    s.prepare(&key("k"), None, &Labels::new()).unwrap();
    let prepared = s.stat("k").unwrap();
    s.commit(&name("n"), &key("k"), &CommitOptions::default()).unwrap();
    let committed = s.stat("n").unwrap();
    assert!(committed.created_at > prepared.created_at);
    assert_eq!(committed.created_at, committed.updated_at);
}

pub fn walk_visits_each_once_and_stops(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "base", None, |_| {});
    s.prepare(&key("a"), Some(&name("base")), &labels([("k", "v")])).unwrap();
    s.view(&key("v"), Some(&name("base")), &Labels::new()).unwrap();
    let visited = all(&*s);
    assert_eq!(visited.keys().collect::<Vec<_>>(), ["a", "base", "v"]);
    for (name, info) in &visited {
        assert_eq!(&s.stat(name).unwrap(), info);
    }
    let mut count = 0;
    s.walk(&mut |_| {
        count += 1;
        ControlFlow::Break(())
    })
    .unwrap();
    assert_eq!(count, 1);
}

pub fn keys_are_opaque(bench: &Bench<'_>) {
    let s = bench.open();
    let long = "x".repeat(200);
    let keys = ["extract-1 sha256:ab", "a/b/../c", "..", "/", " ", "\u{e9}\n", &long];
    for text in keys {
        s.prepare(&key(text), None, &Labels::new()).unwrap();
    }
    assert_eq!(all(&*s).len(), keys.len());
    for text in keys {
        s.commit(&name(&format!("{text}!")), &key(text), &CommitOptions::default()).unwrap();
        s.remove(&format!("{text}!")).unwrap();
    }
    s.cleanup().unwrap();
    assert_eq!(all(&*s).len(), 0);
}

pub fn deleted_files_stay_deleted(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "1", None, |root| {
        fs::create_dir_all(root.join("dir/sub")).unwrap();
        fs::write(root.join("dir/sub/file"), "").unwrap();
        fs::write(root.join("file"), "").unwrap();
    });
    layer(bench, &*s, "2", Some("1"), |root| {
        fs::remove_dir_all(root.join("dir/sub")).unwrap();
        fs::remove_file(root.join("file")).unwrap();
    });
    layer(bench, &*s, "3", Some("2"), |root| fs::write(root.join("dir/new"), "").unwrap());
    look(bench, &*s, "3", |root| {
        assert_eq!(names(root), ["dir"]);
        assert_eq!(names(&root.join("dir")), ["new"]);
    });
}

pub fn a_directory_deleted_and_made_again_is_empty(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "1", None, |root| {
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/old"), "").unwrap();
    });
    layer(bench, &*s, "2", Some("1"), |root| {
        fs::remove_dir_all(root.join("dir")).unwrap();
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/new"), "").unwrap();
    });
    layer(bench, &*s, "3", Some("2"), |root| fs::write(root.join("dir/more"), "").unwrap());
    look(bench, &*s, "3", |root| assert_eq!(names(&root.join("dir")), ["more", "new"]));
}

pub fn a_file_and_a_directory_replace_each_other(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "1", None, |root| {
        fs::create_dir(root.join("a")).unwrap();
        fs::write(root.join("a/inside"), "").unwrap();
        fs::write(root.join("b"), "file").unwrap();
    });
    layer(bench, &*s, "2", Some("1"), |root| {
        fs::remove_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a"), "file").unwrap();
        fs::remove_file(root.join("b")).unwrap();
        fs::create_dir(root.join("b")).unwrap();
    });
    look(bench, &*s, "2", |root| {
        assert_eq!(fs::read(root.join("a")).unwrap(), b"file");
        assert_eq!(names(&root.join("b")), [""; 0]);
    });
}

pub fn renamed_files_move(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "1", None, |root| {
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/file"), "text").unwrap();
        fs::write(root.join("victim"), "old").unwrap();
    });
    layer(bench, &*s, "2", Some("1"), |root| {
        fs::rename(root.join("dir/file"), root.join("victim")).unwrap();
        // Directories of a lower layer may refuse to be renamed, as between
        // filesystems; new ones do not.
        fs::create_dir(root.join("fresh")).unwrap();
        fs::rename(root.join("fresh"), root.join("renamed")).unwrap();
    });
    look(bench, &*s, "2", |root| {
        assert_eq!(names(root), ["dir", "renamed", "victim"]);
        assert_eq!(names(&root.join("dir")), [""; 0]);
        assert_eq!(fs::read(root.join("victim")).unwrap(), b"text");
    });
}

pub fn owners_and_modes_are_kept(bench: &Bench<'_>) {
    let s = bench.open();
    let set = |path: &Path, uid: u32, mode: u32| {
        chown(path, Some(uid), Some(uid + 1)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    layer(bench, &*s, "1", None, |root| {
        fs::write(root.join("suid"), "").unwrap();
        fs::create_dir(root.join("sticky")).unwrap();
        set(&root.join("suid"), 1000, 0o4755);
        set(&root.join("sticky"), 2000, 0o1777);
    });
    layer(bench, &*s, "2", Some("1"), |root| set(&root.join("sticky"), 3000, 0o2700));
    look(bench, &*s, "2", |root| {
        let suid = fs::metadata(root.join("suid")).unwrap();
        assert_eq!((suid.uid(), suid.gid(), suid.mode() & 0o7777), (1000, 1001, 0o4755));
        let sticky = fs::metadata(root.join("sticky")).unwrap();
        assert_eq!((sticky.uid(), sticky.gid(), sticky.mode() & 0o7777), (3000, 3001, 0o2700));
    });
}

pub fn hard_links_are_kept(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "1", None, |root| {
        fs::write(root.join("a"), "text").unwrap();
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
    });
    layer(bench, &*s, "2", Some("1"), |root| {
        fs::hard_link(root.join("a"), root.join("c")).unwrap();
        fs::write(root.join("c"), "more").unwrap();
    });
    look(bench, &*s, "2", |root| {
        let ino = |name: &str| fs::metadata(root.join(name)).unwrap().ino();
        assert_eq!(ino("a"), ino("c"));
        assert_eq!(fs::read(root.join("a")).unwrap(), b"more");
    });
    look(bench, &*s, "1", |root| {
        assert_eq!(fs::metadata(root.join("a")).unwrap().nlink(), 2);
        assert_eq!(fs::read(root.join("b")).unwrap(), b"text");
    });
}

pub fn the_root_directory_keeps_its_mode(bench: &Bench<'_>) {
    let s = bench.open();
    let mode = |root: &Path| fs::metadata(root).unwrap().mode() & 0o7777;
    let mounts = s.prepare(&key("fresh"), None, &Labels::new()).unwrap();
    with(bench, &mounts, |root| assert_eq!(mode(root), 0o755));
    layer(bench, &*s, "1", None, |root| {
        fs::set_permissions(root, fs::Permissions::from_mode(0o711)).unwrap();
    });
    look(bench, &*s, "1", |root| assert_eq!(mode(root), 0o711));
}

pub fn links_nodes_and_attributes_are_kept(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "1", None, |root| {
        symlink("/nowhere", root.join("link")).unwrap();
        let mode = Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, mode, 0).unwrap();
        let null = rustix::fs::makedev(1, 3);
        let kind = FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, root.join("null"), kind, mode, null).unwrap();
        fs::write(root.join("file"), "").unwrap();
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(root.join("file"), "trusted.k", b"v", flags).unwrap();
    });
    layer(bench, &*s, "2", Some("1"), |root| fs::write(root.join("other"), "").unwrap());
    look(bench, &*s, "2", |root| {
        assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("/nowhere"));
        assert!(fs::metadata(root.join("fifo")).unwrap().file_type().is_fifo());
        let null = fs::metadata(root.join("null")).unwrap();
        assert!(null.file_type().is_char_device());
        assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(root.join("file"), "trusted.k", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"v");
    });
}

pub fn usage_counts_one_layer(bench: &Bench<'_>) {
    let s = bench.open();
    let megabyte = vec![1; 1 << 20];
    layer(bench, &*s, "1", None, |root| fs::write(root.join("big"), &megabyte).unwrap());
    let one = s.usage("1").unwrap();
    assert!((1 << 20..3 << 20).contains(&one.size_bytes), "{one:?}");
    s.view(&key("v"), Some(&name("1")), &Labels::new()).unwrap();
    assert_eq!(s.usage("v").unwrap(), Usage::default());

    let mounts = s.prepare(&key("a"), None, &Labels::new()).unwrap();
    let before = s.usage("a").unwrap();
    with(bench, &mounts, |root| {
        fs::write(root.join("big"), &megabyte).unwrap();
        fs::hard_link(root.join("big"), root.join("same")).unwrap();
        fs::File::open(root).unwrap().sync_all().unwrap();
        fs::File::open(root.join("big")).unwrap().sync_all().unwrap();
    });
    let after = s.usage("a").unwrap();
    assert!(after.size_bytes >= before.size_bytes + (1 << 20), "{before:?} {after:?}");
    assert!(after.size_bytes < before.size_bytes + (2 << 20), "{before:?} {after:?}");
}

pub fn long_chains_mount(bench: &Bench<'_>) {
    let s = bench.open();
    let mut parent: Option<String> = None;
    for at in 0..LONG_CHAIN {
        let to = format!("layer {at}");
        layer(bench, &*s, &to, parent.as_deref(), |root| {
            fs::write(root.join(format!("f{at:03}")), at.to_string()).unwrap();
            fs::write(root.join("last"), at.to_string()).unwrap();
        });
        parent = Some(to);
    }
    look(bench, &*s, &parent.unwrap(), |root| {
        assert_eq!(names(root).len(), LONG_CHAIN + 1);
        assert_eq!(fs::read_to_string(root.join("last")).unwrap(), (LONG_CHAIN - 1).to_string());
    });
}

/// More than one page of mount options, with directories of usual length.
const LONG_CHAIN: usize = 70;

pub fn one_of_many_gets_the_key(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "base", None, |_| {});
    let prepare = || s.prepare(&key("k"), Some(&name("base")), &Labels::new());
    let results: Vec<Result<Vec<Mount>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(prepare)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let won: Vec<_> = results.iter().flatten().collect();
    assert_eq!(won.len(), 1, "{results:?}");
    assert_eq!(&s.mounts(&key("k")).unwrap(), won[0]);
    let lost = |result: &Result<_>| matches!(result, Err(Error::AlreadyExists(_)));
    assert_eq!(results.iter().filter(|result| lost(result)).count(), 7);
}

pub fn removed_keys_start_afresh(bench: &Bench<'_>) {
    let s = bench.open();
    let mounts = s.prepare(&key("k"), None, &labels([("k", "v")])).unwrap();
    with(bench, &mounts, |root| fs::write(root.join("old"), "").unwrap());
    s.remove("k").unwrap();
    let mounts = s.prepare(&key("k"), None, &Labels::new()).unwrap();
    with(bench, &mounts, |root| assert_eq!(names(root), [""; 0]));
    assert_eq!(s.stat("k").unwrap().labels, Labels::new());
}

pub fn cleanup_keeps_what_is_in_use(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "base", None, |root| fs::write(root.join("file"), "").unwrap());
    let mounts = s.prepare(&key("a"), Some(&name("base")), &Labels::new()).unwrap();
    with(bench, &mounts, |root| fs::write(root.join("own"), "").unwrap());
    s.prepare(&key("gone"), Some(&name("base")), &Labels::new()).unwrap();
    s.remove("gone").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| s.cleanup().unwrap());
        for at in 0..10 {
            let busy = key(&format!("busy {at}"));
            let mounts = s.prepare(&busy, Some(&name("base")), &Labels::new()).unwrap();
            with(bench, &mounts, |root| assert_eq!(names(root), ["file"]));
        }
    });
    s.cleanup().unwrap();
    with(bench, &mounts, |root| assert_eq!(names(root), ["file", "own"]));
    drop(s);
    let s = bench.open();
    s.cleanup().unwrap();
    let mounts = s.mounts(&key("a")).unwrap();
    with(bench, &mounts, |root| assert_eq!(names(root), ["file", "own"]));
}

pub fn rebasing_checks_the_parent(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "one", None, |_| {});
    layer(bench, &*s, "two", None, |_| {});
    s.prepare(&key("on one"), Some(&name("one")), &Labels::new()).unwrap();
    s.prepare(&key("free"), None, &Labels::new()).unwrap();
    let on = |parent: &str| CommitOptions { labels: Labels::new(), parent: Some(name(parent)) };
    let commit = |from: &str, parent: &str| s.commit(&name("n"), &key(from), &on(parent));
    refused!(commit("on one", "two"), Error::InvalidArgument { .. });
    refused!(commit("free", "missing"), Error::NotFound(_) | Error::Unsupported { .. });
    refused!(
        commit("free", "on one"),
        Error::FailedPrecondition { .. } | Error::Unsupported { .. }
    );
    commit("on one", "one").unwrap();
    assert_eq!(s.stat("n").unwrap().parent, Some(name("one")));
}

pub fn a_rebased_snapshot_has_its_parent(bench: &Bench<'_>) {
    let s = bench.open();
    layer(bench, &*s, "base", None, |root| fs::write(root.join("base"), "").unwrap());
    let mounts = s.prepare(&key("k"), None, &Labels::new()).unwrap();
    with(bench, &mounts, |root| fs::write(root.join("top"), "").unwrap());
    let options = CommitOptions { labels: Labels::new(), parent: Some(name("base")) };
    match s.commit(&name("n"), &key("k"), &options) {
        Err(Error::Unsupported { .. }) => return,
        result => result.unwrap(),
    }
    assert_eq!(s.stat("n").unwrap().parent, Some(name("base")));
    refused!(s.remove("base"), Error::FailedPrecondition { .. });
    look(bench, &*s, "n", |root| assert_eq!(names(root), ["base", "top"]));
    s.remove("n").unwrap();
    s.remove("base").unwrap();
}

pub fn settling_loses_nothing(bench: &Bench<'_>) {
    let s = bench.open();
    s.settle().unwrap();
    layer(bench, &*s, "base", None, |root| fs::write(root.join("base"), "").unwrap());
    let mounts = s.prepare(&key("k"), Some(&name("base")), &Labels::new()).unwrap();
    with(bench, &mounts, |root| fs::write(root.join("own"), "").unwrap());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| s.settle().unwrap());
        }
        layer(bench, &*s, "top", Some("base"), |root| fs::write(root.join("top"), "").unwrap());
    });
    assert_eq!(s.lost().unwrap(), [""; 0]);
    s.forget_lost(&["base".to_owned(), "never".to_owned()]).unwrap();
    drop(s);
    let s = bench.open();
    assert_eq!(s.lost().unwrap(), [""; 0]);
    look(bench, &*s, "top", |root| assert_eq!(names(root), ["base", "top"]));
    let mounts = s.mounts(&key("k")).unwrap();
    with(bench, &mounts, |root| assert_eq!(names(root), ["base", "own"]));
}
