//! What a temporary mount leaves behind: nothing, and never an empty source.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crated_mount::{Error, Mount, TempMount, read_only};
use support::{bind, dir, isolated, layer, mount, mounts_below, tmpfs};

#[test]
fn the_tree_is_there_while_the_value_lives() {
    isolated(|root| {
        let source = layer(root, "source", "precious");
        let temp = root.join("temp/made");

        let mounted = TempMount::attach(&[bind(&source, &["bind"])], &temp).unwrap();

        assert!(mounted.path().join("precious").exists());
        let private = mounted.path().parent().unwrap();
        assert_eq!(fs::metadata(private).unwrap().permissions().mode() & 0o777, 0o700);
        drop(mounted);
        assert_eq!(mounts_below(&temp).len(), 0);
        assert_eq!(fs::read_dir(&temp).unwrap().count(), 0);
        assert!(source.join("precious").exists());
    });
}

#[test]
fn mounts_at_sub_paths_are_detached_too() {
    isolated(|root| {
        let source = dir(root, "source");
        dir(&source, "inner");
        let temp = dir(root, "temp");
        let inner = Mount { target: "inner".into(), ..tmpfs() };
        let mounts = [bind(&source, &["bind"]), inner.clone(), inner];

        let mounted = TempMount::attach(&mounts, &temp).unwrap();
        assert_eq!(mounts_below(&temp).len(), 3);
        drop(mounted);

        assert_eq!(mounts_below(&temp).len(), 0);
        assert_eq!(fs::read_dir(&temp).unwrap().count(), 0);
    });
}

#[test]
fn a_panic_detaches_too() {
    isolated(|root| {
        let temp = dir(root, "temp");

        let panic = catch_unwind(AssertUnwindSafe(|| {
            let _mounted = TempMount::attach(&[tmpfs()], &temp).unwrap();
            panic!("on purpose");
        }));

        assert!(panic.is_err());
        assert_eq!(mounts_below(&temp).len(), 0);
        assert_eq!(fs::read_dir(&temp).unwrap().count(), 0);
    });
}

#[test]
fn a_failed_attach_leaves_nothing() {
    isolated(|root| {
        let temp = dir(root, "temp");

        let mounts = [tmpfs(), bind(root.join("absent"), &["bind"])];
        let error = TempMount::attach(&mounts, &temp).unwrap_err();

        assert!(matches!(error, Error::NotFound(_)), "{error}");
        assert_eq!(mounts_below(&temp).len(), 0);
        assert_eq!(fs::read_dir(&temp).unwrap().count(), 0);
    });
}

#[test]
fn a_busy_tree_is_detached_lazily_and_its_source_survives() {
    isolated(|root| {
        let source = layer(root, "source", "precious");
        let temp = dir(root, "temp");
        for close in [false, true] {
            let mounted = TempMount::attach(&[bind(&source, &["bind"])], &temp).unwrap();
            let open = fs::File::open(mounted.path().join("precious")).unwrap();
            // Somebody mounts inside as well.
            tmpfs().attach(&dir(mounted.path(), "inner")).unwrap();

            if close {
                mounted.close().unwrap();
            } else {
                drop(mounted);
            }

            assert_eq!(mounts_below(&temp).len(), 0);
            assert_eq!(fs::read_dir(&temp).unwrap().count(), 0);
            assert!(source.join("precious").exists());
            drop(open);
        }
    });
}

#[test]
fn files_written_where_no_mount_is_are_never_deleted() {
    isolated(|root| {
        let temp = dir(root, "temp");
        let mounted = TempMount::attach(&[], &temp).unwrap();
        let file = mounted.path().join("file");
        fs::write(&file, "precious").unwrap();

        let error = mounted.close().unwrap_err();

        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!(fs::read_to_string(file).unwrap(), "precious");
    });
}

#[test]
fn the_read_only_form_of_an_overlay_shows_what_was_written() {
    isolated(|root| {
        let lower = layer(root, "lower", "old");
        let (upper, work) = (dir(root, "upper"), dir(root, "work"));
        let options = [
            format!("workdir={}", work.display()),
            format!("upperdir={}", upper.display()),
            format!("lowerdir={}", lower.display()),
        ];
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let mounts = [mount("overlay", "overlay", &options)];
        let temp = dir(root, "temp");
        let writable = TempMount::attach(&mounts, &temp).unwrap();
        fs::write(writable.path().join("new"), "").unwrap();

        let shown = TempMount::attach(&read_only(&mounts), &temp).unwrap();

        assert!(shown.path().join("new").exists() && shown.path().join("old").exists());
        assert!(fs::write(shown.path().join("other"), "").is_err());
        shown.close().unwrap();
        writable.close().unwrap();
    });
}
