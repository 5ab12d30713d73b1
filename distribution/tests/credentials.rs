//! Stored logins and helpers, and that no secret ever shows.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crated_distribution::testsuite::MemoryRegistry;
use crated_distribution::{
    Credential, DockerConfig, Error, Hosts, RegistryOptions, RegistryResolver, Resolver as _,
    Secret, Static,
};
use support::hostile::{Hostile, Reply, options};
use tempfile::TempDir;

mod support;

struct Home {
    dir: TempDir,
}

impl Home {
    fn new(config: &str) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        Self { dir }
    }

    fn helper(self, name: &str, script: &str) -> Self {
        let path = self.dir.path().join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn config(&self, deadline: Duration) -> DockerConfig {
        DockerConfig::new(self.dir.path().join("config.json"), deadline)
            .with_helper_path(self.dir.path())
    }

    /// What a server that asks for basic authorization gets to see.
    async fn ask(&self, deadline: Duration) -> (Result<(), Error>, Vec<String>) {
        let server = Hostile::start(|seen| match seen.header("authorization") {
            "" => Reply::unauthorized("Basic realm=x"),
            _ => Reply::status(404),
        })
        .await;
        let text = std::fs::read_to_string(self.dir.path().join("config.json")).unwrap();
        let host = server.address.to_string();
        std::fs::write(self.dir.path().join("config.json"), text.replace("HOST", &host)).unwrap();
        let options = options().with_credentials(self.config(deadline));
        let resolver = RegistryResolver::new(options).unwrap();
        let found = resolver.resolve(&server.reference()).await;
        let seen = server.requests();
        let sent = seen.iter().map(|seen| seen.header("authorization").to_owned());
        (found.map(drop), sent.filter(|header| !header.is_empty()).collect())
    }
}

const LONG: Duration = Duration::from_secs(60);
/// `alice:canary`.
const ALICE: &str = "YWxpY2U6Y2FuYXJ5";

#[tokio::test]
async fn stored_logins_and_helpers_answer_for_their_host() {
    let answer = r#"echo '{"Username":"alice","Secret":"canary"}'"#;
    let absent = "echo 'credentials not found in native keychain'; exit 1";
    for home in [
        Home::new(&format!(r#"{{"auths":{{"HOST":{{"auth":"{ALICE}"}}}}}}"#)),
        Home::new(r#"{"credHelpers":{"HOST":"x"}}"#).helper("x", answer),
        Home::new(r#"{"credsStore":"x"}"#).helper("x", answer),
        Home::new(&format!(r#"{{"auths":{{"HOST":{{"auth":"{ALICE}"}}}},"credsStore":"x"}}"#))
            .helper("x", absent),
    ] {
        let (found, sent) = home.ask(LONG).await;
        assert!(found.unwrap_err().is_not_found());
        assert_eq!(sent[0], format!("Basic {ALICE}"));
    }
}

#[tokio::test]
async fn case_19_a_helper_that_fails_fails_its_host_alone_and_tells_nothing() {
    let other = format!(
        r#"{{"auths":{{"elsewhere.example":{{"auth":"{ALICE}"}}}},"credHelpers":{{"HOST":"x"}}}}"#
    );
    for script in [
        "echo canary >&2; exit 1",
        "echo canary; exit 3",
        "exit 0",
        "echo '{}'",
        "echo '{\"Username\":\"u\",\"Secret\":\"\"}'",
        "head -c 1000000 /dev/zero",
    ] {
        let (found, sent) = Home::new(&other).helper("x", script).ask(LONG).await;
        let error = found.unwrap_err();
        assert!(matches!(error, Error::Credentials { .. }), "{script}: {error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        assert!(sent.is_empty(), "{script}");
    }
    let hanging = Home::new(&other).helper("x", "exec sleep 60");
    let started = Instant::now();
    let (found, sent) = hanging.ask(Duration::from_millis(300)).await;
    assert!(matches!(found, Err(Error::Credentials { .. })) && sent.is_empty());
    assert!(started.elapsed() < Duration::from_secs(60));
    let (found, _) = Home::new(r#"{"credHelpers":{"HOST":"../x"}}"#).ask(LONG).await;
    assert!(matches!(found, Err(Error::Credentials { .. })));
    let (found, _) = Home::new("canary{").ask(LONG).await;
    let error = found.unwrap_err();
    assert!(matches!(error, Error::Config { .. }) && !error.to_string().contains("canary"));
}

#[tokio::test]
async fn nothing_known_means_anonymous() {
    let registry = MemoryRegistry::start().await.unwrap();
    let config = DockerConfig::new("/nonexistent/config.json", LONG);
    let options = RegistryOptions::new().with_hosts(Hosts::plain_http()).with_credentials(config);
    let resolver = RegistryResolver::new(options).unwrap();
    let error = resolver.resolve(&registry.reference("a/b:c")).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

/// Keeps every event and span of the program as text.
struct Recorder(Arc<Mutex<String>>);

impl tracing::Subscriber for Recorder {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, attributes: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        self.0.lock().unwrap().push_str(&format!("{attributes:?}\n"));
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        self.0.lock().unwrap().push_str(&format!("{values:?}\n"));
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        self.0.lock().unwrap().push_str(&format!("{event:?}\n"));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn case_31_secrets_show_in_no_log_no_error_and_no_debug() {
    let log = Arc::new(Mutex::new(String::new()));
    let guard = tracing::subscriber::set_default(Recorder(log.clone()));
    let storage = Hostile::start(|_| Reply::status(500)).await;
    let target = storage.url("/blob?signature=canary");
    let server = Hostile::start(move |seen| {
        if seen.path.starts_with("/token") {
            return match seen.number % 2 {
                0 => Reply::new(400, &[], "canary"),
                _ => Reply::ok(r#"{"token":"canary","expires_in":1}"#),
            };
        }
        if seen.header("authorization").is_empty() {
            let host = seen.header("host");
            return Reply::unauthorized(&format!(r#"Bearer realm="http://{host}/token?k=canary""#));
        }
        Reply::redirect(&target)
    })
    .await;
    let mut shown = String::new();
    for credential in [
        Credential::new("alice", "canary"),
        Credential::new("", "canary"),
        Credential::Header(Secret::new("Custom canary")),
    ] {
        shown.push_str(&format!("{credential:?}"));
        let host = server.address.to_string();
        let options = options().with_credentials(Static::new(host, credential));
        shown.push_str(&format!("{options:?}"));
        let resolver = RegistryResolver::new(options).unwrap();
        shown.push_str(&format!("{resolver:?}"));
        let error = resolver.resolve(&server.reference()).await.unwrap_err();
        shown.push_str(&format!("{error} {error:?}"));
        let fetcher = resolver.fetcher(&server.reference()).await.unwrap();
        let layer = crated_distribution::Descriptor::of("x", b"x");
        let error = fetcher.fetch(&layer, 0).await.unwrap_err();
        shown.push_str(&format!("{error} {error:?}"));
    }
    drop(guard);
    assert!(server.got_secrets(), "the test itself must have sent them");
    let log = log.lock().unwrap();
    assert!(log.contains("trying again"), "the log must have been on");
    for text in [&shown, &*log] {
        assert!(!text.contains("canary"), "{text}");
    }
}
