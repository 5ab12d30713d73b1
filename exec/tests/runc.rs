//! The conformance suite on runc itself. Needs root, runc and busybox.

use std::sync::Arc;

use crated_exec::{
    Runtime,
    reaper::Reaper,
    runc::{RuncConfig, RuncRuntime},
};

crated_exec::runtime_testsuite!(|root| async {
    let config = RuncConfig { root, ..RuncConfig::default() };
    Arc::new(RuncRuntime::new(config, Reaper::new().unwrap())) as Arc<dyn Runtime>
});
