//! Layers of short paths with many whiteouts and links, unpacked for real
//! beside a file that must not change.
#![no_main]

use crated_snapshot::testsuite::{Item, LayerBuilder, TestDir};
use crated_snapshot::{ApplyOptions, Target, apply_tar};

const NAMES: [&str; 8] = ["a", "b", "..", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh..wh.plnk", "."];
const KINDS: [u8; 6] = [b'0', b'1', b'2', b'5', b'6', b'0'];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let temp = TestDir::new();
    let (root, outside) = (temp.path().join("root"), temp.path().join("a"));
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    std::fs::write(&outside, "untouched").unwrap();
    let mut layer = LayerBuilder::new();
    for chunk in bytes.chunks_exact(4) {
        let part = |byte: u8| NAMES[usize::from(byte) % NAMES.len()];
        let name = match chunk[0] & 1 {
            0 => part(chunk[1]).to_owned(),
            _ => format!("{}/{}", part(chunk[1]), part(chunk[2])),
        };
        let link = format!("{}/{}", part(chunk[3]), part(chunk[3] >> 3));
        let kind = KINDS[usize::from(chunk[0] >> 1) % KINDS.len()];
        let (name, link) = (name.as_bytes(), link.as_bytes());
        layer = layer.item(&Item { kind, name, link, ..Item::default() });
    }
    let layer = layer.finish();
    let _ = apply_tar(
        &mut &layer[..],
        &Target::directory(&root).unwrap(),
        &ApplyOptions::default(),
    );
    assert_eq!(std::fs::read(&outside).unwrap(), b"untouched");
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 2);
});
