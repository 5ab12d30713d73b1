//! Services as clients meet them: sandboxes, proxies, programs of the operator, limits.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/images.rs"]
mod images;
mod limits;
mod mounts;
mod programs;
mod proxies;
mod sandbox;
mod suites;
