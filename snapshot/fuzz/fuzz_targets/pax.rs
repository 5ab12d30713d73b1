//! Any bytes as an extended header in front of a file.
#![no_main]

use crated_snapshot::testsuite::{Item, LayerBuilder, list_layer};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let header = Item { kind: b'x', name: b"pax", data: bytes, ..Item::default() };
    let layer = LayerBuilder::new().item(&header).file("file", &[b'1'; 512]).finish();
    let _ = list_layer(&layer);
});
