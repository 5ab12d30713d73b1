//! No content of a checkpoint file makes the decoder panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    crated_content::testsuite::fuzz_checkpoint(bytes);
});
