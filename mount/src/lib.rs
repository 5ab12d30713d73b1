//! Mounts as data.
