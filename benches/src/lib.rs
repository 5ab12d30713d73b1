//! Benchmarks of every hop of the data flow: fixtures, what is compared with what, and the
//! promised ratios.
//!
//! Each hop is a module with the operations to be timed. The criterion benches time them one by
//! one; the program `ratios` times them against each other, interleaved in one run, and compares
//! the quotients with `budgets.toml`. Absolute times belong to the machine, quotients travel.
//!
//! Everything runs on a [`Volume`], a journalled ext4 of its own, because the filesystem a
//! machine happens to have can change results tenfold. That needs root, `losetup` and
//! `mkfs.ext4`; [`can_run`] says whether they are there.

#[cfg(not(target_os = "linux"))]
compile_error!("crated-benches measures Linux");

pub mod apply;
pub mod budget;
pub mod direct;
pub mod ingest;
pub mod layer;
mod machine;
pub mod mount;
pub mod network;
mod noise;
pub mod pipeline;
pub mod prepare;
mod require;
mod samples;
mod settings;
pub mod umoci;
mod volume;

pub use machine::Machine;
pub use require::can_run;
pub use samples::{Contender, Measured, Ratio, Row, Samples, interleave};
pub use settings::Settings;
pub use volume::Volume;
