//! Measures every hop against what it is compared with and holds the ratios to `budgets.toml`.
//!
//! `ratios [ingest] [apply] [pipeline] [prepare] [mount]`, all of them without arguments. Succeeds when every
//! budget of the hops named is met. The output is Markdown.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

use std::io;
use std::process::ExitCode;

use crated_benches::{
    Machine, Measured, Settings, Volume, apply, budget, ingest, mount, pipeline, prepare,
};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ratios: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all budgets are met.
fn run() -> io::Result<bool> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let known = |name: &String| HOPS.iter().any(|(hop, _)| hop == name);
    if let Some(other) = wanted.iter().find(|name| !known(name)) {
        let hops = HOPS.map(|(hop, _)| hop).join(", ");
        let reason = format!("no hop {other:?}; there are {hops}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    if !crated_benches::can_run() {
        return Err(io::Error::other("nothing was measured"));
    }
    let settings = Settings::from_env()?;
    let mut volume = Volume::create(&settings.directory, settings.volume_size_bytes)?;
    println!("{}\n", Machine::look(&volume));
    let mut all = Measured::default();
    println!("| operation | median ms | fastest | p99 | runs |\n|---|--:|--:|--:|--:|");
    for (hop, measure) in HOPS {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == hop) {
            continue;
        }
        // No hop inherits the files of another.
        volume.format()?;
        let measured = measure(&mut volume, &settings)?;
        print_times(&measured);
        all.ratios.extend(measured.ratios);
    }
    println!("\nafterwards: {}\n", Machine::look(&volume));
    Ok(print_verdicts(&all))
}

fn print_times(measured: &Measured) {
    for row in &measured.rows {
        let [median, fastest, p99] =
            [50, 0, 99].map(|percent| row.samples.percentile(percent).as_secs_f64() * 1e3);
        let (name, runs) = (&row.name, row.samples.count());
        println!("| {name} | {median:.2} | {fastest:.2} | {p99:.2} | {runs} |");
    }
}

fn print_verdicts(measured: &Measured) -> bool {
    let budgets = budget::promised();
    let mut all_met = true;
    println!("| ratio | of | promised | measured | |\n|---|---|--:|--:|---|");
    for ratio in &measured.ratios {
        let budget = &budgets[ratio.name];
        let met = budget.is_met(*ratio);
        all_met &= met;
        let verdict = if met { "met" } else { "MISSED" };
        let (name, says, bound) = (ratio.name, &budget.says, budget.bound());
        println!("| `{name}` | {says} | {bound} | {:.2} | {verdict} |", ratio.value);
    }
    all_met
}

type Measure = fn(&mut Volume, &Settings) -> io::Result<Measured>;

const HOPS: [(&str, Measure); 5] = [
    ("ingest", ingest::measure),
    ("apply", apply::measure),
    ("pipeline", pipeline::measure),
    ("prepare", prepare::measure),
    ("mount", mount::measure),
];
