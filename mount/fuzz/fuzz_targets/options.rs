//! Any strings either are refused or mean the same after a round trip.
#![no_main]

use crated_mount::options::Options;
use crated_mount::{Mount, read_only};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let options: Vec<String> = text.split('\n').map(str::to_owned).collect();
    for kind in ["bind", "overlay"] {
        let mount = Mount { kind: kind.to_owned(), options: options.clone(), ..Mount::default() };
        let once = read_only(&[mount]);
        assert_eq!(read_only(&once), once);
    }
    if let Ok(parsed) = Options::parse(&options) {
        let again = Options::parse(&parsed.to_strings()).expect("its own words");
        assert_eq!(again, parsed);
    }
});
