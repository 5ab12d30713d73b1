//! How a registry resolver behaves.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::credentials::{Anonymous, Credentials};
use super::proxy::Proxies;
use super::quota::Quota;
use crate::document::DocumentLimits;

/// Everything a [`RegistryResolver`](super::RegistryResolver) needs to know.
#[derive(Clone)]
#[non_exhaustive]
pub struct RegistryOptions {
    /// Which endpoints stand for which host.
    pub hosts: Hosts,
    /// Who we are.
    pub credentials: Arc<dyn Credentials>,
    /// Headers added to every request to a registry, never to other hosts.
    pub headers: Vec<(String, String)>,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// Bounds on what the other side may make us hold.
    pub limits: Limits,
    /// Connections and memory shared with other resolvers, instead of those of `limits` for this
    /// one alone.
    pub quota: Option<Quota>,
    /// Bounds on how long the other side may make us wait.
    pub timeouts: Timeouts,
    /// Proxies on the way out; those of the environment unless set.
    pub proxies: Proxies,
    /// PEM bundles of further certificate authorities, beside the system's.
    pub ca_pem: Vec<Vec<u8>>,
    /// Hosts (`name[:port]`) that may receive credentials as token servers although they are not
    /// of the registry's own site.
    pub trusted_realms: Vec<String>,
    /// Whether the `urls` of descriptors are tried, without credentials. They come from
    /// untrusted documents, so the default is no.
    pub foreign_urls: bool,
}

impl RegistryOptions {
    /// The defaults for anonymous use: https, the system's certificate authorities.
    pub fn new() -> Self {
        Self {
            hosts: Hosts::default(),
            credentials: Arc::new(Anonymous),
            headers: Vec::new(),
            user_agent: concat!("containerd/", env!("CARGO_PKG_VERSION"), "+crated").into(),
            limits: Limits::default(),
            quota: None,
            timeouts: Timeouts::default(),
            proxies: Proxies::environment(),
            ca_pem: Vec::new(),
            trusted_realms: Vec::new(),
            foreign_urls: false,
        }
    }

    /// The same with other hosts.
    #[must_use]
    pub fn with_hosts(mut self, hosts: Hosts) -> Self {
        self.hosts = hosts;
        self
    }

    /// The same with credentials.
    #[must_use]
    pub fn with_credentials(mut self, credentials: impl Credentials + 'static) -> Self {
        self.credentials = Arc::new(credentials);
        self
    }
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may carry secrets, so only their names appear.
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("RegistryOptions")
            .field("hosts", &self.hosts)
            .field("headers", &headers)
            .field("limits", &self.limits)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// Which endpoints stand for a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hosts {
    /// Directories with one sub-directory per host, searched in order; the first that has the
    /// host decides. Each may hold a `hosts.toml`, or certificates alone.
    pub directories: Vec<PathBuf>,
    /// Plain http for hosts that no directory describes. Hosts on the loopback interface fall
    /// back to http by themselves.
    pub plain_http: bool,
    /// No verification of certificates for hosts that no directory describes.
    pub skip_verify: bool,
}

impl Hosts {
    /// Plain http everywhere.
    pub fn plain_http() -> Self {
        Self { plain_http: true, ..Self::default() }
    }

    /// Endpoints from a directory tree.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self { directories: vec![path.into()], ..Self::default() }
    }
}

/// Bounds on what the other side may make us hold or do. Each is an error when passed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bounds on manifests, indexes and configurations.
    pub documents: DocumentLimits,
    /// Connections with an open body at the same time; further fetches wait.
    pub open_bodies_max: usize,
    /// The same for one endpoint.
    pub host_bodies_max: usize,
    /// Bytes of one range of a large blob. Blobs of at least two are fetched in ranges from
    /// servers that allow it.
    pub range_bytes: u64,
    /// Ranges of one blob that are fetched at once; one turns ranges off.
    pub parts_max: usize,
    /// Bytes of all blobs that were fetched ahead of their reader, in memory. At least one range.
    pub ahead_bytes_max: u64,
    /// In bytes per second: when the first range of a blob comes at least this fast, one
    /// connection reads the rest. Zero turns ranges off.
    pub parts_below_rate: u64,
    /// Pages of tags, repositories or referrers.
    pub pages_max: usize,
    /// Entries over all pages.
    pub entries_max: usize,
    /// Bytes of one upload request when a registry demands chunks.
    pub upload_chunk_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            documents: DocumentLimits::default(),
            // Two layers for each of a handful of concurrent pulls; more only splits bandwidth.
            open_bodies_max: 16,
            // What one client is commonly granted before a server makes it wait.
            host_bodies_max: 12,
            // Long enough that the wait for its first byte hardly matters; short enough that what
            // was fetched ahead, and is lost with the process, stays below 8 MiB of one blob.
            range_bytes: 2 << 20,
            parts_max: 4,
            ahead_bytes_max: 16 << 20,
            // A gigabit link is filled by one connection at this rate.
            parts_below_rate: 100 << 20,
            // At the usual hundred entries per page this is more than any tool can show.
            pages_max: 1_000,
            entries_max: 100_000,
            // Registries behind object stores want parts of at least 5 MiB.
            upload_chunk_bytes: 16 << 20,
        }
    }
}

/// Bounds on how long the other side may make us wait.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// Until a TCP connection and its TLS handshake are made.
    pub connect: Duration,
    /// From the end of a request to the status line of its answer.
    pub header: Duration,
    /// Between two pieces of a body.
    pub stall: Duration,
    /// The slowest body that is still waited for, in bytes per second over `rate_window`; a
    /// slower one is re-opened once and then given up. Zero turns this off.
    pub rate_min_bytes: u64,
    /// Over how long the rate is measured.
    pub rate_window: Duration,
    /// The longest `Retry-After` that is obeyed; a longer one counts as this much.
    pub retry_after_max: Duration,
    /// How long a credential helper may take.
    pub helper: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            header: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            rate_min_bytes: 1024,
            rate_window: Duration::from_secs(30),
            retry_after_max: Duration::from_secs(20),
            helper: Duration::from_secs(20),
        }
    }
}
