//! Layers into snapshots, bottom up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crated_content::{LabelUpdate, ReadFrom, Store};
use crated_distribution::{Descriptor, Digest};
use crated_snapshot::{
    Applier, ApplyOptions, CommitOptions, Key, Labels, Name, Snapshotter, chain_id,
};

use super::{Error, Result, fetch};

/// Names the snapshot that an extraction is for; also how another layer of snapshotters says
/// that it has it.
const LABEL_REF: &str = "containerd.io/snapshot.ref";
/// The uncompressed digest of the layer.
const LABEL_DIFF_ID: &str = "containerd.io/snapshot/diff-id";
/// The chain below.
const LABEL_PARENT: &str = "containerd.io/snapshot/parent-chain-id";
/// The uncompressed digest, on the layer's blob.
const LABEL_UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Attempts to prepare a snapshot that is said to exist but cannot be found.
const ATTEMPTS_MAX: usize = 3;

/// One layer, and where it stands.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its blob.
    pub descriptor: Descriptor,
    /// Its uncompressed digest.
    pub diff_id: Digest,
    /// The snapshot it makes.
    pub chain_id: String,
    /// The snapshot it stands on; none for the lowest.
    pub parent: Option<String>,
}

/// Pairs layers with the uncompressed digests of the configuration, lowest first. The caller has
/// checked that there are as many of one as of the other.
pub fn layers(descriptors: &[Descriptor], diff_ids: &[Digest]) -> Vec<Layer> {
    let mut parent: Option<String> = None;
    let pairs = descriptors.iter().zip(diff_ids);
    pairs
        .map(|(descriptor, diff_id)| {
            let chain_id = chain_id(parent.as_deref(), diff_id.as_str());
            let below = parent.replace(chain_id.clone());
            Layer {
                descriptor: descriptor.clone(),
                diff_id: diff_id.clone(),
                chain_id,
                parent: below,
            }
        })
        .collect()
}

/// What layers are unpacked with. Everything blocks.
#[derive(Clone)]
pub struct Unpack {
    /// Where the blobs are.
    pub store: Arc<dyn Store>,
    /// Where the snapshots go, as one namespace and lease see it.
    pub snapshotter: Arc<dyn Snapshotter>,
    /// What turns one into the other.
    pub applier: Arc<dyn Applier>,
}

impl Unpack {
    /// An active snapshot for the layer, whose parent is there; nothing when its result is there
    /// already, which then is attached to the lease of the call.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`]; [`Error::Vanished`] when the snapshotter contradicts itself.
    pub fn begin(&self, layer: &Layer) -> Result<Option<Draft>> {
        let failed = |error| Error::snapshot(&layer.chain_id)(error);
        let parent = layer.parent.as_deref().map(Name::new).transpose().map_err(failed)?;
        for _ in 0..ATTEMPTS_MAX {
            let key = Key::new(extraction_key(&layer.chain_id)).map_err(failed)?;
            match self.snapshotter.prepare(&key, parent.as_ref(), &labels(layer)) {
                Ok(mounts) => {
                    let snapshotter = self.snapshotter.clone();
                    return Ok(Some(Draft { snapshotter, key: Some(key), mounts }));
                }
                Err(crated_snapshot::Error::AlreadyExists(_)) => {
                    match self.snapshotter.stat(&layer.chain_id) {
                        Ok(_) => return Ok(None),
                        Err(crated_snapshot::Error::NotFound(_)) => {}
                        Err(error) => return Err(failed(error)),
                    }
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Err(Error::Vanished { name: layer.chain_id.clone() })
    }

    /// Fills `draft` with the layer, whose blob is stored, and commits it.
    ///
    /// # Errors
    ///
    /// [`Error::DiffId`] when the layer is not what the configuration names;
    /// [`Error::Content`], [`Error::Snapshot`]. Nothing of the snapshot is left then.
    pub fn fill(&self, draft: Draft, layer: &Layer) -> Result<()> {
        let digest = fetch::digest(&layer.descriptor.digest)?;
        let blob = self.store.reader(&digest).map_err(Error::content(&digest))?;
        let mut bytes = ReadFrom::new(blob, 0).map_err(Error::content(&digest))?;
        let applied = self
            .applier
            .apply(&mut bytes, &draft.mounts, &ApplyOptions::default())
            .map_err(Error::snapshot(format!("layer {}", layer.descriptor.digest)))?;
        if applied.diff_id != layer.diff_id.as_str() {
            return Err(Error::DiffId {
                layer: layer.descriptor.digest.clone(),
                expected: layer.diff_id.clone(),
                actual: applied.diff_id,
            });
        }
        draft.commit(layer)?;
        let label =
            LabelUpdate::Merge([(LABEL_UNCOMPRESSED.to_owned(), Some(applied.diff_id))].into());
        self.store.update(&digest, &label).map_err(Error::content(&digest))?;
        Ok(())
    }
}

/// An active snapshot, removed on drop unless committed.
pub struct Draft {
    snapshotter: Arc<dyn Snapshotter>,
    key: Option<Key>,
    mounts: Vec<crated_mount::Mount>,
}

impl Draft {
    fn commit(mut self, layer: &Layer) -> Result<()> {
        let failed = |error| Error::snapshot(&layer.chain_id)(error);
        let name = Name::new(layer.chain_id.clone()).map_err(failed)?;
        let Some(key) = &self.key else { return Ok(()) };
        let options = CommitOptions { labels: labels(layer), ..CommitOptions::default() };
        match self.snapshotter.commit(&name, key, &options) {
            Ok(()) => {
                self.key = None;
                Ok(())
            }
            // Somebody else was quicker with the same layer; this draft is removed.
            Err(crated_snapshot::Error::AlreadyExists(_)) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let Some(key) = &self.key else { return };
        if let Err(error) = self.snapshotter.remove(key.as_ref()) {
            tracing::warn!(key = key.as_ref(), %error, "an unfinished snapshot was left");
        }
    }
}

fn labels(layer: &Layer) -> Labels {
    let mut labels = Labels::from([
        (LABEL_REF.to_owned(), layer.chain_id.clone()),
        (LABEL_DIFF_ID.to_owned(), layer.diff_id.to_string()),
    ]);
    if let Some(parent) = &layer.parent {
        labels.insert(LABEL_PARENT.to_owned(), parent.clone());
    }
    labels
}

/// A key that no other extraction has, in the form that tools expect of them.
fn extraction_key(chain_id: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("extract-{nanos}-{}-{number} {chain_id}", std::process::id())
}

/// Labels the configuration's blob, which keeps the image's topmost snapshot.
///
/// # Errors
///
/// [`Error::Content`].
pub fn keep_snapshot(
    store: &dyn Store,
    config: &Digest,
    snapshotter: &str,
    top: &str,
) -> Result<()> {
    let label = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
    let update = LabelUpdate::Merge([(label, Some(top.to_owned()))].into());
    let digest = fetch::digest(config)?;
    store.update(&digest, &update).map_err(Error::content(&digest))?;
    Ok(())
}
