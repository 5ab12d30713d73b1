//! The gRPC API that crated serves, wire-identical to containerd's v1 API.
//!
//! `proto/` holds the protocol files, one per package; `src/gen/` holds the
//! bindings made from them, committed so that building needs no generator.
//! Clients and servers of every service are here, so the daemon, its client
//! and its tests share one family of messages.
//!
//! This crate deliberately knows nothing about what the messages mean:
//! no validation, no defaults, no connection handling. It offers one piece of
//! code, [`any`], because containerd packs messages in a way of its own.
//!
//! ```
//! use crated_api::any;
//! use crated_api::events::TaskExit;
//!
//! let exit = TaskExit { container_id: "web".into(), pid: 7, ..TaskExit::default() };
//! let packed = any::pack(&exit);
//! assert_eq!(packed.type_url, "containerd.events.TaskExit");
//! assert_eq!(any::unpack::<TaskExit>(&packed)?, exit);
//! # Ok::<(), any::Error>(())
//! ```

#![forbid(unsafe_code)]

pub mod any;

#[allow(
    missing_docs,
    unreachable_pub,
    rustdoc::all,
    clippy::all,
    reason = "generated; the protocol files carry the documentation"
)]
#[path = "gen/mod.rs"]
#[rustfmt::skip]
mod generated;

pub use generated::containerd::{services, types};

/// State of running processes (`containerd.v1.types`).
pub mod tasks {
    pub use crate::generated::containerd::v1::types::*;
}

/// Bodies of events, by the name of the event.
///
/// The three image events belong to the package of the images service, and
/// their type URLs say so; they are repeated here to have all events in one
/// place.
pub mod events {
    pub use crate::generated::containerd::events::*;
    pub use crate::generated::containerd::services::images::v1::{
        ImageCreate, ImageDelete, ImageUpdate,
    };
}

/// gRPC's health check (`grpc.health.v1`).
pub mod health {
    pub use crate::generated::grpc::health::v1::*;
}

/// Network namespaces and interfaces, a service of crated's own (`crated.services.network.v1`).
pub mod network {
    pub use crate::generated::crated::services::network::v1::*;
}

/// The error shape that travels inside other messages (`google.rpc`).
pub mod rpc {
    pub use crate::generated::google::rpc::*;
}

pub use prost_types::{Any, FieldMask, Timestamp};
