//! Leases: what clients hold so that the collector leaves it alone.

use std::time::SystemTime;

use super::{Db, Labels, Result, Scope};

/// A named hold on resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The name: any text.
    pub id: String,
    /// When it was created.
    pub created_at: SystemTime,
    /// Labels; `containerd.io/gc.expire` and `containerd.io/gc.flat` mean something.
    pub labels: Labels,
}

/// Something a lease holds. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// `content`, `ingests`, `images` or `snapshots/<snapshotter>`.
    pub kind: String,
    /// A digest, a reference, a name or a key.
    pub id: String,
}

/// The leases.
#[derive(Clone)]
pub struct Leases {
    db: Db,
}
