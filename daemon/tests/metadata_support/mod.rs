//! What the metadata tests have in common.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crated::metadata::gc::Collector;
use crated::metadata::{
    Any, Container, Content, Db, Event, EventSink, Image, Labels, Namespace, NamespacedSnapshotter,
    NamespacedStore, Runtime, Scope, Sharing, Snapshots, Target,
};
use crated_content::{
    Commit, Digest, Ingest, IngestManager, Ingester, MemoryStore, Provider, Store,
};
use crated_snapshot::{CommitOptions, Key, Name, Snapshotter};

/// Remembers every event.
#[derive(Default)]
pub struct Recorder(Mutex<Vec<(String, Event)>>);

impl EventSink for Recorder {
    fn emit(&self, namespace: &Namespace, event: Event) {
        self.0.lock().unwrap().push((namespace.to_string(), event));
    }
}

impl Recorder {
    /// The events since the last call.
    pub fn take(&self) -> Vec<(String, Event)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// Their topics.
    pub fn topics(&self) -> Vec<&'static str> {
        self.take().iter().map(|(_, event)| event.topic()).collect()
    }
}

/// Metadata over stores in a directory of its own.
pub struct World {
    pub db: Db,
    pub events: Arc<Recorder>,
    pub content: Content,
    pub blobs: Arc<dyn Store>,
    pub snapshots: Snapshots,
    pub layers: Arc<dyn Snapshotter>,
    pub collector: Collector,
    pub root: tempfile::TempDir,
}

pub const SNAPSHOTTER: &str = "native";

impl World {
    pub fn new() -> Self {
        Self::with(Arc::new(MemoryStore::new()), Sharing::Shared)
    }

    pub fn with(blobs: Arc<dyn Store>, sharing: Sharing) -> Self {
        let root = tempfile::tempdir().unwrap();
        let layers = Arc::new(crate::metadata_support::layers::Layers::default());
        Self::over(root, blobs, layers, sharing)
    }

    pub fn over(
        root: tempfile::TempDir,
        blobs: Arc<dyn Store>,
        layers: Arc<dyn Snapshotter>,
        sharing: Sharing,
    ) -> Self {
        let events = Arc::new(Recorder::default());
        let db = Db::open(root.path(), events.clone()).unwrap();
        let content = Content::new(&db, blobs.clone(), sharing);
        let snapshots = Snapshots::new(&db, SNAPSHOTTER, layers.clone());
        let collector = Collector::new(&db, Some(content.clone()), vec![snapshots.clone()]);
        Self { db, events, content, blobs, snapshots, layers, collector, root }
    }

    pub fn store(&self, scope: &Scope) -> NamespacedStore {
        self.content.scoped(scope.clone())
    }

    pub fn snapshotter(&self, scope: &Scope) -> NamespacedSnapshotter {
        self.snapshots.scoped(scope.clone())
    }

    /// Collects, sparing nothing.
    pub fn collect(&self) -> crated::metadata::gc::Report {
        self.collector.collect(None).unwrap()
    }

    /// Stores a blob, with labels.
    pub fn blob(&self, scope: &Scope, bytes: &[u8], blob_labels: &[(&str, &str)]) -> Digest {
        let digest = Digest::of(bytes);
        let ingest = Ingest::new(format!("ingest-{digest}"));
        let mut writer = self.store(scope).writer(&ingest).unwrap();
        writer.write_all(bytes).unwrap();
        let commit = Commit { labels: labels(blob_labels), ..Commit::expecting(digest.clone()) };
        writer.commit(&commit).unwrap();
        digest
    }

    /// Commits a layer called `name` over `parent`.
    pub fn layer(
        &self,
        scope: &Scope,
        name: &str,
        parent: Option<&str>,
        layer_labels: &[(&str, &str)],
    ) {
        let snapshotter = self.snapshotter(scope);
        let key = Key::new(format!("draft of {name}")).unwrap();
        let parent = parent.map(|parent| Name::new(parent).unwrap());
        snapshotter.prepare(&key, parent.as_ref(), &Labels::new()).unwrap();
        let options = CommitOptions { labels: labels(layer_labels), parent: None };
        snapshotter.commit(&Name::new(name).unwrap(), &key, &options).unwrap();
    }

    /// Prepares an active snapshot called `key` over `parent`.
    pub fn active(&self, scope: &Scope, key: &str, parent: Option<&str>) {
        let parent = parent.map(|parent| Name::new(parent).unwrap());
        self.snapshotter(scope)
            .prepare(&Key::new(key).unwrap(), parent.as_ref(), &Labels::new())
            .unwrap();
    }

    pub fn image(&self, scope: &Scope, name: &str, target: &Digest, image_labels: &[(&str, &str)]) {
        let image = image(name, target, image_labels);
        self.db.images().create(scope, image, None).unwrap();
    }

    pub fn has_blob(&self, scope: &Scope, digest: &Digest) -> bool {
        self.store(scope).info(digest).is_ok()
    }

    pub fn has_bytes(&self, digest: &Digest) -> bool {
        self.blobs.info(digest).is_ok()
    }

    pub fn has_snapshot(&self, scope: &Scope, key: &str) -> bool {
        self.snapshotter(scope).stat(key).is_ok()
    }

    pub fn has_ingest(&self, scope: &Scope, reference: &str) -> bool {
        self.store(scope).status(reference).is_ok()
    }

    pub fn has_image(&self, scope: &Scope, name: &str) -> bool {
        self.db.images().image(scope, name).is_ok()
    }

    /// Snapshots below, whoever knows them.
    pub fn layers_below(&self) -> usize {
        let mut count = 0;
        self.layers
            .walk(&mut |_| {
                count += 1;
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        count
    }
}

pub fn scope(namespace: &str) -> Scope {
    Scope::new(namespace.parse().unwrap())
}

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn image(name: &str, target: &Digest, image_labels: &[(&str, &str)]) -> Image {
    Image {
        name: name.to_owned(),
        labels: labels(image_labels),
        target: Target {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: target.clone(),
            size_bytes: 7,
            annotations: Labels::new(),
        },
        created_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
    }
}

pub fn container(id: &str, snapshot_key: Option<&str>) -> Container {
    Container {
        id: id.to_owned(),
        labels: Labels::new(),
        image: None,
        runtime: Runtime { name: "io.containerd.runc.v2".to_owned(), options: None },
        spec: any("types.containerd.io/opencontainers/runtime-spec/1/Spec", b"{}"),
        snapshotter: snapshot_key.map(|_| SNAPSHOTTER.to_owned()),
        snapshot_key: snapshot_key.map(str::to_owned),
        extensions: BTreeMap::new(),
        sandbox: None,
        created_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
    }
}

pub fn any(type_url: &str, value: &[u8]) -> Any {
    Any { type_url: type_url.to_owned(), value: value.to_vec() }
}

/// A time as labels hold it, so many seconds from now.
pub fn rfc3339(seconds_from_now: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seconds = i64::try_from(now.as_secs()).unwrap() + seconds_from_now;
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a civil date, years counted from March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year_of_era + era * 400 + carry;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Waits until `done`, for at most ten seconds.
pub fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = SystemTime::now() + Duration::from_secs(60);
    while !done() {
        assert!(SystemTime::now() < deadline, "{what} did not happen in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The size of everything below a directory, to see a database grow.
pub fn database(root: &Path) -> std::path::PathBuf {
    root.join("io.containerd.metadata.v1.bolt/meta.redb")
}

pub mod layers;
