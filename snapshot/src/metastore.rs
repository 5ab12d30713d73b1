//! The parent and child graph of snapshots, shared by implementors.

/// When a committed snapshot reaches the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// Before the call returns: the filesystem is flushed, then the record is
    /// written durably. An acknowledged snapshot survives a power cut.
    #[default]
    EachCommit,
    /// With the next `sync` or `cleanup`. Until then a crash takes back every
    /// change since the last one, as if it had not been asked for; a committed
    /// snapshot is complete or absent, never damaged.
    Deferred,
}
