//! The decorators keep every promise of what they decorate.

use std::path::Path;
use std::sync::Arc;

use crated::metadata::{
    Content, Db, NamespacedSnapshotter, NamespacedStore, NoEvents, Scope, Sharing, Snapshots,
};
use crated_content::{LocalStore, MemoryStore, Store};
use crated_snapshot::{NativeSnapshotter, OverlayOptions, OverlaySnapshotter, Snapshotter};

fn scope() -> Scope {
    Scope::new("suite".parse().unwrap())
}

fn store(backend: Arc<dyn Store>, root: &Path, sharing: Sharing) -> NamespacedStore {
    let db = Db::open(root, Arc::new(NoEvents)).unwrap();
    Content::new(&db, backend, sharing).scoped(scope())
}

fn snapshotter(
    root: &Path,
    name: &str,
    backend: Arc<dyn Snapshotter>,
) -> crated_snapshot::Result<NamespacedSnapshotter> {
    let db = Db::open(root, Arc::new(NoEvents)).unwrap();
    Ok(Snapshots::new(&db, name, backend).scoped(scope()))
}

mod over_a_directory {
    use super::*;

    crated_content::store_testsuite!(|| {
        let root = tempfile::tempdir().unwrap();
        let backend = LocalStore::open(root.path().join("content")).unwrap();
        (store(Arc::new(backend), root.path(), Sharing::Shared), root)
    });
}

mod over_memory_and_isolated {
    use super::*;

    crated_content::store_testsuite!(|| {
        let root = tempfile::tempdir().unwrap();
        (store(Arc::new(MemoryStore::new()), root.path(), Sharing::Isolated), root)
    });
}

mod over_overlay {
    use super::*;

    crated_snapshot::snapshotter_testsuite!(|root: &Path| {
        let options = OverlayOptions { root: root.join("overlay"), ..OverlayOptions::default() };
        let backend = OverlaySnapshotter::open(options)?;
        snapshotter(root, "overlayfs", Arc::new(backend))
    });
}

mod over_copies {
    use super::*;

    crated_snapshot::snapshotter_testsuite!(|root: &Path| {
        let backend = NativeSnapshotter::open(root.join("native"))?;
        snapshotter(root, "native", Arc::new(backend))
    });
}
