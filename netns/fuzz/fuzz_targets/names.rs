//! Texts that become names, addresses and keys.
#![no_main]

use crated_netns::{Addr, AltName, IfName, Mac, NetnsName, Prefix, SysctlKey};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(name) = NetnsName::try_from(text) {
        assert!(!name.as_str().contains(['/', '\0']) && name.as_str() != "..");
    }
    if let Ok(name) = IfName::try_from(text) {
        assert!(name.as_str().len() <= 15 && !name.as_str().contains(['%', ':', '/']));
    }
    if let Ok(key) = SysctlKey::try_from(text) {
        assert!(key.as_str().starts_with("net") && !key.as_str().contains("/../"));
    }
    let _ = AltName::try_from(text);
    let _ = text.parse::<Mac>();
    let _ = text.parse::<Addr>();
    if let Ok(prefix) = text.parse::<Prefix>() {
        assert_eq!(prefix.to_string().parse::<Prefix>().ok(), Some(prefix));
    }
});
