//! Challenges are read in bounded space, or refused.
#![no_main]

use crated_distribution::registry::challenge;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let headers: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    if let Ok(challenges) = challenge::parse(headers) {
        assert!(challenges.len() <= 16);
        assert!(challenges.iter().all(|challenge| !challenge.scheme.is_empty()));
    }
});
