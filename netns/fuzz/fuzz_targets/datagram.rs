//! Datagrams as the kernel might send them, and as it never would.
#![no_main]

use crated_netns::netlink::message::{Body, Frames, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for frame in Frames::new(data).map_while(Result::ok) {
        let Ok(Body::Message(message)) = frame.body() else { continue };
        // What was understood can be written again, in whole frames.
        let mut bytes = Vec::new();
        encode(&message, frame.flags, frame.sequence, &mut bytes);
        assert_eq!(bytes.len() % 4, 0);
        let again: Vec<_> = Frames::new(&bytes).collect();
        assert_eq!(again.len(), 1);
        assert!(again[0].is_ok());
    }
});
