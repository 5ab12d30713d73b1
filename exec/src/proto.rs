//! The messages of the shim API, of the events and of the metrics.
//!
//! Generated from the crate's `proto/` folder and committed; a test holds both
//! together. Names follow the protos, short module names stand for packages.

use prost::{Message, Name};
use prost_types::{Any, Timestamp};

#[allow(missing_docs, clippy::all, unreachable_pub)]
mod bindings {
    include!("gen/mod.rs");
}

pub use bindings::containerd::{
    events, runc::v1 as runc, runtime::bootstrap::v1 as bootstrap, runtime::sandbox::v1 as sandbox,
    services::events::ttrpc::v1 as forward, task::v2 as task, types, v1::types as process,
};
pub use bindings::google::rpc;
pub use bindings::io::containerd::cgroups;
pub use bindings::runtimeoptions::v1 as runtimeoptions;
pub use bindings::ttrpc;

/// Task service, version 2 of the API (containerd 1.x and later).
pub const TASK_V2: &str = "containerd.task.v2.Task";
/// Task service, version 3 of the API (containerd 2.x).
pub const TASK_V3: &str = "containerd.task.v3.Task";
/// Sandbox service, of shims that keep a group of containers.
pub const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";
/// The daemon's service that takes events from shims.
pub const EVENTS: &str = "containerd.services.events.ttrpc.v1.Events";
/// Metadata key that carries the namespace of a call over ttrpc.
pub const NAMESPACE_HEADER: &str = "containerd-namespace-ttrpc";

/// Type URL of a runtime spec as JSON.
pub const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Type URL of a process of the runtime spec as JSON.
pub const PROCESS_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Type URL of Linux resources of the runtime spec as JSON.
pub const RESOURCES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
/// Type URL of runtime features as JSON.
pub const FEATURES_URL: &str =
    "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Wraps a message under its bare name, as clients of this API look it up.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// Opens an [`Any`] if it holds an `M`; an address before the name is ignored.
///
/// # Errors
///
/// [`crate::Error::InvalidArgument`] for another type or bytes that are not an `M`.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> crate::Result<M> {
    let name = type_name(&any.type_url);
    if name != M::full_name() {
        let wanted = M::full_name();
        return Err(crate::Error::InvalidArgument(format!("expected {wanted}, got {name}")));
    }
    M::decode(any.value.as_slice())
        .map_err(|e| crate::Error::InvalidArgument(format!("decode {name}: {e}")))
}

/// The name in a type URL, without the address some writers put before it.
pub fn type_name(type_url: &str) -> &str {
    type_url.strip_prefix("type.googleapis.com/").unwrap_or(type_url)
}

/// The value clients of any age read as "no time": the first second of year 1.
pub fn no_time() -> Timestamp {
    Timestamp { seconds: -62_135_596_800, nanos: 0 }
}

/// A wire time; see [`no_time`] for `None`.
pub fn timestamp(time: Option<std::time::SystemTime>) -> Timestamp {
    time.map_or_else(no_time, Timestamp::from)
}

/// The time a message holds, `None` when absent, zero or out of range.
pub fn system_time(time: Option<&Timestamp>) -> Option<std::time::SystemTime> {
    let time = time.filter(|t| t.seconds > 0 || t.nanos > 0)?;
    std::time::SystemTime::try_from(*time).ok()
}
