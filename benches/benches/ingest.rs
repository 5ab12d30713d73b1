//! Times of blobs on their way into the content store.

use std::io;
use std::path::Path;
use std::time::Duration;

use crated_benches::ingest::{Large, Small, THREADS};
use crated_benches::{Settings, Volume};
use criterion::{Criterion, SamplingMode, Throughput};

fn main() -> io::Result<()> {
    if !crated_benches::can_run() {
        return Ok(());
    }
    let settings = Settings::from_env()?;
    let mut volume = Volume::create(&settings.directory, settings.volume_size_bytes)?;
    let mut criterion = Criterion::default().configure_from_args();
    large(&mut criterion, &mut volume, &settings);
    volume.format()?;
    small(&mut criterion, &mut volume, &settings);
    criterion.final_summary();
    Ok(())
}

fn large(criterion: &mut Criterion, volume: &mut Volume, settings: &Settings) {
    let blob = Large::new(settings.blob_size_bytes);
    let mut group = criterion.benchmark_group("ingest-large");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.throughput(Throughput::Bytes(settings.blob_size_bytes as u64));
    let ways: [(&str, &Way<'_>); 4] = [
        ("crated-content", &|directory| blob.store(directory)),
        ("sha256-alone", &|_| Ok(blob.hash())),
        ("direct-write-alone", &|directory| blob.write_direct(directory)),
        ("one-thread", &|directory| blob.write_and_hash(directory)),
    ];
    for (name, way) in ways {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| repeat(volume, count, way));
        });
    }
    group.finish();
}

fn small(criterion: &mut Criterion, volume: &mut Volume, settings: &Settings) {
    let blobs = Small::new(settings.small_blobs);
    let mut group = criterion.benchmark_group("ingest-small");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.throughput(Throughput::Elements(settings.small_blobs as u64));
    let ways: [(&str, &Way<'_>); 3] = [
        ("crated-content-64-writers", &|directory| blobs.store(directory, THREADS)),
        ("rename-1-thread", &|directory| blobs.rename(directory, 1)),
        ("rename-64-threads", &|directory| blobs.rename(directory, THREADS)),
    ];
    for (name, way) in ways {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| repeat(volume, count, way));
        });
    }
    group.finish();
}

type Way<'a> = dyn Fn(&Path) -> io::Result<Duration> + 'a;

/// The sum of `count` runs, each on a volume fresh from mounting.
fn repeat(volume: &mut Volume, count: u64, way: &Way<'_>) -> Duration {
    let run = |_| {
        volume.refresh()?;
        way(&volume.directory()?)
    };
    (0..count).map(run).sum::<io::Result<Duration>>().expect("the volume takes the blobs")
}
