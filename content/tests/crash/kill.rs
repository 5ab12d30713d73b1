//! Processes killed at random moments, on both ways to the disk.
//!
//! The test starts itself as the process to be killed. That process tells by lines on its standard
//! output what has been acknowledged.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crated_content::local::Backend;
use crated_content::{Commit, Digest, Error, Ingest, Ingester, LocalStore};

use crate::workload::{Random, bytes, bytes_from, check, check_ingest};
use crate::{scale, skip};

#[test]
fn what_a_killed_process_acknowledged_is_kept_by_io_uring() {
    kill_repeatedly(Backend::Uring, "uring");
}

#[test]
fn what_a_killed_process_acknowledged_is_kept_by_buffered_writes() {
    kill_repeatedly(Backend::Buffered, "buffered");
}

/// What was taken and has to be taken again counts as much as what is read back.
#[test]
fn a_large_blob_killed_at_95_percent_is_hashed_again_for_8_mib_at_most() {
    const AGAIN_SIZE_BYTES_MAX: usize = 8 * 1024 * 1024;
    for (backend, name) in [(Backend::Uring, "uring"), (Backend::Buffered, "buffered")] {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let open = || LocalStore::builder().backend(backend).open(root.path());
        if let Err(error) = open() {
            skip(&error.to_string());
            continue;
        }
        let mut child = start_as("kill::the_writer_of_a_large_blob", root.path(), name);
        let stdout = child.stdout.take().unwrap();
        let mut lines = BufReader::new(stdout).lines();
        let taken = lines.find_map(|line| line.unwrap().strip_prefix("taken ")?.parse().ok());
        let taken: usize = taken.expect("the process tells how far it came");
        child.kill().unwrap();
        child.wait().unwrap();

        let store = open().unwrap();
        let mut writer =
            store.writer(&Ingest::new("large").total(LARGE_SIZE_BYTES as u64)).unwrap();
        let offset = writer.status().offset as usize;
        let read_back = store.bytes_hashed_again() as usize;
        assert!(
            taken - offset + read_back <= AGAIN_SIZE_BYTES_MAX,
            "{name}: {taken} taken, resumed at {offset}, {read_back} read back"
        );
        let blob = bytes(LARGE_SEED, LARGE_SIZE_BYTES);
        writer.write_all(&blob[offset..]).unwrap();
        writer.commit(&Commit::expecting(Digest::of(&blob))).unwrap();
        eprintln!("{name}: {} of {taken} bytes hashed again", taken - offset + read_back);
    }
}

/// Not a test by itself: takes in most of a blob and waits to be killed.
#[test]
fn the_writer_of_a_large_blob() {
    let Some(store) = store_to_be_killed() else { return };
    let ingest = Ingest::new("large").total(LARGE_SIZE_BYTES as u64);
    let mut writer = store.writer(&ingest).unwrap();
    let blob = bytes(LARGE_SEED, LARGE_SIZE_BYTES);
    let most = LARGE_SIZE_BYTES / 100 * 95;
    for piece in blob[..most].chunks(300_001) {
        writer.write_all(piece).unwrap();
    }
    say(&format!("taken {most}"));
    loop {
        std::thread::park();
    }
}

#[test]
fn a_root_is_refused_while_another_process_holds_it_and_free_after_its_death() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut child = start(root.path(), "buffered");
    let stdout = child.stdout.take().unwrap();
    let mut lines = BufReader::new(stdout).lines();
    wait_for_start(&mut lines);

    let error = LocalStore::open(root.path()).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    let holder = format!("in use by process {}", child.id());
    assert!(error.to_string().contains(&holder), "{error}");

    child.kill().unwrap();
    child.wait().unwrap();
    LocalStore::open(root.path()).unwrap();
}

fn kill_repeatedly(backend: Backend, name: &str) {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if let Err(error) = LocalStore::builder().backend(backend).open(root.path()) {
        return skip(&error.to_string());
    }
    let mut random = Random::from_clock();
    let mut acknowledged = BTreeSet::new();
    let mut resumed = 0;
    for _ in 0..scale("CRATED_KILLS", 12) {
        let mut child = start(root.path(), name);
        let stdout = child.stdout.take().unwrap();
        let mut lines = BufReader::new(stdout).lines();
        wait_for_start(&mut lines);
        std::thread::sleep(Duration::from_micros(random.below(150_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            // The last line may have been cut short by the kill.
            if let Some(digest) = line.unwrap().strip_prefix("stored ").map(str::parse::<Digest>) {
                acknowledged.extend(digest);
            }
        }
        let store = LocalStore::builder().backend(backend).open(root.path()).unwrap();
        check(&store, &acknowledged).unwrap();
        resumed = resumed.max(check_ingest(&store, "endless", ENDLESS_SEED).unwrap());
    }
    assert!(!acknowledged.is_empty(), "nothing was ever acknowledged");
    assert!(resumed > 0, "the endless ingest never got anywhere");
}

fn start(root: &Path, backend: &str) -> Child {
    start_as("kill::the_process_to_be_killed", root, backend)
}

fn start_as(role: &str, root: &Path, backend: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", role, "--nocapture"])
        .env("CRATED_KILL_ROOT", root)
        .env("CRATED_KILL_BACKEND", backend)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_for_start(lines: &mut impl Iterator<Item = std::io::Result<String>>) {
    let started = lines.any(|line| line.unwrap() == "started");
    assert!(started, "the process ended before it started");
}

/// Not a test by itself: ingests until killed when started by one of the tests above.
#[test]
fn the_process_to_be_killed() {
    let Some(store) = store_to_be_killed() else { return };
    say("started");
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let store = &store;
            scope.spawn(move || ingest_until_killed(store, thread));
        }
        grow_until_killed(&store);
    });
}

/// The store such a process is to work on.
fn store_to_be_killed() -> Option<LocalStore> {
    let root = std::env::var_os("CRATED_KILL_ROOT")?;
    let backend = match std::env::var("CRATED_KILL_BACKEND").unwrap().as_str() {
        "uring" => Backend::Uring,
        _ => Backend::Buffered,
    };
    Some(LocalStore::builder().backend(backend).open(root).unwrap())
}

fn ingest_until_killed(store: &LocalStore, thread: u64) {
    let mut random = Random::new(u64::from(std::process::id()) << 8 | thread);
    loop {
        let bytes = bytes(random.next(), random.size_bytes());
        let mut writer = store.writer(&Ingest::new(format!("blob {thread}"))).unwrap();
        writer.truncate().unwrap();
        for piece in bytes.chunks(100_000) {
            writer.write_all(piece).unwrap();
        }
        let info = writer.commit(&Commit::expecting(Digest::of(&bytes))).unwrap();
        say(&format!("stored {}", info.digest));
    }
}

fn grow_until_killed(store: &LocalStore) {
    loop {
        let mut writer = store.writer(&"endless".into()).unwrap();
        let mut offset = writer.status().offset as usize;
        if offset >= ENDLESS_SIZE_BYTES {
            writer.truncate().unwrap();
            offset = 0;
        }
        // Some writers end in between, to be resumed within the process too.
        for _ in 0..40 {
            let piece = bytes_from(ENDLESS_SEED, offset, 300_001);
            writer.write_all(&piece).unwrap();
            offset += piece.len();
        }
    }
}

/// Past the test harness, in one write, so that a kill cannot tear it.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("{line}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}

const LARGE_SEED: u64 = 44;
const LARGE_SIZE_BYTES: usize = 100_000_000;
const ENDLESS_SEED: u64 = 42;
const ENDLESS_SIZE_BYTES: usize = 70_000_000;
