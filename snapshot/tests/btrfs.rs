//! Every promise, kept by btrfs on an image of its own.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use crated_snapshot::{
    BtrfsSnapshotter, CommitOptions, Error, Info, Key, LabelUpdate, Labels, Mount, Name, Result,
    Snapshotter, Usage,
};

/// A snapshotter, and the filesystem it lives on.
struct OnImage {
    // Dropped in this order: its files are open until then.
    inner: BtrfsSnapshotter,
    _mount: crated_mount::TempMount,
}

fn open(root: &Path) -> Result<OnImage> {
    let unsupported = |reason: String| Error::Unsupported { reason };
    fs::create_dir_all(root).unwrap();
    let image = root.join("image");
    if !image.exists() {
        fs::File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        let made = Command::new("mkfs.btrfs").arg("-q").arg(&image).output();
        match made {
            Ok(output) if output.status.success() => {}
            Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                fs::remove_file(&image).unwrap();
                return Err(unsupported(format!("needs mkfs.btrfs of btrfs-progs: {error}")));
            }
        }
    }
    let mount = Mount {
        kind: "btrfs".into(),
        source: image.display().to_string(),
        target: String::new(),
        options: vec!["loop".into()],
    };
    let mount = crated_mount::TempMount::attach(&[mount], &root.join("mounts"))
        .map_err(|error| unsupported(format!("btrfs does not mount: {error}")))?;
    let inner = BtrfsSnapshotter::open(mount.path().join("root"))?;
    Ok(OnImage { inner, _mount: mount })
}

/// Smaller ones have no room for metadata of their own.
const IMAGE_BYTES: u64 = 300 << 20;

impl Snapshotter for OnImage {
    fn stat(&self, key: &str) -> Result<Info> {
        self.inner.stat(key)
    }

    fn update(&self, key: &str, labels: &LabelUpdate) -> Result<Info> {
        self.inner.update(key, labels)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        self.inner.usage(key)
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        self.inner.mounts(key)
    }

    fn prepare(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.inner.prepare(key, parent, labels)
    }

    fn view(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.inner.view(key, parent, labels)
    }

    fn commit(&self, name: &Name, key: &Key, options: &CommitOptions) -> Result<()> {
        self.inner.commit(name, key, options)
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.inner.remove(key)
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        self.inner.walk(visit)
    }

    fn cleanup(&self) -> Result<()> {
        self.inner.cleanup()
    }
}

crated_snapshot::snapshotter_testsuite!(open);

#[test]
fn another_filesystem_is_told_apart() {
    let temp = crated_snapshot::testsuite::TestDir::new();
    let opened = BtrfsSnapshotter::open(temp.path().join("root"));
    assert!(matches!(opened, Err(Error::Unsupported { .. }) | Ok(_)), "{opened:?}");
}
