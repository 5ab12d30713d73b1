//! Runs what the program `ratios` runs, as small as it gets.

use std::collections::BTreeSet;

use crated_benches::{Machine, Settings, Volume, apply, budget, ingest, mount, pipeline, prepare};

#[test]
fn every_hop_can_be_measured_and_every_ratio_has_its_budget() {
    if !crated_benches::can_run() {
        return;
    }
    let settings = Settings::smallest();
    let mut volume = Volume::create(&settings.directory, settings.volume_size_bytes).unwrap();
    let machine = Machine::look(&volume);
    assert_eq!(machine.filesystem, "ext4 with journal on a loop device, direct I/O");

    let mut measured = BTreeSet::new();
    for measure in
        [ingest::measure, apply::measure, pipeline::measure, prepare::measure, mount::measure]
    {
        let hop = measure(&mut volume, &settings).unwrap();
        for row in &hop.rows {
            assert!(row.samples.count() >= settings.rounds, "{}", row.name);
        }
        for ratio in hop.ratios {
            assert!(ratio.value.is_finite() && ratio.value > 0.0, "{ratio:?}");
            measured.insert(ratio.name.to_owned());
        }
    }
    let promised: BTreeSet<String> = budget::promised().into_keys().collect();
    assert_eq!(measured, promised);
}
