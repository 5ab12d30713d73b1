//! `containerd.services.sandbox.v1`: records of sandboxes, and what runs them.

mod controller;
mod store;

pub use self::controller::ControllerService;
pub(crate) use self::controller::watch;
pub use self::store::StoreService;
