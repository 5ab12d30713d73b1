//! Whom an address belongs to, and which addresses an untrusted answer may send us to.

use std::net::IpAddr;

use url::{Host, Url};

/// Scheme, host and port: two addresses with the same origin are the same server to us.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    pub(crate) fn of(url: &Url) -> Self {
        Self {
            scheme: url.scheme().to_owned(),
            host: url.host_str().unwrap_or_default().to_ascii_lowercase(),
            port: url.port_or_known_default().unwrap_or_default(),
        }
    }

    /// `host` or `host:port` where the port is not the scheme's own.
    pub(crate) fn authority(&self) -> String {
        match (self.scheme.as_str(), self.port) {
            ("https", 443) | ("http", 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }
}

/// An address as errors and logs may show it: no user information, no query, no fragment, since
/// each can hold a secret.
pub(crate) fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let query = if url.query().is_some() { "?..." } else { "" };
    format!("{}://{host}{port}{}{query}", url.scheme(), url.path())
}

/// Resolves an address an answer names against the one that gave the answer, and refuses what no
/// registry has reason to name.
pub(crate) fn follow(from: &Url, location: &str) -> Result<Url, &'static str> {
    if location.len() > LOCATION_BYTES_MAX {
        return Err("address is too long");
    }
    let url = from.join(location).map_err(|_| "malformed address")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("neither http nor https");
    }
    if url.scheme() == "http" && from.scheme() == "https" {
        return Err("leads from https to http");
    }
    if url.host().is_none() {
        return Err("no host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("user information in the address");
    }
    Ok(url)
}

/// Whether the address names this machine or its link by itself, without asking DNS.
pub(crate) fn names_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => is_local(ip.into()),
        Some(Host::Ipv6(ip)) => is_local(ip.into()),
        Some(Host::Domain(name)) => is_localhost(name),
        None => true,
    }
}

/// Addresses that mean something else to every machine: loopback, link-local (where clouds keep
/// their metadata servers), unspecified, multicast and broadcast.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.octets()[0] == 0
        }
        IpAddr::V6(ip) => {
            let link_local = ip.segments()[0] & 0xffc0 == 0xfe80;
            // Addresses that only wrap an IPv4 address are judged by it.
            let wrapped = ip.to_ipv4_mapped().or_else(|| ip.to_ipv4());
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || link_local
                || wrapped.is_some_and(|ip| is_local(ip.into()))
        }
    }
}

/// Whether a host of a reference is on the loopback interface, where plain http is normal.
pub(crate) fn is_loopback_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    is_localhost(name) || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether a token server may receive the credentials of a registry without being on a list: it
/// is the same host (on its own port or the one of https), or a host of the same site.
pub(crate) fn same_site(registry: &Url, realm: &Url) -> bool {
    let (Some(a), Some(b)) = (registry.host(), realm.host()) else {
        return false;
    };
    if a == b {
        let own_port = registry.port_or_known_default() == realm.port_or_known_default();
        return own_port || (realm.scheme() == "https" && realm.port().is_none());
    }
    // Another host must not be a weaker one: only https proves who it is.
    let (Host::Domain(a), Host::Domain(b)) = (a, b) else {
        return false;
    };
    let https = realm.scheme() == "https" && realm.port().is_none();
    https && site(a).is_some_and(|site_a| site(b) == Some(site_a))
}

/// The part of a name that one organisation owns: the last two labels, three where the second
/// to last is itself shared by many.
fn site(name: &str) -> Option<&str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let ends: Vec<usize> = name.rmatch_indices('.').map(|(at, _)| at).collect();
    let (&last, rest) = ends.split_first()?;
    let start = rest.first().map_or(0, |at| at + 1);
    let second = &name[start..last];
    let country = name.len() - last - 1 == 2;
    let shared = SHARED_SITES.contains(&&name[start..])
        || (country && (second.len() <= 3 || SHARED_SECOND_LEVEL.contains(&second)));
    if !shared {
        return Some(&name[start..]);
    }
    let start = rest.first()?;
    let third = name[..*start].rfind('.').map_or(0, |at| at + 1);
    // Below cloud names, tenants sit at any depth; only the whole name is theirs.
    if SHARED_SITES.contains(&&name[start + 1..]) { Some(name) } else { Some(&name[third..]) }
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost")
}

/// Names below which every customer has one of their own.
const SHARED_SITES: &[&str] = &[
    "amazonaws.com",
    "appspot.com",
    "azurecr.io",
    "azurewebsites.net",
    "azure.com",
    "cloudfront.net",
    "cloudapp.net",
    "github.io",
    "gitlab.io",
    "googleusercontent.com",
    "herokuapp.com",
    "jfrog.io",
    "netlify.app",
    "ngrok.io",
    "pages.dev",
    "pkg.dev",
    "run.app",
    "vercel.app",
    "windows.net",
    "workers.dev",
];

/// Second levels of country domains that are shared, beside the short ones such as `co` and `com`.
const SHARED_SECOND_LEVEL: &[&str] = &["govt", "info", "name", "school"];

/// Signed storage addresses are below 4 KiB; nothing honest needs more than this.
const LOCATION_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn token_servers_of_the_same_site_are_trusted() {
        for (registry, realm, trusted) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token", true),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
            ("https://quay.io", "https://quay.io/v2/auth", true),
            ("https://r.example:5050", "https://r.example/token", true),
            ("https://r.example:5050", "https://r.example:5051/token", false),
            ("https://r.example:5050", "http://r.example/token", false),
            ("https://a.azurecr.io", "https://b.azurecr.io/token", false),
            ("https://a.co.uk", "https://b.co.uk/token", false),
            ("https://r.a.co.uk", "https://t.a.co.uk/token", true),
            ("https://10.0.0.1", "https://10.0.0.2/token", false),
            ("https://r.example.com", "https://t.example.com:8443/token", false),
            ("https://r.example.com", "https://example.com.evil.net/token", false),
        ] {
            assert_eq!(same_site(&url(registry), &url(realm)), trusted, "{registry} {realm}");
        }
    }

    #[test]
    fn addresses_of_this_machine_and_link_are_local_in_every_spelling() {
        for local in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://169.254.169.254/",
            "http://[fe80::1]/",
            "http://localhost/",
            "http://a.localhost./",
            "http://0.0.0.0/",
            "http://[::]/",
        ] {
            assert!(names_local(&url(local)), "{local}");
        }
        assert!(!names_local(&url("http://10.0.0.1/")));
    }

    #[test]
    fn addresses_are_shown_without_anything_secret() {
        let text = shown(&url("https://user:canary@h.example:5/p?sig=canary#canary"));
        assert_eq!(text, "https://h.example:5/p?...");
    }

    #[test]
    fn locations_that_no_registry_would_name_are_refused() {
        let from = url("https://r.example/v2/a/blobs/x?y=1");
        assert_eq!(follow(&from, "/b?z=2").unwrap().as_str(), "https://r.example/b?z=2");
        for bad in
            ["http://r.example/", "file:///etc/passwd", "unix:/run/x", "https://u:p@r/", "x:"]
        {
            assert!(follow(&from, bad).is_err(), "{bad}");
        }
        assert!(follow(&from, &"a".repeat(20_000)).is_err());
    }
}
