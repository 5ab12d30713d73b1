//! What attaching does, through both kernel interfaces. Needs root.

mod support;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use crated_mount::{
    Backend, Error, LoopDevice, Mount, attach_all_with, detach, detach_all, escape_layer,
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use support::{
    bind, dir, isolated, layer, missing, mount, mount_at, mounts_below, run, tmpfs, uid,
};

/// One test per interface for each function below.
macro_rules! both_interfaces {
    ($($name:ident)*) => {
        mod new_api {
            $(#[test] fn $name() {
                crate::support::isolated(|root| super::$name(root, crated_mount::Backend::NewApi));
            })*
        }
        mod classic {
            $(#[test] fn $name() {
                crate::support::isolated(|root| super::$name(root, crated_mount::Backend::Classic));
            })*
        }
    };
}

both_interfaces! {
    a_bind_shows_its_source
    a_bind_leaves_mounts_below_out_and_rbind_takes_them
    a_read_only_bind_refuses_writes_and_keeps_the_sources_flags
    a_file_can_be_bound_onto_a_file
    an_id_mapped_bind_shows_other_owners
    an_overlay_is_read_and_written_through
    an_overlay_with_other_options_takes_them
    an_overlay_of_128_layers_shows_them_all
    an_overlay_of_500_layers_shows_them_all
    an_id_mapped_overlay_shows_other_owners
    data_only_layers_are_accepted
    odd_names_reach_the_kernel_unharmed
    a_target_below_the_root_is_found_without_leaving_it
    later_mounts_cover_earlier_ones
    a_failure_takes_earlier_mounts_back
    missing_things_are_named
    kernel_words_and_the_option_are_in_the_error
    unknown_filesystems_are_unsupported
    propagation_is_set_on_the_new_mount
    propagation_of_an_existing_mount_changes
    remounting_replaces_the_flags
    filesystem_options_and_flags_arrive
    an_image_file_is_mounted_through_a_loop_device_that_frees_itself
    an_erofs_image_is_mounted_from_its_file
    an_erofs_image_made_by_its_tools_is_mounted
}

#[test]
fn this_kernel_offers_the_new_interface() {
    assert_eq!(Backend::detect(), Backend::NewApi);
}

fn a_bind_shows_its_source(root: &Path, backend: Backend) {
    let source = layer(root, "source", "hello");
    let target = dir(root, "target");

    bind(&source, &["bind", "rw"]).attach_with(&target, backend).unwrap();

    assert!(target.join("hello").exists());
    detach(&target, Default::default()).unwrap();
    assert!(!target.join("hello").exists());
}

fn a_bind_leaves_mounts_below_out_and_rbind_takes_them(root: &Path, backend: Backend) {
    let source = dir(root, "source");
    let below = dir(&source, "below");
    tmpfs().attach_with(&below, backend).unwrap();
    fs::write(below.join("deep"), "").unwrap();
    let (one, tree) = (dir(root, "one"), dir(root, "tree"));

    bind(&source, &["bind"]).attach_with(&one, backend).unwrap();
    bind(&source, &["rbind"]).attach_with(&tree, backend).unwrap();

    assert!(!one.join("below/deep").exists());
    assert!(tree.join("below/deep").exists());
}

fn a_read_only_bind_refuses_writes_and_keeps_the_sources_flags(root: &Path, backend: Backend) {
    let source = dir(root, "source");
    mount("tmpfs", "tmpfs", &["nosuid", "nodev"]).attach_with(&source, backend).unwrap();
    let target = dir(root, "target");

    let options = ["rbind", "ro", "noexec", "noatime", "nosymfollow"];
    bind(&source, &options).attach_with(&target, backend).unwrap();

    let error = fs::write(target.join("file"), "").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    fs::write(source.join("file"), "").unwrap();
    let shown = mount_at(&target).options;
    for word in ["ro", "nosuid", "nodev", "noexec", "noatime", "nosymfollow"] {
        assert!(shown.split(',').any(|shown| shown == word), "{word} is not in {shown}");
    }
}

fn a_file_can_be_bound_onto_a_file(root: &Path, backend: Backend) {
    let source = layer(root, "source", "hosts").join("hosts");
    let target = layer(root, "target", "file").join("file");

    bind(&source, &["bind", "ro"]).attach_with(&target, backend).unwrap();

    assert_eq!(fs::read_to_string(&target).unwrap(), "hosts");
    let error = bind(&source, &["bind"]).attach_with(&dir(root, "dir"), backend).unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}");
}

fn an_id_mapped_bind_shows_other_owners(root: &Path, backend: Backend) {
    let source = layer(root, "source", "file");
    chown(source.join("file"), Some(5), Some(7)).unwrap();
    let target = dir(root, "target");

    let options = ["rbind", "ro", "uidmap=0:100000:65536", "gidmap=0:200000:65536"];
    bind(&source, &options).attach_with(&target, backend).unwrap();

    assert_eq!((uid(&target), uid(target.join("file"))), (100_000, 100_005));
    assert_eq!(uid(source.join("file")), 5);
    assert!(mount_at(&target).options.contains("ro"));
    // The process that lent its namespace is gone, and waited for.
    assert_eq!(fs::read_to_string("/proc/thread-self/children").unwrap(), "");
}

fn an_overlay_is_read_and_written_through(root: &Path, backend: Backend) {
    let (near, far) = (layer(root, "near", "a"), layer(root, "far", "b"));
    fs::write(far.join("a"), "hidden").unwrap();
    let (upper, work) = (dir(root, "upper"), dir(root, "work"));
    let target = dir(root, "target");

    overlay(&[&near, &far], Some((&upper, &work))).attach_with(&target, backend).unwrap();

    assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "a");
    fs::write(target.join("b"), "changed").unwrap();
    assert_eq!(fs::read_to_string(upper.join("b")).unwrap(), "changed");
    assert_eq!(fs::read_to_string(far.join("b")).unwrap(), "b");
}

fn an_overlay_with_other_options_takes_them(root: &Path, backend: Backend) {
    let (near, far) = (layer(root, "near", "a"), layer(root, "far", "b"));
    let (upper, work) = (dir(root, "upper"), dir(root, "work"));
    let target = dir(root, "target");
    let mut mount = overlay(&[&near, &far], Some((&upper, &work)));
    mount.options.extend(["index=off", "volatile", "nodev"].map(str::to_owned));

    mount.attach_with(&target, backend).unwrap();

    let info = mount_at(&target);
    assert!(info.super_options.to_str().unwrap().contains("volatile"), "{info:?}");
    assert!(info.options.contains("nodev"), "{info:?}");
}

fn an_overlay_of_128_layers_shows_them_all(root: &Path, backend: Backend) {
    many_layers(root, backend, 128);
}

fn an_overlay_of_500_layers_shows_them_all(root: &Path, backend: Backend) {
    many_layers(root, backend, 500);
}

fn many_layers(root: &Path, backend: Backend, count: usize) {
    // As a snapshotter lays them out, and far longer than a page together.
    let base = dir(root, &"long".repeat(30));
    let layer = |n: usize| layer(&base, &format!("{n}/fs"), &n.to_string());
    let layers: Vec<_> = (0..count).map(layer).collect();
    let layers: Vec<_> = layers.iter().map(|path| path.as_path()).collect();
    let (upper, work) = (dir(root, "upper"), dir(root, "work"));
    let target = dir(root, "target");

    overlay(&layers, Some((&upper, &work))).attach_with(&target, backend).unwrap();

    assert_eq!(fs::read_dir(&target).unwrap().count(), count);
    fs::write(target.join("0"), "written").unwrap();
}

fn an_id_mapped_overlay_shows_other_owners(root: &Path, backend: Backend) {
    let layers: Vec<_> = (0..40).map(|n| layer(root, &format!("{n}/fs"), &n.to_string())).collect();
    chown(layers[3].join("3"), Some(3), Some(3)).unwrap();
    let layers: Vec<_> = layers.iter().map(|path| path.as_path()).collect();
    let (upper, work) = (dir(root, "upper"), dir(root, "work"));
    chown(&upper, Some(100_000), Some(100_000)).unwrap();
    let target = dir(root, "target");
    let mut mount = overlay(&layers, Some((&upper, &work)));
    let maps = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"];
    mount.options.splice(0..0, maps.map(str::to_owned));

    mount.attach_with(&target, backend).unwrap();

    assert_eq!(uid(&target), 100_000);
    assert_eq!(uid(target.join("3")), 100_003);
    assert_eq!(uid(target.join("39")), 100_000);
    assert_eq!(mounts_below(Path::new("/")).iter().filter(|m| is_staged(m)).count(), 0);
}

fn is_staged(mount: &crated_mount::mountinfo::MountInfo) -> bool {
    mount.mount_point.to_string_lossy().contains("/crated-mount-")
}

fn data_only_layers_are_accepted(root: &Path, backend: Backend) {
    let (near, data) = (layer(root, "near", "a"), layer(root, "data", "b"));
    let target = dir(root, "target");
    let lowerdir = format!("lowerdir={}::{}", near.display(), data.display());

    let mount = mount("overlay", "overlay", &[&lowerdir, "metacopy=on", "redirect_dir=on"]);
    mount.attach_with(&target, backend).unwrap();

    assert!(target.join("a").exists());
    assert!(!target.join("b").exists(), "data layers lend contents, not names");
}

fn odd_names_reach_the_kernel_unharmed(root: &Path, backend: Backend) {
    for name in ["a,b", "c:d", "e f", "g\\h", "i=j", "k\nl", "\"m\"", "::", &"n".repeat(250)] {
        let base = dir(root, &format!("{name}/x"));
        let near = layer(&base, "near", "near");
        let far = layer(&base, "far", "far");
        let (upper, work, target) = (dir(&base, "upper"), dir(&base, "work"), dir(&base, "target"));

        overlay(&[&near, &far], Some((&upper, &work)))
            .attach_with(&target, backend)
            .unwrap_or_else(|error| panic!("{name:?}: {error}"));
        fs::write(target.join("far"), "changed").unwrap();
        assert!(upper.join("far").exists(), "{name:?}");
        detach(&target, Default::default()).unwrap();

        bind(&near, &["bind", "ro"]).attach_with(&target, backend).unwrap();
        assert!(target.join("near").exists(), "{name:?}");
        detach_all(&target).unwrap();
    }
}

fn a_target_below_the_root_is_found_without_leaving_it(root: &Path, backend: Backend) {
    let source = layer(root, "source", "hello");
    let inner = dir(root, "inner");
    dir(&inner, "etc/real");
    symlink("/etc/real", inner.join("link")).unwrap();
    symlink("../../../../..", inner.join("up")).unwrap();
    let attach = |target: &str| {
        let mount = Mount { target: target.to_owned(), ..bind(&source, &["bind"]) };
        mount.attach_with(&inner, backend)
    };

    attach("link").unwrap();
    assert!(inner.join("etc/real/hello").exists());
    detach(&inner.join("etc/real"), Default::default()).unwrap();
    attach("up/etc/../etc/real").unwrap();
    assert!(inner.join("etc/real/hello").exists());

    let error = attach("up/source/missing").unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
    assert!(error.to_string().contains("open target"), "{error}");
}

fn later_mounts_cover_earlier_ones(root: &Path, backend: Backend) {
    let first = layer(root, "first", "one");
    let second = layer(root, "second", "two");
    let target = dir(root, "target");

    let mounts = [bind(&first, &["bind"]), bind(&second, &["bind"])];
    attach_all_with(&mounts, &target, backend).unwrap();

    assert!(target.join("two").exists());
    assert_eq!(mounts_below(&target).len(), 2);
    detach_all(&target).unwrap();
    assert_eq!(mounts_below(&target).len(), 0);
}

fn a_failure_takes_earlier_mounts_back(root: &Path, backend: Backend) {
    let source = layer(root, "source", "hello");
    let target = dir(root, "target");
    let good = bind(&source, &["bind"]);

    let bad = bind(root.join("missing"), &["bind"]);
    let error = attach_all_with(&[good.clone(), good, bad], &target, backend).unwrap_err();

    assert!(matches!(error, Error::NotFound(_)), "{error}");
    assert_eq!(mounts_below(&target).len(), 0);
    assert!(source.join("hello").exists());
}

fn missing_things_are_named(root: &Path, backend: Backend) {
    let here = layer(root, "here", "file");
    let target = dir(root, "target");
    let lowers = format!("lowerdir={}:{}/absent", here.display(), root.display());
    for mount in [
        bind(root.join("absent"), &["bind"]),
        mount("overlay", "overlay", &[&lowers]),
        mount("ext4", root.join("absent"), &[]),
    ] {
        let error = mount.attach_with(&target, backend).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::NotFound(_)), "{text}");
        assert!(text.contains("absent") && text.contains("target"), "{text}");
    }
    let error = bind(&here, &["bind"]).attach_with(&root.join("gone"), backend).unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
    let error = bind("", &["bind"]).attach_with(&target, backend).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    assert_eq!(mounts_below(&target).len(), 0);
}

fn kernel_words_and_the_option_are_in_the_error(root: &Path, backend: Backend) {
    let target = dir(root, "target");

    let error = mount("tmpfs", "tmpfs", &["size=many"]).attach_with(&target, backend).unwrap_err();

    let attempt = error.attempt().unwrap();
    assert!(attempt.option.as_deref().unwrap().contains("size=many"), "{error}");
    if backend == Backend::NewApi {
        let expected = format!(
            "attach tmpfs \"tmpfs\" at {target:?}: set option \"size=many\": \
             tmpfs: Bad value for 'size': Invalid argument (os error 22)"
        );
        assert_eq!(error.to_string(), expected);
    }
}

fn unknown_filesystems_are_unsupported(root: &Path, backend: Backend) {
    let target = dir(root, "target");

    let error = mount("nosuchfs", "none", &[]).attach_with(&target, backend).unwrap_err();

    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    for kind in ["", "format/overlay"] {
        let error = mount(kind, "none", &[]).attach_with(&target, backend).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
}

fn propagation_is_set_on_the_new_mount(root: &Path, backend: Backend) {
    for (word, tag) in
        [("shared", Some("shared:")), ("rprivate", None), ("unbindable", Some("unbindable"))]
    {
        let target = dir(root, word);
        mount("tmpfs", "tmpfs", &[word]).attach_with(&target, backend).unwrap();

        let tags = mount_at(&target).tags;
        assert_eq!(tags.len(), usize::from(tag.is_some()), "{word}: {tags:?}");
        assert!(tags.iter().all(|found| found.starts_with(tag.unwrap())), "{word}: {tags:?}");
    }
    let shared = root.join("shared");
    let slave = dir(root, "slave");
    bind(&shared, &["rbind", "rslave"]).attach_with(&slave, backend).unwrap();
    assert!(mount_at(&slave).tags[0].starts_with("master:"));
    let inner = dir(&shared, "inner");
    tmpfs().attach_with(&inner, backend).unwrap();
    assert_eq!(mounts_below(&slave.join("inner")).len(), 1, "a slave receives");
}

fn propagation_of_an_existing_mount_changes(root: &Path, backend: Backend) {
    let target = dir(root, "target");
    tmpfs().attach_with(&target, backend).unwrap();

    mount("", "", &["rshared"]).attach_with(&target, backend).unwrap();

    assert!(mount_at(&target).tags[0].starts_with("shared:"));
    assert_eq!(mounts_below(&target).len(), 1);
}

fn remounting_replaces_the_flags(root: &Path, backend: Backend) {
    let target = dir(root, "target");
    mount("tmpfs", "tmpfs", &["nosuid"]).attach_with(&target, backend).unwrap();

    bind("", &["remount", "bind", "ro"]).attach_with(&target, backend).unwrap();
    let info = mount_at(&target);
    assert!(info.options.starts_with("ro") && !info.options.contains("nosuid"), "{info:?}");
    bind("", &["remount", "bind", "rw"]).attach_with(&target, backend).unwrap();
    assert!(mount_at(&target).options.starts_with("rw"));

    mount("tmpfs", "tmpfs", &["remount", "ro", "size=64k"]).attach_with(&target, backend).unwrap();
    let info = mount_at(&target);
    assert_eq!(info.super_options.to_str().unwrap().split(',').next(), Some("ro"), "{info:?}");
    assert!(info.super_options.to_str().unwrap().contains("size=64k"), "{info:?}");
    mount("tmpfs", "tmpfs", &["remount", "rw"]).attach_with(&target, backend).unwrap();
    fs::write(target.join("file"), "").unwrap();
    assert_eq!(mounts_below(&target).len(), 1);
}

fn filesystem_options_and_flags_arrive(root: &Path, backend: Backend) {
    let target = dir(root, "target");

    let options = ["nosuid,noexec", "size=128k,mode=711", "noatime", "sync", "X-note=unseen"];
    mount("tmpfs", "some source", &options).attach_with(&target, backend).unwrap();

    let info = mount_at(&target);
    assert_eq!(info.source, "some source");
    let shown = format!("{},{}", info.options, info.super_options.to_str().unwrap());
    for word in ["nosuid", "noexec", "noatime", "size=128k", "mode=711", "sync"] {
        assert!(shown.split(',').any(|shown| shown == word), "{word} is not in {shown}");
    }
}

fn an_image_file_is_mounted_through_a_loop_device_that_frees_itself(root: &Path, backend: Backend) {
    let image = root.join("image, with blank");
    fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    if !run("mkfs.ext4", &["-q", "-O", "^has_journal", image.to_str().unwrap()]) {
        return missing("mkfs.ext4");
    }
    let target = dir(root, "target");

    mount("ext4", &image, &["loop"]).attach_with(&target, backend).unwrap();
    fs::write(target.join("file"), "kept").unwrap();
    assert!(backing_files().contains(&image.display().to_string()));
    detach(&target, Default::default()).unwrap();
    eventually(|| !backing_files().contains(&image.display().to_string()));

    mount("ext4", &image, &["ro", "loop"]).attach_with(&target, backend).unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "kept");
    assert!(fs::write(target.join("file"), "").is_err());
    detach(&target, Default::default()).unwrap();

    // A failure after the device was made must not keep it.
    let error = mount("ext4", &image, &["loop", "bad_word"]).attach_with(&target, backend);
    assert!(error.unwrap_err().to_string().contains("bad_word"));
    let error = mount("ext4", root.join("absent"), &["loop"]).attach_with(&target, backend);
    assert!(error.unwrap_err().to_string().contains("absent"));
    eventually(|| !backing_files().contains(&image.display().to_string()));
}

fn an_erofs_image_is_mounted_from_its_file(root: &Path, backend: Backend) {
    let image = root.join("layer.erofs");
    fs::write(&image, erofs_image("hello", "from erofs")).unwrap();
    let target = dir(root, "target");

    mount("erofs", &image, &["ro", "loop"]).attach_with(&target, backend).unwrap();

    assert_eq!(fs::read_to_string(target.join("hello")).unwrap(), "from erofs");
    detach(&target, Default::default()).unwrap();

    // As on a kernel that reads only devices.
    let device = LoopDevice::attach(&image, true).unwrap();
    mount("erofs", device.path(), &[]).attach_with(&target, backend).unwrap();
    drop(device);
    assert_eq!(fs::read_to_string(target.join("hello")).unwrap(), "from erofs");
    assert!(backing_files().contains(&image.display().to_string()));
    detach(&target, Default::default()).unwrap();
    eventually(|| !backing_files().contains(&image.display().to_string()));
}

fn an_erofs_image_made_by_its_tools_is_mounted(root: &Path, backend: Backend) {
    let source = layer(root, "source", "hello");
    let image = root.join("layer.erofs");
    if !run("mkfs.erofs", &[image.to_str().unwrap(), source.to_str().unwrap()]) {
        return missing("mkfs.erofs");
    }
    let target = dir(root, "target");

    mount("erofs", &image, &["ro"]).attach_with(&target, backend).unwrap();

    assert_eq!(fs::read_to_string(target.join("hello")).unwrap(), "hello");
}

/// The smallest EROFS: superblock and two inodes in block 0, the root directory
/// in block 1, one file in block 2.
fn erofs_image(name: &str, contents: &str) -> Vec<u8> {
    const ROOT: u16 = 36; // (1024 + 128) / 32: the first slot after the superblock
    const FILE: u16 = ROOT + 1;
    let mut image = vec![0; 3 * 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(1024, &0xE0F5_E1E2_u32.to_le_bytes());
    put(1024 + 12, &[12]); // log2 of the block size
    put(1024 + 14, &ROOT.to_le_bytes());
    put(1024 + 16, &2_u64.to_le_bytes()); // inodes
    put(1024 + 36, &3_u32.to_le_bytes()); // blocks
    let mut inode = |nid: u16, mode: u16, links: u16, size: u32, block: u32| {
        let at = usize::from(nid) * 32;
        put(at + 4, &mode.to_le_bytes());
        put(at + 6, &links.to_le_bytes());
        put(at + 8, &size.to_le_bytes());
        put(at + 16, &block.to_le_bytes());
        put(at + 20, &u32::from(nid).to_le_bytes());
    };
    let entries = [(".", ROOT, 2), ("..", ROOT, 2), (name, FILE, 1)];
    let mut names = 12 * entries.len();
    let size = names + entries.iter().map(|(name, ..)| name.len()).sum::<usize>();
    inode(ROOT, 0o040_755, 2, size as u32, 1);
    inode(FILE, 0o100_644, 1, contents.len() as u32, 2);
    for (index, (name, nid, kind)) in entries.into_iter().enumerate() {
        let at = 4096 + 12 * index;
        put(at, &u64::from(nid).to_le_bytes());
        put(at + 8, &(names as u16).to_le_bytes());
        put(at + 10, &[kind]);
        put(4096 + names, name.as_bytes());
        names += name.len();
    }
    put(2 * 4096, contents.as_bytes());
    image
}

#[test]
fn an_id_map_without_root_is_refused_for_layers() {
    isolated(|root| {
        let near = layer(root, "near", "a");
        let mut mount = overlay(&[&near], None);
        mount.options.extend(["uidmap=1:1:1", "gidmap=0:0:1"].map(str::to_owned));

        let error = mount.attach(&dir(root, "target")).unwrap_err();

        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    });
}

#[test]
fn a_filesystem_that_cannot_be_id_mapped_says_so() {
    isolated(|root| {
        let options = ["bind", "uidmap=0:1:1", "gidmap=0:1:1"];

        let error = bind("/proc", &options).attach(&dir(root, "target")).unwrap_err();

        assert!(matches!(error, Error::Unsupported(_)), "{error}");
        assert!(error.to_string().contains("cannot be mounted id-mapped"), "{error}");
    });
}

#[test]
fn a_page_that_is_too_small_says_so() {
    isolated(|root| {
        let long = "n".repeat(200);
        let layers: Vec<_> = (0..30).map(|n| layer(root, &format!("{long}{n}/{n}"), "a")).collect();
        let layers: Vec<_> = layers.iter().map(|path| path.as_path()).collect();
        let target = dir(root, "target");

        let error = overlay(&layers, None).attach_with(&target, Backend::Classic).unwrap_err();

        assert!(matches!(error, Error::OptionsTooLong { .. }), "{error}");
        overlay(&layers, None).attach_with(&target, Backend::NewApi).unwrap();
    });
}

#[test]
fn without_privilege_the_answer_is_permission_denied() {
    isolated(|root| {
        let source = layer(root, "source", "hello");
        let target = dir(root, "target");
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::SYS_ADMIN);
        set_capabilities(None, sets).unwrap();
        for backend in [Backend::NewApi, Backend::Classic] {
            for mount in [bind(&source, &["bind"]), tmpfs(), overlay(&[&source, root], None)] {
                let error = mount.attach_with(&target, backend).unwrap_err();
                assert!(matches!(error, Error::PermissionDenied(_)), "{backend:?}: {error}");
            }
        }
        sets.effective.insert(CapabilitySet::SYS_ADMIN);
        set_capabilities(None, sets).unwrap();
    });
}

#[test]
fn loop_devices_attached_at_once_are_all_different() {
    isolated(|root| {
        let images: Vec<_> = (0..8).map(|n| root.join(n.to_string())).collect();
        for image in &images {
            fs::File::create(image).unwrap().set_len(1 << 20).unwrap();
        }
        let devices: Vec<_> = std::thread::scope(|scope| {
            let attach = |image: &std::path::PathBuf| {
                let image = image.clone();
                scope.spawn(move || LoopDevice::attach(&image, false).unwrap())
            };
            let threads: Vec<_> = images.iter().map(attach).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let paths: std::collections::BTreeSet<_> = devices.iter().map(LoopDevice::path).collect();
        assert_eq!(paths.len(), images.len());
        drop(devices);
        let gone =
            |image: &std::path::PathBuf| !backing_files().contains(&image.display().to_string());
        eventually(|| images.iter().all(gone));
    });
}

#[test]
fn a_missing_fuse_helper_is_unsupported() {
    isolated(|root| {
        let error = mount("fuse3.nothing", "x", &[]).attach(&dir(root, "target")).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_) | Error::Refused(_)), "{error}");
    });
}

fn overlay(lowers: &[&Path], writable: Option<(&Path, &Path)>) -> Mount {
    let escaped = |path: &Path| escape_layer(path.to_str().unwrap());
    let lowers: Vec<_> = lowers.iter().map(|path| escaped(path)).collect();
    let mut options = Vec::new();
    if let Some((upper, work)) = writable {
        options.push(format!("workdir={}", escaped(work)));
        options.push(format!("upperdir={}", escaped(upper)));
    }
    options.push(format!("lowerdir={}", lowers.join(":")));
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    mount("overlay", "overlay", &options)
}

fn backing_files() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let files = devices
        .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.map(|file| file.trim_end_matches('\n').to_owned()).collect()
}

/// The kernel frees a loop device just after the unmount returns.
fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "not within five seconds");
        std::thread::yield_now();
    }
}
