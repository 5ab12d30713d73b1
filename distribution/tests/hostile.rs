//! Servers that lie, stall, redirect and beg. Numbers are those of the list of fault cases that
//! this crate is built against.

mod support;

#[path = "hostile/proxies.rs"]
mod proxies;
#[path = "hostile/ranges.rs"]
mod ranges;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crated_distribution::{
    Credential, Descriptor, Digest, Error, Hosts, Progress, Pushed, RegistryOptions, Resolver as _,
    Static, Verifier, media_type,
};
use support::hostile::{Hostile, Reply, Seen, options};
use support::{noise, resolver};
use tempfile::TempDir;

fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::of(media_type::OCI_LAYER_GZIP, bytes)
}

async fn fetch(server: &Hostile, descriptor: &Descriptor) -> Result<bytes::Bytes, Error> {
    fetch_with(options(), server, descriptor).await
}

async fn fetch_with(
    options: RegistryOptions,
    server: &Hostile,
    descriptor: &Descriptor,
) -> Result<bytes::Bytes, Error> {
    let fetcher = resolver(options).fetcher(&server.reference()).await?;
    let body = fetcher.fetch(descriptor, 0).await?;
    Verifier::new(body, descriptor)?.collect(1 << 30).await
}

fn login(server: &Hostile) -> RegistryOptions {
    let host = server.address.to_string();
    options().with_credentials(Static::new(host, Credential::new("alice", "canary")))
}

/// Serves `bytes` honestly, whatever part is asked for.
fn honest(bytes: &bytes::Bytes, seen: &Seen) -> Reply {
    let whole = bytes.len();
    match seen.range(whole) {
        None => Reply::ok(bytes),
        Some(part) => {
            let range = format!("bytes {}-{}/{whole}", part.start, part.end - 1);
            Reply::new(206, &[("content-range", &range)], bytes.slice(part))
        }
    }
}

#[tokio::test]
async fn case_1_and_2_malformed_digests_cause_no_request() {
    let server = Hostile::start(|_| Reply::status(500)).await;
    let hex = "a".repeat(64);
    for digest in [
        "sha256:".to_owned() + &"a".repeat(63),
        "sha256:".to_owned() + &"a".repeat(65),
        "sha256:".to_owned() + &"A".repeat(64),
        "sha256:../../../../etc/passwd".into(),
        "../x".into(),
        String::new(),
        "sha256:".to_owned() + &"a".repeat(1 << 20),
        format!("md5:{}", "a".repeat(32)),
        format!("sha256+b64u:{hex}"),
    ] {
        let error = Digest::parse(&digest).unwrap_err();
        assert!(error.to_string().len() < 300, "{error}");
        assert!(
            format!("{}/a/b@{digest}", server.address)
                .parse::<crated_distribution::Reference>()
                .is_err()
        );
        let json = format!(r#"{{"mediaType":"x","size":1,"digest":"{digest}"}}"#);
        assert!(serde_json::from_str::<Descriptor>(&json).is_err());
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn case_4_a_short_body_is_resumed_where_it_ended() {
    let bytes = noise(1, 100_000);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| {
        let (offset, whole) = (seen.offset(), content.len());
        let part = content.slice(offset..whole.min(offset + 30_000));
        if offset == 0 {
            return Reply::head(200, &[("content-length", "100000")]).then(part);
        }
        let range = format!("bytes {offset}-{}/{whole}", whole - 1);
        let length = (whole - offset).to_string();
        Reply::head(206, &[("content-range", &range), ("content-length", &length)]).then(part)
    })
    .await;
    assert_eq!(fetch(&server, &layer(&bytes)).await.unwrap(), bytes);
    let offsets: Vec<usize> = server.requests().iter().map(Seen::offset).collect();
    assert_eq!(offsets, [0, 30_000, 60_000, 90_000]);
}

#[tokio::test]
async fn case_4_a_body_that_never_goes_on_is_given_up_with_what_there_is() {
    let bytes = noise(2, 1000);
    let content = bytes.clone();
    // Ends cleanly, without a length, far too early.
    let server = Hostile::start(move |seen| {
        if seen.offset() == 0 {
            return Reply::head(200, &[]).then(content.slice(..400));
        }
        Reply::head(206, &[("content-range", "bytes 400-999/1000")])
    })
    .await;
    let error = fetch(&server, &layer(&bytes)).await.unwrap_err();
    assert!(matches!(error, Error::UnexpectedEof { have: 400, want: 1000, .. }), "{error}");
    assert!(server.count() <= 5);
}

#[tokio::test]
async fn case_4_a_body_that_breaks_goes_on_at_the_next_mirror() {
    let bytes = noise(73, 100_000);
    let content = bytes.clone();
    let mirror = Hostile::start(move |seen| match seen.number {
        0 => Reply::head(200, &[("content-length", "100000")]).then(content.slice(..30_000)),
        _ => Reply::status(500),
    })
    .await;
    let content = bytes.clone();
    let origin = Hostile::start(move |seen| honest(&content, seen)).await;
    let (options, _dir) = mirrored(&mirror, &origin);
    let reference = "registry.example/team/app:v1".parse().unwrap();
    let fetcher = resolver(options).fetcher(&reference).await.unwrap();
    let body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
    assert_eq!(*body.whence().unwrap().host, *mirror.address.to_string());
    let progress = Progress::new();
    progress.add("layer", &[], bytes.len() as u64);
    let body = progress.body("layer", body, 0);
    assert_eq!(body.collect(1 << 20).await.unwrap(), bytes);
    assert_eq!(origin.requests().iter().map(Seen::offset).collect::<Vec<_>>(), [30_000]);
    // Whoever watches sees where it went.
    let whence = progress.snapshot()[0].whence.clone().unwrap();
    assert_eq!((&*whence.host, whence.resumes), (&*origin.address.to_string(), 1));
}

#[tokio::test]
async fn case_5_a_long_body_is_refused() {
    let bytes = noise(3, 1000);
    let longer = noise(3, 1001);
    for honest_length in [true, false] {
        let longer = longer.clone();
        let server = Hostile::start(move |_| match honest_length {
            true => Reply::ok(&longer),
            false => Reply::head(200, &[]).then(&longer),
        })
        .await;
        let error = fetch(&server, &layer(&bytes)).await.unwrap_err();
        assert!(matches!(error, Error::Oversized { .. }), "{error}");
        assert_eq!(server.count(), 1);
    }
}

/// Two servers as mirror and origin of one name.
fn mirrored(mirror: &Hostile, origin: &Hostile) -> (RegistryOptions, TempDir) {
    let dir = TempDir::new().unwrap();
    let host = dir.path().join("registry.example");
    std::fs::create_dir(&host).unwrap();
    let toml =
        format!("server = \"{}\"\n[host.\"{}\"]\n", origin.url(""), mirror.url("/mirror/v2"));
    std::fs::write(host.join("hosts.toml"), toml).unwrap();
    let mut options = options();
    options.hosts = Hosts::directory(dir.path());
    (options, dir)
}

#[tokio::test]
async fn case_6_wrong_bytes_are_refused_and_another_mirror_is_tried_once() {
    let bytes = noise(4, 1000);
    for document in [false, true] {
        let bad = noise(5, 1000);
        let mirror = Hostile::start(move |_| Reply::ok(&bad)).await;
        let content = bytes.clone();
        let origin = Hostile::start(move |seen| honest(&content, seen)).await;
        let (options, _dir) = mirrored(&mirror, &origin);
        let resolver = resolver(options);
        let reference = "registry.example/team/app:v1".parse().unwrap();
        let fetcher = resolver.fetcher(&reference).await.unwrap();
        let kind = if document { media_type::OCI_MANIFEST } else { media_type::OCI_LAYER };
        let descriptor = Descriptor::of(kind, &bytes);
        let found = crated_distribution::walk::fetch_bytes(&*fetcher, &descriptor, 1 << 20).await;
        assert_eq!(found.unwrap(), bytes);
        assert_eq!((mirror.count(), origin.count()), (1, 1));
        assert!(mirror.requests()[0].path.ends_with("?ns=registry.example"));
        assert!(!fetcher.distrust(&descriptor.digest), "nothing is left");
    }
    let bad = noise(5, 1000);
    let alone = Hostile::start(move |_| Reply::ok(&bad)).await;
    let error = fetch(&alone, &layer(&bytes)).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn case_7_ranges_are_checked_and_may_be_ignored() {
    let bytes = noise(6, 1000);
    for wrong in ["bytes 0-999/1000", "bytes 401-999/1000", "bytes 400-999/2000", "nonsense", ""] {
        let content = bytes.clone();
        let server = Hostile::start(move |_| {
            Reply::new(206, &[("content-range", wrong)], content.slice(400..))
        })
        .await;
        let fetcher = resolver(options()).fetcher(&server.reference()).await.unwrap();
        let error = fetcher.fetch(&layer(&bytes), 400).await.unwrap_err();
        assert!(matches!(error, Error::InvalidDocument { .. }), "{error}");
    }
    let content = bytes.clone();
    let server = Hostile::start(move |_| Reply::ok(&content)).await;
    let fetcher = resolver(options()).fetcher(&server.reference()).await.unwrap();
    let body = fetcher.fetch(&layer(&bytes), 400).await.unwrap();
    assert_eq!(body.collect(1 << 20).await.unwrap(), bytes.slice(400..));
}

#[tokio::test]
async fn case_10_an_encoding_nobody_asked_for_is_refused() {
    let bytes = noise(7, 1000);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| {
        assert_eq!(seen.header("accept-encoding"), "identity");
        Reply::new(200, &[("content-encoding", "gzip")], content.slice(..900))
    })
    .await;
    let error = fetch(&server, &layer(&bytes)).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    // A label on stored bytes changes nothing about them.
    let content = bytes.clone();
    let labelled =
        Hostile::start(move |_| Reply::new(200, &[("content-encoding", "gzip")], &content)).await;
    assert_eq!(fetch(&labelled, &layer(&bytes)).await.unwrap(), bytes);
}

#[tokio::test]
async fn case_11_ten_redirects_are_followed_and_loops_end() {
    for (hops, works) in [(10, true), (11, false), (usize::MAX, false)] {
        let bytes = noise(8, 100);
        let content = bytes.clone();
        let server = Hostile::start(move |seen| match seen.number < hops {
            // Relative to the address that named it.
            true => Reply::redirect(&format!("hop-{}?a=b", seen.number)),
            false => Reply::ok(&content),
        })
        .await;
        let found = fetch(&server, &layer(&bytes)).await;
        assert_eq!(found.is_ok(), works, "{found:?}");
        assert!(server.count() <= 11);
        if works {
            assert_eq!(server.requests()[10].path, "/v2/team/app/blobs/hop-9?a=b");
        }
    }
}

#[tokio::test]
async fn case_12_nothing_secret_follows_a_redirect_to_another_origin_nor_comes_back() {
    let bytes = noise(9, 100);
    let content = bytes.clone();
    let first = Arc::new(std::sync::OnceLock::<String>::new());
    let home = first.clone();
    // Sends everyone back where they came from, to another path.
    let other =
        Hostile::start(move |_| Reply::redirect(&format!("{}/back", home.get().unwrap()))).await;
    let target = other.url("/blob?signature=x");
    let server = Hostile::start(move |seen| {
        if seen.path == "/back" {
            return Reply::ok(&content);
        }
        if seen.header("authorization").is_empty() {
            return Reply::unauthorized("Basic realm=x");
        }
        Reply::redirect(&target)
    })
    .await;
    first.set(server.url("")).unwrap();
    assert_eq!(fetch_with(login(&server), &server, &layer(&bytes)).await.unwrap(), bytes);
    assert_eq!(other.count(), 1);
    assert!(!other.got_secrets());
    let back = server.requests().pop().unwrap();
    assert_eq!(back.path, "/back");
    assert_eq!((back.header("authorization"), back.header("x-own")), ("", ""));
}

#[tokio::test]
async fn case_14_endless_challenges_end_after_two_rounds() {
    let server = Hostile::start(|seen| {
        if seen.path.starts_with("/token") {
            return Reply::ok(format!(r#"{{"token":"t{}"}}"#, seen.number));
        }
        let host = seen.header("host");
        Reply::unauthorized(&format!(r#"Bearer realm="http://{host}/token",service="x""#))
    })
    .await;
    let error = fetch(&server, &layer(b"x")).await.unwrap_err();
    assert!(error.is_denied() && error.to_string().contains("denied"), "{error}");
    let (tokens, others): (Vec<_>, Vec<_>) =
        server.requests().into_iter().partition(|seen| seen.path.starts_with("/token"));
    assert_eq!((tokens.len(), others.len()), (2, 3));
}

#[tokio::test]
async fn case_15_unusable_challenges_are_named() {
    for challenge in ["Bearer realm=\"x", "Negotiate", &"Basic, ".repeat(1000)] {
        let challenge = challenge.to_owned();
        let server = Hostile::start(move |_| Reply::unauthorized(&challenge)).await;
        let error = fetch(&server, &layer(b"x")).await.unwrap_err();
        assert!(error.is_denied(), "{error}");
        assert_eq!(server.count(), 1);
    }
}

#[tokio::test]
async fn case_16_credentials_never_go_to_a_token_server_of_another_site() {
    let thief = Hostile::start(|_| Reply::ok(r#"{"token":"t"}"#)).await;
    let port = thief.address.port();
    for realm in [
        thief.url("/token"),
        format!("http://u:p@127.0.0.1:{port}/token"),
        format!("http://localhost:{port}/token"),
        "file:///token".into(),
        "token".into(),
        String::new(),
    ] {
        let challenge = format!(r#"Bearer realm="{realm}",service="x""#);
        let server = Hostile::start(move |_| Reply::unauthorized(&challenge)).await;
        let host = server.address.to_string();
        for credential in [Credential::new("alice", "canary"), Credential::new("", "canary")] {
            let options = options().with_credentials(Static::new(host.clone(), credential));
            let error = fetch_with(options, &server, &layer(b"x")).await.unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{error}");
            assert!(error.to_string().contains(&host), "{error}");
        }
    }
    assert_eq!(thief.count(), 0);
}

#[tokio::test]
async fn case_17_token_servers_may_answer_anything() {
    for (answer, works) in [
        ("<html>login</html>".to_owned(), false),
        ("{}".into(), false),
        (r#"{"token":""}"#.into(), false),
        (r#"{"token":"a\nb"}"#.into(), false),
        (format!(r#"{{"token":"{}"}}"#, "x".repeat(10 << 20)), false),
        (r#"{"access_token":"t"}"#.into(), true),
        (r#"{"token":"t","expires_in":-1}"#.into(), true),
        (r#"{"token":"t","expires_in":0}"#.into(), true),
        (r#"{"token":"t","expires_in":9223372036854775808}"#.into(), true),
        (r#"{"token":"t","expires_in":1e300}"#.into(), true),
    ] {
        let bytes = noise(10, 10);
        let content = bytes.clone();
        let shown: String = answer.chars().take(60).collect();
        let server = Hostile::start(move |seen| {
            if seen.path.starts_with("/token") {
                return Reply::ok(&answer);
            }
            if seen.header("authorization") == "Bearer t" {
                return Reply::ok(&content);
            }
            let host = seen.header("host");
            Reply::unauthorized(&format!(r#"Bearer realm="http://{host}/token""#))
        })
        .await;
        let found = fetch(&server, &layer(&bytes)).await;
        assert_eq!(found.is_ok(), works, "{shown}: {found:?}");
    }
}

#[tokio::test]
async fn case_20_retry_after_is_obeyed_up_to_a_limit() {
    for asked in ["0", "120", "-5", "1000000000", "Fri, 31 Dec 2100 23:59:59 GMT", "soon"] {
        let bytes = noise(11, 10);
        let content = bytes.clone();
        let server = Hostile::start(move |seen| match seen.number {
            0 => Reply::new(429, &[("retry-after", asked)], ""),
            _ => Reply::ok(&content),
        })
        .await;
        let started = Instant::now();
        assert_eq!(fetch(&server, &layer(&bytes)).await.unwrap(), bytes);
        assert!(started.elapsed() < Duration::from_secs(60), "{asked}");
        assert_eq!(server.count(), 2);
    }
    let server = Hostile::start(|_| Reply::new(429, &[("retry-after", "7")], "")).await;
    let error = fetch(&server, &layer(b"x")).await.unwrap_err();
    let wanted = Some(Duration::from_secs(7));
    assert!(
        matches!(&error, Error::TooManyRequests { retry_after, .. } if *retry_after == wanted),
        "{error}"
    );
    assert_eq!(server.count(), 5);
}

#[tokio::test]
async fn case_21_passing_failures_pass_and_mirrors_fail_over() {
    let bytes = noise(12, 10);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| match seen.number {
        0..3 => Reply::status(503),
        _ => Reply::ok(&content),
    })
    .await;
    assert_eq!(fetch(&server, &layer(&bytes)).await.unwrap(), bytes);
    assert_eq!(server.count(), 4);

    for bad in [500, 404, 429, 403] {
        let content = bytes.clone();
        let mirror = Hostile::start(move |_| Reply::status(bad)).await;
        let origin = Hostile::start(move |seen| honest(&content, seen)).await;
        let (options, _dir) = mirrored(&mirror, &origin);
        let reference = "registry.example/team/app:v1".parse().unwrap();
        let fetcher = resolver(options).fetcher(&reference).await.unwrap();
        let body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
        assert_eq!(body.collect(100).await.unwrap(), bytes);
        // It is not worth insisting where another server can be asked.
        assert_eq!((mirror.count(), origin.count()), (1, 1), "{bad}");
    }

    let body = r#"{"errors":[{"code":"DENIED","message":"pull quota is used up"}]}"#;
    let server = Hostile::start(move |_| Reply::new(403, &[], body)).await;
    let error = resolver(options()).resolve(&server.reference()).await.unwrap_err();
    assert!(error.is_denied() && error.to_string().contains("pull quota is used up"), "{error}");
}

#[tokio::test]
async fn case_22_a_trickle_is_given_up() {
    let bytes = noise(13, 10_000);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| {
        let whole = content.len();
        let offset = seen.offset();
        let range = format!("bytes {offset}-{}/{whole}", whole - 1);
        let mut reply = match offset {
            0 => Reply::head(200, &[]),
            _ => Reply::head(206, &[("content-range", &range)]),
        };
        for byte in content.slice(offset..).chunks(1) {
            reply = reply.then(byte).wait(Duration::from_millis(10));
        }
        reply
    })
    .await;
    let mut slow = options();
    slow.timeouts.rate_window = Duration::from_millis(200);
    slow.timeouts.rate_min_bytes = 10_000;
    let error = fetch_with(slow, &server, &layer(&bytes)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn case_22_silence_is_given_up_at_every_step() {
    let bytes = noise(14, 1000);
    let long = Duration::from_secs(3600);
    let before = Hostile::start(move |_| Reply::default().wait(long)).await;
    let content = bytes.clone();
    let during = Hostile::start(move |seen| {
        if seen.offset() == 0 {
            return Reply::head(200, &[]).then(content.slice(..10)).wait(long);
        }
        Reply::head(206, &[("content-range", "bytes 10-999/1000")]).wait(long)
    })
    .await;
    for server in [before, during] {
        let mut impatient = options();
        impatient.timeouts.connect = Duration::from_millis(300);
        impatient.timeouts.header = Duration::from_millis(300);
        impatient.timeouts.stall = Duration::from_millis(300);
        let error = fetch_with(impatient, &server, &layer(&bytes)).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
}

#[tokio::test]
async fn case_27_the_digest_that_was_resolved_is_what_is_fetched() {
    let (old, new) = (noise(15, 100), noise(16, 100));
    let digest = Digest::of(&old);
    let named = digest.to_string();
    let (first, moved) = (old.clone(), new.clone());
    let server = Hostile::start(move |seen| {
        let kind = ("content-type", media_type::OCI_MANIFEST);
        if seen.method == "HEAD" {
            let headers = [kind, ("docker-content-digest", &named), ("content-length", "100")];
            return Reply::head(200, &headers);
        }
        // The tag has moved since, the digest has not.
        let body = if seen.path.ends_with(named.as_str()) { &first } else { &moved };
        Reply::new(200, &[kind], body)
    })
    .await;
    let resolver = resolver(options());
    let resolved = resolver.resolve(&server.reference()).await.unwrap();
    assert_eq!(resolved.descriptor.digest, digest);
    let fetcher = resolver.fetcher(&server.reference()).await.unwrap();
    let body = fetcher.fetch(&resolved.descriptor, 0).await.unwrap();
    assert_eq!(body.collect(1000).await.unwrap(), old);
}

#[tokio::test]
async fn resolving_copes_with_servers_that_say_little() {
    let manifest = noise(17, 100);
    for (head, get) in [(405, 200), (200, 200)] {
        let content = manifest.clone();
        let server = Hostile::start(move |seen| {
            let kind = ("content-type", media_type::OCI_MANIFEST);
            match seen.method.as_str() {
                "HEAD" => Reply::head(head, &[kind]),
                _ => Reply::new(get, &[kind], &content),
            }
        })
        .await;
        let resolved = resolver(options()).resolve(&server.reference()).await.unwrap();
        assert_eq!(resolved.descriptor, Descriptor::of(media_type::OCI_MANIFEST, &manifest));
    }
    let wrong = Digest::of(b"other").to_string();
    let server = Hostile::start(move |_| {
        let headers = [("docker-content-digest", wrong.as_str()), ("content-length", "100")];
        Reply::head(200, &headers)
    })
    .await;
    let pinned = server.reference().with_digest(Digest::of(&manifest));
    let error = resolver(options()).resolve(&pinned).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    // A failing server must not make a manifest look like any blob.
    let server = Hostile::start(|seen| match seen.path.contains("/manifests/") {
        true => Reply::status(500),
        false => Reply::head(200, &[("content-length", "100")]),
    })
    .await;
    let pinned = server.reference().with_digest(Digest::of(&manifest));
    assert!(resolver(options()).resolve(&pinned).await.is_err());
    // Larger than any manifest.
    let large = Digest::of(b"large").to_string();
    let server = Hostile::start(move |_| {
        let headers = [
            ("docker-content-digest", large.as_str()),
            ("content-length", "5000000"),
            ("content-type", media_type::OCI_MANIFEST),
        ];
        Reply::head(200, &headers)
    })
    .await;
    let error = resolver(options()).resolve(&server.reference()).await.unwrap_err();
    assert!(error.to_string().contains("rejecting 5000000 byte manifest"), "{error}");
}

/// Accepts an upload and hands out `location` for its bytes.
fn accept_upload(seen: &Seen, location: &str) -> Option<Reply> {
    match seen.method.as_str() {
        "HEAD" => Some(Reply::head(404, &[])),
        "POST" if seen.header("authorization").is_empty() => {
            Some(Reply::unauthorized("Basic realm=x"))
        }
        "POST" => Some(Reply::new(202, &[("location", location)], "")),
        _ => None,
    }
}

async fn push(server: &Hostile, bytes: &bytes::Bytes) -> Result<Pushed, Error> {
    let mut options = login(server);
    options.limits.upload_chunk_bytes = 3000;
    let pusher = resolver(options).pusher(&server.reference()).await?;
    pusher.push(&layer(bytes), bytes).await
}

#[tokio::test]
async fn case_28_uploads_go_where_they_are_sent_but_secrets_do_not() {
    let bytes = noise(18, 10_000);
    let storage = Hostile::start(|_| Reply::status(201)).await;
    let location = storage.url("/upload?state=a%2Bb");
    let server = Hostile::start(move |seen| accept_upload(seen, &location).unwrap()).await;
    assert_eq!(push(&server, &bytes).await.unwrap(), Pushed::Uploaded);
    let put = &storage.requests()[0];
    assert_eq!((put.method.as_str(), &put.body[..]), ("PUT", &bytes[..]));
    let digest = layer(&bytes).digest.to_string().replace(':', "%3A");
    assert_eq!(put.path, format!("/upload?state=a%2Bb&digest={digest}"));
    assert!(!storage.got_secrets());

    for bad in ["file:///x", "http://u:p@127.0.0.1:1/", ""] {
        let server = Hostile::start(move |seen| match (seen.method.as_str(), bad) {
            ("POST", "") => Reply::status(202),
            _ => accept_upload(seen, bad).unwrap(),
        })
        .await;
        let error = push(&server, &bytes).await.unwrap_err();
        assert!(
            matches!(error, Error::Refused { .. } | Error::InvalidDocument { .. }),
            "{bad}: {error}"
        );
    }
}

#[tokio::test]
async fn case_28_a_broken_upload_goes_on_from_what_the_server_has() {
    let bytes = noise(19, 10_000);
    for first in [413, 502, 0] {
        let server = Hostile::start(move |seen| {
            let session = ("location", "session?next=1");
            if let Some(reply) = accept_upload(seen, "/v2/team/app/blobs/uploads/session") {
                return reply;
            }
            match (seen.method.as_str(), seen.header("content-range")) {
                // The whole at once: refused, failed, or cut off in the middle.
                ("PUT", "") if first == 0 => Reply::default(),
                ("PUT", "") => Reply::status(first),
                ("GET", _) => Reply::new(204, &[session, ("range", "0-3999")], ""),
                // Takes less than it is given, once.
                ("PATCH", "4000-6999") => Reply::new(202, &[session, ("range", "0-4999")], ""),
                ("PATCH", "5000-7999") => Reply::new(202, &[session, ("range", "0-7999")], ""),
                ("PUT", "8000-9999") => Reply::status(201),
                other => panic!("{other:?}"),
            }
        })
        .await;
        assert_eq!(push(&server, &bytes).await.unwrap(), Pushed::Uploaded, "{first}");
        let sent: Vec<u8> = server
            .requests()
            .into_iter()
            .filter(|seen| !seen.header("content-range").is_empty())
            .flat_map(|seen| seen.body)
            .collect();
        assert_eq!(sent, [&bytes[4000..7000], &bytes[5000..8000], &bytes[8000..]].concat());
    }
}

#[tokio::test]
async fn case_28_an_upload_that_never_gets_further_ends() {
    let bytes = noise(20, 10_000);
    let server = Hostile::start(|seen| {
        if let Some(reply) = accept_upload(seen, "/v2/team/app/blobs/uploads/session") {
            return reply;
        }
        match seen.method.as_str() {
            "GET" => Reply::new(204, &[("range", "0-99")], ""),
            _ => Reply::status(502),
        }
    })
    .await;
    let error = push(&server, &bytes).await.unwrap_err();
    assert!(matches!(error, Error::Status { status: 502, .. }), "{error}");
    assert!(server.count() < 20);
}

#[tokio::test]
async fn case_29_dropped_bodies_give_their_place_back() {
    let bytes = noise(21, 1 << 20);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| honest(&content, seen)).await;
    let mut options = options();
    options.limits.open_bodies_max = 1;
    let fetcher = resolver(options).fetcher(&server.reference()).await.unwrap();
    for _ in 0..5 {
        let mut body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
        assert!(body.chunk().await.unwrap().is_some());
    }
    let body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
    assert_eq!(body.collect(1 << 20).await.unwrap(), bytes);
}

#[tokio::test]
async fn case_32_lists_end_and_stay_at_home() {
    let endless = Hostile::start(|seen| {
        let link = format!("</v2/team/app/tags/list?n={}>; rel=\"next\"", seen.number);
        Reply::new(200, &[("link", &link)], r#"{"name":"team/app","tags":["a"]}"#)
    })
    .await;
    let mut few = options();
    few.limits.pages_max = 20;
    let error = resolver(few).tags(&endless.reference()).await.unwrap_err();
    assert!(matches!(error, Error::LimitExceeded { .. }), "{error}");
    assert_eq!(endless.count(), 20);

    let circle = Hostile::start(|_| {
        let link = "</v2/team/app/tags/list?n=1>; rel=\"next\"";
        Reply::new(200, &[("link", link)], r#"{"name":"team/app","tags":["a"]}"#)
    })
    .await;
    assert!(resolver(options()).tags(&circle.reference()).await.is_err());
    assert_eq!(circle.count(), 2);

    let abroad = Hostile::start(|_| Reply::status(200)).await;
    let link = format!("<{}>; rel=\"next\"", abroad.url("/"));
    let index = r#"{"schemaVersion":2,"manifests":[]}"#;
    let server = Hostile::start(move |_| Reply::new(200, &[("link", &link)], index)).await;
    let subject = Digest::of(b"subject");
    let found = resolver(options()).referrers(&server.reference(), &subject, &[]).await;
    assert!(matches!(found, Err(Error::Refused { .. })), "{found:?}");
    assert_eq!(abroad.count(), 0);

    let huge = Hostile::start(|seen| match seen.path.contains("/referrers/") {
        true => Reply::status(404),
        false => Reply::ok(vec![b' '; 5 << 20]),
    })
    .await;
    let found = resolver(options()).referrers(&huge.reference(), &subject, &[]).await;
    assert!(matches!(found, Err(Error::LimitExceeded { .. })), "{found:?}");

    let none = Hostile::start(|_| Reply::status(404)).await;
    let found = resolver(options()).referrers(&none.reference(), &subject, &[]).await;
    assert_eq!(found.unwrap(), []);
    let tag = none.requests().pop().unwrap().path;
    assert_eq!(tag, format!("/v2/team/app/manifests/sha256-{}", subject.hex()));
}

#[tokio::test]
async fn foreign_urls_are_off_by_default_and_never_get_secrets() {
    let bytes = noise(22, 100);
    let content = bytes.clone();
    let evil = Hostile::start(move |seen| match seen.number {
        0 => Reply::unauthorized("Basic realm=evil"),
        _ => Reply::ok(&content),
    })
    .await;
    let server = Hostile::start(|seen| match seen.header("authorization").is_empty() {
        true => Reply::unauthorized("Basic realm=x"),
        false => Reply::status(404),
    })
    .await;
    let mut descriptor = layer(&bytes);
    descriptor.urls.push(evil.url("/layer"));
    let error = fetch_with(login(&server), &server, &descriptor).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(evil.count(), 0);
    let mut allowed = login(&server);
    allowed.foreign_urls = true;
    assert!(fetch_with(allowed, &server, &descriptor).await.is_err());
    assert_eq!(evil.count(), 1);
    assert!(!evil.got_secrets());
}

/// A host whose mirror is described by `mirror`, and whose last resort is `origin`.
fn described(mirror: &str, origin: &Hostile) -> (RegistryOptions, TempDir) {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("registry.example")).unwrap();
    describe(&dir, mirror, origin);
    let mut options = options();
    options.hosts = Hosts::directory(dir.path());
    (options, dir)
}

fn describe(dir: &TempDir, mirror: &str, origin: &Hostile) {
    let toml = format!("server = \"{}\"\n{mirror}", origin.url(""));
    // Replaced whole, as those do who change it while it is in use.
    let (new, path) = (dir.path().join("new"), dir.path().join("registry.example/hosts.toml"));
    std::fs::write(&new, toml).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn mirrors_are_asked_only_for_what_they_can_and_with_their_own_headers() {
    let bytes = noise(70, 100);
    let (first, second) = (bytes.clone(), bytes.clone());
    let mirror = Hostile::start(move |_| Reply::ok(&first)).await;
    let digest = Digest::of(&bytes).to_string();
    let origin = Hostile::start(move |seen| {
        let kind = ("content-type", media_type::OCI_MANIFEST);
        match (seen.method.as_str(), seen.path.contains("/blobs/uploads/")) {
            ("POST", true) => Reply::new(202, &[("location", "/v2/team/app/blobs/uploads/x")], ""),
            ("PUT", _) => Reply::status(201),
            ("HEAD", _) if seen.path.contains("/blobs/") => Reply::status(404),
            ("HEAD", _) => Reply::head(
                200,
                &[kind, ("docker-content-digest", &digest), ("content-length", "100")],
            ),
            _ => Reply::ok(&second),
        }
    })
    .await;
    let table = format!(
        "[host.\"{}\"]\ncapabilities = [\"pull\"]\noverride_path = true\n\
         [host.\"{}\".header]\nx-mirror = [\"a\", \"b\"]\n",
        mirror.url("/some/path"),
        mirror.url("/some/path"),
    );
    let (options, _dir) = described(&table, &origin);
    let client = resolver(options);
    let reference = "registry.example/team/app:v1".parse().unwrap();
    client.resolve(&reference).await.unwrap();
    assert_eq!((mirror.count(), origin.count()), (0, 1), "it cannot resolve");
    let fetcher = client.fetcher(&reference).await.unwrap();
    let body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
    assert_eq!(body.collect(1 << 20).await.unwrap(), bytes);
    assert_eq!((mirror.count(), origin.count()), (1, 1), "it can pull");
    let seen = &mirror.requests()[0];
    let digest = Digest::of(&bytes);
    assert_eq!(seen.path, format!("/some/path/team/app/blobs/{digest}?ns=registry.example"));
    assert!(seen.headers.contains_key("x-mirror") && seen.headers.contains_key("x-own"));
    let pusher = client.pusher(&reference).await.unwrap();
    assert_eq!(pusher.push(&layer(&bytes), &bytes).await.unwrap(), Pushed::Uploaded);
    assert_eq!(mirror.count(), 1, "it cannot push");
    assert!(origin.requests().iter().all(|seen| !seen.headers.contains_key("x-mirror")));
}

#[tokio::test]
async fn a_changed_configuration_counts_from_the_next_request_on() {
    let bytes = noise(71, 100);
    let serve = |content: bytes::Bytes| Hostile::start(move |_| Reply::ok(&content));
    let (first, second) = (serve(bytes.clone()).await, serve(bytes.clone()).await);
    let origin = serve(bytes.clone()).await;
    let table = |mirror: &Hostile, more: &str| format!("[host.\"{}\"]\n{more}", mirror.url(""));
    let (options, dir) = described(&table(&first, ""), &origin);
    let client = resolver(options);
    let reference = "registry.example/team/app:v1".parse().unwrap();
    let fetch = async || {
        let fetcher = client.fetcher(&reference).await?;
        fetcher.fetch(&layer(&bytes), 0).await?.collect(1 << 20).await
    };
    fetch().await.unwrap();
    fetch().await.unwrap();
    assert_eq!((first.count(), second.count()), (2, 0));
    describe(&dir, &table(&second, "skip_verify = true\n"), &origin);
    fetch().await.unwrap();
    assert_eq!((first.count(), second.count()), (2, 1));
    describe(&dir, &table(&second, "\nskip_verfy = true\n"), &origin);
    let error = fetch().await.unwrap_err();
    assert!(matches!(error, Error::Config { line: 4, .. }), "{error}");
    assert!(error.to_string().contains("skip_verfy"), "{error}");
    describe(&dir, "", &origin);
    fetch().await.unwrap();
    assert_eq!((second.count(), origin.count()), (1, 1));
}

#[tokio::test]
async fn an_upload_is_mounted_from_the_nearest_repository_or_sent() {
    let bytes = noise(72, 100);
    for mounts in [true, false] {
        let server = Hostile::start(move |seen| match (seen.method.as_str(), mounts) {
            ("HEAD", _) => Reply::status(404),
            ("POST", true) => Reply::status(201),
            ("POST", false) => {
                Reply::new(202, &[("location", "/v2/team/app/blobs/uploads/x?state=a%2Fb")], "")
            }
            _ => Reply::status(201),
        })
        .await;
        let mut mountable = layer(&bytes);
        let key = format!("containerd.io/distribution.source.{}", server.address);
        mountable.annotations.insert(key, "far/away,team/other/deep,team/other".into());
        let pusher = resolver(options()).pusher(&server.reference()).await.unwrap();
        let pushed = pusher.push(&mountable, &bytes).await.unwrap();
        let post = server.requests().into_iter().find(|seen| seen.method == "POST").unwrap();
        assert!(post.path.contains("from=team%2Fother"), "{}", post.path);
        if mounts {
            assert!(matches!(pushed, Pushed::Mounted { .. }));
            continue;
        }
        assert_eq!(pushed, Pushed::Uploaded);
        let put = server.requests().pop().unwrap();
        assert!(put.path.starts_with("/v2/team/app/blobs/uploads/x?state=a%2Fb&digest=sha256"));
        assert_eq!(put.body, bytes);
    }
}

#[tokio::test]
async fn referrers_are_listed_over_pages_filtered_here_and_found_by_tag_elsewhere() {
    let entry = |kind: &str, seed: u64| {
        let mut entry = Descriptor::of(media_type::OCI_MANIFEST, &noise(seed, 10));
        entry.artifact_type = Some(kind.to_owned());
        entry
    };
    let index = |manifests: &[Descriptor]| {
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests,
        });
        index.to_string()
    };
    let (wanted, other, late) = (entry("kind/a", 80), entry("kind/b", 81), entry("kind/a", 82));
    let subject = Digest::of(b"subject");

    // It ignores the filter and has two pages.
    let (first, second) =
        (index(&[wanted.clone(), other.clone()]), index(std::slice::from_ref(&late)));
    let server = Hostile::start(move |seen| match seen.path.contains("page=2") {
        true => Reply::ok(&second),
        false => Reply::new(200, &[("link", "<?page=2>; rel=\"next\"")], &first),
    })
    .await;
    let client = resolver(options());
    let found = client.referrers(&server.reference(), &subject, &["kind/a"]).await.unwrap();
    assert_eq!(found, [wanted.clone(), late]);
    let asked = &server.requests()[0].path;
    assert!(asked.ends_with(&format!("/referrers/{subject}?artifactType=kind%2Fa")), "{asked}");

    // One that knows no referrers keeps them under a tag made from the digest.
    let tagged = index(&[other.clone(), wanted.clone()]);
    let tag = format!("/v2/team/app/manifests/sha256-{}", subject.hex());
    let server = Hostile::start(move |seen| match seen.path == tag {
        true => Reply::new(200, &[("content-type", media_type::OCI_INDEX)], &tagged),
        false => Reply::status(404),
    })
    .await;
    let found = client.referrers(&server.reference(), &subject, &[]).await.unwrap();
    assert_eq!(found, [other, wanted.clone()]);
    let found = client.referrers(&server.reference(), &subject, &["kind/a"]).await.unwrap();
    assert_eq!(found, [wanted]);
}
