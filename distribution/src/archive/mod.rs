//! Images in one file: OCI archives and the archives of `docker save`.
//!
//! ```text
//! blobs/<algorithm>/<hex>   everything by digest
//! index.json                the roots, with their names as annotations
//! manifest.json             the same for programs that know `docker save`
//! oci-layout                {"imageLayoutVersion":"1.0.0"}
//! ```
//!
//! [`ArchiveReader`] reads such a stream once, front to back, plain or compressed with gzip or
//! zstd: blobs are handed on as they come, and what they mean is known at the end, wherever the
//! documents were. Older docker archives, with layers under any path and links between them, are
//! read too. [`ArchiveResolver`] reads an archive that is a file at any position. [`Export`] writes a stream that all of these programs read, the same bytes for the
//! same images.
//!
//! Nothing is held in memory but the documents and one small record per entry. Nothing in an
//! archive is ever a path on this machine.

mod contents;
mod docker;
mod export;
mod input;
mod read;
mod resolver;
mod tar;

pub use self::contents::{Contents, DockerImage, OciContents};
pub use self::docker::{familiar_name, full_name};
pub use self::export::Export;
pub use self::read::{ArchiveBlob, ArchiveLimits, ArchiveReader};
pub use self::resolver::ArchiveResolver;

const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
const DOCKER_MANIFEST: &str = "manifest.json";
const LAYOUT_VERSION: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
