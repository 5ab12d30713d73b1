//! A daemon in this process, on directories of its own, and a client of it.
#![allow(dead_code, unreachable_pub, reason = "every test uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crated::Running;
use crated::config::{Config, Span};
use crated_api::services::content::v1::content_client::ContentClient;
use crated_api::services::content::v1::{WriteAction, WriteContentRequest};
use hyper_util::rt::TokioIo;
use prost_types::FieldMask;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// A running daemon. Its directories go when it is dropped.
pub struct Fixture {
    pub running: Running,
    pub channel: Channel,
    pub directory: Arc<TempDir>,
}

/// A configuration below `directory`.
pub fn config(directory: &Path) -> Config {
    let mut config = Config::default();
    config.root = directory.join("root");
    config.state = directory.join("state");
    config.grpc.address = directory.join("c.sock");
    // The sockets belong to whoever runs the test.
    let owner = std::fs::metadata(directory).unwrap();
    config.grpc.uid = std::os::unix::fs::MetadataExt::uid(&owner);
    config.grpc.gid = std::os::unix::fs::MetadataExt::gid(&owner);
    config.ttrpc.uid = config.grpc.uid;
    config.ttrpc.gid = config.grpc.gid;
    // What a test stores is referred to by nothing: only collections it asks for may take it.
    config.plugins.gc.mutation_threshold = 0;
    config.plugins.gc.startup_delay = Span(std::time::Duration::from_secs(3600));
    config.crated.drain_timeout = Span(std::time::Duration::from_secs(2));
    config
}

impl Fixture {
    /// Starts a daemon on empty directories.
    pub async fn start() -> Self {
        let directory = Arc::new(TempDir::new().unwrap());
        Self::start_on(directory).await
    }

    /// Starts a daemon on directories that an earlier one may have used.
    pub async fn start_on(directory: Arc<TempDir>) -> Self {
        Self::start_configured(directory, |_| ()).await
    }

    /// Starts a daemon with a configuration that differs from what tests use otherwise.
    pub async fn start_configured(
        directory: Arc<TempDir>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = config(directory.path());
        change(&mut config);
        let address = config.grpc.address.clone();
        let mut running = crated::start(config.clone()).await;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        // What the one before did in the background, in this same process, may take a moment to end.
        while matches!(running, Err(crated::error::Error::RootBusy { .. }))
            && std::time::Instant::now() < deadline
        {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            running = crated::start(config.clone()).await;
        }
        Self { running: running.unwrap(), channel: connect(address).await, directory }
    }

    /// Stops the daemon and starts another on the same directories.
    pub async fn restart(self) -> Self {
        let Self { running, channel, directory } = self;
        drop(channel);
        running.stop().await.unwrap();
        Self::start_on(directory).await
    }

    pub fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
    }

    /// Stores `data` in `namespace` and returns its digest.
    pub async fn store(&self, namespace: &str, data: &[u8]) -> String {
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: format!("store-{}", data.len()),
            data: data.to_vec().into(),
            ..WriteContentRequest::default()
        };
        let request = in_namespace(namespace, tokio_stream::iter([message]));
        let mut answers = self.content().write(request).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap().digest
    }
}

/// A client of the daemon at `address`.
pub async fn connect(address: PathBuf) -> Channel {
    let dial = tower::service_fn(move |_| {
        let address = address.clone();
        async move { UnixStream::connect(address).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(dial).await.unwrap()
}

/// A call in a namespace.
pub fn in_namespace<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
    request
}

/// A call in a namespace under a lease.
pub fn with_lease<T>(namespace: &str, lease: &str, message: T) -> Request<T> {
    let mut request = in_namespace(namespace, message);
    request.metadata_mut().insert("containerd-lease", lease.parse().unwrap());
    request
}

pub fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
}

pub fn labels(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Waits until something holds, for a minute at most.
pub async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !holds().await {
        assert!(std::time::Instant::now() < deadline, "waited a minute until {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Writes the `config.toml` of a daemon below `directory` whose socket is `c.sock`.
pub fn write_config(directory: &Path) {
    let at = |name: &str| directory.join(name).display().to_string();
    let text = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n",
        at("root"),
        at("state"),
        at("c.sock"),
    );
    std::fs::write(directory.join("config.toml"), text).unwrap();
}
