//! Bytes by digest: a content store that verifies what it takes in and loses nothing it has
//! acknowledged.
//!
//! A *blob* is a sequence of bytes named by its [`Digest`]. It enters as an *ingest*, named by a
//! reference of the caller's choice, grows through a [`Writer`], and becomes a blob when the
//! writer commits: not before its size and digest are the ones promised, and not before it would
//! survive a power cut. An interrupted ingest resumes where it stopped, also in another process.
//!
//! ```
//! use std::io::{Read, Write};
//! use crated_content::{Commit, Digest, Ingester, LocalStore, Provider, reader};
//!
//! # let root = tempfile::tempdir()?;
//! let store = LocalStore::open(root.path())?;
//! let digest = Digest::of(b"hello");
//!
//! let mut writer = store.writer(&"greeting".into())?;
//! writer.write_all(b"hello")?;
//! writer.commit(&Commit::expecting(digest.clone()))?;
//!
//! let mut text = String::new();
//! reader(store.reader(&digest)?).read_to_string(&mut text)?;
//! assert_eq!(text, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The traits are small and object-safe: [`Provider`] reads, [`Ingester`] and [`Writer`] take in,
//! [`IngestManager`] looks after what is half done, [`Manager`] labels, walks and deletes, and
//! [`Store`] is their sum. [`LocalStore`] keeps blobs in a directory, [`MemoryStore`] in memory;
//! with the feature `testsuite` any other implementor can be held to the same promises.
//!
//! All calls block. The crate has no runtime, no namespaces, no garbage collector and no network:
//! those belong to the layers above.

#[cfg(not(target_os = "linux"))]
compile_error!("crated-content works on Linux only");

mod check;
mod copy;
mod digest;
mod error;
mod hasher;
pub mod local;
mod lock;
mod memory;
mod read;
mod store;
mod sys;
#[cfg(test)]
mod testing;
#[cfg(feature = "testsuite")]
pub mod testsuite;

pub use crate::copy::{copy, exists, write_blob};
pub use crate::digest::{Algorithm, Digest};
pub use crate::error::{Error, Result};
pub use crate::hasher::Hasher;
pub use crate::local::LocalStore;
pub use crate::memory::MemoryStore;
pub use crate::read::{ReadFrom, read_blob, reader};
pub use crate::store::{
    Commit, Info, Ingest, IngestManager, Ingester, LABEL_LEN_MAX, LabelUpdate, Labels, Manager,
    Provider, REFERENCE_LEN_MAX, ReaderAt, Status, Store, Writer,
};
