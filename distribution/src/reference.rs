//! References: `host/repository[:tag][@digest]`, parsed once and never rewritten.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// The full name of an image or artifact.
///
/// The host is always explicit: there is no default registry here and no short name, so a
/// reference can never be read as one on another host. Programs that accept short names expand
/// them before they come here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses `host[:port]/repository[:tag][@digest]`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidReference`] with the rule that is broken: a missing host, user
    /// information, an address with a scheme, a port outside 1 to 65535, a repository that is
    /// not made of lower-case path components, a malformed tag; [`Error::InvalidDigest`] for
    /// what follows `@`.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason| Error::InvalidReference {
            input: text.chars().take(INPUT_SHOWN_CHARS_MAX).collect(),
            reason,
        };
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(invalid("too long"));
        }
        let (host, path) = text.split_once('/').ok_or_else(|| invalid("no host"))?;
        check_host(host).map_err(invalid)?;
        let (name, digest) = match path.split_once('@') {
            Some((name, digest)) => (name, Some(Digest::parse(digest)?)),
            None => (path, None),
        };
        let (repository, tag) = match name.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (name, None),
        };
        check_repository(repository).map_err(invalid)?;
        if let Some(tag) = tag {
            check_tag(tag).map_err(invalid)?;
        }
        Ok(Self {
            host: host.to_owned(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The host and port as written.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path of the repository on the host.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one. It wins over the tag wherever both could be used.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Whether there is a tag or a digest.
    pub fn has_object(&self) -> bool {
        self.tag.is_some() || self.digest.is_some()
    }

    /// `host/repository` without tag and digest.
    pub fn locator(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// The same name pinned to a digest; a tag stays.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The same repository with a tag and no digest.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidReference`] when the tag is malformed.
    pub fn with_tag(&self, tag: &str) -> Result<Self> {
        check_tag(tag).map_err(|reason| Error::InvalidReference {
            input: tag.chars().take(INPUT_SHOWN_CHARS_MAX).collect(),
            reason,
        })?;
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// A DNS name, an IPv4 address or a bracketed IPv6 address, each with an optional port.
pub(crate) fn check_host(host: &str) -> Result<(), &'static str> {
    if host.is_empty() {
        return Err("no host");
    }
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or("unclosed bracket in host")?;
            address.parse::<Ipv6Addr>().map_err(|_| "malformed IPv6 address in host")?;
            let port = match port {
                "" => None,
                port => Some(port.strip_prefix(':').ok_or("malformed port")?),
            };
            ("", port)
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if let Some(port) = port {
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err("port is not within 1 to 65535");
        }
    }
    if host.starts_with('[') {
        return Ok(());
    }
    if name.len() > HOST_BYTES_MAX {
        return Err("host is too long");
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !name.split('.').all(label) {
        return Err("host is not a DNS name or address");
    }
    Ok(())
}

/// Components of `[a-z0-9]+`, joined by one `.`, one or two `_`, or any number of `-`.
pub(crate) fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.is_empty() {
        return Err("no repository");
    }
    if repository.len() > REPOSITORY_BYTES_MAX {
        return Err("repository is longer than 255 bytes");
    }
    for component in repository.split('/') {
        let mut separators = "";
        let mut rest = component;
        while !rest.is_empty() {
            let word = rest
                .find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()))
                .unwrap_or(rest.len());
            if word == 0 {
                return Err("repository component must be lower-case letters and digits");
            }
            rest = &rest[word..];
            let end = rest.find(|c| !matches!(c, '.' | '_' | '-')).unwrap_or(rest.len());
            (separators, rest) = rest.split_at(end);
            let valid = matches!(separators, "" | "." | "_" | "__")
                || separators.bytes().all(|byte| byte == b'-');
            if !valid {
                return Err("malformed separator in repository");
            }
        }
        if component.is_empty() || !separators.is_empty() {
            return Err("empty component or trailing separator in repository");
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if tag.is_empty() || tag.len() > TAG_BYTES_MAX {
        return Err("tag is empty or longer than 128 bytes");
    }
    if !tag.bytes().all(valid) || tag.starts_with(['.', '-']) {
        return Err("malformed tag");
    }
    Ok(())
}

/// Host, repository, tag and the longest digest together.
const REFERENCE_BYTES_MAX: usize = 1024;
/// The limit of DNS.
const HOST_BYTES_MAX: usize = 253;
/// The limit registries themselves apply.
const REPOSITORY_BYTES_MAX: usize = 255;
/// The limit of the distribution specification.
const TAG_BYTES_MAX: usize = 128;
/// How much of a refused reference an error repeats.
const INPUT_SHOWN_CHARS_MAX: usize = 200;
