//! What is read strictly: references, digests, manifests, configurations, platforms; and walks.

use std::sync::Arc;

use bytes::Bytes;
use crated_distribution::testsuite::{MemoryRegistry, Sample};
use crated_distribution::walk::{self, WalkOptions};
use crated_distribution::{
    Any, Descriptor, Digest, Document, DocumentLimits, Error, Hosts, ImageConfig, LayoutResolver,
    Matcher as _, MediaType, Only, OnlyStrict, Platform, Progress, Reference, RegistryOptions,
    RegistryResolver, Resolver as _, State, media_type,
};
use proptest::prelude::*;

fn limits() -> DocumentLimits {
    DocumentLimits::default()
}

fn parse(text: &str) -> Result<Document, Error> {
    Document::parse(text.as_bytes(), "", &limits())
}

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn descriptor(kind: &str, size: u64) -> String {
    // Another digest than that of nothing, which goes with a size of 0 only.
    let hex = HEX.replace('e', "1");
    format!(r#"{{"mediaType":"{kind}","digest":"sha256:{hex}","size":{size}}}"#)
}

#[test]
fn case_3_references_are_what_they_say_or_nothing() {
    for (text, host, repository, tag) in [
        ("docker.io/library/redis:7", "docker.io", "library/redis", Some("7")),
        ("localhost:5000/a", "localhost:5000", "a", None),
        ("[::1]:5000/a/b:c", "[::1]:5000", "a/b", Some("c")),
        ("[::1]/a", "[::1]", "a", None),
        ("10.0.0.1/a__b--c.d/e", "10.0.0.1", "a__b--c.d/e", None),
        ("Host.Example/a:_x-Y.z", "Host.Example", "a", Some("_x-Y.z")),
    ] {
        let reference: Reference = text.parse().unwrap();
        assert_eq!(reference.to_string(), text);
        assert_eq!(
            (reference.host(), reference.repository(), reference.tag()),
            (host, repository, tag)
        );
    }
    let both: Reference = format!("h.example/a:b@sha256:{HEX}").parse().unwrap();
    assert_eq!((both.tag(), both.digest().unwrap().hex()), (Some("b"), HEX));
    for bad in [
        "alpine",
        "",
        "/a",
        "h/",
        "user@h.example/a",
        "user:pass@h.example/a",
        "https://h/a",
        "h.example/a b",
        "h.example/a#b",
        "h.example/a?b",
        "h.example/%2e%2e/a",
        "h.example/../a",
        "h.example/a/../b",
        "h.example/A",
        "h.example/a:",
        "h.example/a:b:c",
        "h.example/a:-b",
        "h.example:0/a",
        "h.example:65536/a",
        "h.example:+1/a",
        "h.example:/a",
        "[::1/a",
        "[x]/a",
        "[::1]x/a",
        "h.example/a@",
        "h.example/a@sha256:00",
        "h.example/a___b",
        "h.example/a..b",
        "h.example/-a",
        "h.example/a-",
        "h.example//a",
        "bücher.example/a",
        "h..example/a",
        "-h/a",
        "h.example/a\n",
        "h.example\\x/a",
        "h.example/a:b\u{0}",
    ] {
        assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
    }
    assert!(format!("h/{}", "a".repeat(256)).parse::<Reference>().is_err());
    assert!(format!("h/a:{}", "a".repeat(129)).parse::<Reference>().is_err());
}

#[test]
fn case_23_documents_beyond_a_limit_are_refused_by_its_name() {
    let layer = descriptor(media_type::OCI_LAYER, 1);
    let index = |count: usize| {
        let many = vec![layer.as_str(); count].join(",");
        format!(r#"{{"schemaVersion":2,"manifests":[{many}]}}"#)
    };
    assert!(parse(&index(2)).is_ok());
    let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    for (text, word) in [
        (format!("{}{}", index(1), " ".repeat(4 << 20)), "bytes"),
        (index(2001), "entries"),
        (format!(r#"{{"manifests":[{}]}}"#, vec!["1"; 200_000].join(",")), "items"),
        (format!(r#"{{"manifests":[],"x":{nested}}}"#), "levels"),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(matches!(error, Error::LimitExceeded { .. }), "{word}: {error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[test]
fn case_23_documents_that_readers_disagree_about_are_refused() {
    let layer = descriptor(media_type::OCI_LAYER, 1);
    let good = r#"{"schemaVersion":2,"manifests":[]}"#;
    assert!(parse(good).is_ok());
    for bad in [
        format!("{good}x"),
        format!("{good}{good}"),
        format!("\u{feff}{good}"),
        r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#.into(),
        r#"{"schemaVersion":2,"manifests":[],"Manifests":[]}"#.into(),
        r#"{"schemaVersion":2,"manifests":[],"annotations":{"a":"1","a":"2"}}"#.into(),
        r#"{"schemaVersion":1,"manifests":[]}"#.into(),
        r#"{"manifests":[]}"#.into(),
        r#"{"schemaVersion":2,"layers":[]}"#.into(),
        r#"{"schemaVersion":2}"#.into(),
        "[]".into(),
        "null".into(),
        String::new(),
        format!(r#"{{"schemaVersion":2,"config":{layer},"fsLayers":[]}}"#),
    ] {
        assert!(parse(&bad).is_err(), "{bad}");
    }
    let invalid = [b"{\"schemaVersion\":2,\"manifests\":[],\"x\":\"".as_ref(), b"\xff\"}"].concat();
    assert!(Document::parse(&invalid, "", &limits()).is_err());
}

#[test]
fn case_24_no_content_type_makes_a_document_something_else() {
    let config = descriptor(media_type::OCI_CONFIG, 1);
    let both = format!(r#"{{"schemaVersion":2,"manifests":[],"config":{config},"layers":[]}}"#);
    let cased = both.replace("manifests", "Manifests");
    let index = r#"{"schemaVersion":2,"manifests":[]}"#;
    let lying = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#,
        media_type::OCI_MANIFEST
    );
    let types = [media_type::OCI_INDEX, media_type::OCI_MANIFEST, media_type::DOCKER_INDEX, ""];
    for text in [&both, &cased, &lying] {
        let errors: Vec<String> = types
            .iter()
            .map(|kind| Document::parse(text.as_bytes(), kind, &limits()).unwrap_err().to_string())
            .collect();
        assert!(errors.iter().all(|error| error.contains("invalid manifest")), "{errors:?}");
    }
    for (kind, fits) in [
        (media_type::OCI_INDEX, true),
        (media_type::DOCKER_INDEX, true),
        ("application/json; charset=utf-8", true),
        (media_type::OCI_MANIFEST, false),
        (media_type::OCI_LAYER, false),
        ("text/html", false),
        (media_type::DOCKER_SCHEMA1, false),
    ] {
        assert_eq!(Document::parse(index.as_bytes(), kind, &limits()).is_ok(), fits, "{kind}");
    }
}

#[test]
fn case_26_sizes_and_layer_counts_must_make_sense() {
    for size in ["-1", "0", "9223372036854775808", "1.5", "\"1\"", "null"] {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"x","digest":"sha256:{}","size":{size}}}]}}"#,
            HEX.replace('e', "1")
        );
        assert!(parse(&text).is_err(), "{size}");
    }
    let nothing = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"x","digest":"sha256:{HEX}","size":0}}]}}"#
    );
    assert!(parse(&nothing).is_ok());

    let layer = descriptor(media_type::OCI_LAYER, 1);
    let config = |ids: usize, kind: &str| {
        let ids = vec![format!("\"sha256:{HEX}\""); ids].join(",");
        let text = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"{kind}","diff_ids":[{ids}]}}}}"#
        );
        ImageConfig::parse(text.into(), &limits())
    };
    let manifest = |layers: usize| {
        let layers = vec![layer.as_str(); layers].join(",");
        let config = descriptor(media_type::OCI_CONFIG, 1);
        match parse(&format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layers}]}}"#)) {
            Ok(Document::Manifest(manifest)) => manifest,
            other => panic!("{other:?}"),
        }
    };
    for (layers, ids) in [(0, 1), (1, 0), (2, 1)] {
        let error = config(ids, "layers").unwrap().check_layers(&manifest(layers)).unwrap_err();
        assert!(error.to_string().contains("number of layers and diffIDs don't match"), "{error}");
    }
    let fits = config(2, "layers").unwrap();
    fits.check_layers(&manifest(2)).unwrap();
    assert_eq!(fits.spec().unwrap().rootfs().diff_ids().len(), 2);
    assert!(config(1, "disk").is_err());
    assert!(ImageConfig::parse("{}".into(), &limits()).is_err());
}

#[test]
fn media_types_of_both_worlds_are_known() {
    use crated_distribution::media_type::Compression;
    let layer = |compression, distributable| MediaType::Layer { compression, distributable };
    for (text, kind) in [
        (media_type::OCI_INDEX, MediaType::Index),
        ("application/vnd.docker.distribution.manifest.v2+json; x=y", MediaType::Manifest),
        (media_type::DOCKER_CONFIG, MediaType::Config),
        (media_type::OCI_LAYER_ZSTD, layer(Compression::Zstd, true)),
        (media_type::DOCKER_LAYER_GZIP, layer(Compression::Gzip, true)),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", layer(Compression::Zstd, true)),
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            layer(Compression::Gzip, false),
        ),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            layer(Compression::Gzip, false),
        ),
        ("application/vnd.oci.image.layer.v1.tar+encrypted", MediaType::Other),
        ("", MediaType::Other),
    ] {
        assert_eq!(MediaType::of(text), kind, "{text}");
    }
}

#[test]
fn descriptors_survive_the_types_of_the_specification() {
    let text = r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":7,"urls":["https://h.example/x"],"annotations":{"a":"b"},"platform":{"architecture":"arm","os":"linux","os.version":"1","os.features":["x"],"variant":"v7"},"artifactType":"application/x"}"#;
    let own: Descriptor = serde_json::from_str(text).unwrap();
    let spec = oci_spec::image::Descriptor::try_from(&own).unwrap();
    assert_eq!(Descriptor::try_from(&spec).unwrap(), own);
    assert_eq!(serde_json::to_string(&own).unwrap(), text);
}

#[test]
fn platforms_are_parsed_normalized_and_printed() {
    for (text, printed, normalized) in [
        ("linux/amd64", "linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64", "linux/amd64"),
        ("Linux/AArch64", "linux/arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/9", "linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6", "linux/arm/v6"),
        ("linux/i386", "linux/386", "linux/386"),
        ("linux/amd64/v1", "linux/amd64", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3", "linux/amd64/v3"),
        ("macos/arm64", "darwin/arm64", "darwin/arm64"),
        (
            "windows(10.0.17763+win32k)/amd64",
            "windows(10.0.17763+win32k)/amd64",
            "windows(10.0.17763+win32k)/amd64",
        ),
    ] {
        let platform = Platform::parse(text).unwrap();
        assert_eq!(platform.to_string(), printed, "{text}");
        assert_eq!(platform.normalized().to_string(), normalized, "{text}");
        assert_eq!(Platform::parse(printed).unwrap(), platform, "{text}");
    }
    assert_eq!(Platform::parse("s390x").unwrap().architecture, "s390x");
    assert_eq!(Platform::parse("freebsd").unwrap().os, "freebsd");
    assert_eq!(Platform::default().to_string(), "unknown");
    for bad in
        ["*", "linux/*", "", "/", "linux/", "a/b/c/d", "lin ux/amd64", "windows(/amd64", "nonsense"]
    {
        assert!(Platform::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_host_prefers_its_own_kind_and_then_what_it_can_still_run() {
    let order = |host: &str, offered: &[&str]| {
        let only = Only::new(&Platform::parse(host).unwrap());
        let mut fit: Vec<Platform> = offered
            .iter()
            .map(|text| Platform::parse(text).unwrap())
            .filter(|platform| only.matches(platform))
            .collect();
        fit.sort_by(|a, b| only.compare(a, b));
        fit.iter().map(|platform| platform.normalized().to_string()).collect::<Vec<_>>()
    };
    let arm = [
        "linux/arm/v5",
        "linux/arm/v6",
        "linux/arm/v7",
        "linux/arm/v8",
        "linux/arm64",
        "linux/amd64",
    ];
    assert_eq!(order("linux/arm/v6", &arm), ["linux/arm/v6", "linux/arm/v5"]);
    assert_eq!(
        order("linux/arm64", &arm),
        ["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
    );
    let amd = [
        "linux/386",
        "linux/amd64",
        "linux/amd64/v2",
        "linux/amd64/v3",
        "linux/amd64/v4",
        "windows/amd64",
    ];
    assert_eq!(
        order("linux/amd64/v3", &amd),
        ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]
    );
    assert_eq!(order("linux/amd64", &amd), ["linux/amd64", "linux/386"]);
    let v9 = [
        "linux/arm64/v8.5",
        "linux/arm64/v8.6",
        "linux/arm64/v8.7",
        "linux/arm64/v9",
        "linux/arm64/v9.1",
        "linux/arm64/v9.2",
        "linux/arm64",
    ];
    assert_eq!(
        order("linux/arm64/v9.1", &v9),
        [
            "linux/arm64/v9.1",
            "linux/arm64/v9",
            "linux/arm64/v8.6",
            "linux/arm64/v8.5",
            "linux/arm64"
        ]
    );
    assert_eq!(order("linux/riscv64", &["linux/riscv64", "linux/amd64"]), ["linux/riscv64"]);
    let strict = OnlyStrict::new(&Platform::parse("linux/arm64").unwrap());
    assert!(!strict.matches(&Platform::parse("linux/arm/v7").unwrap()));
    let any = Any::new(&[Platform::parse("linux/amd64").unwrap()]);
    assert!(any.matches(&Platform::parse("linux/x86-64").unwrap()));
}

fn client() -> RegistryResolver {
    RegistryResolver::new(RegistryOptions::new().with_hosts(Hosts::plain_http())).unwrap()
}

/// An index over samples for some platforms, in a registry.
async fn indexed(registry: &MemoryRegistry, platforms: &[&str]) -> (Descriptor, Vec<Sample>) {
    let resolver = client();
    let mut manifests = Vec::new();
    let mut samples = Vec::new();
    for (at, text) in platforms.iter().enumerate() {
        let sample = Sample::new(100 + at as u64);
        let reference = registry.reference("team/app").with_digest(sample.root.digest.clone());
        sample.push(&resolver, &reference).await;
        let mut entry = sample.root.clone();
        entry.platform = (!text.is_empty()).then(|| Platform::parse(text).unwrap());
        manifests.push(entry);
        samples.push(sample);
    }
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests,
    });
    let root =
        registry.put_manifest("team/app", Some("multi"), media_type::OCI_INDEX, index.to_string());
    (root, samples)
}

#[tokio::test]
async fn a_walk_takes_the_best_platform_and_nothing_else() {
    let registry = MemoryRegistry::start().await.unwrap();
    let offered = ["", "linux/arm64", "linux/amd64/v2", "linux/amd64", "unknown/unknown"];
    let (root, samples) = indexed(&registry, &offered).await;
    let fetcher = client().fetcher(&registry.reference("team/app:multi")).await.unwrap();
    let walked = |host: &'static str| {
        let (fetcher, root) = (&fetcher, &root);
        async move {
            let host = Only::new(&Platform::parse(host).unwrap());
            let nodes = walk::walk(&**fetcher, root, &WalkOptions::best(host)).await?;
            Ok::<_, Error>(nodes.into_iter().map(|node| node.descriptor.digest).collect::<Vec<_>>())
        }
    };
    for (host, chosen) in
        [("linux/amd64", 3), ("linux/amd64/v3", 2), ("linux/arm64", 1), ("linux/s390x", 0)]
    {
        let digests = walked(host).await.unwrap();
        assert_eq!(digests[1], samples[chosen].root.digest, "{host}");
        assert_eq!(digests.len(), 4, "{host}");
    }
    let all = walk::walk(&*fetcher, &root, &WalkOptions::all()).await.unwrap();
    assert_eq!(all.len(), 1 + 5 * 3);
    let strict = WalkOptions::best(OnlyStrict::new(&Platform::parse("linux/s390x").unwrap()));
    let Document::Index(index) = all[0].document.clone().unwrap() else { panic!("an index") };
    let mut named = index.clone();
    named.manifests.remove(0);
    let error = walk::select(&named, &*strict.platforms, None).unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("no match for platform"), "{error}");
}

#[tokio::test]
async fn case_25_nested_indexes_end_and_each_digest_is_fetched_once() {
    let registry = MemoryRegistry::start().await.unwrap();
    let resolver = client();
    let sample = Sample::new(200);
    let reference = registry.reference("team/app:deep");
    sample.push(&resolver, &reference).await;
    let mut root = sample.root.clone();
    let mut roots = Vec::new();
    for _ in 0..100 {
        // Twice the same, so that a walk that does not remember would double at each level.
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [root, root]});
        root = registry.put_manifest("team/app", None, media_type::OCI_INDEX, index.to_string());
        roots.push(root.clone());
    }
    let fetcher = resolver.fetcher(&reference).await.unwrap();
    let before = registry.requests().len();
    let nodes = walk::walk(&*fetcher, &roots[3], &WalkOptions::all()).await.unwrap();
    assert_eq!(nodes.len(), 4 + 3);
    assert_eq!(registry.requests().len() - before, 5);
    let error = walk::walk(&*fetcher, &roots[99], &WalkOptions::all()).await.unwrap_err();
    assert!(matches!(error, Error::LimitExceeded { .. }), "{error}");
    assert!(registry.requests().len() - before < 15);
}

#[tokio::test]
async fn a_copy_is_complete_and_its_progress_is_told_to_whoever_comes_late() {
    let registry = MemoryRegistry::start().await.unwrap();
    let (root, _) = indexed(&registry, &["linux/amd64", "linux/arm64"]).await;
    let from: Arc<dyn crated_distribution::Fetcher> =
        client().fetcher(&registry.reference("team/app:multi")).await.unwrap().into();
    let dir = tempfile::TempDir::new().unwrap();
    let layout = LayoutResolver::open(dir.path()).await.unwrap();
    let target: Reference = "h.example/copy/app:v1".parse().unwrap();
    let pusher = layout.pusher(&target.with_digest(root.digest.clone())).await.unwrap();
    let progress = Progress::new();
    let mut early = progress.watch();
    walk::copy(from, &*pusher, &root, &WalkOptions::all(), &progress).await.unwrap();
    let copied = layout.resolve(&target).await.unwrap();
    assert_eq!(copied.descriptor.digest, root.digest);
    let fetcher = layout.fetcher(&target).await.unwrap();
    let nodes = walk::walk(&*fetcher, &root, &WalkOptions::all()).await.unwrap();
    assert_eq!(nodes.len(), 7);
    for node in &nodes {
        walk::fetch_bytes(&*fetcher, &node.descriptor, 1 << 30).await.unwrap();
    }
    for watch in [&mut early, &mut progress.watch()] {
        let entries = watch.changed().await;
        assert_eq!(entries.len(), 7);
        assert!(entries.iter().all(|entry| entry.state == State::Complete));
        assert!(entries.iter().all(|entry| entry.done_bytes == entry.total_bytes));
        let known: Vec<&String> = entries.iter().map(|entry| &entry.name).collect();
        for (at, entry) in entries.iter().enumerate() {
            assert!(entry.parents.iter().all(|parent| known[..at].contains(&parent)), "{entry:?}");
        }
        assert_eq!(watch.take(), []);
    }
}

#[tokio::test]
async fn a_single_image_for_another_platform_is_refused_by_its_configuration() {
    let registry = MemoryRegistry::start().await.unwrap();
    let resolver = client();
    let reference = registry.reference("team/app:v1");
    let sample = Sample::new(300);
    sample.push(&resolver, &reference).await;
    let fetcher = resolver.fetcher(&reference).await.unwrap();
    let arm = OnlyStrict::new(&Platform::parse("linux/arm64").unwrap());
    let error = walk::walk(&*fetcher, &sample.root, &WalkOptions::best(arm)).await.unwrap_err();
    assert!(error.to_string().contains("does not match the specified platform"), "{error}");
    let amd = Only::new(&Platform::parse("linux/amd64").unwrap());
    assert!(walk::walk(&*fetcher, &sample.root, &WalkOptions::best(amd)).await.is_ok());
}

#[tokio::test]
async fn embedded_content_needs_no_request_and_must_be_what_it_says() {
    use base64::Engine as _;
    let registry = MemoryRegistry::start().await.unwrap();
    let fetcher = client().fetcher(&registry.reference("team/app:v1")).await.unwrap();
    let mut descriptor = Descriptor::of(media_type::OCI_EMPTY, b"{}");
    descriptor.data = Some(base64::engine::general_purpose::STANDARD.encode(b"{}"));
    let bytes = walk::fetch_bytes(&*fetcher, &descriptor, 100).await.unwrap();
    assert_eq!(bytes, Bytes::from_static(b"{}"));
    assert_eq!(registry.requests().len(), 0);
    descriptor.data = Some(base64::engine::general_purpose::STANDARD.encode(b"[]"));
    assert!(walk::fetch_bytes(&*fetcher, &descriptor, 100).await.unwrap_err().is_not_found());
}

proptest! {
    #[test]
    fn references_print_as_they_were_written(text in "\\PC{0,60}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(reference.to_string(), text.clone());
            prop_assert!(text.starts_with(reference.host()));
        }
    }

    #[test]
    fn well_formed_references_are_accepted(
        text in "[a-z0-9]{1,9}(\\.[a-z]{2,5}){0,2}(:[1-9][0-9]{0,3})?/[a-z0-9]{1,8}([._-][a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,8}){0,2}(:[A-Za-z0-9_][A-Za-z0-9._-]{0,9})?",
    ) {
        let reference: Reference = text.parse().unwrap();
        prop_assert_eq!(reference.to_string(), text);
    }

    #[test]
    fn digests_are_exactly_what_they_were_parsed_from(text in "(sha256|sha512|blake3|md5):[0-9a-f]{62,66}") {
        match Digest::parse(&text) {
            Ok(digest) => {
                prop_assert_eq!(digest.as_str(), &text);
                prop_assert_eq!(digest.hex().len(), 64);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn documents_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Document::parse(&bytes, "", &limits());
        let _ = ImageConfig::parse(bytes.into(), &limits());
    }

    #[test]
    fn platforms_that_parse_print_and_parse_the_same(text in "[a-z0-9_./()+*-]{0,30}") {
        if let Ok(platform) = Platform::parse(&text) {
            let printed = platform.to_string();
            prop_assert_eq!(Platform::parse(&printed).unwrap(), platform.clone());
            let normalized = platform.normalized();
            prop_assert_eq!(normalized.normalized(), normalized);
        }
    }

    #[test]
    fn challenges_never_panic(text in "[ -~]{0,80}") {
        let _ = crated_distribution::registry::challenge::parse([text.as_bytes()]);
    }
}
