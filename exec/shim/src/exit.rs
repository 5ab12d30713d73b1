//! How the container ended, on disk: known even when shim and daemon are gone.
//!
//! `exit.json` in the bundle, replaced as a whole:
//!
//! ```text
//! {"version":1,"pid":4711,"status":3,"exited_at":{"seconds":1700000000,"nanos":5}}
//! ```
//!
//! Written once, before anybody is told. `delete` answers from it.

use std::{
    fs,
    io::Read,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crated_exec::Exit;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, Serialize)]
struct Record {
    version: u32,
    pid: u32,
    status: u32,
    exited_at: Time,
}

#[derive(Debug, Deserialize, Serialize)]
struct Time {
    seconds: u64,
    nanos: u32,
}

/// Keeps the end of the first process.
pub(crate) fn write(bundle: &Path, pid: u32, exit: Exit) {
    let since = exit.exited_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let exited_at = Time { seconds: since.as_secs(), nanos: since.subsec_nanos() };
    let record = Record { version: VERSION, pid, status: exit.status, exited_at };
    let fresh = bundle.join(".exit.json");
    let written = serde_json::to_vec(&record).map_err(std::io::Error::other);
    let written = written.and_then(|json| fs::write(&fresh, json));
    let placed = written.and_then(|()| fs::rename(&fresh, bundle.join(FILE)));
    if let Err(error) = placed {
        tracing::warn!(%error, "end is not recorded, only remembered");
    }
}

/// The end of the process `pid`, if it was recorded.
pub(crate) fn read(bundle: &Path, pid: u32) -> Option<Exit> {
    let mut bytes = Vec::new();
    let file = fs::File::open(bundle.join(FILE)).ok()?;
    file.take(SIZE_MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let record: Record = serde_json::from_slice(&bytes).ok()?;
    if record.version != VERSION || record.pid != pid {
        return None;
    }
    let since = Duration::new(record.exited_at.seconds, record.exited_at.nanos);
    let exited_at: SystemTime = UNIX_EPOCH.checked_add(since)?;
    Some(Exit { status: record.status, exited_at })
}

const FILE: &str = "exit.json";
const VERSION: u32 = 1;

/// A record is far smaller.
const SIZE_MAX_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_read_as_it_was_written_and_for_its_process_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), 7), None);
        let exit = Exit { status: 3, exited_at: UNIX_EPOCH + Duration::new(1_700_000_000, 5) };
        write(dir.path(), 7, exit);
        assert_eq!(read(dir.path(), 7), Some(exit));
        assert_eq!(read(dir.path(), 8), None);
        for broken in ["", "{}", "{\"version\":2,\"pid\":7}", &"x".repeat(9000)] {
            fs::write(dir.path().join(FILE), broken).unwrap();
            assert_eq!(read(dir.path(), 7), None);
        }
    }
}
