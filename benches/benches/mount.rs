//! Times of overlays attached and detached, with ever more lower directories.

use std::io;
use std::time::Duration;

use crated_benches::mount::Stack;
use crated_benches::{Settings, Volume};
use criterion::{BenchmarkId, Criterion, SamplingMode};

fn main() -> io::Result<()> {
    if !crated_benches::can_run() {
        return Ok(());
    }
    let settings = Settings::from_env()?;
    let mut volume = Volume::create(&settings.directory, settings.volume_size_bytes)?;
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("attach-and-detach");
    group.sampling_mode(SamplingMode::Flat);
    for lowers in &settings.lowers {
        let stack = Stack::create(&volume.directory()?, *lowers)?;
        group.bench_with_input(BenchmarkId::from_parameter(lowers), lowers, |bencher, _| {
            bencher.iter_custom(|cycles| {
                let total = (0..cycles).map(|_| stack.cycle()).sum::<io::Result<Duration>>();
                total.expect("an overlay comes and goes")
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
