//! Against the registry of the distribution project, as it is installed here.

mod support;

use crated_distribution::{
    Credential, Error, Hosts, Pushed, RegistryOptions, Resolver as _, Static, Verifier,
};
use support::token_server::{Behaviour, TokenServer};
use support::{Certificates, Image, REGISTRY, Registry, noise, resolver};
use tempfile::TempDir;

/// `opensesame`, hashed for `alice`.
const HTPASSWD: &str = "alice:$2b$04$fLMVxPkKKmHUYzTwkY/vh.wxVGmDGt15ssB63j1TH9m0d2GHSR16.\n";

#[tokio::test]
async fn an_image_pushed_anonymously_over_http_comes_back_the_same() {
    require!(REGISTRY);
    let registry = Registry::start();
    let reference = registry.reference("team/app:v1");
    let image = Image::new(1, &[100, 3 << 20]);
    for hosts in [Hosts::plain_http(), Hosts::default()] {
        // Without any option, https is tried first and http after it, since it is loopback.
        let resolver = resolver(RegistryOptions::new().with_hosts(hosts));
        image.push(&*resolver.pusher(&reference).await.unwrap()).await;
        image.assert_pulls(&resolver, &reference).await;
    }
}

#[tokio::test]
async fn a_fetch_from_the_middle_gives_the_rest() {
    require!(REGISTRY);
    let registry = Registry::start();
    let reference = registry.reference("team/app:v1");
    let image = Image::new(2, &[1 << 20]);
    let resolver = resolver(RegistryOptions::new().with_hosts(Hosts::plain_http()));
    image.push(&*resolver.pusher(&reference).await.unwrap()).await;
    let fetcher = resolver.fetcher(&reference).await.unwrap();
    let (layer, bytes) = &image.blobs[1];
    let body = fetcher.fetch(layer, 700_001).await.unwrap();
    assert_eq!(body.len_bytes(), (1 << 20) - 700_001);
    assert_eq!(body.collect(u64::MAX).await.unwrap(), bytes.slice(700_001..));
    let end = fetcher.fetch(layer, 1 << 20).await.unwrap();
    assert_eq!(end.collect(0).await.unwrap().len(), 0);
    assert!(matches!(fetcher.fetch(layer, 1 << 21).await, Err(Error::InvalidArgument { .. })));
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    require!(REGISTRY);
    let registry = Registry::start();
    let resolver = resolver(RegistryOptions::new().with_hosts(Hosts::plain_http()));
    let error = resolver.resolve(&registry.reference("no/app:v1")).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let absent = Image::new(3, &[10]);
    let fetcher = resolver.fetcher(&registry.reference("no/app:v1")).await.unwrap();
    let error = fetcher.fetch(&absent.blobs[1].0, 0).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    let error = resolver.resolve(&registry.reference("no/app")).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
}

#[tokio::test]
async fn content_that_is_there_is_not_sent_again_and_is_mounted_from_next_door() {
    require!(REGISTRY);
    let registry = Registry::start();
    let resolver = resolver(RegistryOptions::new().with_hosts(Hosts::plain_http()));
    let image = Image::new(4, &[5000]);
    let (layer, bytes) = &image.blobs[1];
    let first = resolver.pusher(&registry.reference("team/one:v1")).await.unwrap();
    assert_eq!(first.push(layer, bytes).await.unwrap(), Pushed::Uploaded);
    assert_eq!(first.push(layer, bytes).await.unwrap(), Pushed::AlreadyExists);
    let second = resolver.pusher(&registry.reference("team/two:v1")).await.unwrap();
    let mut mountable = layer.clone();
    let key = format!("containerd.io/distribution.source.{}", registry.host());
    mountable.annotations.insert(key, "other/far,team/one".into());
    let pushed = second.push(&mountable, bytes).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted { from: "team/one".into() });
}

#[tokio::test]
async fn a_source_that_is_not_what_it_promises_is_not_stored() {
    require!(REGISTRY);
    let registry = Registry::start();
    let resolver = resolver(RegistryOptions::new().with_hosts(Hosts::plain_http()));
    let pusher = resolver.pusher(&registry.reference("team/app:v1")).await.unwrap();
    let image = Image::new(5, &[5000]);
    let layer = &image.blobs[1].0;
    for wrong in [noise(77, 4999), noise(77, 5001), noise(77, 5000)] {
        assert!(pusher.push(layer, &wrong).await.is_err());
    }
    assert!(pusher.push(&image.root, &noise(1, 10)).await.is_err());
    let fetcher = resolver.fetcher(&registry.reference("team/app:v1")).await.unwrap();
    assert!(fetcher.fetch(layer, 0).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn only_the_pinned_manifest_gets_the_tag() {
    require!(REGISTRY);
    let registry = Registry::start();
    let resolver = resolver(RegistryOptions::new().with_hosts(Hosts::plain_http()));
    let (child, root) = (Image::new(6, &[10]), Image::new(7, &[20]));
    let tag = registry.reference("team/app:latest");
    let pusher = resolver.pusher(&tag.with_digest(root.root.digest.clone())).await.unwrap();
    root.push(&*pusher).await;
    child.push(&*pusher).await;
    root.assert_pulls(&resolver, &tag).await;
    child.assert_pulls(&resolver, &tag.with_digest(child.root.digest.clone())).await;
}

#[tokio::test]
async fn tls_is_verified_against_the_given_authority_and_errors_say_why_not() {
    require!(REGISTRY);
    require!("openssl");
    let certificates = Certificates::new();
    let http = format!(
        "tls:\n  certificate: {}\n  key: {}",
        certificates.path("server.pem").display(),
        certificates.path("server.key").display()
    );
    let registry = Registry::start_with(TempDir::new().unwrap(), &http, "");
    let reference = registry.reference("team/app:v1");
    let image = Image::new(8, &[1 << 20]);
    let mut options = RegistryOptions::new();
    options.ca_pem.push(certificates.read("ca.pem"));
    let trusting = resolver(options);
    image.push(&*trusting.pusher(&reference).await.unwrap()).await;
    image.assert_pulls(&trusting, &reference).await;

    let mut careless = Hosts::default();
    careless.skip_verify = true;
    let careless = resolver(RegistryOptions::new().with_hosts(careless));
    image.assert_pulls(&careless, &reference).await;

    let strict = resolver(RegistryOptions::new());
    let error = strict.resolve(&reference).await.unwrap_err().to_string();
    let wanted = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    assert!(error.contains(wanted), "{error}");
}

#[tokio::test]
async fn a_registry_without_tls_is_named_so_when_https_is_wanted() {
    require!(REGISTRY);
    let registry = Registry::start();
    let resolver = resolver(RegistryOptions::new());
    // A name that is not loopback by itself, so that there is no way back to http.
    let dir = TempDir::new().unwrap();
    let host = dir.path().join(format!("127.0.0.1_{}_", registry.port));
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("hosts.toml"), format!("server = \"https://{}\"\n", registry.host()))
        .unwrap();
    let https = support::resolver(RegistryOptions::new().with_hosts(Hosts::directory(dir.path())));
    let error = https.resolve(&registry.reference("a/b:c")).await.unwrap_err().to_string();
    assert!(error.contains("http: server gave HTTP response to HTTPS client"), "{error}");
    drop(registry);
    let gone: crated_distribution::Reference = "127.0.0.1:9/a/b:c".parse().unwrap();
    let error = resolver.resolve(&gone).await.unwrap_err().to_string();
    assert!(error.contains("connect: connection refused"), "{error}");
}

#[tokio::test]
async fn basic_authorization_is_answered_and_wrong_passwords_are_denied() {
    require!(REGISTRY);
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("htpasswd");
    std::fs::write(&file, HTPASSWD).unwrap();
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display());
    let registry = Registry::start_with(dir, "", &auth);
    let reference = registry.reference("team/app:v1");
    let with = |password: &str| {
        let login = Static::new(registry.host(), Credential::new("alice", password));
        let options = RegistryOptions::new().with_hosts(Hosts::plain_http());
        resolver(options.with_credentials(login))
    };
    let image = Image::new(9, &[1 << 20]);
    let right = with("opensesame");
    image.push(&*right.pusher(&reference).await.unwrap()).await;
    image.assert_pulls(&right, &reference).await;
    let anonymous = resolver(RegistryOptions::new().with_hosts(Hosts::plain_http()));
    for denied in [with("sesame"), anonymous] {
        let error = denied.resolve(&reference).await.unwrap_err();
        assert!(error.is_denied(), "{error}");
        let text = error.to_string();
        assert!(text.contains("denied") && text.contains("unauthorized"), "{text}");
        assert!(!text.contains("sesame"), "{text}");
    }
}

async fn with_tokens(behaviour: Behaviour) -> (Registry, TokenServer, Certificates) {
    let certificates = Certificates::new();
    let server = TokenServer::start(&certificates, behaviour).await;
    let auth = format!(
        "auth:\n  token:\n    realm: {}\n    service: test service\n    issuer: test issuer\n    \
         rootcertbundle: {}\n",
        server.realm(),
        certificates.path("ca.pem").display()
    );
    let registry = tokio::task::spawn_blocking(move || {
        Registry::start_with(TempDir::new().unwrap(), "", &auth)
    });
    (registry.await.unwrap(), server, certificates)
}

fn token_options(server: &TokenServer) -> RegistryOptions {
    let mut options = RegistryOptions::new().with_hosts(Hosts::plain_http());
    options.trusted_realms.push(server.address.to_string());
    options
}

#[tokio::test]
async fn tokens_are_fetched_once_per_scope_anonymously() {
    require!(REGISTRY);
    require!("openssl");
    let (registry, server, _certificates) = with_tokens(Behaviour::default()).await;
    let reference = registry.reference("team/app:v1");
    // Nothing secret is sent, so the token server need not be trusted.
    let resolver = resolver(RegistryOptions::new().with_hosts(Hosts::plain_http()));
    let image = Image::new(10, &[1000, 2000, 3000]);
    image.push(&*resolver.pusher(&reference).await.unwrap()).await;
    image.assert_pulls(&resolver, &reference).await;
    let requests = server.requests();
    assert_eq!(requests, ["GET repository:team/app:pull,push", "GET repository:team/app:pull"],);
}

#[tokio::test]
async fn passwords_and_refresh_tokens_are_exchanged_for_tokens() {
    require!(REGISTRY);
    require!("openssl");
    let login = Some(("alice".to_owned(), "opensesame".to_owned()));
    let refresh = Some("refresher".to_owned());
    for (at, post_status) in
        [None, Some(405), Some(404), Some(401), Some(400)].into_iter().enumerate()
    {
        let behaviour = Behaviour {
            post_status,
            login: login.clone(),
            refresh: refresh.clone(),
            ..Default::default()
        };
        let (registry, server, _certificates) = with_tokens(behaviour).await;
        let reference = registry.reference("team/app:v1");
        let image = Image::new(11 + at as u64, &[1000]);
        let mut credentials = vec![Credential::new("alice", "opensesame")];
        if post_status.is_none() {
            credentials.push(Credential::new("", "refresher"));
        }
        for credential in credentials {
            let login = Static::new(registry.host(), credential);
            let resolver = resolver(token_options(&server).with_credentials(login));
            image.push(&*resolver.pusher(&reference).await.unwrap()).await;
            image.assert_pulls(&resolver, &reference).await;
        }
        let login = Static::new(registry.host(), Credential::new("alice", "sesame"));
        let wrong = resolver(token_options(&server).with_credentials(login));
        let error = wrong.resolve(&reference).await.unwrap_err();
        assert!(error.is_denied(), "{error}");
        if let Some(status) = post_status {
            let first = &server.requests()[..2];
            assert!(first[0].starts_with("POST") && first[1].starts_with("GET"), "{status}");
        }
    }
}

#[tokio::test]
async fn case_18_a_token_that_expired_is_replaced_without_anyone_noticing() {
    require!(REGISTRY);
    require!("openssl");
    let behaviour = Behaviour { expires_in: Some(0.2.into()), ..Default::default() };
    let (registry, server, _certificates) = with_tokens(behaviour).await;
    let reference = registry.reference("team/app:v1");
    let resolver = resolver(token_options(&server));
    let image = Image::new(20, &[1000]);
    image.push(&*resolver.pusher(&reference).await.unwrap()).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    image.assert_pulls(&resolver, &reference).await;
    let fetcher = resolver.fetcher(&reference).await.unwrap();
    let (layer, bytes) = &image.blobs[1];
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let body = fetcher.fetch(layer, 0).await.unwrap();
    assert_eq!(Verifier::new(body, layer).unwrap().collect(1 << 20).await.unwrap(), *bytes);
    assert!(server.requests().len() >= 3);
}

#[tokio::test]
async fn case_30_certificates_for_other_names_are_refused_and_ours_is_shown_when_configured() {
    require!(REGISTRY);
    require!("openssl");
    let certificates = Certificates::new();
    certificates.issue("other", "subjectAltName=DNS:other.example", "30");
    certificates.issue("client", "extendedKeyUsage=clientAuth", "30");
    let http = |name: &str| {
        format!(
            "tls:\n  certificate: {}\n  key: {}\n  clientcas:\n    - {}",
            certificates.path(&format!("{name}.pem")).display(),
            certificates.path(&format!("{name}.key")).display(),
            certificates.path("ca.pem").display()
        )
    };
    let wrong = Registry::start_with(TempDir::new().unwrap(), &http("other"), "");
    let mut options = RegistryOptions::new();
    options.ca_pem.push(certificates.read("ca.pem"));
    let trusting = resolver(options);
    let error = trusting.resolve(&wrong.reference("a/b:c")).await.unwrap_err().to_string();
    let wanted = "tls: failed to verify certificate: x509: certificate is not valid for";
    assert!(error.contains(wanted), "{error}");

    let registry = Registry::start_with(TempDir::new().unwrap(), &http("server"), "");
    let reference = registry.reference("team/app:v1");
    let error = trusting.resolve(&reference).await.unwrap_err().to_string();
    // Which of them depends on whether the refusal or the end arrives first.
    let ways = ["client certificate", "remote error: tls", "connection closed"];
    let said = ways.iter().any(|said| error.contains(said));
    assert!(error.contains("https://") && said, "{error}");
    for docker_style in [true, false] {
        let dir = TempDir::new().unwrap();
        let host = dir.path().join(registry.host());
        std::fs::create_dir(&host).unwrap();
        let name = |toml: &str, docker: &str| if docker_style { docker } else { toml }.to_owned();
        for (from, to) in [
            ("ca.pem", name("ca.pem", "ca.crt")),
            ("client.pem", name("us.pem", "client.cert")),
            ("client.key", name("us.key", "client.key")),
        ] {
            std::fs::copy(certificates.path(from), host.join(to)).unwrap();
        }
        if !docker_style {
            let toml = format!(
                "server = \"https://{}\"\nca = \"ca.pem\"\nclient = [[\"us.pem\", \"us.key\"]]\n",
                registry.host()
            );
            std::fs::write(host.join("hosts.toml"), toml).unwrap();
        }
        let hosts = Hosts::directory(dir.path());
        let resolver = resolver(RegistryOptions::new().with_hosts(hosts));
        let image = Image::new(30 + u64::from(docker_style), &[1000]);
        image.push(&*resolver.pusher(&reference).await.unwrap()).await;
        image.assert_pulls(&resolver, &reference).await;
    }
}

#[tokio::test]
async fn tags_and_repositories_are_listed_and_manifests_deleted() {
    require!(REGISTRY);
    let registry = Registry::start();
    let resolver = resolver(RegistryOptions::new().with_hosts(Hosts::plain_http()));
    let image = Image::new(40, &[100]);
    for name in ["team/one:a", "team/one:b", "team/two:a"] {
        let reference = registry.reference(name);
        image.push(&*resolver.pusher(&reference).await.unwrap()).await;
    }
    let one = registry.reference("team/one:a");
    let mut tags = resolver.tags(&one).await.unwrap();
    tags.sort();
    assert_eq!(tags, ["a", "b"]);
    let repositories = resolver.repositories(&registry.host()).await.unwrap();
    assert_eq!(repositories, ["team/one", "team/two"]);
    let pinned = one.with_digest(image.root.digest.clone());
    resolver.delete(&pinned).await.unwrap();
    assert!(resolver.resolve(&one).await.unwrap_err().is_not_found());
    assert!(resolver.delete(&pinned).await.unwrap_err().is_not_found());
    assert!(resolver.tags(&registry.reference("no/such")).await.unwrap_err().is_not_found());
    // This registry has no interface for referrers, and nothing under the tag either.
    let found = resolver.referrers(&one, &image.root.digest, &[]).await.unwrap();
    assert_eq!(found, []);
}

#[tokio::test]
async fn a_registry_that_only_reads_is_read_and_says_so_when_written_to() {
    require!(REGISTRY);
    let registry = Registry::start();
    let client = resolver(RegistryOptions::new().with_hosts(Hosts::plain_http()));
    let image = Image::new(50, &[1000]);
    image.push(&*client.pusher(&registry.reference("team/app:v1")).await.unwrap()).await;
    let registry = registry.into_read_only();
    let reference = registry.reference("team/app:v1");
    image.assert_pulls(&client, &reference).await;
    let other = Image::new(51, &[10]);
    let pusher = client.pusher(&reference).await.unwrap();
    let (layer, bytes) = &other.blobs[1];
    let error = pusher.push(layer, bytes).await.unwrap_err();
    assert!(matches!(error, Error::Status { status: 405, .. }), "{error}");
    assert!(client.delete(&reference).await.is_err());
}

#[tokio::test]
async fn a_large_blob_comes_in_ranges_from_a_real_registry() {
    require!(REGISTRY);
    let registry = Registry::start();
    let mut options = RegistryOptions::new().with_hosts(Hosts::plain_http());
    options.limits.range_bytes = 256 * 1024;
    options.limits.parts_below_rate = u64::MAX;
    options.limits.ahead_bytes_max = 1 << 20;
    let client = resolver(options);
    let reference = registry.reference("team/app:v1");
    let image = Image::new(52, &[3_000_001, 256 * 1024, 512 * 1024]);
    image.push(&*client.pusher(&reference).await.unwrap()).await;
    image.assert_pulls(&client, &reference).await;
}

#[tokio::test]
async fn skopeo_copies_what_we_pushed_and_we_pull_what_it_copied() {
    require!(REGISTRY);
    require!("skopeo");
    let registry = Registry::start();
    let client = resolver(RegistryOptions::new().with_hosts(Hosts::plain_http()));
    let image = Image::new(53, &[1000, 200_000]);
    image.push(&*client.pusher(&registry.reference("team/app:v1")).await.unwrap()).await;
    let output = std::process::Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--preserve-digests"])
        .args(["--src-tls-verify=false", "--dest-tls-verify=false"])
        .arg(format!("docker://{}/team/app:v1", registry.host()))
        .arg(format!("docker://{}/their/copy:v2", registry.host()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image.assert_pulls(&client, &registry.reference("their/copy:v2")).await;
}
