//! How records are stored: protobuf messages, declared here, whose field numbers are never reused.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;
use prost_types::Any;

use super::{Error, Labels, Result};

/// A record of one table.
pub(super) trait Record: Message + Default + Sized {
    /// Takes a record from its stored form.
    fn load(bytes: &[u8]) -> Result<Self> {
        Self::decode(bytes)
            .map_err(|error| Error::Internal { reason: format!("unreadable record: {error}") })
    }

    /// The stored form.
    fn store(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

/// A time, to the nanosecond, any year.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Time {
    /// Seconds since 1970, negative before.
    #[prost(sint64, tag = "1")]
    seconds: i64,
    /// Nanoseconds to add, below 10^9.
    #[prost(uint32, tag = "2")]
    nanos: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct NamespaceRow {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(super) labels: Labels,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ImageRow {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(super) labels: Labels,
    #[prost(string, tag = "2")]
    pub(super) media_type: String,
    #[prost(string, tag = "3")]
    pub(super) digest: String,
    #[prost(uint64, tag = "4")]
    pub(super) size_bytes: u64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(super) annotations: Labels,
    #[prost(message, optional, tag = "6")]
    pub(super) created_at: Option<Time>,
    #[prost(message, optional, tag = "7")]
    pub(super) updated_at: Option<Time>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ContainerRow {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(super) labels: Labels,
    #[prost(string, optional, tag = "2")]
    pub(super) image: Option<String>,
    #[prost(string, tag = "3")]
    pub(super) runtime: String,
    #[prost(message, optional, tag = "4")]
    pub(super) runtime_options: Option<Any>,
    #[prost(message, optional, tag = "5")]
    pub(super) spec: Option<Any>,
    #[prost(string, optional, tag = "6")]
    pub(super) snapshotter: Option<String>,
    #[prost(string, optional, tag = "7")]
    pub(super) snapshot_key: Option<String>,
    #[prost(btree_map = "string, message", tag = "8")]
    pub(super) extensions: BTreeMap<String, Any>,
    #[prost(string, optional, tag = "9")]
    pub(super) sandbox: Option<String>,
    #[prost(message, optional, tag = "10")]
    pub(super) created_at: Option<Time>,
    #[prost(message, optional, tag = "11")]
    pub(super) updated_at: Option<Time>,
    /// The network namespace of ours that it joins.
    #[prost(string, optional, tag = "12")]
    pub(super) netns: Option<String>,
}

/// What the collector reads of a [`ContainerRow`]; specifications are large.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ContainerRefs {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(super) labels: Labels,
    #[prost(string, optional, tag = "6")]
    pub(super) snapshotter: Option<String>,
    #[prost(string, optional, tag = "7")]
    pub(super) snapshot_key: Option<String>,
    #[prost(string, optional, tag = "12")]
    pub(super) netns: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SandboxRow {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(super) labels: Labels,
    #[prost(string, tag = "2")]
    pub(super) runtime: String,
    #[prost(message, optional, tag = "3")]
    pub(super) runtime_options: Option<Any>,
    #[prost(message, optional, tag = "4")]
    pub(super) spec: Option<Any>,
    #[prost(btree_map = "string, message", tag = "5")]
    pub(super) extensions: BTreeMap<String, Any>,
    #[prost(string, tag = "6")]
    pub(super) sandboxer: String,
    #[prost(message, optional, tag = "7")]
    pub(super) created_at: Option<Time>,
    #[prost(message, optional, tag = "8")]
    pub(super) updated_at: Option<Time>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LeaseRow {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(super) labels: Labels,
    #[prost(message, optional, tag = "2")]
    pub(super) created_at: Option<Time>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BlobRow {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(super) labels: Labels,
    #[prost(uint64, tag = "2")]
    pub(super) size_bytes: u64,
    #[prost(message, optional, tag = "3")]
    pub(super) created_at: Option<Time>,
    #[prost(message, optional, tag = "4")]
    pub(super) updated_at: Option<Time>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct IngestRow {
    /// The reference under which the store below keeps the bytes.
    #[prost(string, tag = "1")]
    pub(super) backend: String,
    /// Collectable after this time; absent while a lease holds it.
    #[prost(message, optional, tag = "2")]
    pub(super) expires_at: Option<Time>,
    /// The blob of the store below that this ingest shares instead of receiving bytes.
    #[prost(string, optional, tag = "3")]
    pub(super) expected: Option<String>,
    #[prost(message, optional, tag = "4")]
    pub(super) started_at: Option<Time>,
    /// Length of the shared blob in bytes.
    #[prost(uint64, tag = "5")]
    pub(super) size_bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SnapshotRow {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(super) labels: Labels,
    /// The key or name under which the snapshotter below keeps it.
    #[prost(string, tag = "2")]
    pub(super) backend: String,
    #[prost(string, optional, tag = "3")]
    pub(super) parent: Option<String>,
    #[prost(message, optional, tag = "4")]
    pub(super) created_at: Option<Time>,
    #[prost(message, optional, tag = "5")]
    pub(super) updated_at: Option<Time>,
    /// Not active and no view any more.
    #[prost(bool, tag = "6")]
    pub(super) committed: bool,
}

impl Record for NamespaceRow {}
impl Record for ImageRow {}
impl Record for ContainerRow {}
impl Record for ContainerRefs {}
impl Record for SandboxRow {}
impl Record for LeaseRow {}
impl Record for BlobRow {}
impl Record for IngestRow {}
impl Record for SnapshotRow {}

/// The stored form of a time.
pub(super) fn stamp(time: SystemTime) -> Option<Time> {
    let time = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(error) => {
            let before = error.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => Time { seconds: -seconds, nanos: 0 },
                nanos => Time { seconds: -seconds - 1, nanos: NANOS_PER_SECOND - nanos },
            }
        }
    };
    Some(time)
}

/// The time of a stored form; 1970 when there is none or no clock reaches it.
pub(super) fn time(stored: Option<Time>) -> SystemTime {
    let Some(Time { seconds, nanos }) = stored else { return UNIX_EPOCH };
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base =
        if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|base| base.checked_add(Duration::from_nanos(u64::from(nanos))))
        .unwrap_or(UNIX_EPOCH)
}

const NANOS_PER_SECOND: u32 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_come_back_to_the_nanosecond(
            seconds in -62_135_596_800_i64..253_402_300_800, nanos in 0..NANOS_PER_SECOND,
        ) {
            let stored = Some(Time { seconds, nanos });
            prop_assert_eq!(stamp(time(stored)), stored);
        }

        #[test]
        fn any_bytes_load_or_do_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ContainerRow::load(&bytes);
            let _ = BlobRow::load(&bytes);
        }
    }
}
