//! Whatever parses as a digest is printed as it was read and cannot leave a directory.
#![no_main]

use crated_content::Digest;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert_eq!(digest.hex().len(), digest.algorithm().size_bytes() * 2);
        assert!(digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
});
