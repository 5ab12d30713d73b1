//! A layer from a registry into the store and into a snapshot, in one pass; and each of its stages
//! alone.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crated::blocking::Blocking;
use crated::pipeline::Shared;
use crated::pipeline::fetch::Fetch;
use crated::pipeline::pull::{Choice, Pull, Target};
use crated::pipeline::unpack::Unpack;
use crated_content::LocalStore;
use crated_distribution::testsuite::MemoryRegistry;
use crated_distribution::{
    All, Descriptor, DocumentLimits, Hosts, Progress, Reference, RegistryOptions, RegistryResolver,
    Resolver,
};
use crated_snapshot::{Compression, OverlayOptions, OverlaySnapshotter, TarApplier};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;

use crate::direct;
use crate::layer::Layer;
use crate::samples::{Contender, Measured, interleave};
use crate::settings::Settings;
use crate::volume::Volume;

/// The times and ratios of this hop.
///
/// # Errors
///
/// The first of the pull, a stage or the volume.
pub fn measure(volume: &mut Volume, settings: &Settings) -> io::Result<Measured> {
    let mut measured = Measured::default();
    let image = Image::serve(settings.root_size_bytes)?;
    let names = [
        "pull of one layer: all stages at once",
        "pull of one layer: wire alone",
        "pull of one layer: sha256 of the blob alone",
        "pull of one layer: O_DIRECT write of blob and files alone",
        "pull of one layer: inflate alone",
        "pull of one layer: diff id and files alone",
    ];
    let mut contenders: [Contender<'_>; 6] = [
        Box::new(|directory| image.pull(directory)),
        Box::new(|_| image.wire()),
        Box::new(|_| image.hash()),
        Box::new(|directory| image.write(directory)),
        Box::new(|_| image.inflate()),
        Box::new(|directory| crate::apply::apply(&image.plain, directory)),
    ];
    let samples = interleave(volume, settings.rounds, &mut contenders)?;
    let medians = measured.rows(&names, samples);
    let slowest = medians[1..].iter().max().copied().unwrap_or_default();
    measured.ratio("pull-over-slowest-stage", medians[0], slowest);
    Ok(measured)
}

/// An image of one layer in a registry of this process.
struct Image {
    runtime: Runtime,
    _registry: MemoryRegistry,
    reference: Reference,
    root: Descriptor,
    blob: Descriptor,
    gzip: Layer,
    plain: Layer,
    files_bytes: u64,
}

impl Image {
    fn serve(size_bytes: u64) -> io::Result<Self> {
        let gzip = Layer::debian_like(size_bytes, Compression::Gzip)?;
        let plain = Layer::debian_like(size_bytes, Compression::None)?;
        let bytes = whole(&gzip)?;
        let diff_id = hex(&Sha256::digest(whole(&plain)?));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let registry = runtime.block_on(MemoryRegistry::start())?;
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}}}}"#
        );
        let blob = Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", &bytes);
        let config_of =
            Descriptor::of("application/vnd.oci.image.config.v1+json", config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
            json(&config_of),
            json(&blob),
        );
        registry.put_blob("bench", bytes);
        registry.put_blob("bench", config.into_bytes());
        let root = registry.put_manifest("bench", Some("1"), MANIFEST, manifest.into_bytes());
        let reference = registry.reference("bench:1");
        Ok(Self {
            runtime,
            _registry: registry,
            reference,
            root,
            blob,
            gzip,
            plain,
            files_bytes: size_bytes,
        })
    }

    fn fetch(&self, store: Arc<LocalStore>) -> io::Result<Fetch> {
        let mut hosts = Hosts::default();
        hosts.plain_http = true;
        let options = RegistryOptions::new().with_hosts(hosts);
        let fetcher = self
            .runtime
            .block_on(async { RegistryResolver::new(options)?.fetcher(&self.reference).await })
            .map_err(io::Error::other)?;
        Ok(Fetch {
            fetcher: fetcher.into(),
            store,
            blocking: Blocking::new(),
            progress: Progress::new(),
            shared: Arc::new(Shared::default()),
        })
    }

    /// Everything: fetched, verified, stored and unpacked, all of it durable.
    fn pull(&self, directory: &Path) -> io::Result<Duration> {
        let store =
            Arc::new(LocalStore::open(directory.join("content")).map_err(io::Error::other)?);
        let options = OverlayOptions { root: directory.join("overlay"), ..Default::default() };
        let snapshotter = OverlaySnapshotter::open(options).map_err(io::Error::other)?;
        let target = Target {
            platforms: Arc::new(All),
            snapshotter: "overlayfs".to_owned(),
            unpack: Unpack {
                store: store.clone(),
                snapshotter: Arc::new(snapshotter),
                applier: Arc::new(TarApplier::new(directory)),
                rebases: true,
            },
        };
        let choice = Choice {
            platforms: Arc::new(All),
            manifests_max: None,
            all_metadata: false,
            unpack: vec![target],
        };
        let pull = Pull {
            fetch: self.fetch(store)?,
            reference: None,
            limits: DocumentLimits::default(),
            namespace: "bench".to_owned(),
        };
        let start = Instant::now();
        self.runtime.block_on(pull.run(&self.root, &choice)).map_err(io::Error::other)?;
        Ok(start.elapsed())
    }

    fn wire(&self) -> io::Result<Duration> {
        let scratch = tempfile::tempdir()?;
        let store = Arc::new(LocalStore::open(scratch.path()).map_err(io::Error::other)?);
        let fetch = self.fetch(store)?;
        let start = Instant::now();
        self.runtime
            .block_on(async {
                let mut body = fetch.fetcher.fetch(&self.blob, 0).await?;
                while let Some(piece) = body.chunk().await? {
                    std::hint::black_box(piece);
                }
                Ok::<(), crated_distribution::Error>(())
            })
            .map_err(io::Error::other)?;
        Ok(start.elapsed())
    }

    fn hash(&self) -> io::Result<Duration> {
        let mut from = self.gzip.open()?;
        let mut hasher = Sha256::new();
        let start = Instant::now();
        pieces(&mut from, |piece| hasher.update(piece))?;
        std::hint::black_box(hasher.finalize());
        Ok(start.elapsed())
    }

    /// As many bytes as the pull makes durable: the blob, and what it unfolds to.
    fn write(&self, directory: &Path) -> io::Result<Duration> {
        let bytes = self.blob.size_bytes + self.files_bytes;
        let whole_mib = bytes.next_multiple_of(1 << 20);
        let start = Instant::now();
        direct::write_zeroes(&directory.join("blob"), whole_mib)?;
        Ok(start.elapsed())
    }

    fn inflate(&self) -> io::Result<Duration> {
        let mut from = flate2::read::MultiGzDecoder::new(io::BufReader::with_capacity(
            128 << 10,
            self.gzip.open()?,
        ));
        let start = Instant::now();
        pieces(&mut from, |piece| {
            std::hint::black_box(piece);
        })?;
        Ok(start.elapsed())
    }
}

fn whole(layer: &Layer) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    layer.open()?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn pieces(from: &mut dyn Read, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            length => each(&buffer[..length]),
        }
    }
}

fn json(descriptor: &Descriptor) -> String {
    format!(
        r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#,
        descriptor.media_type, descriptor.digest, descriptor.size_bytes
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
