//! The three traits: find out what a name means, read content, write content.

use async_trait::async_trait;

use crate::body::{Body, Source};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::error::Result;
use crate::reference::Reference;

/// Turns names into descriptors, and opens the ways to read and write behind a name.
///
/// Implementors may be used by many tasks at once.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// What the reference means right now.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidArgument`](crate::Error::InvalidArgument): the reference has neither tag
    ///   nor digest.
    /// - [`Error::NotFound`](crate::Error::NotFound): nothing has that name.
    /// - [`Error::Denied`](crate::Error::Denied): other credentials are needed; registries answer
    ///   the same for what does not exist.
    async fn resolve(&self, reference: &Reference) -> Result<Resolved>;

    /// A way to read content that belongs to the repository of `reference`.
    async fn fetcher(&self, reference: &Reference) -> Result<Box<dyn Fetcher>>;

    /// A way to write content into the repository of `reference`.
    ///
    /// With a tag and no digest in the reference, *every* manifest pushed gets the tag; give the
    /// digest too, and only that manifest does.
    async fn pusher(&self, reference: &Reference) -> Result<Box<dyn Pusher>>;
}

/// The answer of a resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolved {
    /// The reference as it was asked for.
    pub reference: Reference,
    /// What it stands for: media type, digest and size of the root document.
    pub descriptor: Descriptor,
}

impl Resolved {
    /// An answer.
    pub fn new(reference: Reference, descriptor: Descriptor) -> Self {
        Self { reference, descriptor }
    }
}

/// Reads content.
#[async_trait]
pub trait Fetcher: Send + Sync {
    /// The bytes of `descriptor` from `offset` to the end; `offset` equal to the size gives an
    /// empty body.
    ///
    /// The body ends only after exactly `size - offset` bytes and resumes by itself when the
    /// connection breaks. Its *content* is not verified: use [`Verifier`](crate::Verifier) or a
    /// store that verifies at commit.
    ///
    /// # Errors
    ///
    /// - [`Error::NotFound`](crate::Error::NotFound): nowhere there.
    /// - [`Error::InvalidArgument`](crate::Error::InvalidArgument): `offset` is past the end.
    async fn fetch(&self, descriptor: &Descriptor, offset: u64) -> Result<Body>;

    /// Tells that what was fetched last for `digest` was not what the digest names. Says whether
    /// there is another place to fetch it from, which the next call of [`Fetcher::fetch`] uses.
    fn distrust(&self, digest: &Digest) -> bool {
        let _ = digest;
        false
    }
}

/// Writes content.
#[async_trait]
pub trait Pusher: Send + Sync {
    /// Writes the bytes of `descriptor`, taken from `source`, and returns once the other side
    /// acknowledged them under that digest.
    ///
    /// Content that is there already is not sent again; that is success. After an error nothing
    /// is visible under the digest, and pushing again is safe.
    ///
    /// # Errors
    ///
    /// - [`Error::Denied`](crate::Error::Denied): the credentials do not allow writing.
    /// - [`Error::InvalidDocument`](crate::Error::InvalidDocument): `source` is not as long as
    ///   the descriptor says, or the other side stored something else.
    async fn push(&self, descriptor: &Descriptor, source: &dyn Source) -> Result<Pushed>;
}

/// How content came to be where it was pushed to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pushed {
    /// The bytes were sent.
    Uploaded,
    /// It was there.
    AlreadyExists,
    /// The registry linked it from another repository of its own.
    Mounted {
        /// The other repository.
        from: String,
    },
}
