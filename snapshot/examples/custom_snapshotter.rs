//! A snapshotter of one's own: it keeps empty directories on a tmpfs-like
//! root, and shows how little [`MetaStore`] leaves to do.
//!
//! ```text
//! cargo run --example custom_snapshotter -- <empty directory>
//! ```

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crated_snapshot::{
    CommitOptions, Error, Info, Key, Kind, LabelUpdate, Labels, MetaStore, Mount, Name, Result,
    Snapshot, Snapshotter, SyncMode, Usage,
};

/// Snapshots that hold only what was put into them, whatever their parent.
struct FlatSnapshotter {
    root: PathBuf,
    store: MetaStore,
}

impl FlatSnapshotter {
    fn open(root: &Path) -> Result<Self> {
        let store = MetaStore::open(&root.join("metadata.db"), SyncMode::EachCommit)?;
        Ok(Self { root: root.to_owned(), store })
    }

    fn dir(&self, snapshot: &Snapshot) -> PathBuf {
        self.root.join(snapshot.id.to_string())
    }

    fn create(
        &self,
        kind: Kind,
        key: &Key,
        parent: Option<&Name>,
        labels: &Labels,
    ) -> Result<Vec<Mount>> {
        // The directory is made inside the transaction: no record without it.
        let snapshot = self.store.create(kind, key, parent, labels, |snapshot| {
            let path = self.dir(snapshot);
            std::fs::create_dir(&path).map_err(|source| Error::Io {
                op: "make directory",
                path,
                source,
            })
        })?;
        Ok(self.mounts_of(&snapshot))
    }

    fn mounts_of(&self, snapshot: &Snapshot) -> Vec<Mount> {
        let access = if snapshot.info.kind == Kind::Active { "rw" } else { "ro" };
        vec![Mount {
            kind: "bind".into(),
            source: self.dir(snapshot).display().to_string(),
            target: String::new(),
            options: vec!["rbind".into(), access.into()],
        }]
    }
}

impl Snapshotter for FlatSnapshotter {
    fn stat(&self, key: &str) -> Result<Info> {
        self.store.info(key)
    }

    fn update(&self, key: &str, labels: &LabelUpdate) -> Result<Info> {
        self.store.update(key, labels)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        self.store.snapshot(key).map(|snapshot| snapshot.usage)
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        self.store.snapshot(key.as_str()).map(|snapshot| self.mounts_of(&snapshot))
    }

    fn prepare(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::Active, key, parent, labels)
    }

    fn view(&self, key: &Key, parent: Option<&Name>, labels: &Labels) -> Result<Vec<Mount>> {
        self.create(Kind::View, key, parent, labels)
    }

    fn commit(&self, name: &Name, key: &Key, options: &CommitOptions) -> Result<()> {
        self.store.commit(name, key, options, Usage::default(), |_| Ok(())).map(drop)
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.store.remove(key, |_| Ok(())).map(drop)
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        self.store.walk(&mut |_, info| visit(info))
    }

    fn cleanup(&self) -> Result<()> {
        Ok(())
    }
}

fn main() -> Result<()> {
    let root = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let snapshots = FlatSnapshotter::open(&root)?;
    let (key, name) = (Key::new("first")?, Name::new("base")?);
    show(&snapshots.prepare(&key, None, &Labels::new())?);
    snapshots.commit(&name, &key, &CommitOptions::default())?;
    show(&snapshots.view(&Key::new("second")?, Some(&name), &Labels::new())?);
    snapshots.walk(&mut |info| {
        show(&info);
        ControlFlow::Continue(())
    })
}

#[allow(clippy::print_stdout, reason = "this is a program")]
fn show(what: &impl std::fmt::Debug) {
    println!("{what:?}");
}
