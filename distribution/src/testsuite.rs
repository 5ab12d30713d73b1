//! What every [`Resolver`], [`Fetcher`](crate::Fetcher) and [`Pusher`](crate::Pusher) promises, as
//! functions, and a registry in memory to try clients on.
//!
//! An implementor's test names a function that makes an empty place to push to:
//!
//! ```text
//! crated_distribution::resolver_testsuite!(empty_layout);
//!
//! async fn empty_layout() -> (impl Resolver, Reference, TempDir) { ... }
//! ```

mod registry;

use std::collections::BTreeMap;

use bytes::Bytes;

pub use self::registry::MemoryRegistry;
use crate::{
    Body, Descriptor, Digest, Error, Manifest, Pushed, Reference, Resolver, Verifier, media_type,
};

/// Makes one test out of each promise. The argument is an async function that returns a
/// resolver, a reference with a tag that nothing was pushed to yet, and whatever must live until
/// the test ends.
#[macro_export]
macro_rules! resolver_testsuite {
    ($empty:path) => {
        $crate::resolver_testsuite!(@ $empty:
            what_was_pushed_resolves_and_comes_back,
            a_body_may_start_anywhere,
            an_offset_past_the_end_is_refused,
            what_is_not_there_is_not_found,
            a_reference_without_object_is_refused,
            pushing_again_sends_nothing,
            wrong_bytes_never_become_visible,
            wrong_lengths_never_become_visible,
            a_tag_can_move,
            a_digest_wins_over_the_tag,
            a_pinned_reference_tags_only_its_digest,
            every_supported_algorithm_is_stored,
            many_may_push_the_same_content_at_once,
        );
    };
    (@ $empty:path: $($promise:ident,)*) => {
        $(
            #[tokio::test]
            async fn $promise() {
                let (resolver, reference, _guard) = $empty().await;
                $crate::testsuite::$promise(&resolver, &reference).await;
            }
        )*
    };
}

/// A tag stands for what was pushed under it, and every byte comes back.
pub async fn what_was_pushed_resolves_and_comes_back(
    resolver: &dyn Resolver,
    reference: &Reference,
) {
    let sample = Sample::new(1);
    sample.push(resolver, reference).await;
    let resolved = resolver.resolve(reference).await.expect("resolves");
    assert_eq!(resolved.reference, *reference);
    assert_eq!(resolved.descriptor.digest, sample.root.digest);
    assert_eq!(resolved.descriptor.size_bytes, sample.root.size_bytes);
    assert_eq!(resolved.descriptor.media_type, sample.root.media_type);
    let fetcher = resolver.fetcher(reference).await.expect("opens");
    for (descriptor, bytes) in sample.all() {
        let body = fetcher.fetch(descriptor, 0).await.expect("fetches");
        assert_eq!(body.len_bytes(), descriptor.size_bytes);
        let verifier = Verifier::new(body, descriptor).expect("is whole");
        assert_eq!(verifier.collect(u64::MAX).await.expect("verifies"), *bytes);
    }
}

/// A body from an offset is the rest, and the rest of everything is nothing.
pub async fn a_body_may_start_anywhere(resolver: &dyn Resolver, reference: &Reference) {
    let sample = Sample::new(2);
    sample.push(resolver, reference).await;
    let fetcher = resolver.fetcher(reference).await.expect("opens");
    for (descriptor, bytes) in sample.all() {
        for offset in [0, 1, bytes.len() / 2, bytes.len() - 1, bytes.len()] {
            let body: Body = fetcher.fetch(descriptor, offset as u64).await.expect("fetches");
            assert_eq!(body.len_bytes(), (bytes.len() - offset) as u64);
            assert_eq!(body.collect(u64::MAX).await.expect("reads"), bytes.slice(offset..));
        }
    }
}

/// There is nothing past the end.
pub async fn an_offset_past_the_end_is_refused(resolver: &dyn Resolver, reference: &Reference) {
    let sample = Sample::new(3);
    sample.push(resolver, reference).await;
    let fetcher = resolver.fetcher(reference).await.expect("opens");
    let (layer, bytes) = &sample.blobs[1];
    let error = fetcher.fetch(layer, bytes.len() as u64 + 1).await.expect_err("is past the end");
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
}

/// Absence has its own error, for names and for content.
pub async fn what_is_not_there_is_not_found(resolver: &dyn Resolver, reference: &Reference) {
    let error = resolver.resolve(reference).await.expect_err("nothing was pushed");
    assert!(error.is_not_found(), "{error}");
    let absent = Sample::new(4);
    let pinned = reference.with_digest(absent.root.digest.clone());
    let error = resolver.resolve(&pinned).await.expect_err("nothing was pushed");
    assert!(error.is_not_found(), "{error}");
    let fetcher = resolver.fetcher(reference).await.expect("opens");
    for (descriptor, _) in absent.all() {
        let error = fetcher.fetch(descriptor, 0).await.expect_err("nothing was pushed");
        assert!(error.is_not_found(), "{error}");
    }
}

/// A repository alone does not say which of its images is meant.
pub async fn a_reference_without_object_is_refused(resolver: &dyn Resolver, reference: &Reference) {
    let bare: Reference = reference.locator().parse().expect("is a reference");
    let error = resolver.resolve(&bare).await.expect_err("has no object");
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
}

/// Content that is there already counts as pushed.
pub async fn pushing_again_sends_nothing(resolver: &dyn Resolver, reference: &Reference) {
    let sample = Sample::new(5);
    sample.push(resolver, reference).await;
    let pusher = resolver.pusher(reference).await.expect("opens");
    for (descriptor, bytes) in sample.all() {
        let pushed = pusher.push(descriptor, bytes).await.expect("pushes");
        assert_eq!(pushed, Pushed::AlreadyExists);
    }
}

/// What does not hash to its digest is refused, and neither digest is there afterwards.
pub async fn wrong_bytes_never_become_visible(resolver: &dyn Resolver, reference: &Reference) {
    let sample = Sample::new(6);
    let pusher = resolver.pusher(reference).await.expect("opens");
    for (descriptor, bytes) in sample.all() {
        let mut wrong = bytes.to_vec();
        wrong[0] ^= 1;
        let wrong = Bytes::from(wrong);
        let stored = Descriptor::of(descriptor.media_type.clone(), &wrong);
        pusher.push(descriptor, &wrong).await.expect_err("is not what it promises");
        assert_absent(resolver, reference, descriptor).await;
        assert_absent(resolver, reference, &stored).await;
    }
}

/// A source must be exactly as long as its descriptor says.
pub async fn wrong_lengths_never_become_visible(resolver: &dyn Resolver, reference: &Reference) {
    let sample = Sample::new(7);
    let pusher = resolver.pusher(reference).await.expect("opens");
    for (descriptor, bytes) in sample.all() {
        let longer: Bytes = [bytes.as_ref(), b"!"].concat().into();
        for wrong in [bytes.slice(1..), bytes.slice(..bytes.len() - 1), longer] {
            pusher.push(descriptor, &wrong).await.expect_err("is not as long as it promises");
            assert_absent(resolver, reference, descriptor).await;
        }
    }
}

/// The last push under a tag is what the tag stands for; the first stays by its digest.
pub async fn a_tag_can_move(resolver: &dyn Resolver, reference: &Reference) {
    let (old, new) = (Sample::new(8), Sample::new(9));
    old.push(resolver, reference).await;
    new.push(resolver, reference).await;
    let resolved = resolver.resolve(reference).await.expect("resolves");
    assert_eq!(resolved.descriptor.digest, new.root.digest);
    let pinned = reference.with_digest(old.root.digest.clone());
    let resolved = resolver.resolve(&pinned).await.expect("resolves");
    assert_eq!(resolved.descriptor.digest, old.root.digest);
    assert_eq!(resolved.descriptor.media_type, old.root.media_type);
}

/// Whoever pins a digest gets it, wherever the tag points.
pub async fn a_digest_wins_over_the_tag(resolver: &dyn Resolver, reference: &Reference) {
    let (tagged, other) = (Sample::new(10), Sample::new(11));
    other.push(resolver, reference).await;
    tagged.push(resolver, reference).await;
    let pinned = reference.with_digest(other.root.digest.clone());
    let resolved = resolver.resolve(&pinned).await.expect("resolves");
    assert_eq!(resolved.descriptor.digest, other.root.digest);
    let absent = reference.with_digest(Digest::of(b"never pushed"));
    let error = resolver.resolve(&absent).await.expect_err("is not there");
    assert!(error.is_not_found(), "{error}");
}

/// With tag and digest in the reference, only that manifest gets the tag.
pub async fn a_pinned_reference_tags_only_its_digest(
    resolver: &dyn Resolver,
    reference: &Reference,
) {
    let (root, child) = (Sample::new(12), Sample::new(13));
    let pinned = reference.with_digest(root.root.digest.clone());
    root.push(resolver, &pinned).await;
    child.push(resolver, &pinned).await;
    let resolved = resolver.resolve(reference).await.expect("resolves");
    assert_eq!(resolved.descriptor.digest, root.root.digest);
    let child_pinned = reference.with_digest(child.root.digest.clone());
    let resolved = resolver.resolve(&child_pinned).await.expect("resolves");
    assert_eq!(resolved.descriptor.digest, child.root.digest);
}

/// Content may be named by SHA-512 as well.
pub async fn every_supported_algorithm_is_stored(resolver: &dyn Resolver, reference: &Reference) {
    let bytes = Bytes::from_static(b"named by a longer digest");
    let mut hasher = crate::Hasher::new(crate::Algorithm::Sha512);
    hasher.update(&bytes);
    let kind = media_type::OCI_LAYER;
    let descriptor = Descriptor::new(kind, hasher.finish(), bytes.len() as u64);
    let pusher = resolver.pusher(reference).await.expect("opens");
    pusher.push(&descriptor, &bytes).await.expect("pushes");
    let fetcher = resolver.fetcher(reference).await.expect("opens");
    let body = fetcher.fetch(&descriptor, 0).await.expect("fetches");
    let verifier = Verifier::new(body, &descriptor).expect("is whole");
    assert_eq!(verifier.collect(1024).await.expect("verifies"), bytes);
}

/// Nobody is refused for being second.
pub async fn many_may_push_the_same_content_at_once(
    resolver: &dyn Resolver,
    reference: &Reference,
) {
    let sample = Sample::new(14);
    let pushes = (0..8).map(|_| sample.push(resolver, reference));
    futures_util::future::join_all(pushes).await;
    let resolved = resolver.resolve(reference).await.expect("resolves");
    assert_eq!(resolved.descriptor.digest, sample.root.digest);
}

async fn assert_absent(resolver: &dyn Resolver, reference: &Reference, descriptor: &Descriptor) {
    let fetcher = resolver.fetcher(reference).await.expect("opens");
    let error = fetcher.fetch(descriptor, 0).await.expect_err("must not be visible");
    assert!(error.is_not_found(), "{error}");
}

/// A small image, different for each seed.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The manifest's descriptor and bytes.
    pub root: Descriptor,
    /// The manifest.
    pub manifest: Bytes,
    /// The configuration, then one layer of some hundred KiB.
    pub blobs: Vec<(Descriptor, Bytes)>,
    root_pair: (Descriptor, Bytes),
}

impl Sample {
    /// The image number `seed`.
    pub fn new(seed: u64) -> Self {
        let layer: Bytes = (0..40_000_u64)
            .flat_map(|n| (n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect::<Vec<u8>>()
            .into();
        let layer_descriptor = Descriptor::of(media_type::OCI_LAYER, &layer);
        let config = Bytes::from(format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            layer_descriptor.digest
        ));
        let config_descriptor = Descriptor::of(media_type::OCI_CONFIG, &config);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            artifact_type: None,
            config: config_descriptor.clone(),
            layers: vec![layer_descriptor.clone()],
            subject: None,
            annotations: BTreeMap::new(),
        };
        let manifest = Bytes::from(serde_json::to_vec(&manifest).expect("is plain data"));
        let root = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
        Self {
            root_pair: (root.clone(), manifest.clone()),
            root,
            manifest,
            blobs: vec![(config_descriptor, config), (layer_descriptor, layer)],
        }
    }

    /// Pushes blobs, then the manifest.
    pub async fn push(&self, resolver: &dyn Resolver, reference: &Reference) {
        let pusher = resolver.pusher(reference).await.expect("opens");
        for (descriptor, bytes) in self.all() {
            pusher.push(descriptor, bytes).await.expect("pushes");
        }
    }

    fn all(&self) -> impl Iterator<Item = &(Descriptor, Bytes)> {
        self.blobs.iter().chain([&self.root_pair])
    }
}
