//! References and platforms print what they were parsed from.
#![no_main]

use crated_distribution::{Platform, Reference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string(), text);
        assert!(text.starts_with(reference.host()));
        assert!(!reference.host().contains(['/', '@']));
    }
    if let Ok(platform) = Platform::parse(text) {
        assert_eq!(Platform::parse(&platform.to_string()).expect("prints well"), platform);
    }
});
