//! Filesystems from layers.
