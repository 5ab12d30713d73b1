//! `hosts.toml`: the endpoints of one host.
//!
//! ```toml
//! server = "https://registry.example"        # tried last; left out: the host itself
//! capabilities = ["pull", "resolve", "push"] # settings at this level are the server's
//!
//! [host."https://mirror.example:5000"]       # tried in the order of the file
//! capabilities = ["pull", "resolve"]         # left out: everything
//! ca = "ca.pem"                              # one or a list, relative to the file
//! client = [["cert.pem", "key.pem"]]         # one file with both, a list of them, or pairs
//! skip_verify = false
//! override_path = false                      # true: the path is complete, without /v2
//! dial_timeout = "10s"
//! [host."https://mirror.example:5000".header]
//! x-token = ["abc"]                          # one or a list
//! ```
//!
//! A key that is not in this list is an error that names file and line: a setting that is
//! silently ignored here may be the one that was to keep traffic inside a company.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use url::Url;

use super::endpoint::{Capabilities, EndpointOptions};
use super::hosts::base_url;
use super::origin::is_loopback_host;
use super::tls::{self, TlsOptions};
use crate::error::{Error, Result};

/// Reads a file; `own` is the endpoint of the host itself without any file.
///
/// # Errors
///
/// [`Error::Config`] with the line of whatever is wrong.
pub(crate) fn read(path: &Path, own: &EndpointOptions) -> Result<Vec<EndpointOptions>> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(Error::io("read", path))?;
    let file = File { path, text: &text };
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(file.wrong(0..0, format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    let root = DeTable::parse(&text)
        .map_err(|error| file.wrong(error.span().unwrap_or(0..0), error.message().to_owned()))?;
    file.endpoints(root.get_ref(), own)
}

struct File<'f> {
    path: &'f Path,
    text: &'f str,
}

impl File<'_> {
    fn endpoints(&self, root: &DeTable<'_>, own: &EndpointOptions) -> Result<Vec<EndpointOptions>> {
        let mut list = Vec::new();
        if let Some((_, hosts)) = find(root, "host") {
            let hosts = self.table(hosts)?;
            let mut entries: Vec<_> = hosts.iter().collect();
            // The parser's map forgets the order; the positions in the file tell it.
            entries.sort_by_key(|(key, _)| key.span().start);
            for (key, value) in entries {
                let address: &str = key.get_ref();
                list.push(self.endpoint(address, key.span(), self.table(value)?, own, &[])?);
            }
        }
        let server = match find(root, "server") {
            Some((_, value)) => {
                let address = self.string(value)?;
                self.endpoint(address, value.span(), root, own, &["server", "host"])?
            }
            None => {
                let mut server = own.clone();
                self.settings(root, &mut server, &["server", "host"])?;
                server
            }
        };
        list.push(server);
        Ok(list)
    }

    fn endpoint(
        &self,
        address: &str,
        at: Range<usize>,
        table: &DeTable<'_>,
        own: &EndpointOptions,
        also: &[&str],
    ) -> Result<EndpointOptions> {
        let mut fallback = false;
        let base = if address.contains("://") {
            Url::parse(address).map_err(|error| self.wrong(at.clone(), error.to_string()))?
        } else {
            fallback = is_loopback_host(address.split('/').next().unwrap_or_default());
            base_url(own.base.scheme(), address, "")
                .map_err(|error| self.wrong(at.clone(), error.to_string()))?
        };
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(self.wrong(at, "address is neither http nor https"));
        }
        if !base.username().is_empty()
            || base.password().is_some()
            || base.query().is_some()
            || base.fragment().is_some()
        {
            return Err(self.wrong(at, "address may have scheme, host, port and path only"));
        }
        let mut endpoint = EndpointOptions {
            base,
            capabilities: Capabilities::ALL,
            headers: HeaderMap::new(),
            tls: TlsOptions::default(),
            http_fallback: fallback,
            connect: None,
        };
        let override_path = self.settings(table, &mut endpoint, also)?;
        let path = endpoint.base.path().trim_end_matches('/').to_owned();
        if override_path {
            endpoint.base.set_path(&path);
        } else if !path.ends_with("/v2") {
            endpoint.base.set_path(&format!("{path}/v2"));
        }
        Ok(endpoint)
    }

    /// Applies the settings of one endpoint; answers `override_path`.
    fn settings(
        &self,
        table: &DeTable<'_>,
        endpoint: &mut EndpointOptions,
        also: &[&str],
    ) -> Result<bool> {
        let mut override_path = false;
        for (key, value) in table {
            match &**key.get_ref() {
                "capabilities" => endpoint.capabilities = self.capabilities(value)?,
                "ca" => {
                    for file in self.strings(value)? {
                        let found = tls::read_pem(&self.beside(file))
                            .and_then(|pem| tls::certificates(&pem))
                            .map_err(|reason| self.wrong(value.span(), reason))?;
                        endpoint.tls.ca.extend(found);
                    }
                }
                "client" => {
                    let (certificate, key) = self.client(value)?;
                    let client = tls::client_certificate(&certificate, &key)
                        .map_err(|reason| self.wrong(value.span(), reason))?;
                    endpoint.tls.client = Some(Arc::new(client));
                }
                "skip_verify" => endpoint.tls.skip_verify = self.boolean(value)?,
                "override_path" => override_path = self.boolean(value)?,
                "dial_timeout" => {
                    let text = self.string(value)?;
                    let duration = duration(text)
                        .ok_or_else(|| self.wrong(value.span(), "not a duration like \"10s\""))?;
                    endpoint.connect = Some(duration);
                }
                "header" => endpoint.headers = self.headers(value)?,
                other if also.contains(&other) => {}
                other => {
                    return Err(self.wrong(key.span(), format!("unknown key {other:?}")));
                }
            }
        }
        Ok(override_path)
    }

    fn capabilities(&self, value: &Spanned<DeValue<'_>>) -> Result<Capabilities> {
        let names = self.strings(value)?;
        let all = names.is_empty();
        let mut can = Capabilities { pull: all, resolve: all, push: all, referrers: all };
        for name in names {
            match name {
                "pull" => can.pull = true,
                "resolve" => can.resolve = true,
                "push" => can.push = true,
                "referrers" => can.referrers = true,
                other => {
                    return Err(self.wrong(value.span(), format!("unknown capability {other:?}")));
                }
            }
        }
        Ok(can)
    }

    /// The first certificate and key; a file alone holds both.
    fn client(&self, value: &Spanned<DeValue<'_>>) -> Result<(PathBuf, PathBuf)> {
        let first = match value.get_ref().as_array() {
            Some(list) => {
                let first = list.first();
                first.ok_or_else(|| self.wrong(value.span(), "empty list"))?
            }
            None => value,
        };
        let files = self.strings(first)?;
        match files[..] {
            [both] => Ok((self.beside(both), self.beside(both))),
            [certificate, ""] => Ok((self.beside(certificate), self.beside(certificate))),
            [certificate, key] => Ok((self.beside(certificate), self.beside(key))),
            _ => Err(self.wrong(value.span(), "not a certificate and a key")),
        }
    }

    fn headers(&self, value: &Spanned<DeValue<'_>>) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (key, value) in self.table(value)? {
            let name = HeaderName::from_bytes(key.get_ref().as_bytes())
                .map_err(|_| self.wrong(key.span(), "malformed header name"))?;
            for text in self.strings(value)? {
                let mut text = HeaderValue::from_str(text)
                    .map_err(|_| self.wrong(value.span(), "malformed header value"))?;
                // Headers of this file are tokens more often than not.
                text.set_sensitive(true);
                headers.append(name.clone(), text);
            }
        }
        Ok(headers)
    }

    fn beside(&self, file: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(file)
    }

    fn table<'v>(&self, value: &'v Spanned<DeValue<'_>>) -> Result<&'v DeTable<'v>> {
        value.get_ref().as_table().ok_or_else(|| self.wrong(value.span(), "not a table"))
    }

    fn string<'v>(&self, value: &'v Spanned<DeValue<'_>>) -> Result<&'v str> {
        value.get_ref().as_str().ok_or_else(|| self.wrong(value.span(), "not a string"))
    }

    fn boolean(&self, value: &Spanned<DeValue<'_>>) -> Result<bool> {
        value.get_ref().as_bool().ok_or_else(|| self.wrong(value.span(), "not true or false"))
    }

    /// A string, or a list of them.
    fn strings<'v>(&self, value: &'v Spanned<DeValue<'_>>) -> Result<Vec<&'v str>> {
        match value.get_ref().as_array() {
            Some(list) => list.iter().map(|value| self.string(value)).collect(),
            None => Ok(vec![self.string(value)?]),
        }
    }

    fn wrong(&self, at: Range<usize>, reason: impl Into<String>) -> Error {
        let before = self.text.get(..at.start).unwrap_or(self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        Error::Config { path: self.path.to_owned(), line, reason: reason.into() }
    }
}

fn find<'t, 'i>(
    table: &'t DeTable<'i>,
    name: &str,
) -> Option<(Range<usize>, &'t Spanned<DeValue<'i>>)> {
    let found = table.iter().find(|(key, _)| &**key.get_ref() == name);
    found.map(|(key, value)| (key.span(), value))
}

/// A whole or decimal number with one of the units `ms`, `s`, `m` and `h`.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let number: f64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    // A day is longer than anyone waits and shorter than what a duration cannot hold.
    let seconds = number * unit;
    (seconds > 0.0 && seconds <= 86_400.0).then(|| Duration::from_secs_f64(seconds))
}

/// A host with a hundred mirrors needs a tenth of this.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<EndpointOptions>> {
        let own = EndpointOptions {
            base: Url::parse("https://own.example/v2").unwrap(),
            capabilities: Capabilities::ALL,
            headers: HeaderMap::new(),
            tls: TlsOptions::default(),
            http_fallback: false,
            connect: None,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts.toml");
        std::fs::write(&path, text).unwrap();
        read(&path, &own)
    }

    #[test]
    fn hosts_keep_the_order_of_the_file_and_the_server_is_last() {
        let list = parse(
            r#"
            server = "https://up.example"
            capabilities = ["pull", "push"]
            [host."https://z.example"]
            capabilities = ["pull"]
            dial_timeout = "1.5s"
            [host."http://a.example:5000/mirror/v2"]
            override_path = true
            [host."http://a.example:5000/mirror/v2".header]
            x-token = ["abc", "def"]
            [host."localhost:5000/p"]
            skip_verify = true
            "#,
        )
        .unwrap();
        let bases: Vec<&str> = list.iter().map(|endpoint| endpoint.base.as_str()).collect();
        assert_eq!(
            bases,
            [
                "https://z.example/v2",
                "http://a.example:5000/mirror/v2",
                "https://localhost:5000/p/v2",
                "https://up.example/v2"
            ]
        );
        assert!(!list[0].capabilities.resolve && list[0].capabilities.pull);
        assert_eq!(list[0].connect, Some(Duration::from_millis(1500)));
        assert_eq!(list[1].headers.get_all("x-token").iter().count(), 2);
        assert!(list[2].http_fallback && list[2].tls.skip_verify && !list[0].http_fallback);
        assert!(list[3].capabilities.push && !list[3].capabilities.resolve);
    }

    #[test]
    fn without_a_server_the_host_itself_is_last() {
        let list = parse("[host.\"https://m.example\"]\n").unwrap();
        assert_eq!(list[1].base.as_str(), "https://own.example/v2");
        assert_eq!(parse("").unwrap().len(), 1);
    }

    #[test]
    fn whatever_is_wrong_is_named_with_its_line() {
        for (text, line, word) in [
            ("\nservr = \"https://x\"\n", 2, "servr"),
            ("[host.\"https://m.example\"]\n\ncapabilites = []\n", 3, "capabilites"),
            ("capabilities = [\"fly\"]", 1, "fly"),
            ("server = 1", 1, "string"),
            ("server = \"ftp://x\"", 1, "http"),
            ("server = \"https://u:p@x\"", 1, "address"),
            ("ca = \"missing.pem\"", 1, "missing.pem"),
            ("dial_timeout = \"soon\"", 1, "duration"),
            ("\n\nserver = ", 3, ""),
            ("[host.\"https://m.example\".header]\n\"a b\" = \"c\"", 2, "header"),
        ] {
            let error = parse(text).unwrap_err();
            let Error::Config { line: found, reason, .. } = &error else { panic!("{error}") };
            assert_eq!(*found, line, "{text:?}: {error}");
            assert!(reason.contains(word), "{text:?}: {error}");
        }
    }
}
