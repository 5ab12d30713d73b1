//! Digests: parsed once, then trusted to be well-formed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

use crate::error::{Error, Result};

/// The hash functions a digest may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// SHA-256, 64 hexadecimal digits; what images use.
    Sha256,
    /// SHA-384, 96 hexadecimal digits.
    Sha384,
    /// SHA-512, 128 hexadecimal digits.
    Sha512,
    /// BLAKE3 with 256 bits of output, 64 hexadecimal digits.
    Blake3,
}

impl Algorithm {
    /// The name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 | Self::Blake3 => 64,
            Self::Sha384 => 96,
            Self::Sha512 => 128,
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Sha256, Self::Sha384, Self::Sha512, Self::Blake3]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }
}

/// The name of some bytes: `algorithm:hex`, lower case, exactly as long as the algorithm says.
///
/// Only this type ever becomes part of an address or a path, so a string from a registry cannot
/// leave the place it is meant for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    text: Box<str>,
    algorithm: Algorithm,
}

impl Digest {
    /// Parses `algorithm:hex`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDigest`] when the algorithm is unknown, the length is wrong, or a
    /// character is not a lower-case hexadecimal digit.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason| {
            // A hostile digest may be megabytes long; the message is not.
            let input = text.chars().take(INPUT_SHOWN_CHARS_MAX).collect();
            Error::InvalidDigest { input, reason }
        };
        let (name, hex) = text.split_once(':').ok_or_else(|| invalid("no algorithm"))?;
        let algorithm = Algorithm::parse(name).ok_or_else(|| invalid("unsupported algorithm"))?;
        if hex.len() != algorithm.hex_len() {
            return Err(invalid("wrong length for its algorithm"));
        }
        if !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid("not lower-case hexadecimal"));
        }
        Ok(Self { text: text.into(), algorithm })
    }

    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hexadecimal digits after the colon.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Hashes bytes as they pass.
pub struct Hasher(State);

enum State {
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// An empty hash of the given kind.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha384 => State::Sha384(sha2::Sha384::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
            Algorithm::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hash) => hash.update(bytes),
            State::Sha384(hash) => hash.update(bytes),
            State::Sha512(hash) => hash.update(bytes),
            State::Blake3(hash) => {
                hash.update(bytes);
            }
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        let (algorithm, text) = match self.0 {
            State::Sha256(hash) => (Algorithm::Sha256, hex(&hash.finalize())),
            State::Sha384(hash) => (Algorithm::Sha384, hex(&hash.finalize())),
            State::Sha512(hash) => (Algorithm::Sha512, hex(&hash.finalize())),
            State::Blake3(hash) => (Algorithm::Blake3, hex(hash.finalize().as_bytes())),
        };
        Digest { text: format!("{}:{text}", algorithm.name()).into(), algorithm }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// How much of a refused digest an error repeats.
const INPUT_SHOWN_CHARS_MAX: usize = 80;
