//! Memory of this program that is given back while nobody calls. Everything unsafe of the daemon is
//! here: calls into the C library that hand it no memory to read or write.

#![allow(unsafe_code, reason = "neither glibc's allocator nor madvise has a safe interface")]

use std::fs;
use std::ops::Range;

/// Keeps the allocator from holding on to memory: few arenas, and large blocks given back at once.
/// To be called before the first thread is started.
#[cfg(target_env = "gnu")]
pub(crate) fn frugal() {
    for (option, value) in [
        (libc::M_ARENA_MAX, ARENAS_MAX),
        (libc::M_TRIM_THRESHOLD, TRIM_BYTES),
        (libc::M_MMAP_THRESHOLD, MMAP_BYTES),
    ] {
        // SAFETY: mallopt takes two numbers, knows these options, and no other thread exists that
        // could be inside the allocator.
        unsafe { libc::mallopt(option, value) };
    }
}

/// Other C libraries keep little anyway.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn frugal() {}

/// Gives free memory back to the system, and the pages of the program that are in use only while
/// calls are handled. Those stay in the system's cache of files, from where they come back when
/// they are needed, sixteen at a time.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0)
    };
    let image = fs::read_link("/proc/self/exe").unwrap_or_default();
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for range in unchanged(&maps, &image.to_string_lossy()) {
        let start = range.start as *mut libc::c_void;
        // SAFETY: the range is part of this program's image, which stays mapped as long as the
        // process lives. It cannot be written to and holds no page that differs from the file, so
        // dropping its pages loses nothing: the next access reads the same bytes again.
        unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) };
    }
}

/// The mappings of the program `image` among `maps`, as /proc/self/smaps lists them, that cannot be
/// written to and have no page of their own. Relocated tables can no longer be written to either,
/// but their pages are not those of the file: they are left out.
fn unchanged(maps: &str, image: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in maps.lines() {
        if let Some((range, rest)) = header(line) {
            let fixed = rest.starts_with("r-xp ") || rest.starts_with("r--p ");
            // Offset, device and inode stand in between, and blanks.
            let path = rest.splitn(5, ' ').nth(4).unwrap_or_default().trim_start();
            candidate = (fixed && !image.is_empty() && path == image).then_some(range);
        } else if let Some(size) = line.strip_prefix("Anonymous:")
            && size.trim() == "0 kB"
        {
            found.extend(candidate.take());
        }
    }
    found
}

/// The range of a mapping and what follows it on its first line.
fn header(line: &str) -> Option<(Range<usize>, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some((number(start)?..number(end)?, rest))
}

/// Threads that wait for the disk most of the time do not contend for two arenas.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: i32 = 2;

/// Free memory at the end of the heap that is worth keeping.
#[cfg(target_env = "gnu")]
const TRIM_BYTES: i32 = 256 << 10;

/// From here on a block is a mapping of its own, gone when it is freed.
#[cfg(target_env = "gnu")]
const MMAP_BYTES: i32 = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0-55e0 r--p 00000000 fe:00 12                         /usr/bin/a program
Rss:                   4 kB
Anonymous:             0 kB
55e0-55f0 r-xp 00010000 fe:00 12                         /usr/bin/a program
Anonymous:             0 kB
55f0-5600 r--p 00020000 fe:00 12                         /usr/bin/a program
Anonymous:             4 kB
5600-5610 rw-p 00030000 fe:00 12                         /usr/bin/a program
Anonymous:             0 kB
7f00-7f10 r-xp 00000000 fe:00 13                         /usr/lib/a library
Anonymous:             0 kB
7f10-7f20 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
";

    #[test]
    fn only_what_the_file_holds_as_well_is_given_back() {
        let expected = vec![0x55d0..0x55e0, 0x55e0..0x55f0];
        assert_eq!(unchanged(MAPS, "/usr/bin/a program"), expected);
        assert!(unchanged(MAPS, "").is_empty());
        assert!(unchanged("garbage\nAnonymous: 0 kB\n", "garbage").is_empty());
    }

    #[test]
    fn the_program_goes_on_after_giving_back() {
        let image = fs::read_link("/proc/self/exe").unwrap();
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(!unchanged(&maps, &image.to_string_lossy()).is_empty(), "{maps}");
        for _ in 0..3 {
            give_back();
        }
        assert_eq!(format!("{:?}", Some("still here")), "Some(\"still here\")");
    }
}
