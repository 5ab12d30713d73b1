//! What the program does: a noun each, named as on the command line.

pub(crate) mod containers;
pub(crate) mod content;
pub(crate) mod events;
pub(crate) mod images;
pub(crate) mod leases;
pub(crate) mod namespaces;
pub(crate) mod net;
pub(crate) mod plugins;
pub(crate) mod run;
pub(crate) mod snapshots;
pub(crate) mod tasks;
pub(crate) mod version;
