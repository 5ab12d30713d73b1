//! Times of layers unpacked into directories.

use std::io;
use std::path::Path;
use std::time::Duration;

use crated_benches::apply::{apply, gnu_tar};
use crated_benches::layer::Layer;
use crated_benches::{Settings, Volume};
use crated_snapshot::Compression;
use criterion::{Criterion, SamplingMode};

fn main() -> io::Result<()> {
    if !crated_benches::can_run() {
        return Ok(());
    }
    let settings = Settings::from_env()?;
    let mut volume = Volume::create(&settings.directory, settings.volume_size_bytes)?;
    let mut criterion = Criterion::default().configure_from_args();
    for (name, layer) in [
        ("apply-root", Layer::debian_like(settings.root_size_bytes, Compression::None)?),
        ("apply-small-files", Layer::small_files(settings.small_files)?),
        ("apply-root-gzip", Layer::debian_like(settings.root_size_bytes, Compression::Gzip)?),
    ] {
        compare(&mut criterion, &mut volume, name, &layer);
        volume.format()?;
    }
    criterion.final_summary();
    Ok(())
}

fn compare(criterion: &mut Criterion, volume: &mut Volume, name: &str, layer: &Layer) {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    let ways: [(&str, Way); 2] = [("crated-snapshot", apply), ("gnu-tar", gnu_tar)];
    for (name, way) in ways {
        let mut run = |_| {
            volume.refresh()?;
            way(layer, &volume.directory()?)
        };
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                let total = (0..count).map(&mut run).sum::<io::Result<Duration>>();
                total.expect("the volume takes the layer")
            });
        });
    }
    group.finish();
}

type Way = fn(&Layer, &Path) -> io::Result<Duration>;
