//! What is left after a process is killed and after the power goes.

mod kill;
mod power_cut;
mod workload;
