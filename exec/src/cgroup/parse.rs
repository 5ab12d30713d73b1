//! The files of cgroups, as text.

use std::{collections::BTreeMap, fs, path::Path, path::PathBuf};

/// `/proc/<pid>/cgroup`: path by controller, version 2 under the empty name.
pub(super) fn membership(text: &str) -> BTreeMap<String, String> {
    let mut paths = BTreeMap::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        for controller in controllers.split(',') {
            paths.insert(controller.to_owned(), path.to_owned());
        }
    }
    paths
}

/// Mountpoint by controller of version 1, out of mountinfo.
pub(super) fn v1_mounts(text: &str) -> BTreeMap<String, PathBuf> {
    let mut mounts = BTreeMap::new();
    for line in text.lines() {
        let Some((place, kind)) = line.split_once(" - ") else { continue };
        let mut kind = kind.split(' ');
        if kind.next() != Some("cgroup") {
            continue;
        }
        let (Some(target), Some(options)) = (place.split(' ').nth(4), kind.nth(1)) else {
            continue;
        };
        for option in options.split(',') {
            mounts.entry(option.to_owned()).or_insert_with(|| PathBuf::from(target));
        }
    }
    mounts
}

/// Lines of a word and a number.
pub(super) fn keyed(text: &str) -> BTreeMap<String, u64> {
    let pairs = text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    });
    pairs.collect()
}

/// Lines of a word and words `name=number`, as in `io.stat`.
pub(super) fn nested(text: &str) -> Vec<(String, BTreeMap<String, u64>)> {
    let lines = text.lines().filter_map(|line| {
        let (key, rest) = line.split_once(' ')?;
        let pairs = rest.split_whitespace().filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), number(value)))
        });
        Some((key.to_owned(), pairs.collect()))
    });
    lines.collect()
}

/// A number; `max` is the largest one, anything else 0.
pub(super) fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        // Version 1 says -1 for "no limit" in places.
        "-1" => u64::MAX,
        text => text.parse().unwrap_or_default(),
    }
}

/// `major:minor`.
pub(super) fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

pub(super) fn read(folder: &Path, file: &str) -> String {
    fs::read_to_string(folder.join(file)).unwrap_or_default()
}

pub(super) fn read_number(folder: &Path, file: &str) -> u64 {
    number(&read(folder, file))
}

/// Sizes of huge pages this kernel has, as cgroup files spell them.
pub(super) fn hugepage_sizes() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(match kib {
            kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
            kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
            kib => format!("{kib}KB"),
        })
    });
    let mut sizes: Vec<_> = sizes.collect();
    sizes.sort();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_of_a_hybrid_host_is_told_apart() {
        let paths =
            membership("5:memory:/a:b\n2:cpu,cpuacct:/c\n1:name=systemd:/\n0::/u\nbroken\n");
        assert_eq!(paths["memory"], "/a:b");
        assert_eq!(paths["cpuacct"], "/c");
        assert_eq!(paths["name=systemd"], "/");
        assert_eq!(paths[""], "/u");
    }

    #[test]
    fn only_version_1_mounts_carry_controllers() {
        let text = "\
            30 25 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,memory\n";
        let mounts = v1_mounts(text);
        assert_eq!(mounts["cpuacct"], Path::new("/sys/fs/cgroup/cpu"));
        assert!(!mounts.contains_key("memory"));
    }

    #[test]
    fn numbers_never_fail() {
        assert_eq!(number("max\n"), u64::MAX);
        assert_eq!(number("12\n"), 12);
        assert_eq!(number("x"), 0);
        assert_eq!(nested("8:0 rbytes=5 wios=x\n")[0].1["rbytes"], 5);
        assert_eq!(keyed("a 1\nb x\n").len(), 1);
    }
}
