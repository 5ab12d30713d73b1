//! Which requests leave through a proxy.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderValue, Uri};
use url::{Host, Url};

use super::origin::names_local;
use crate::error::{Error, Result};

/// Which proxies requests go through.
///
/// This machine is never reached through a proxy. A login in the address of a proxy goes to that
/// proxy alone, and shows in no message.
#[derive(Clone, Default)]
pub struct Proxies {
    http: Option<Arc<Proxy>>,
    https: Option<Arc<Proxy>>,
    none_for: Arc<Vec<Rule>>,
}

/// An http proxy.
pub(crate) struct Proxy {
    /// Without the login.
    pub(crate) address: Uri,
    pub(crate) login: Option<HeaderValue>,
}

/// An entry of `NO_PROXY`.
#[derive(PartialEq, Eq, Debug)]
enum Rule {
    Everything,
    /// The name and everything below it, on one port or on all.
    Name(String, Option<u16>),
    /// Addresses that share their first bits.
    Network(IpAddr, u32),
}

impl Proxies {
    /// Those of the variables `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, or their
    /// names in lower case, as they are now. What cannot be understood is logged and left out.
    pub fn environment() -> Self {
        let variable = |name: &str| {
            let lower = name.to_ascii_lowercase();
            [name, &lower].into_iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default()
        };
        let proxy = |name: &str| {
            let text = variable(name);
            let text = if text.is_empty() { variable("ALL_PROXY") } else { text };
            Proxy::parse(&text).unwrap_or_else(|error| {
                tracing::warn!(variable = name, %error, "proxy of the environment is not used");
                None
            })
        };
        let none_for = Arc::new(rules(&variable("NO_PROXY")));
        // Under CGI, the first variable is a header that any client may send.
        let http =
            if std::env::var_os("REQUEST_METHOD").is_none() { proxy("HTTP_PROXY") } else { None };
        Self { http, https: proxy("HTTPS_PROXY"), none_for }
    }

    /// None at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Proxies by the scheme of the address asked for, with `none_for` in the form of `NO_PROXY`:
    /// names, which stand for everything below them too, addresses and networks, separated by
    /// commas. An empty text means no proxy.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for what is not the address of an http proxy.
    pub fn new(http: &str, https: &str, none_for: &str) -> Result<Self> {
        let none_for = Arc::new(rules(none_for));
        Ok(Self { http: Proxy::parse(http)?, https: Proxy::parse(https)?, none_for })
    }

    /// The proxy on the way to an address.
    pub(crate) fn intercept(&self, to: &Uri) -> Option<&Arc<Proxy>> {
        let proxy = match to.scheme_str()? {
            "http" => self.http.as_ref()?,
            "https" => self.https.as_ref()?,
            _ => return None,
        };
        let url = Url::parse(&to.to_string()).ok()?;
        let excepted = names_local(&url) || self.none_for.iter().any(|rule| rule.holds(&url));
        (!excepted).then_some(proxy)
    }

    /// What a plain http request to `to` must carry for its proxy.
    pub(crate) fn authorization(&self, to: &Uri) -> Option<HeaderValue> {
        if to.scheme_str() != Some("http") {
            return None;
        }
        self.intercept(to)?.login.clone()
    }

    /// The proxy on the way to `to` as messages may name it.
    pub(crate) fn shown(&self, to: &Uri) -> Option<String> {
        self.intercept(to)?.address.authority().map(ToString::to_string)
    }
}

impl Proxy {
    fn parse(text: &str) -> Result<Option<Arc<Self>>> {
        // The text may hold a password, so no message repeats it.
        let invalid =
            |reason: &str| Error::InvalidArgument { what: "proxy", reason: reason.into() };
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = Url::parse(&whole).map_err(|_| invalid("not an address"))?;
        if url.scheme() != "http" {
            return Err(invalid("only http proxies are supported"));
        }
        let host = url.host_str().ok_or_else(|| invalid("no host"))?;
        let port = url.port_or_known_default().unwrap_or(80);
        let address = format!("http://{host}:{port}/");
        let address = address.parse().map_err(|_| invalid("not an address"))?;
        Ok(Some(Arc::new(Self { address, login: login(&url) })))
    }
}

/// What the user information of a proxy's address becomes.
fn login(url: &Url) -> Option<HeaderValue> {
    use base64::Engine as _;
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut plain = percent_decoded(url.username());
    plain.push(b':');
    plain.extend(percent_decoded(url.password().unwrap_or_default()));
    let encoded = base64::engine::general_purpose::STANDARD.encode(plain);
    let mut value = HeaderValue::from_str(&format!("Basic {encoded}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Undoes the escapes of an address.
fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).and_then(|two| std::str::from_utf8(two).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                plain.push(byte);
                at += 3;
            }
            _ => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    plain
}

fn rules(text: &str) -> Vec<Rule> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.take(RULES_MAX).filter_map(Rule::parse).collect()
}

impl Rule {
    fn parse(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Self::Everything);
        }
        let bare = entry.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Some(Self::Network(ip, bits(ip)));
        }
        if let Some((ip, length)) = entry.split_once('/') {
            let (ip, length): (IpAddr, u32) = (ip.parse().ok()?, length.parse().ok()?);
            return (length <= bits(ip)).then_some(Self::Network(ip, length));
        }
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let name = name.trim_start_matches('*').trim_start_matches('.').trim_end_matches('.');
        (!name.is_empty()).then(|| Self::Name(name.to_ascii_lowercase(), port))
    }

    fn holds(&self, to: &Url) -> bool {
        match (self, to.host()) {
            (Self::Everything, _) => true,
            (Self::Name(name, port), Some(host)) => {
                let host = host.to_string();
                let host = host.trim_end_matches('.');
                let below = host
                    .strip_suffix(name.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                below && port.is_none_or(|port| to.port_or_known_default() == Some(port))
            }
            (Self::Network(network, length), Some(Host::Ipv4(ip))) => {
                shares(*network, ip.into(), *length)
            }
            (Self::Network(network, length), Some(Host::Ipv6(ip))) => {
                shares(*network, ip.into(), *length)
            }
            _ => false,
        }
    }
}

fn bits(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// Whether two addresses have the same first bits.
fn shares(a: IpAddr, b: IpAddr, length: u32) -> bool {
    let wide = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let different = wide(a) ^ wide(b);
    a.is_ipv4() == b.is_ipv4() && different.leading_zeros() >= length
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Addresses of proxies may hold logins.
        let used = self.http.is_some() || self.https.is_some();
        f.debug_struct("Proxies").field("used", &used).finish_non_exhaustive()
    }
}

/// Entries of `NO_PROXY`; more are a mistake.
const RULES_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_names_addresses_and_networks() {
        let proxies = Proxies::new(
            "http://proxy.test:3128",
            "proxy.test",
            "a.test, .b.test,*.c.test,d.test:5000,10.0.0.0/8,192.168.1.1,[fd00::1],fd01::/16,x/y",
        )
        .unwrap();
        for (to, expected) in [
            ("http://z.test/", Some("proxy.test:3128")),
            ("https://z.test/", Some("proxy.test:80")),
            ("http://a.test/", None),
            ("http://x.a.test:77/", None),
            ("http://xa.test/", Some("proxy.test:3128")),
            ("http://b.test/", None),
            ("http://x.b.test/", None),
            ("http://x.c.test/", None),
            ("http://d.test:5000/", None),
            ("http://d.test/", Some("proxy.test:3128")),
            ("http://10.255.1.1/", None),
            ("http://11.0.0.1/", Some("proxy.test:3128")),
            ("http://192.168.1.1/", None),
            ("http://192.168.1.2/", Some("proxy.test:3128")),
            ("http://[fd00::1]/", None),
            ("http://[fd01:2::1]/", None),
            ("http://[fd02::1]/", Some("proxy.test:3128")),
            // This machine is no one else's to reach.
            ("http://localhost/", None),
            ("https://127.0.0.1:5000/", None),
        ] {
            assert_eq!(proxies.shown(&to.parse().unwrap()).as_deref(), expected, "{to}");
        }
        assert!(
            Proxies::new("http://p.test", "", "*").unwrap().shown(&uri("http://a.test/")).is_none()
        );
    }

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn case_31_logins_of_proxies_show_nowhere() {
        let proxies = Proxies::new("http://us%40er:can%61ry@p.test:1", "", "").unwrap();
        let to = uri("http://a.test/");
        let login = proxies.authorization(&to).unwrap();
        // us@er:canary
        assert_eq!(login.as_bytes(), b"Basic dXNAZXI6Y2FuYXJ5");
        assert!(login.is_sensitive());
        assert_eq!(proxies.shown(&to).unwrap(), "p.test:1");
        assert!(proxies.authorization(&uri("https://a.test/")).is_none());
        for bad in [
            "socks5://user:canary@p",
            "https://user:canary@p",
            "http://user:canary@",
            "http://user:canary@[x",
        ] {
            let error = Proxies::new(bad, "", "").unwrap_err();
            assert!(!format!("{error} {error:?} {proxies:?}").contains("canary"), "{error}");
        }
    }
}
