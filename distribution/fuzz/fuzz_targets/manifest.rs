//! A document is a manifest or an index or refused, whatever media type it comes with.
#![no_main]

use crated_distribution::{Document, DocumentLimits, ImageConfig, media_type};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = DocumentLimits::default();
    let parse = |kind| Document::parse(bytes, kind, &limits).ok();
    let (index, manifest) = (parse(media_type::OCI_INDEX), parse(media_type::OCI_MANIFEST));
    assert!(index.is_none() || manifest.is_none());
    if let Some(document) = index.or(manifest) {
        assert!(document.children().iter().all(|child| child.check().is_ok()));
    }
    let _ = ImageConfig::parse(bytes.to_vec().into(), &limits);
});
