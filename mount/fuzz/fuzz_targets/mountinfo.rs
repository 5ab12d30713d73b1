//! Any bytes either parse or are refused by line number.
#![no_main]

use crated_mount::{Error, mountinfo};

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let lines = text.split(|byte| *byte == b'\n').count();
    match mountinfo::parse(text) {
        Ok(mounts) => assert!(mounts.len() <= lines),
        Err(Error::MountInfo { line, .. }) => assert!((1..=lines).contains(&line)),
        Err(other) => panic!("{other}"),
    }
});
