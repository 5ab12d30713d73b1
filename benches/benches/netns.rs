//! Times of containers attached to a bridge and taken away. Run under `unshare -n -m`.

use std::io;
use std::time::Duration;

use crated_benches::network::{InProcess, round};
use criterion::{BenchmarkId, Criterion, SamplingMode};

fn main() -> io::Result<()> {
    if !crated_benches::can_run() {
        return Ok(());
    }
    let own = std::fs::read_link("/proc/self/ns/net")?;
    let first = std::fs::read_link("/proc/1/ns/net")?;
    if own == first {
        // The machine's own network is nothing to measure on.
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("attach-to-a-bridge");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    for count in [1_usize, 100] {
        let mut crated = InProcess::new(directory.path(), true)?;
        group.bench_with_input(BenchmarkId::from_parameter(count), &count, |bencher, &count| {
            bencher.iter_custom(|rounds| {
                let one = |_| round(&mut crated, count).map(|times| times.attach);
                (0..rounds).map(one).sum::<io::Result<Duration>>().expect("containers come and go")
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
