//! Names and hardware addresses, parsed once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Longest interface name in bytes: the kernel's `IFNAMSIZ` less its NUL.
pub const IF_NAME_LEN_MAX: usize = 15;
/// Longest alternative name in bytes: the kernel's `ALTIFNAMSIZ` less its NUL.
pub const ALT_NAME_LEN_MAX: usize = 127;
/// Longest namespace name in bytes, the daemon's limit for identifiers.
pub const NETNS_NAME_LEN_MAX: usize = 76;

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Error;

            fn try_from(value: &str) -> Result<Self> {
                match $check(value) {
                    Ok(()) => Ok(Self(value.to_owned())),
                    Err(reason) => Err(Error::InvalidName {
                        what: $what,
                        value: value.chars().take(200).collect(),
                        reason,
                    }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(value: String) -> Result<Self> {
                Self::try_from(value.as_str())
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(value: &str) -> Result<Self> {
                Self::try_from(value)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_newtype!(
    /// An interface name: 1 to 15 bytes, none of them space, `/`, `:`, `%` or
    /// control, and not `.`, `..`, `all` or `default`.
    ///
    /// `%` is refused because the kernel expands `%d`; `all` and `default`
    /// because they are the names of its settings for every interface.
    IfName,
    "interface name",
    check_if_name
);

text_newtype!(
    /// An alternative interface name: 1 to 127 bytes, otherwise as [`IfName`].
    AltName,
    "alternative name",
    check_alt_name
);

text_newtype!(
    /// The name of a pinned namespace: 1 to 76 bytes of ASCII letters, digits,
    /// `.`, `_` and `-`, starting with a letter or digit.
    NetnsName,
    "namespace name",
    check_netns_name
);

impl IfName {
    /// A name the kernel gave, which may be one this crate would not make.
    pub(crate) fn from_kernel(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// A name made from `parts`: `cr` and twelve base-32 characters of their
    /// hash. The same parts always give the same name, so a retry finds the
    /// link its predecessor left half made.
    pub fn derived(parts: &[&str]) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut feed = |byte: u8| {
            hash ^= u64::from(byte);
            hash = hash.wrapping_mul(0x0100_0000_01b3);
        };
        for part in parts {
            part.len().to_le_bytes().into_iter().chain(part.bytes()).for_each(&mut feed);
        }
        // FNV leaves its upper bits weakly mixed; spread them before use.
        hash ^= hash >> 32;
        hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
        hash ^= hash >> 32;
        let mut name = String::from("cr");
        for place in 0..12 {
            name.push(char::from(ALPHABET[(hash >> (place * 5)) as usize & 31]));
        }
        Self(name)
    }
}

fn check_if_name(name: &str) -> Result<(), &'static str> {
    if name.len() > IF_NAME_LEN_MAX {
        return Err("longer than 15 bytes");
    }
    check_device_name(name)
}

fn check_alt_name(name: &str) -> Result<(), &'static str> {
    if name.len() > ALT_NAME_LEN_MAX {
        return Err("longer than 127 bytes");
    }
    check_device_name(name)
}

fn check_device_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => return Err("empty"),
        "." | ".." => return Err("names a directory"),
        "all" | "default" => return Err("names the settings of all interfaces"),
        _ => {}
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("contains a space or control character");
    }
    match name.chars().find(|c| matches!(c, '/' | ':' | '%' | '"' | '\\')) {
        Some(_) => Err("contains one of / : % \" \\"),
        None => Ok(()),
    }
}

fn check_netns_name(name: &str) -> Result<(), &'static str> {
    if name.len() > NETNS_NAME_LEN_MAX {
        return Err("longer than 76 bytes");
    }
    let Some(first) = name.bytes().next() else {
        return Err("empty");
    };
    if !first.is_ascii_alphanumeric() {
        return Err("must start with a letter or digit");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Err("only letters, digits, '.', '_' and '-' are allowed");
    }
    Ok(())
}

/// A unicast Ethernet address that is not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Checks six bytes.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] for the zero address and for multicast ones.
    pub fn new(bytes: [u8; 6]) -> Result<Self> {
        if bytes == [0; 6] {
            return Err(Error::value("mac", "the zero address"));
        }
        if bytes[0] & 1 == 1 {
            return Err(Error::value("mac", "a multicast address"));
        }
        Ok(Self(bytes))
    }

    /// The six bytes.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let malformed = || Error::value("mac", format!("{text:?} is not xx:xx:xx:xx:xx:xx"));
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(malformed)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        Self::new(bytes)
    }
}

impl TryFrom<&str> for Mac {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<String> for Mac {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
