use std::{collections::BTreeMap, fs::File, path::Path};

use super::{
    OomWatch,
    parse::{device, hugepage_sizes, keyed, nested, number, read, read_number},
};
use crate::{
    Error, Result,
    proto::cgroups::v2::{
        CpuStat, HugeTlbStat, IoEntry, IoStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
        PsiData, PsiStats, RdmaEntry, RdmaStat,
    },
};

pub(super) fn stats(folder: &Path) -> Metrics {
    Metrics {
        pids: Some(PidsStat {
            current: read_number(folder, "pids.current"),
            limit: match read_number(folder, "pids.max") {
                u64::MAX => 0,
                limit => limit,
            },
        }),
        cpu: Some(cpu(folder)),
        memory: Some(memory(folder)),
        rdma: Some(RdmaStat {
            current: rdma(&read(folder, "rdma.current")),
            limit: rdma(&read(folder, "rdma.max")),
        }),
        io: Some(IoStat { usage: io(&read(folder, "io.stat")), psi: psi(folder, "io.pressure") }),
        hugetlb: hugepage_sizes().into_iter().filter_map(|size| hugetlb(folder, size)).collect(),
        memory_events: Some(memory_events(&read(folder, "memory.events"))),
        network: Vec::new(),
    }
}

pub(super) fn watch_oom(folder: &Path) -> Result<OomWatch> {
    let path = folder.join("memory.events");
    let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    OomWatch::new(file.into(), tokio::io::Interest::PRIORITY, path, "oom_kill")
}

fn cpu(folder: &Path) -> CpuStat {
    let stat = Words(keyed(&read(folder, "cpu.stat")));
    CpuStat {
        usage_usec: stat.of("usage_usec"),
        user_usec: stat.of("user_usec"),
        system_usec: stat.of("system_usec"),
        nr_periods: stat.of("nr_periods"),
        nr_throttled: stat.of("nr_throttled"),
        throttled_usec: stat.of("throttled_usec"),
        psi: psi(folder, "cpu.pressure"),
        nr_bursts: stat.of("nr_bursts"),
        burst_usec: stat.of("burst_usec"),
    }
}

fn memory(folder: &Path) -> MemoryStat {
    let stat = Words(keyed(&read(folder, "memory.stat")));
    MemoryStat {
        anon: stat.of("anon"),
        file: stat.of("file"),
        kernel_stack: stat.of("kernel_stack"),
        slab: stat.of("slab"),
        sock: stat.of("sock"),
        shmem: stat.of("shmem"),
        file_mapped: stat.of("file_mapped"),
        file_dirty: stat.of("file_dirty"),
        file_writeback: stat.of("file_writeback"),
        anon_thp: stat.of("anon_thp"),
        inactive_anon: stat.of("inactive_anon"),
        active_anon: stat.of("active_anon"),
        inactive_file: stat.of("inactive_file"),
        active_file: stat.of("active_file"),
        unevictable: stat.of("unevictable"),
        slab_reclaimable: stat.of("slab_reclaimable"),
        slab_unreclaimable: stat.of("slab_unreclaimable"),
        pgfault: stat.of("pgfault"),
        pgmajfault: stat.of("pgmajfault"),
        workingset_refault: stat.of("workingset_refault"),
        workingset_activate: stat.of("workingset_activate"),
        workingset_nodereclaim: stat.of("workingset_nodereclaim"),
        pgrefill: stat.of("pgrefill"),
        pgscan: stat.of("pgscan"),
        pgsteal: stat.of("pgsteal"),
        pgactivate: stat.of("pgactivate"),
        pgdeactivate: stat.of("pgdeactivate"),
        pglazyfree: stat.of("pglazyfree"),
        pglazyfreed: stat.of("pglazyfreed"),
        thp_fault_alloc: stat.of("thp_fault_alloc"),
        thp_collapse_alloc: stat.of("thp_collapse_alloc"),
        usage: read_number(folder, "memory.current"),
        usage_limit: read_number(folder, "memory.max"),
        swap_usage: read_number(folder, "memory.swap.current"),
        swap_limit: read_number(folder, "memory.swap.max"),
        max_usage: read_number(folder, "memory.peak"),
        swap_max_usage: read_number(folder, "memory.swap.peak"),
        psi: psi(folder, "memory.pressure"),
    }
}

fn memory_events(text: &str) -> MemoryEvents {
    let events = Words(keyed(text));
    MemoryEvents {
        low: events.of("low"),
        high: events.of("high"),
        max: events.of("max"),
        oom: events.of("oom"),
        oom_kill: events.of("oom_kill"),
        oom_group_kill: events.of("oom_group_kill"),
    }
}

fn io(text: &str) -> Vec<IoEntry> {
    let entries = nested(text).into_iter().filter_map(|(name, values)| {
        let (major, minor) = device(&name)?;
        let values = Words(values);
        Some(IoEntry {
            major,
            minor,
            rbytes: values.of("rbytes"),
            wbytes: values.of("wbytes"),
            rios: values.of("rios"),
            wios: values.of("wios"),
        })
    });
    entries.collect()
}

fn rdma(text: &str) -> Vec<RdmaEntry> {
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let entries = nested(text).into_iter().map(|(device, values)| {
        let values = Words(values);
        RdmaEntry {
            device,
            hca_handles: narrow(values.of("hca_handle")),
            hca_objects: narrow(values.of("hca_object")),
        }
    });
    entries.collect()
}

fn hugetlb(folder: &Path, pagesize: String) -> Option<HugeTlbStat> {
    let current = read(folder, &format!("hugetlb.{pagesize}.current"));
    if current.is_empty() {
        return None;
    }
    let events = Words(keyed(&read(folder, &format!("hugetlb.{pagesize}.events"))));
    Some(HugeTlbStat {
        current: number(&current),
        max: read_number(folder, &format!("hugetlb.{pagesize}.max")),
        failcnt: events.of("max"),
        pagesize,
    })
}

fn psi(folder: &Path, file: &str) -> Option<PsiStats> {
    let text = read(folder, file);
    let line = |word: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(word))?;
        let field = |name: &str| rest.split_whitespace().find_map(|pair| pair.strip_prefix(name));
        let average = |name| field(name).and_then(|v: &str| v.parse().ok()).unwrap_or_default();
        Some(PsiData {
            avg10: average("avg10="),
            avg60: average("avg60="),
            avg300: average("avg300="),
            total: field("total=").map(number).unwrap_or_default(),
        })
    };
    (!text.is_empty()).then(|| PsiStats { some: line("some "), full: line("full ") })
}

struct Words(BTreeMap<String, u64>);

impl Words {
    fn of(&self, word: &str) -> u64 {
        self.0.get(word).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_of_a_unified_host_is_read_in_full() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 7\nuser_usec 4\nsystem_usec 3\n"),
            ("memory.stat", "anon 4096\nfile 8192\n"),
            ("memory.current", "12288\n"),
            ("memory.max", "max\n"),
            ("memory.events", "oom 1\noom_kill 2\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let stats = stats(dir.path());
        assert_eq!(stats.pids.unwrap(), PidsStat { current: 3, limit: 0 });
        let memory = stats.memory.unwrap();
        assert_eq!((memory.anon, memory.usage, memory.usage_limit), (4096, 12288, u64::MAX));
        assert_eq!(stats.memory_events.unwrap().oom_kill, 2);
        assert_eq!(stats.io.unwrap().usage[0].wios, 4);
        let pressure = stats.cpu.unwrap().psi.unwrap().some.unwrap();
        assert_eq!((pressure.avg10, pressure.total), (1.5, 9));
    }
}
