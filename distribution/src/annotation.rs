//! Annotations that programs agree on.

/// The whole name of an image, on entries of an index.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// The tag alone, or another name that the writer of a layout chose.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
