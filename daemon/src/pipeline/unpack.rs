//! One layer into one snapshot.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use crated_content::{LabelUpdate, ReadFrom, Store};
use crated_distribution::{Descriptor, Digest};
use crated_snapshot::{
    Applied, Applier, ApplyOptions, Assumed, CommitOptions, Key, Labels, Name, Snapshotter,
    chain_id,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::{Error, Result, fetch};
use crate::metadata::LABEL_UNPACKING;

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
    /// Whether a snapshot made without a parent can be put on one when it is committed.
    pub rebases: bool,
}

impl Unpack {
    /// The number of the lowest layer whose snapshot is missing, and those below attached to the
    /// lease of the call. As many as there are layers when none is missing.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`].
    pub fn first_missing(&self, layers: &[Layer]) -> Result<usize> {
        for number in (0..layers.len()).rev() {
            let layer = &layers[number];
            match self.snapshotter.stat(&layer.chain_id) {
                // Preparing it attaches what is there; what vanished meanwhile shows here too.
                Ok(_) => match self.begin(layer, layer.parent.as_deref())? {
                    None => return Ok(number + 1),
                    Some(draft) => draft.discard(),
                },
                Err(crated_snapshot::Error::NotFound(_)) => {}
                Err(error) => return Err(Error::snapshot(&layer.chain_id)(error)),
            }
        }
        Ok(0)
    }

    /// An active snapshot for the layer on top of `parent`, which is there; nothing when its
    /// result is there already, which then is attached to the lease of the call.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`]; [`Error::Vanished`] when the snapshotter contradicts itself.
    pub fn begin(&self, layer: &Layer, parent: Option<&str>) -> Result<Option<Draft>> {
        let failed = |error| Error::snapshot(&layer.chain_id)(error);
        let parent = parent.map(Name::new).transpose().map_err(failed)?;
        for _ in 0..ATTEMPTS_MAX {
            let key = Key::new(extraction_key(&layer.chain_id)).map_err(failed)?;
            let mut marked = labels(layer);
            marked.insert(LABEL_UNPACKING.to_owned(), String::from("pipeline"));
            match self.snapshotter.prepare(&key, parent.as_ref(), &marked) {
                Ok(mounts) => {
                    let snapshotter = self.snapshotter.clone();
                    let unfinished = None;
                    return Ok(Some(Draft { snapshotter, key: Some(key), mounts, unfinished }));
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

    /// Unpacks `bytes`, which should be the layer, on top of what `draft` stands on.
    ///
    /// # Errors
    ///
    /// [`Error::DiffId`] when the layer is not what the configuration names;
    /// [`Error::Snapshot`]. Nothing of the snapshot is left then.
    pub fn fill(&self, draft: Draft, layer: &Layer, bytes: &mut dyn Read) -> Result<Draft> {
        draft.filled(|draft| {
            let applied = self
                .applier
                .apply(bytes, &draft.mounts, &options())
                .map_err(Error::snapshot(format!("layer {}", layer.descriptor.digest)))?;
            check(layer, applied)
        })
    }

    /// The same for a draft that stands on nothing yet, with what the layer took for granted.
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill).
    pub fn fill_alone(
        &self,
        draft: Draft,
        layer: &Layer,
        bytes: &mut dyn Read,
    ) -> Result<(Draft, Assumed)> {
        let mut assumed = None;
        let draft = draft.filled(|draft| {
            let failed = || Error::snapshot(format!("layer {}", layer.descriptor.digest));
            let upper = draft.upper().ok_or_else(|| {
                let reason = "snapshot has no directory of its own".to_owned();
                failed()(crated_snapshot::Error::Unsupported { reason })
            })?;
            let (applied, noted) =
                self.applier.apply_alone(bytes, &upper, &options()).map_err(failed())?;
            assumed = Some(noted);
            check(layer, applied)
        })?;
        Ok((draft, assumed.unwrap_or_default()))
    }

    /// The stored bytes of a layer.
    ///
    /// # Errors
    ///
    /// [`Error::Content`].
    pub fn stored(&self, layer: &Layer) -> Result<ReadFrom> {
        let digest = fetch::digest(&layer.descriptor.digest)?;
        let blob = self.store.reader(&digest).map_err(Error::content(&digest))?;
        Ok(crated_content::reader(blob))
    }

    /// Notes on the layer's blob what it unfolds to, once that is known to be true.
    ///
    /// # Errors
    ///
    /// [`Error::Content`].
    pub fn label(&self, layer: &Layer) -> Result<()> {
        let digest = fetch::digest(&layer.descriptor.digest)?;
        let info = self.store.info(&digest).map_err(Error::content(&digest))?;
        let diff_id = layer.diff_id.to_string();
        if info.labels.get(LABEL_UNCOMPRESSED) == Some(&diff_id) {
            return Ok(());
        }
        let label = LabelUpdate::Merge([(LABEL_UNCOMPRESSED.to_owned(), Some(diff_id))].into());
        self.store.update(&digest, &label).map_err(Error::content(&digest))?;
        Ok(())
    }

    /// Makes everything unpacked so far survive a power cut: one flush for all layers of an image,
    /// before anything says that the image is there.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`].
    pub fn settle(&self) -> Result<()> {
        self.snapshotter.settle().map_err(Error::snapshot("layers unpacked"))
    }
}

fn check(layer: &Layer, applied: Applied) -> Result<()> {
    if applied.diff_id == layer.diff_id.as_str() {
        return Ok(());
    }
    Err(Error::DiffId {
        layer: layer.descriptor.digest.clone(),
        expected: layer.diff_id.clone(),
        actual: applied.diff_id,
    })
}

/// An active snapshot, removed on drop unless committed.
pub struct Draft {
    snapshotter: Arc<dyn Snapshotter>,
    key: Option<Key>,
    mounts: Vec<crated_mount::Mount>,
    /// Dropped when nothing of the draft is left to be done.
    unfinished: Option<mpsc::Sender<()>>,
}

impl Draft {
    /// Itself; whoever has the other end of `unfinished` sees when it is committed or removed.
    pub(super) fn noted(mut self, unfinished: &mpsc::Sender<()>) -> Self {
        self.unfinished = Some(unfinished.clone());
        self
    }

    /// The directory that holds this layer alone, where the snapshotter has such.
    pub fn upper(&self) -> Option<PathBuf> {
        let [mount] = &self.mounts[..] else { return None };
        match mount.kind.as_str() {
            "bind" if mount.options.iter().any(|option| option == "rw") => {
                Some(PathBuf::from(&mount.source))
            }
            "overlay" => option(mount, "upperdir=").map(PathBuf::from),
            _ => None,
        }
    }

    /// The directories of the layers below, nearest first.
    pub fn lowers(&self) -> Vec<PathBuf> {
        let dirs = self.mounts.first().and_then(|mount| option(mount, "lowerdir="));
        dirs.map(|dirs| dirs.split(':').map(PathBuf::from).collect()).unwrap_or_default()
    }

    /// Commits the snapshot as `layer`; one that stood on nothing is put on the layer's parent.
    /// Success also when somebody else has been quicker: then false, and this one is gone.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`]. Nothing of the snapshot is left then.
    pub fn commit(mut self, layer: &Layer, alone: bool) -> Result<bool> {
        let failed = |error| Error::snapshot(&layer.chain_id)(error);
        let name = Name::new(layer.chain_id.clone()).map_err(failed)?;
        let parent = layer.parent.as_deref().filter(|_| alone);
        let parent = parent.map(Name::new).transpose().map_err(failed)?;
        let Some(key) = &self.key else { return Ok(false) };
        let options = CommitOptions { labels: labels(layer), parent };
        match self.snapshotter.commit(&name, key, &options) {
            Ok(()) => {
                self.key = None;
                Ok(true)
            }
            Err(crated_snapshot::Error::AlreadyExists(_)) => {
                self.discard();
                Ok(false)
            }
            Err(error) => {
                self.discard();
                Err(failed(error))
            }
        }
    }

    /// Removes the snapshot, on this thread.
    pub fn discard(mut self) {
        if let Some(key) = self.key.take() {
            remove(&*self.snapshotter, &key);
        }
    }

    /// Itself after `fill`, which leaves nothing of it when it fails.
    fn filled(self, fill: impl FnOnce(&Self) -> Result<()>) -> Result<Self> {
        match fill(&self) {
            Ok(()) => Ok(self),
            Err(error) => {
                self.discard();
                Err(error)
            }
        }
    }
}

impl Drop for Draft {
    /// Whoever drops it may be a task that was cancelled, which must not block.
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let (snapshotter, unfinished) = (self.snapshotter.clone(), self.unfinished.take());
        let removal = move || {
            remove(&*snapshotter, &key);
            drop(unfinished);
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(removal)),
            Err(_) => removal(),
        }
    }
}

fn remove(snapshotter: &dyn Snapshotter, key: &Key) {
    if let Err(error) = snapshotter.remove(key.as_ref()) {
        tracing::warn!(key = key.as_ref(), %error, "an unfinished snapshot was left");
    }
}

/// The layer is flushed with the rest of its image, as soon as that is whole.
fn options() -> ApplyOptions {
    ApplyOptions { write_early: true, ..ApplyOptions::default() }
}

fn option<'m>(mount: &'m crated_mount::Mount, prefix: &str) -> Option<&'m str> {
    mount.options.iter().find_map(|option| option.strip_prefix(prefix))
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
    format!("{} {chain_id}", super::unique("extract"))
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
