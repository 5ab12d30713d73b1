//! What the daemon knows: namespaces, images, containers, sandboxes, leases, and per namespace a view of the
//! content store and of every snapshotter; and the collector that removes what nothing refers to.
//!
//! ```text
//!  services ──► Images  Containers  Leases  Namespaces        records only
//!          └──► Content ─► NamespacedStore ─────────► crated_content::Store
//!          └──► Snapshots ─► NamespacedSnapshotter ─► crated_snapshot::Snapshotter
//!                    │  every change: one transaction      ▲ objects nobody knows
//!                    ▼                                     │ are removed
//!                  Db (one file) ◄──── mark, sweep ─── gc::Scheduler
//! ```
//!
//! # Promises
//!
//! - One call is one transaction: durable when it returns, traceless when it fails. Calls that
//!   arrive together share a commit.
//! - Reads see the last commit and wait for nobody. No lock is held while a store below works.
//! - A blob or snapshot visible in a namespace exists in the store below: the store commits
//!   first, the record follows, and the collector leaves alone what a running call holds.
//! - Events are emitted after the commit, in the order of the changes.
//!
//! # On disk
//!
//! `<root>/io.containerd.metadata.v1.bolt/meta.redb`, a [redb] file of the tables listed in
//! `schema.rs`. Keys are tuples of names (`key.rs`), the namespace first, so the objects of a
//! namespace lie together in name order. Values are protobuf messages (`record.rs`); fields are
//! only ever added. The table `meta` holds the layout version; a file of a newer layout is refused.
//! Each page carries a checksum, and all are verified at start.

mod batch;
mod containers;
pub mod content;
mod db;
mod engine;
mod error;
mod events;
pub mod fsck;
pub mod gc;
mod holders;
mod identity;
mod images;
mod key;
mod leases;
mod migrate;
mod namespaces;
pub mod network;
mod record;
mod rows;
mod sandboxes;
mod schema;
mod scope;
pub mod snapshot;
mod txn;
pub mod validate;

pub use crated_content::{LabelUpdate, Labels};
pub use prost_types::Any;

pub use self::containers::{Container, ContainerUpdate, Containers, Runtime};
pub use self::content::{Content, NamespacedStore, Sharing};
pub use self::db::Db;
pub use self::error::{Error, Object, Result};
pub use self::events::{Event, EventSink, NoEvents};
pub use self::images::{Image, ImageUpdate, Images, Target};
pub use self::leases::{Lease, Leases, Resource};
pub use self::migrate::exists;
pub use self::namespaces::{NamespaceRecord, Namespaces};
pub use self::network::{LinkRecord, NetnsRecord, NetworkChange, NetworkView, Networks};
pub use self::sandboxes::{Sandbox, SandboxUpdate, Sandboxes};
pub use self::scope::{Namespace, Scope};
pub use self::snapshot::{LABEL_UNPACKING, NamespacedSnapshotter, Snapshots};
