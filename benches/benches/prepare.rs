//! Times of a container's root from prepare to remove, among ever more others.

use std::io;
use std::time::Duration;

use crated_benches::prepare::Population;
use crated_benches::{Settings, Volume};
use criterion::{BenchmarkId, Criterion, SamplingMode};

fn main() -> io::Result<()> {
    if !crated_benches::can_run() {
        return Ok(());
    }
    let settings = Settings::from_env()?;
    let mut volume = Volume::create(&settings.directory, settings.volume_size_bytes)?;
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("prepare-to-remove");
    group.sampling_mode(SamplingMode::Flat);
    for count in &settings.snapshots {
        let mut population = Population::create(&volume.directory()?, *count)?;
        group.bench_with_input(BenchmarkId::from_parameter(count), count, |bencher, _| {
            bencher.iter_custom(|cycles| {
                let total = (0..cycles).map(|_| population.cycle()).sum::<io::Result<Duration>>();
                total.expect("a snapshot lives and dies")
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
