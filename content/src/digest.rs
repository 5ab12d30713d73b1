use std::fmt;
use std::hash::{Hash, Hasher as StdHasher};
use std::str::FromStr;

use crate::error::{Error, Result};

/// The name of a blob: a hash algorithm and the hash of its bytes, `sha256:<64 hex digits>`.
///
/// A `Digest` exists only in valid form: a known algorithm, exactly as many lower-case hex digits
/// as the algorithm yields. Code that receives one need not check it again and may build a file
/// name from [`hex`](Self::hex).
///
/// ```
/// use crated_content::{Algorithm, Digest};
///
/// let digest: Digest = Digest::of(b"hello").to_string().parse()?;
/// assert_eq!(digest.algorithm(), Algorithm::Sha256);
/// assert!("sha256:../../etc/passwd".parse::<Digest>().is_err());
/// # Ok::<(), crated_content::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Digest {
    /// `algorithm:hex`, as on the wire.
    text: Box<str>,
    algorithm: Algorithm,
}

impl Digest {
    /// The sha256 digest of `bytes`, the form registries use.
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_with(Algorithm::Sha256, bytes)
    }

    /// The digest of `bytes` under `algorithm`.
    pub fn of_with(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = crate::Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.digest()
    }

    /// Names an already computed hash.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDigest`] when `hash` is not [`Algorithm::size_bytes`] long.
    pub fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Result<Self> {
        if hash.len() != algorithm.size_bytes() {
            return Err(Error::InvalidDigest {
                text: format!("{algorithm}:<{} bytes>", hash.len()),
                reason: "wrong hash length",
            });
        }
        let mut text = String::with_capacity(algorithm.name().len() + 1 + hash.len() * 2);
        text.push_str(algorithm.name());
        text.push(':');
        for byte in hash {
            text.push(HEX[usize::from(byte >> 4)] as char);
            text.push(HEX[usize::from(byte & 15)] as char);
        }
        Ok(Self { text: text.into(), algorithm })
    }

    /// The hash algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash in lower-case hex, without the algorithm. Safe as a file name.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    /// The whole name, `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |reason| Error::InvalidDigest { text: shorten(text), reason };
        let (name, hex) = text.split_once(':').ok_or_else(|| invalid("no colon"))?;
        let algorithm = Algorithm::from_name(name).ok_or_else(|| invalid("unknown algorithm"))?;
        if hex.len() != algorithm.size_bytes() * 2 {
            return Err(invalid("wrong length"));
        }
        if !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid("not lower-case hex"));
        }
        Ok(Self { text: text.into(), algorithm })
    }
}

impl TryFrom<&str> for Digest {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Digest {}

impl Hash for Digest {
    fn hash<H: StdHasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for Digest {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Digest {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

/// The hash algorithms a [`Digest`] may name; any other is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Algorithm {
    /// SHA-256, what registries and nearly all images use.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// BLAKE3 with 32 bytes of output: for content that never leaves this host.
    Blake3,
}

impl Algorithm {
    /// Every algorithm, in the order of the enum.
    pub const ALL: [Self; 4] = [Self::Sha256, Self::Sha384, Self::Sha512, Self::Blake3];

    /// The name in front of the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    /// Length of the hash in bytes; its hex form is twice as long.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The algorithm called `name`, if it is one of the allowed.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Hostile input is quoted in errors, so its length is bounded.
fn shorten(text: &str) -> String {
    const QUOTED_CHARS_MAX: usize = 160;
    if text.chars().nth(QUOTED_CHARS_MAX).is_none() {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    short.push('…');
    short
}

const HEX: &[u8; 16] = b"0123456789abcdef";
