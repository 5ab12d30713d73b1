use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use rustix::event::{EventfdFlags, eventfd};

use super::{
    OomWatch,
    parse::{device, hugepage_sizes, keyed, read, read_number},
};
use crate::{
    Error, Result,
    proto::cgroups::v1::{
        BlkIoEntry, BlkIoStat, CpuStat, CpuUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
        MemoryStat, Metrics, PidsStat, Throttle,
    },
};

pub(super) fn stats(folders: &BTreeMap<String, PathBuf>) -> Metrics {
    let folder = |name: &str| folders.get(name).map(PathBuf::as_path);
    Metrics {
        hugetlb: folder("hugetlb").map(hugetlb).unwrap_or_default(),
        pids: folder("pids").map(|folder| PidsStat {
            current: read_number(folder, "pids.current"),
            limit: match read_number(folder, "pids.max") {
                u64::MAX => 0,
                limit => limit,
            },
        }),
        cpu: folder("cpuacct").map(|usage| cpu(usage, folder("cpu"))),
        memory: folder("memory").map(memory),
        blkio: folder("blkio").map(blkio),
        rdma: None,
        network: Vec::new(),
        cgroup_stats: None,
        memory_oom_control: folder("memory").map(oom_control),
    }
}

/// The kernel signals an eventfd registered together with `memory.oom_control`.
pub(super) fn watch_oom(folder: &Path) -> Result<OomWatch> {
    let control = folder.join("memory.oom_control");
    let register = folder.join("cgroup.event_control");
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|e| Error::io("make eventfd for", &control, e))?;
    let file = File::open(&control).map_err(|e| Error::io("open", &control, e))?;
    let line = format!("{} {}", event.as_raw_fd(), file.as_raw_fd());
    fs::write(&register, line).map_err(|e| Error::io("write", &register, e))?;
    OomWatch::new(event, tokio::io::Interest::READABLE, control, "oom_kill")
}

fn cpu(usage: &Path, limits: Option<&Path>) -> CpuStat {
    // Ticks of USER_HZ, which is 100 for every program.
    const TICK_NANOS: u64 = 10_000_000;
    let split = keyed(&read(usage, "cpuacct.stat"));
    let ticks = |word: &str| split.get(word).copied().unwrap_or_default() * TICK_NANOS;
    let per_cpu = read(usage, "cpuacct.usage_percpu");
    let stat = limits.map(|folder| keyed(&read(folder, "cpu.stat"))).unwrap_or_default();
    let word = |word: &str| stat.get(word).copied().unwrap_or_default();
    CpuStat {
        usage: Some(CpuUsage {
            total: read_number(usage, "cpuacct.usage"),
            kernel: ticks("system"),
            user: ticks("user"),
            per_cpu: per_cpu.split_whitespace().filter_map(|n| n.parse().ok()).collect(),
        }),
        throttling: Some(Throttle {
            periods: word("nr_periods"),
            throttled_periods: word("nr_throttled"),
            throttled_time: word("throttled_time"),
        }),
    }
}

fn memory(folder: &Path) -> MemoryStat {
    let stat = keyed(&read(folder, "memory.stat"));
    let of = |word: &str| stat.get(word).copied().unwrap_or_default();
    MemoryStat {
        cache: of("cache"),
        rss: of("rss"),
        rss_huge: of("rss_huge"),
        mapped_file: of("mapped_file"),
        dirty: of("dirty"),
        writeback: of("writeback"),
        pg_pg_in: of("pgpgin"),
        pg_pg_out: of("pgpgout"),
        pg_fault: of("pgfault"),
        pg_maj_fault: of("pgmajfault"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        hierarchical_memory_limit: of("hierarchical_memory_limit"),
        hierarchical_swap_limit: of("hierarchical_memsw_limit"),
        total_cache: of("total_cache"),
        total_rss: of("total_rss"),
        total_rss_huge: of("total_rss_huge"),
        total_mapped_file: of("total_mapped_file"),
        total_dirty: of("total_dirty"),
        total_writeback: of("total_writeback"),
        total_pg_pg_in: of("total_pgpgin"),
        total_pg_pg_out: of("total_pgpgout"),
        total_pg_fault: of("total_pgfault"),
        total_pg_maj_fault: of("total_pgmajfault"),
        total_inactive_anon: of("total_inactive_anon"),
        total_active_anon: of("total_active_anon"),
        total_inactive_file: of("total_inactive_file"),
        total_active_file: of("total_active_file"),
        total_unevictable: of("total_unevictable"),
        usage: Some(entry(folder, "memory")),
        swap: Some(entry(folder, "memory.memsw")),
        kernel: Some(entry(folder, "memory.kmem")),
        kernel_tcp: Some(entry(folder, "memory.kmem.tcp")),
    }
}

fn entry(folder: &Path, prefix: &str) -> MemoryEntry {
    MemoryEntry {
        limit: read_number(folder, &format!("{prefix}.limit_in_bytes")),
        usage: read_number(folder, &format!("{prefix}.usage_in_bytes")),
        max: read_number(folder, &format!("{prefix}.max_usage_in_bytes")),
        failcnt: read_number(folder, &format!("{prefix}.failcnt")),
    }
}

fn oom_control(folder: &Path) -> MemoryOomControl {
    let control = keyed(&read(folder, "memory.oom_control"));
    let of = |word: &str| control.get(word).copied().unwrap_or_default();
    MemoryOomControl {
        oom_kill_disable: of("oom_kill_disable"),
        under_oom: of("under_oom"),
        oom_kill: of("oom_kill"),
    }
}

fn blkio(folder: &Path) -> BlkIoStat {
    // What the throttle layer counts exists with every scheduler.
    let entries = |scheduler: &str, throttle: &str| {
        let text = read(folder, scheduler);
        let found = blkio_entries(&text);
        if found.is_empty() { blkio_entries(&read(folder, throttle)) } else { found }
    };
    let only = |file: &str| blkio_entries(&read(folder, file));
    BlkIoStat {
        io_service_bytes_recursive: entries(
            "blkio.bfq.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes_recursive",
        ),
        io_serviced_recursive: entries(
            "blkio.bfq.io_serviced_recursive",
            "blkio.throttle.io_serviced_recursive",
        ),
        io_queued_recursive: only("blkio.bfq.io_queued_recursive"),
        io_service_time_recursive: only("blkio.bfq.io_service_time_recursive"),
        io_wait_time_recursive: only("blkio.bfq.io_wait_time_recursive"),
        io_merged_recursive: only("blkio.bfq.io_merged_recursive"),
        io_time_recursive: only("blkio.bfq.time_recursive"),
        sectors_recursive: only("blkio.bfq.sectors_recursive"),
    }
}

/// Lines of a device, perhaps an operation, and a number.
fn blkio_entries(text: &str) -> Vec<BlkIoEntry> {
    let entries = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (major, minor) = device(words.next()?)?;
        let (op, value) = match (words.next()?, words.next()) {
            (op, Some(value)) => (op, value),
            (value, None) => ("", value),
        };
        let value = value.parse().ok()?;
        Some(BlkIoEntry { op: op.to_owned(), device: String::new(), major, minor, value })
    });
    entries.collect()
}

fn hugetlb(folder: &Path) -> Vec<HugetlbStat> {
    let stats = hugepage_sizes().into_iter().map(|pagesize| HugetlbStat {
        usage: read_number(folder, &format!("hugetlb.{pagesize}.usage_in_bytes")),
        max: read_number(folder, &format!("hugetlb.{pagesize}.max_usage_in_bytes")),
        failcnt: read_number(folder, &format!("hugetlb.{pagesize}.failcnt")),
        pagesize,
    });
    stats.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_lines_with_and_without_an_operation_are_read() {
        let entries = blkio_entries("8:0 Read 10\n8:0 Total 10\n8:16 7\nTotal 17\n");
        assert_eq!(entries.len(), 3);
        assert_eq!((entries[0].op.as_str(), entries[0].value), ("Read", 10));
        assert_eq!((entries[2].minor, entries[2].value), (16, 7));
    }
}
