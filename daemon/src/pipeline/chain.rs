//! The layers of one image, side by side, into a chain of snapshots.
//!
//! ```text
//!  layer 3  fetch ─ hash ─ inflate ─ apply ──────┐
//!  layer 2  fetch ─ hash ─ inflate ─ apply ─┐    │
//!  layer 1  fetch ─ hash ─ inflate ─ apply  │    │
//!                                  commit 1 ► commit 2 ► commit 3
//! ```
//!
//! Where the snapshotter can put a snapshot on its parent when it is committed, every layer is
//! unpacked into a snapshot of its own as its bytes arrive; each is bound to the one below once
//! that is committed. Elsewhere layers arrive side by side and are unpacked in order, from the
//! store. A layer whose turn to unpack does not come before its bytes do is unpacked from the
//! store too.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crated_distribution::{State, walk};
use crated_snapshot::Assumed;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::arrive;
use super::counters::count;
use super::fetch::Fetch;
use super::flight::Flight;
use super::unpack::{Draft, Layer, Unpack};
use super::{Error, Result};
use crate::blocking::Panicked;

/// Layers of one image and what they are unpacked with.
#[derive(Clone)]
pub(super) struct Chain {
    fetch: Fetch,
    unpack: Unpack,
    /// Tells this snapshotter and namespace from others.
    place: String,
    /// Labels of fetched blobs.
    labels: crated_content::Labels,
    /// Set when nobody wants the layers any more.
    stop: Arc<AtomicBool>,
    /// Held by every snapshot that is not finished.
    unfinished: mpsc::Sender<()>,
}

/// Stops what is being unpacked when the one who waits for it goes away.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Bytes of a layer, until they are not wanted any more.
struct WhileWanted<R> {
    bytes: R,
    stop: Arc<AtomicBool>,
}

impl<R: Read> Read for WhileWanted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("the layer is not wanted any more"));
        }
        self.bytes.read(into)
    }
}

/// A layer whose blob is stored.
enum Ready {
    /// It is unpacked where it belongs.
    InPlace(Draft),
    /// It is unpacked, though not yet on top of anything.
    Alone(Draft, Assumed),
    /// It has to be unpacked once the one below is there.
    Stored,
}

/// A layer that nobody else unpacks meanwhile.
struct Claimed {
    number: usize,
    layer: Layer,
    flight: Flight,
    draft: Option<Draft>,
}

/// A layer that is being unpacked or waits to be committed.
struct Pending {
    layer: Layer,
    /// Until it is committed.
    flight: Option<Flight>,
    ready: Option<Ready>,
}

/// The directories of the chain so far, nearest first, while they are known.
struct Lowers(Option<VecDeque<PathBuf>>);

impl Chain {
    /// Turns `layers`, lowest first, into snapshots; those that are there are left alone, and not
    /// even fetched.
    ///
    /// # Errors
    ///
    /// The first that any layer meets. Nothing is left then of layers that were not committed.
    pub(super) async fn run(
        fetch: Fetch,
        unpack: Unpack,
        place: String,
        labels: crated_content::Labels,
        layers: &[Layer],
    ) -> Result<()> {
        let (unfinished, mut finished) = mpsc::channel(1);
        let chain = Self { fetch, unpack, place, labels, stop: Arc::default(), unfinished };
        let stop = StopOnDrop(Arc::clone(&chain.stop));
        let done = chain.all(layers).await;
        drop((chain, stop));
        if done.is_err() {
            // Nothing half made is left when the caller hears of it.
            while finished.recv().await.is_some() {}
        }
        done
    }

    async fn all(&self, layers: &[Layer]) -> Result<()> {
        let Some((claims, lowers)) = self.claim(layers).await? else { return Ok(()) };
        let mut pending = Vec::new();
        let mut tasks = JoinSet::new();
        for claimed in claims {
            let Claimed { number, layer, flight, draft } = claimed;
            pending.push(Pending { layer: layer.clone(), flight: Some(flight), ready: None });
            let (chain, first) = (self.clone(), number == 0);
            tasks.spawn(async move { (number, chain.arrive(&layer, draft, first).await) });
        }
        let bound = self.bind(&mut tasks, &mut pending, lowers).await;
        if bound.is_err() {
            self.stop.store(true, Ordering::Relaxed);
            tasks.shutdown().await;
        }
        bound
    }

    /// Commits each layer once it and the one below are ready.
    async fn bind(
        &self,
        tasks: &mut JoinSet<(usize, Result<Ready>)>,
        layers: &mut [Pending],
        mut lowers: Lowers,
    ) -> Result<()> {
        let mut next = 0;
        while next < layers.len() {
            if let Some(ready) = layers[next].ready.take() {
                lowers = self.commit(layers[next].layer.clone(), ready, lowers).await?;
                // Whoever waited for the layer finds it.
                layers[next].flight = None;
                next += 1;
                continue;
            }
            let Some(done) = tasks.join_next().await else { return Err(Panicked.into()) };
            let (number, ready) = done.map_err(|_| Panicked)?;
            layers[number].ready = Some(ready?);
        }
        Ok(())
    }

    /// Claims the layers that are missing, lowest first: two images that share layers ask for them
    /// in the same order, so nobody waits in a circle. Nothing when all are there.
    async fn claim(&self, layers: &[Layer]) -> Result<Option<(Vec<Claimed>, Lowers)>> {
        let mut first = self.first_missing(layers).await?;
        let mut flights = Vec::new();
        while first + flights.len() < layers.len() {
            let layer = &layers[first + flights.len()];
            let key = format!("{}/{}", self.place, layer.chain_id);
            let flight = self.fetch.shared.applies.enter(key).await;
            let waited = flight.waited();
            flights.push(flight);
            if waited {
                count(&self.fetch.shared.counters.applies_awaited);
                let there = self.first_missing(layers).await?.saturating_sub(first);
                flights.drain(..there.min(flights.len()));
                first += there;
            }
        }
        // Somebody may have been here between the look and the claim.
        let there = self.first_missing(layers).await?.saturating_sub(first);
        flights.drain(..there.min(flights.len()));
        first += there;
        for layer in &layers[..first] {
            count(&self.fetch.shared.counters.layers_found);
            self.fetch.progress.state(&walk::reference_key(&layer.descriptor), State::Exists);
        }
        if first == layers.len() {
            return Ok(None);
        }
        let mut claims = Vec::new();
        let missing = layers[first..].iter().zip(flights).enumerate();
        for (number, (layer, flight)) in missing {
            claims.push(Claimed { number, layer: layer.clone(), flight, draft: None });
        }
        // The lowest is prepared where it belongs, which also shows the directories below.
        let (chain, layer) = (self.clone(), claims[0].layer.clone());
        let begun = move || chain.begin(&layer, layer.parent.as_deref());
        let draft = self.fetch.blocking.quick(begun).await??;
        let lowers = Lowers(draft.as_ref().map(|draft| draft.lowers().into()));
        claims[0].draft = draft;
        Ok(Some((claims, lowers)))
    }

    async fn first_missing(&self, layers: &[Layer]) -> Result<usize> {
        let (unpack, layers) = (self.unpack.clone(), layers.to_vec());
        self.fetch.blocking.quick(move || unpack.first_missing(&layers)).await?
    }

    /// Brings the layer into the store and, where that is possible, into a snapshot.
    async fn arrive(&self, layer: &Layer, draft: Option<Draft>, first: bool) -> Result<Ready> {
        layer.descriptor.check()?;
        let shared = &self.fetch.shared;
        let permit = Arc::clone(&shared.fetching).acquire_owned().await.map_err(|_| Panicked)?;
        let missing = self.fetch.missing(&layer.descriptor).await?;
        let unpacking = match &missing {
            // From a blob that is stored already there is no hurry.
            None => None,
            Some(missing) if missing.offset() > 0 => None,
            Some(_) => Arc::clone(&shared.unpacking).try_acquire_owned().ok(),
        };
        let alone = !first;
        let early = unpacking.is_some() && (first || self.unpack.rebases);
        let mut kept = draft;
        if let Some(missing) = missing {
            if early && let Some(draft) = self.draft(layer, kept.take(), alone).await? {
                let ready = self.one_pass(layer, missing, draft, alone).await;
                drop(unpacking);
                return ready;
            }
            let labels = self.labels.clone();
            self.fetch.arrive(&layer.descriptor, missing, labels, None).await?;
        }
        drop((permit, unpacking));
        if alone && !self.unpack.rebases {
            return Ok(Ready::Stored);
        }
        let _permit = Arc::clone(&shared.unpacking).acquire_owned().await.map_err(|_| Panicked)?;
        let Some(draft) = self.draft(layer, kept.take(), alone).await? else {
            return Ok(Ready::Stored);
        };
        let (chain, wanted) = (self.clone(), layer.clone());
        self.extracting(layer);
        let fill = move || match chain.stored(&wanted) {
            Ok(mut bytes) => chain.fill(&wanted, draft, alone, &mut bytes),
            Err(error) => {
                draft.discard();
                Err(error)
            }
        };
        self.fetch.blocking.bulk(fill).await?
    }

    /// The draft that was made already, or one that stands on nothing.
    async fn draft(
        &self,
        layer: &Layer,
        kept: Option<Draft>,
        alone: bool,
    ) -> Result<Option<Draft>> {
        if kept.is_some() || !alone {
            return Ok(kept);
        }
        let (chain, wanted) = (self.clone(), layer.clone());
        self.fetch.blocking.quick(move || chain.begin(&wanted, None)).await?
    }

    /// A draft that is noted as unfinished. It blocks, and notes on the same thread: whoever waits
    /// for the draft may go away before it is there.
    fn begin(&self, layer: &Layer, parent: Option<&str>) -> Result<Option<Draft>> {
        let begun = self.unpack.begin(layer, parent)?;
        Ok(begun.map(|draft| draft.noted(&self.unfinished)))
    }

    fn stored(&self, layer: &Layer) -> Result<WhileWanted<crated_content::ReadFrom>> {
        let (bytes, stop) = (self.unpack.stored(layer)?, Arc::clone(&self.stop));
        Ok(WhileWanted { bytes, stop })
    }

    /// Unpacks the layer while its bytes arrive.
    async fn one_pass(
        &self,
        layer: &Layer,
        missing: super::fetch::Missing,
        draft: Draft,
        alone: bool,
    ) -> Result<Ready> {
        let (tee, mut arriving) = arrive::tee();
        let (chain, wanted) = (self.clone(), layer.clone());
        let unpacked =
            self.fetch.blocking.bulk(move || chain.fill(&wanted, draft, alone, &mut arriving));
        let labels = self.labels.clone();
        let fetched = self.fetch.arrive(&layer.descriptor, missing, labels, Some(tee));
        let (fetched, unpacked) = tokio::join!(fetched, unpacked);
        let unpacked = unpacked?;
        if let Ok(true) = fetched {
            if matches!(unpacked, Ok(Ready::Alone(..) | Ready::InPlace(_))) {
                count(&self.fetch.shared.counters.layers_applied_in_one_pass);
            }
            return unpacked;
        }
        // What was unpacked is not what is stored, if anything is.
        if let Ok(ready) = unpacked {
            self.discard(ready).await?;
        }
        fetched.map(|_| Ready::Stored)
    }

    /// Unpacks `bytes`. A layer that makes no sense alone waits for those below.
    fn fill(
        &self,
        layer: &Layer,
        draft: Draft,
        alone: bool,
        bytes: &mut dyn Read,
    ) -> Result<Ready> {
        use crated_snapshot::Error::{InvalidArchive, Unsupported};
        let _timer = self.fetch.shared.metrics.stage("unpack");
        if !alone {
            return self.unpack.fill(draft, layer, bytes).map(Ready::InPlace);
        }
        match self.unpack.fill_alone(draft, layer, bytes) {
            Ok((draft, assumed)) => Ok(Ready::Alone(draft, assumed)),
            Err(Error::Snapshot { source: InvalidArchive { .. } | Unsupported { .. }, .. }) => {
                Ok(Ready::Stored)
            }
            Err(error) => Err(error),
        }
    }

    /// Commits a layer whose parent is there.
    async fn commit(&self, layer: Layer, ready: Ready, lowers: Lowers) -> Result<Lowers> {
        let chain = self.clone();
        let commit = move || chain.commit_now(&layer, ready, lowers);
        self.fetch.blocking.bulk(commit).await?
    }

    fn commit_now(&self, layer: &Layer, ready: Ready, lowers: Lowers) -> Result<Lowers> {
        let _timer = self.fetch.shared.metrics.stage("commit");
        let counters = &self.fetch.shared.counters;
        let (draft, alone) = match ready {
            Ready::InPlace(draft) => (Some(draft), false),
            Ready::Stored => (self.unpack_stored(layer)?, false),
            Ready::Alone(draft, assumed) => match settled(layer, draft, &assumed, &lowers)? {
                Some(draft) => (Some(draft), true),
                None => {
                    count(&counters.layers_applied_again);
                    (self.unpack_stored(layer)?, false)
                }
            },
        };
        let Some(draft) = draft else {
            count(&counters.layers_found);
            return Ok(Lowers(None));
        };
        let upper = draft.upper();
        let won = draft.commit(layer, alone)?;
        let key = walk::reference_key(&layer.descriptor);
        if won {
            count(&counters.layers_applied);
            self.unpack.label(layer)?;
            self.fetch.progress.state(&key, State::Extracted);
        }
        Ok(lowers.below(upper.filter(|_| won)))
    }

    /// Unpacks the layer from the store, where it belongs; nothing if somebody else has done so.
    fn unpack_stored(&self, layer: &Layer) -> Result<Option<Draft>> {
        let Some(draft) = self.begin(layer, layer.parent.as_deref())? else {
            return Ok(None);
        };
        let mut bytes = match self.stored(layer) {
            Ok(bytes) => bytes,
            Err(error) => {
                draft.discard();
                return Err(error);
            }
        };
        self.extracting(layer);
        let _timer = self.fetch.shared.metrics.stage("unpack");
        self.unpack.fill(draft, layer, &mut bytes).map(Some)
    }

    fn extracting(&self, layer: &Layer) {
        self.fetch.progress.state(&walk::reference_key(&layer.descriptor), State::Extracting);
    }

    async fn discard(&self, ready: Ready) -> Result<()> {
        let draft = ready.into_draft();
        Ok(self.fetch.blocking.quick(move || draft.into_iter().for_each(Draft::discard)).await?)
    }
}

impl Ready {
    fn into_draft(self) -> Option<Draft> {
        match self {
            Self::InPlace(draft) | Self::Alone(draft, _) => Some(draft),
            Self::Stored => None,
        }
    }
}

impl Lowers {
    /// With one more on top. Once unknown, they stay so.
    fn below(self, upper: Option<PathBuf>) -> Self {
        let (Some(mut dirs), Some(upper)) = (self.0, upper) else { return Self(None) };
        dirs.push_front(upper);
        Self(Some(dirs))
    }
}

/// The draft if it fits on what lies below; it is gone otherwise.
fn settled(
    layer: &Layer,
    draft: Draft,
    assumed: &Assumed,
    lowers: &Lowers,
) -> Result<Option<Draft>> {
    let fits = match (draft.upper(), &lowers.0) {
        (Some(upper), Some(lowers)) => {
            let lowers: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
            assumed.settle(&upper, &lowers).map_err(Error::snapshot(&layer.chain_id))
        }
        _ => Ok(false),
    };
    match fits {
        Ok(true) => Ok(Some(draft)),
        Ok(false) => {
            draft.discard();
            Ok(None)
        }
        Err(error) => {
            draft.discard();
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::time::Duration;

    use crated_content::MemoryStore;
    use crated_distribution::{Descriptor, Digest, LayoutResolver, Progress, Reference, Resolver};
    use crated_snapshot::{NativeSnapshotter, Snapshotter, TarApplier};
    use tokio::sync::mpsc::error::TryRecvError;

    use super::super::Shared;
    use super::super::unpack::layers;
    use super::*;
    use crate::blocking::Blocking;

    async fn fetch(layout: &Path) -> Fetch {
        let layout = LayoutResolver::open(layout).await.unwrap();
        let reference: Reference = "example.test/a:1".parse().unwrap();
        Fetch {
            fetcher: layout.fetcher(&reference).await.unwrap().into(),
            store: Arc::new(MemoryStore::new()),
            blocking: Blocking::new(),
            progress: Progress::new(),
            shared: Arc::new(Shared::default()),
        }
    }

    fn names(snapshotter: &dyn Snapshotter) -> Vec<String> {
        let mut names = Vec::new();
        let mut note = |info: crated_snapshot::Info| {
            names.push(info.name);
            ControlFlow::Continue(())
        };
        snapshotter.walk(&mut note).unwrap();
        names
    }

    #[test]
    fn a_draft_that_comes_too_late_is_waited_for_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let snapshotter = Arc::new(NativeSnapshotter::open(dir.path().join("native")).unwrap());
        // One thread for everything that blocks, so that the draft waits for its turn.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let (unfinished, mut finished) = mpsc::channel(1);
            let chain = Chain {
                fetch: fetch(&dir.path().join("layout")).await,
                unpack: Unpack {
                    store: Arc::new(MemoryStore::new()),
                    snapshotter: snapshotter.clone(),
                    applier: Arc::new(TarApplier::default()),
                    rebases: true,
                },
                place: String::new(),
                labels: crated_content::Labels::new(),
                stop: Arc::default(),
                unfinished,
            };
            let digest = Digest::of(b"layer");
            let layer = Descriptor::new("application/x-layer", digest.clone(), 5);
            let layer = layers(&[layer], &[digest]).remove(0);
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || wait.recv());

            let draft = chain.draft(&layer, None, true);
            // Asked once, which is enough to put it in the queue.
            let gave_up = tokio::time::timeout(Duration::ZERO, draft).await;

            assert!(gave_up.is_err(), "the draft was there at once");
            drop(chain);
            assert_eq!(finished.try_recv(), Err(TryRecvError::Empty));
            drop(go);
            assert_eq!(finished.recv().await, None);
            assert_eq!(names(&*snapshotter), [""; 0]);
            let _ = busy.await;
        });
    }
}
