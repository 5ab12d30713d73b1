//! The primitives' suites through gRPC: a store and a snapshotter of a second daemon, which this
//! one uses like its own.
//!
//! ```text
//! suite ─► namespaces of this side ─► proxy ─► socket ─► services ─► namespaces ─► files
//! ```
//!
//! The tests of snapshots share one second daemon, each in a namespace of its own.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::common::Fixture;
use crated::metadata::{
    Content, Db, NamespacedSnapshotter, NamespacedStore, NoEvents, Scope, Sharing, Snapshots,
};
use crated::proxy::{Deadlines, Link, ProxySnapshotter, ProxyStore};
use crated_snapshot::testsuite::TestDir;
use tokio::runtime::Runtime;

/// A daemon on the other side of a socket. It goes with the last test that uses it.
pub(crate) struct Far {
    fixture: Fixture,
    runtime: Runtime,
}

impl Far {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let fixture = runtime.block_on(Fixture::start());
        Self { fixture, runtime }
    }

    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Far>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let far = Arc::new(Far::new());
            *shared = Arc::downgrade(&far);
            far
        })
    }

    /// The way to the part of it called `name`.
    pub(crate) fn link(&self, name: &str) -> Link {
        let _inside = self.runtime.enter();
        let address = self.fixture.directory.path().join("c.sock");
        Link::new(name, &address, Deadlines::default())
    }
}

/// A namespace that no other test uses: named after its directory.
fn scope(root: &Path) -> Scope {
    let name: String = root.to_string_lossy().chars().filter(char::is_ascii_alphanumeric).collect();
    let tail = &name[name.len().saturating_sub(60)..];
    Scope::new(format!("n{tail}").parse().unwrap())
}

fn store(far: &Far, root: &Path) -> NamespacedStore {
    let db = Db::open(root, Arc::new(NoEvents)).unwrap();
    let backend = ProxyStore::new(far.link("content"));
    Content::new(&db, Arc::new(backend), Sharing::Isolated).scoped(scope(root))
}

fn snapshotter(far: &Far, root: &Path) -> crated_snapshot::Result<NamespacedSnapshotter> {
    let db = Db::open(root, Arc::new(NoEvents)).unwrap();
    let backend = ProxySnapshotter::new(far.link("native"));
    Ok(Snapshots::new(&db, "native", Arc::new(backend)).scoped(scope(root)))
}

mod content {
    use super::*;

    crated_content::store_testsuite!(|| {
        // Of their own: the store on the other side tells by a digest what it has.
        let (far, root) = (Far::new(), TestDir::new());
        (store(&far, root.path()), (root, far))
    });
}

mod snapshots {
    use super::*;

    crated_snapshot::snapshotter_testsuite!({
        let far = Far::shared();
        move |root: &Path| snapshotter(&far, root)
    });
}
