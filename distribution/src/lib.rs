//! A client for container registries: find out what a name means, read content, write content.
//!
//! Three small traits are all that the rest of a program needs to know: a [`Resolver`] turns a
//! [`Reference`] into a [`Descriptor`] and opens a [`Fetcher`] or a [`Pusher`] behind it.
//! [`RegistryResolver`] implements them over http as the OCI distribution specification has it,
//! [`LayoutResolver`] for an OCI image layout in a directory. [`archive`] reads and writes images
//! in one file.
//!
//! ```no_run
//! use crated_distribution::{Hosts, Platform, Only, RegistryOptions, RegistryResolver, Resolver, walk};
//!
//! # async fn example() -> crated_distribution::Result<()> {
//! let resolver = RegistryResolver::new(RegistryOptions::new())?;
//! let reference = "registry.example/library/redis:7".parse()?;
//! let image = resolver.resolve(&reference).await?.descriptor;
//! let fetcher = resolver.fetcher(&reference).await?;
//! let best = walk::WalkOptions::best(Only::new(&Platform::host()));
//! for node in walk::walk(&*fetcher, &image, &best).await? {
//!     println!("{} {}", node.descriptor.media_type, node.descriptor.digest);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What the other side can and cannot do
//!
//! Everything that comes from a registry is treated as hostile:
//!
//! - Documents are read strictly and within [`DocumentLimits`]; what two readers could understand
//!   differently is refused. Digests and references are parsed once, and only the parsed values
//!   become part of an address or a path.
//! - Credentials belong to the registry that asked and to its own token server. Nothing secret
//!   follows a redirect, an upload location, a page or a `urls` entry to another origin, and
//!   nothing goes from https to http.
//! - Every wait, retry, redirect and list has an end; see [`Timeouts`] and [`Limits`].
//! - A [`Body`] is exactly as long as promised, and a [`Verifier`] says whether it is what its
//!   digest names.
//!
//! # What it does not do
//!
//! It does not store anything (a layout aside), unpack layers, expand short names such as
//! `redis`, or verify signatures. Manifests of Docker's first schema are refused.
//!
//! # Features
//!
//! - `testsuite`: the promises of the three traits as tests for other implementors, and a small
//!   registry in memory.

#![forbid(unsafe_code)]

pub mod annotation;
pub mod archive;
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

pub use self::body::{Body, Chunks, FetchSource, FileSource, Source, Whence};
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
    Anonymous, Credential, Credentials, DockerConfig, Hosts, Limits, Lookup, Proxies, Quota,
    RegistryOptions, RegistryResolver, Secret, Static, Timeouts,
};
pub use self::resolver::{Fetcher, Pushed, Pusher, Resolved, Resolver};
pub use self::verify::Verifier;
