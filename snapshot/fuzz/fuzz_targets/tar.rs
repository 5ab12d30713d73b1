//! Any bytes as a tar: an error or a list of entries, never a panic.
#![no_main]

use crated_snapshot::testsuite::list_layer;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = list_layer(bytes);
});
