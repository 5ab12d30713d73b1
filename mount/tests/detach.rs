//! What detaching does, above all with mounts that resist. Needs root.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crated_mount::{
    BUSY_WAIT_MAX, DetachFlags, Error, HolderUse, detach, detach_all, detach_recursive,
    detach_recursive_with, holders,
};
use support::{bind, dir, isolated, layer, mounts_below, tmpfs};

#[test]
fn detaching_what_is_not_mounted_says_so() {
    isolated(|root| {
        let plain = dir(root, "plain");
        for path in [plain.as_path(), &root.join("absent"), &root.join("absent/deeper")] {
            let error = detach(path, DetachFlags::NONE).unwrap_err();
            assert!(matches!(error, Error::NotMounted { .. }), "{error}");
            detach_all(path).unwrap();
            detach_recursive(path).unwrap();
        }
    });
}

#[test]
fn a_symbolic_link_to_a_mount_is_not_followed() {
    isolated(|root| {
        let target = dir(root, "target");
        tmpfs().attach(&target).unwrap();
        let link = root.join("link");
        symlink(&target, &link).unwrap();

        let error = detach(&link, DetachFlags::LAZY).unwrap_err();

        assert!(matches!(error, Error::NotMounted { .. }), "{error}");
        assert_eq!(mounts_below(&target).len(), 1);
    });
}

#[test]
fn a_busy_mount_is_waited_for() {
    isolated(|root| {
        let target = dir(root, "target");
        tmpfs().attach(&target).unwrap();
        let open = fs::File::create(target.join("file")).unwrap();

        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(200));
                drop(open);
            });
            detach(&target, DetachFlags::NONE).unwrap();
        });
    });
}

#[test]
fn a_mount_that_stays_busy_names_its_holder_in_time() {
    isolated(|root| {
        let target = dir(root, "target");
        tmpfs().attach(&target).unwrap();
        let mut holder = Command::new("sleep")
            .arg("60")
            .current_dir(&target)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();

        let begin = Instant::now();
        let error = detach(&target, DetachFlags::NONE).unwrap_err();
        let took = begin.elapsed();
        let seen = holders(&target);
        let recursive = detach_recursive(&target).unwrap_err();
        detach(&target, DetachFlags::LAZY).unwrap();
        holder.kill().unwrap();
        holder.wait().unwrap();

        assert!(took < BUSY_WAIT_MAX * 2, "{took:?}");
        assert!(seen.iter().any(|holder| holder.holds == HolderUse::WorkingDirectory), "{seen:?}");
        for error in [error, recursive] {
            let text = error.to_string();
            assert!(text.contains("sleep[") && text.contains("working directory"), "{text}");
        }
        assert_eq!(mounts_below(&target).len(), 0);
    });
}

#[test]
fn a_whole_tree_comes_apart_children_first_and_files_stay() {
    isolated(|root| {
        let source = layer(root, "source", "precious");
        let tree = dir(root, "tree");
        for place in ["", "a", "a/b", "c with blank", "a/b"] {
            let place = dir(&tree, place);
            tmpfs().attach(&place).unwrap();
        }
        let inner = dir(&tree, "a/b/bound");
        bind(&source, &["bind"]).attach(&inner).unwrap();
        let beside = dir(root, "tree-beside");
        tmpfs().attach(&beside).unwrap();

        detach_recursive(&tree).unwrap();

        assert_eq!(mounts_below(&tree).len(), 0);
        assert_eq!(mounts_below(&beside).len(), 1, "a longer name is another tree");
        assert!(source.join("precious").exists());
        assert!(tree.exists());
    });
}

#[test]
fn mounts_hidden_by_a_later_one_are_found() {
    isolated(|root| {
        let tree = dir(root, "tree");
        tmpfs().attach(&dir(&tree, "below")).unwrap();
        tmpfs().attach(&tree).unwrap();
        tmpfs().attach(&dir(&tree, "below")).unwrap();

        detach_recursive(&tree).unwrap();

        assert_eq!(mounts_below(&tree).len(), 0);
    });
}

#[test]
fn one_busy_mount_does_not_keep_the_others() {
    isolated(|root| {
        let tree = dir(root, "tree");
        for place in ["busy", "idle"] {
            tmpfs().attach(&dir(&tree, place)).unwrap();
        }
        let open = fs::File::create(tree.join("busy/file")).unwrap();

        let error = detach_recursive(&tree).unwrap_err();

        assert!(matches!(&error, Error::Incomplete { failures, .. } if failures.len() == 1));
        assert!(error.to_string().contains("fd "), "{error}");
        assert_eq!(mounts_below(&tree).len(), 1);
        detach_recursive_with(&tree, DetachFlags::LAZY).unwrap();
        assert_eq!(mounts_below(&tree).len(), 0);
        drop(open);
    });
}

#[test]
fn a_tree_named_by_a_link_is_refused_rather_than_missed() {
    isolated(|root| {
        let target = dir(root, "target");
        tmpfs().attach(&target).unwrap();
        symlink(&target, root.join("link")).unwrap();

        let error = detach_recursive(&root.join("link")).unwrap_err();

        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    });
}

#[test]
fn a_relative_path_and_links_above_the_tree_are_resolved() {
    isolated(|root| {
        let tree = dir(root, "real/tree");
        tmpfs().attach(&tree).unwrap();
        symlink("real", root.join("link")).unwrap();

        detach_recursive(&root.join("link/tree")).unwrap();

        assert_eq!(mounts_below(&tree).len(), 0);
    });
}

#[test]
fn the_root_of_everything_is_not_a_tree_to_detach() {
    for root in ["/", "/..", ""] {
        let error = detach_recursive(Path::new(root)).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
}
