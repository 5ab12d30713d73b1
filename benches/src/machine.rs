use std::fmt;
use std::fs;
use std::thread;

use crate::volume::Volume;

/// What the numbers were taken on; they mean nothing without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Release of the running kernel.
    pub kernel: String,
    /// Model of the first processor, as the kernel names it.
    pub processor: String,
    /// Processors this process may use.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Load average over the last minute, as the kernel writes it.
    pub load: String,
    /// Filesystem of the volume, with its features that matter.
    pub filesystem: String,
    /// Whether the optimised build is the one measured.
    pub optimised: bool,
}

impl Machine {
    /// Looks at this machine; what cannot be read is "unknown".
    pub fn look(volume: &Volume) -> Self {
        let field = |path: &str, key: &str| {
            let text = fs::read_to_string(path).ok()?;
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory_kib = field("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        let unknown = || "unknown".to_owned();
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_kib.unwrap_or(0) / 1024,
            load: load().unwrap_or_else(unknown),
            filesystem: volume.describe(),
            optimised: !cfg!(debug_assertions),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, processor, cores, memory_mib, load, filesystem, optimised } = self;
        let build = if *optimised { "optimised" } else { "NOT optimised" };
        writeln!(f, "Linux {kernel}, {cores} x {processor}, {memory_mib} MiB")?;
        write!(f, "{filesystem}; load {load}; {build} build")
    }
}

/// The load average over the last minute.
fn load() -> Option<String> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next().map(str::to_owned)
}
