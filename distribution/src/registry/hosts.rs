//! Which endpoints stand for a host.
//!
//! A directory tree may describe hosts, one sub-directory each:
//!
//! ```text
//! <directory>/registry.example_5000_/hosts.toml     the port between underscores, or
//! <directory>/registry.example:5000/hosts.toml      after a colon, or
//! <directory>/registry.example/hosts.toml           for every port
//! <directory>/_default/hosts.toml                   for hosts with no directory of their own
//! <directory>/registry.example/ca.crt               without hosts.toml: certificates alone
//! ```
//!
//! The files are read again once one in the directory changes.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::HeaderMap;
use url::Url;

use super::endpoint::{Capabilities, EndpointOptions};
use super::hosts_toml;
use super::options::Hosts;
use super::origin::is_loopback_host;
use super::tls::{self, TlsOptions};
use crate::error::{Error, Result};

/// The name of Docker Hub in references and configuration.
pub(crate) const HUB_HOST: &str = "docker.io";
/// Where Docker Hub answers.
pub(crate) const HUB_ENDPOINT: &str = "registry-1.docker.io";

/// The host that requests for a host of references go to.
pub(crate) fn address_of(reference_host: &str) -> &str {
    if reference_host.eq_ignore_ascii_case(HUB_HOST) { HUB_ENDPOINT } else { reference_host }
}

/// The endpoints of `host`, best first. Reads files, so it belongs on a thread that may block.
pub(crate) fn endpoints(
    hosts: &Hosts,
    host: &str,
    ca_pem: &[Vec<u8>],
) -> Result<Vec<EndpointOptions>> {
    let mut ca = Vec::new();
    for pem in ca_pem {
        let found = tls::certificates(pem)
            .map_err(|reason| Error::InvalidArgument { what: "ca_pem", reason })?;
        ca.extend(found);
    }
    let directory = hosts.directories.iter().find_map(|directory| find(directory, host));
    let mut own = default_endpoint(hosts, host)?;
    let mut list = match directory {
        None => vec![own],
        Some(directory) => {
            let file = directory.join("hosts.toml");
            match std::fs::metadata(&file) {
                Ok(_) => hosts_toml::read(&file, &own)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    certificates_of(&directory, &mut own.tls)?;
                    vec![own]
                }
                Err(error) => return Err(Error::io("stat", &file)(error)),
            }
        }
    };
    for endpoint in &mut list {
        endpoint.tls.ca.extend(ca.iter().cloned());
    }
    Ok(list)
}

/// What tells one state of a host's configuration from another: name, number, time and length of
/// every file in its directory.
pub(crate) type Version = Vec<(PathBuf, u64, Option<SystemTime>, u64)>;

/// The state of the files that describe `host`. What cannot be read is left to those who do.
pub(crate) fn version(hosts: &Hosts, host: &str) -> Version {
    let Some(directory) = hosts.directories.iter().find_map(|directory| find(directory, host))
    else {
        return Version::new();
    };
    let entries = std::fs::read_dir(&directory).into_iter().flatten().take(FILES_MAX).flatten();
    let mut files: Version = entries
        .filter_map(|entry| {
            // Through links, since that is how such directories are commonly switched.
            let found = std::fs::metadata(entry.path()).ok()?;
            Some((entry.path(), found.ino(), found.modified().ok(), found.len()))
        })
        .collect();
    files.sort();
    files.push((directory, 0, None, 0));
    files
}

/// The base address of an endpoint, `scheme://host/v2`.
pub(crate) fn base_url(scheme: &str, host: &str, path: &str) -> Result<Url> {
    Url::parse(&format!("{scheme}://{host}{path}")).map_err(|error| Error::InvalidArgument {
        what: "registry host",
        reason: format!("{host:?}: {error}"),
    })
}

fn default_endpoint(hosts: &Hosts, host: &str) -> Result<EndpointOptions> {
    let scheme = if hosts.plain_http { "http" } else { "https" };
    Ok(EndpointOptions {
        base: base_url(scheme, address_of(host), "/v2")?,
        capabilities: Capabilities::ALL,
        headers: HeaderMap::new(),
        tls: TlsOptions { skip_verify: hosts.skip_verify, ..TlsOptions::default() },
        http_fallback: is_loopback_host(host),
        connect: None,
    })
}

/// The directory that describes `host`, if there is one.
fn find(directory: &Path, host: &str) -> Option<PathBuf> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let mut forms = Vec::new();
    if let Some(port) = port {
        forms.push(format!("{name}_{port}_"));
        forms.push(host.to_owned());
    }
    forms.push(name.to_owned());
    forms.push("_default".to_owned());
    forms.into_iter().map(|form| directory.join(form)).find(|path| path.is_dir())
}

/// Certificates as docker keeps them: every `*.crt` an authority, every `*.cert` with its `*.key`
/// a certificate of ours (the first pair by name is used).
fn certificates_of(directory: &Path, tls: &mut TlsOptions) -> Result<()> {
    let unusable =
        |path: &Path, reason: String| Error::Config { path: path.to_owned(), line: 0, reason };
    let mut names: Vec<PathBuf> = std::fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(Error::io("read directory", directory))?;
    names.sort();
    for path in names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => {
                let pem = tls::read_pem(&path).map_err(|reason| unusable(&path, reason))?;
                let found = tls::certificates(&pem).map_err(|reason| unusable(&path, reason))?;
                tls.ca.extend(found);
            }
            Some("cert") if tls.client.is_none() => {
                let client = tls::client_certificate(&path, &path.with_extension("key"))
                    .map_err(|reason| unusable(&path, reason))?;
                tls.client = Some(std::sync::Arc::new(client));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A host has a file of settings and some certificates.
const FILES_MAX: usize = 256;
