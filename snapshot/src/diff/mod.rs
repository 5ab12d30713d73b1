//! Layers as byte streams: [`Applier`] unpacks one, [`Differ`] makes one.

use std::io::{Read, Write};
use std::path::Path;
use std::time::SystemTime;

use crated_mount::Mount;

use crate::error::{Error, Result};

pub use self::apply::{Assumed, TarApplier, Target, Whiteouts, apply_tar};
pub use self::compare::WalkingDiffer;
pub use self::compression::{Compression, Encoder, SNIFF_BYTES, ZSTD_WINDOW_LOG_MAX};

pub(crate) mod apply;
mod compare;
mod compression;

/// Unpacks a layer into a filesystem.
pub trait Applier: Send + Sync {
    /// Unpacks `layer` on top of what `mounts` show.
    ///
    /// The stream may be a plain tar, or one in gzip or zstd; its first bytes
    /// tell. It is read to its end, also beyond the end of the archive.
    ///
    /// After an error the filesystem holds an unknown part of the layer: the
    /// caller removes the snapshot.
    ///
    /// # Errors
    ///
    /// [`InvalidArchive`](crate::Error::InvalidArchive) and
    /// [`LimitExceeded`](crate::Error::LimitExceeded) when the layer is at
    /// fault, [`Stream`](crate::Error::Stream) when reading it is, others when
    /// the filesystem is.
    fn apply(
        &self,
        layer: &mut dyn Read,
        mounts: &[Mount],
        options: &ApplyOptions,
    ) -> Result<Applied>;

    /// Unpacks `layer` into `upper`, an empty upper directory of an overlay whose lower ones are
    /// not there yet, so that layers can be unpacked side by side.
    ///
    /// Before it is put on top of others, [`Assumed::settle`] has to agree.
    ///
    /// # Errors
    ///
    /// Those of [`apply`](Self::apply), also when the layer only makes sense on top of others;
    /// [`Unsupported`](crate::Error::Unsupported) by appliers that cannot do this.
    fn apply_alone(
        &self,
        layer: &mut dyn Read,
        upper: &Path,
        options: &ApplyOptions,
    ) -> Result<(Applied, Assumed)> {
        let _ = (layer, upper, options);
        Err(Error::Unsupported { reason: "applier needs the layers below".into() })
    }
}

/// Makes a layer from the difference of two filesystems.
pub trait Differ: Send + Sync {
    /// Writes the layer that turns `lower` into `upper` to `out`.
    ///
    /// Both are lists of mounts; an empty list is an empty filesystem. Equal
    /// input gives equal bytes.
    ///
    /// # Errors
    ///
    /// [`Stream`](crate::Error::Stream) when `out` fails, others when the
    /// filesystems do. What was written by then is of no use.
    fn diff(
        &self,
        lower: &[Mount],
        upper: &[Mount],
        out: &mut dyn Write,
        options: &DiffOptions,
    ) -> Result<Diffed>;
}

/// How to apply a layer, and how much of it to stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyOptions {
    /// Most bytes the layer may unfold to, in its uncompressed stream and in
    /// the sizes its files claim (holes included).
    pub size_bytes_max: u64,
    /// Most uncompressed bytes for each compressed byte, looked at once the
    /// stream has passed [`RATIO_FREE_BYTES`].
    pub ratio_max: u64,
    /// Most entries.
    pub entries_max: u64,
    /// Leaves out device nodes, for a process that may not make them.
    pub skip_devices: bool,
    /// Flushes the filesystem (syncfs) before answering.
    pub sync_fs: bool,
    /// Has the kernel begin writing files of 32 KiB and more as soon as they are whole, for a layer
    /// that is to be made durable soon: the flush has less left to wait for, and less of the layer
    /// lies in memory as dirty pages. Unpacking waits when the disk is 64 files behind. Nothing is
    /// durable by this alone.
    pub write_early: bool,
}

/// What was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// `sha256:<hex>` of the uncompressed stream, to its very end.
    pub diff_id: String,
    /// Length of the uncompressed stream.
    pub size_bytes: u64,
}

/// How to write a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffOptions {
    /// How to compress it.
    pub compression: Compression,
    /// No entry gets a time after this one, and whiteouts get exactly it;
    /// without it whiteouts get the epoch of Unix.
    pub source_date_epoch: Option<SystemTime>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diffed {
    /// `sha256:<hex>` of the uncompressed stream.
    pub diff_id: String,
    /// Length of the uncompressed stream.
    pub size_bytes_uncompressed: u64,
    /// `sha256:<hex>` of the bytes written to `out`.
    pub digest: String,
    /// Count of the bytes written to `out`.
    pub size_bytes: u64,
}

/// Until here a layer may be as repetitive as it likes.
pub const RATIO_FREE_BYTES: u64 = 1 << 30;

impl Default for ApplyOptions {
    fn default() -> Self {
        Self {
            // Far above any layer seen in use, far below a usual disk.
            size_bytes_max: 256 << 30,
            // Deflate ends at 1,032; real layers stay below 100.
            ratio_max: 500,
            // The largest layers in use hold about one million.
            entries_max: 5_000_000,
            skip_devices: false,
            sync_fs: false,
            write_early: false,
        }
    }
}

/// The chain id of `diff_id` on top of the chain `parent`.
///
/// Snapshots of image layers are named by it: `sha256:<hex>` of both ids with
/// a space between, or the diff id itself for the lowest layer.
pub fn chain_id(parent: Option<&str>, diff_id: &str) -> String {
    use sha2::Digest as _;

    match parent {
        None => diff_id.to_owned(),
        Some(parent) => {
            let mut hasher = sha2::Sha256::new();
            hasher.update(parent.as_bytes());
            hasher.update(b" ");
            hasher.update(diff_id.as_bytes());
            digest_string(&hasher.finalize())
        }
    }
}

/// Where temporary mounts go unless told otherwise: only root can write there,
/// and nothing of it survives a boot.
const DEFAULT_TEMP_ROOT: &str = "/run/crated-snapshot";

/// `sha256:<hex>`.
pub(crate) fn digest_string(hash: &[u8]) -> String {
    let mut text = String::with_capacity("sha256:".len() + hash.len() * 2);
    text.push_str("sha256:");
    for byte in hash {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
    text
}
