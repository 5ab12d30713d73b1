//! A client for container registries.
#![forbid(unsafe_code)]

mod body;
mod descriptor;
mod digest;
mod document;
mod error;
mod json;
mod layout;
pub mod media_type;
mod platform;
mod progress;
mod reference;
pub mod registry;
mod resolver;
mod verify;
pub mod walk;

#[cfg(feature = "testsuite")]
pub mod testsuite;

pub use self::body::{Body, Chunks, FetchSource, FileSource, Source};
pub use self::descriptor::Descriptor;
pub use self::digest::{Algorithm, Digest, Hasher};
pub use self::document::{Document, DocumentLimits, ImageConfig, Index, Manifest};
pub use self::error::{Error, Result};
pub use self::layout::LayoutResolver;
pub use self::media_type::MediaType;
pub use self::platform::{All, Any, Matcher, Only, OnlyOs, OnlyStrict, Ordered, Platform};
pub use self::progress::{Entry, Progress, State, Watch};
pub use self::reference::Reference;
pub use self::registry::{
    Anonymous, Credential, Credentials, DockerConfig, Hosts, Limits, Lookup, RegistryOptions,
    RegistryResolver, Secret, Static, Timeouts,
};
pub use self::resolver::{Fetcher, Pushed, Pusher, Resolved, Resolver};
pub use self::verify::Verifier;
