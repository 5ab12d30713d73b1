//! Platforms: what an image runs on.

mod matcher;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::matcher::{All, Any, Matcher, Only, OnlyOs, OnlyStrict, Ordered};
use crate::descriptor::nullable;
use crate::error::{Error, Result};

/// An operating system and processor, as written in indexes and image configurations.
///
/// The fields keep what the document said; [`Platform::normalized`] gives the form that
/// matchers compare.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// The processor, for example `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// The operating system, for example `linux`.
    #[serde(default)]
    pub os: String,
    /// The version of the operating system; only Windows images use it.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features the operating system must have.
    #[serde(
        rename = "os.features",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "nullable"
    )]
    pub os_features: Vec<String>,
    /// The variant of the processor, for example `v7` of `arm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// A platform without variant, version or features, normalized.
    pub fn new(os: &str, architecture: &str) -> Self {
        Self { os: os.into(), architecture: architecture.into(), ..Self::default() }.normalized()
    }

    /// The platform this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        let os = std::env::consts::OS;
        Self { os: os.into(), architecture: architecture.into(), ..Self::default() }.normalized()
    }

    /// Parses `os[(version[+feature...])]/architecture[/variant]`, an operating system alone, or
    /// a processor alone; what is left out is the host's.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for wildcards, empty parts, unknown lone words and characters
    /// outside letters, digits, `_`, `.` and `-`.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: &str| Error::InvalidArgument {
            what: "platform",
            reason: format!("{:?}: {reason}", text.chars().take(80).collect::<String>()),
        };
        if text.contains('*') {
            return Err(invalid("wildcards are not supported"));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let (os, version, features) = split_os(parts[0]).ok_or_else(|| invalid("malformed"))?;
        if !word(os) || !parts[1..].iter().all(|part| word(part)) {
            return Err(invalid("empty part or invalid character"));
        }
        let mut platform = Self {
            os_version: version.map(str::to_owned),
            os_features: features.iter().map(|feature| (*feature).to_owned()).collect(),
            ..Self::default()
        };
        let host = Self::host();
        match parts[..] {
            [_] => {
                let lower = normalize_os(os);
                let (architecture, variant) = normalize_architecture(os, "");
                if KNOWN_OS.contains(&lower.as_str()) {
                    platform.os = lower;
                    platform.architecture = host.architecture;
                    platform.variant = host.variant;
                } else if KNOWN_ARCHITECTURES.contains(&architecture.as_str()) {
                    platform.os = host.os;
                    platform.architecture = architecture;
                    platform.variant = variant;
                    platform.drop_implied_variant();
                } else {
                    return Err(invalid("unknown operating system or architecture"));
                }
            }
            [_, architecture] => {
                platform.os = normalize_os(os);
                (platform.architecture, platform.variant) =
                    normalize_architecture(architecture, "");
                platform.drop_implied_variant();
            }
            [_, architecture, variant] => {
                platform.os = normalize_os(os);
                (platform.architecture, platform.variant) =
                    normalize_architecture(architecture, variant);
                if platform.architecture == "arm64" && platform.variant.is_none() {
                    // Written out, so it is kept and printed again.
                    platform.variant = Some("v8".into());
                }
            }
            _ => return Err(invalid("too many parts")),
        }
        platform.os_features.sort();
        platform.os_features.dedup();
        Ok(platform)
    }

    /// The form matchers compare: lower case, aliases replaced, implied variants dropped.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let variant = self.variant.as_deref().unwrap_or_default();
        let (architecture, variant) = normalize_architecture(&self.architecture, variant);
        let mut os_features = self.os_features.clone();
        os_features.sort();
        os_features.dedup();
        Self {
            architecture,
            os: normalize_os(&self.os),
            os_version: self.os_version.clone().filter(|version| !version.is_empty()),
            os_features,
            variant,
        }
    }

    /// Whether this is the `unknown/unknown` that build tools give to attestations.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }

    /// `linux/arm` means the seventh version; writing it out would be noise.
    fn drop_implied_variant(&mut self) {
        if self.architecture == "arm" && self.variant.as_deref() == Some("v7") {
            self.variant = None;
        }
    }
}

/// `os(version+features)/architecture/variant`, the form [`Platform::parse`] reads.
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.os.is_empty() {
            return f.write_str("unknown");
        }
        f.write_str(&self.os)?;
        if self.os_version.is_some() || !self.os_features.is_empty() {
            write!(f, "({}", self.os_version.as_deref().unwrap_or_default())?;
            for feature in &self.os_features {
                write!(f, "+{feature}")?;
            }
            f.write_str(")")?;
        }
        for part in [Some(self.architecture.as_str()), self.variant.as_deref()] {
            if let Some(part) = part.filter(|part| !part.is_empty()) {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

impl From<&oci_spec::image::Platform> for Platform {
    fn from(other: &oci_spec::image::Platform) -> Self {
        Self {
            architecture: other.architecture().to_string(),
            os: other.os().to_string(),
            os_version: other.os_version().clone(),
            os_features: other.os_features().clone().unwrap_or_default(),
            variant: other.variant().clone(),
        }
    }
}

impl From<&Platform> for oci_spec::image::Platform {
    fn from(own: &Platform) -> Self {
        let mut other = Self::default();
        other.set_architecture(own.architecture.as_str().into());
        other.set_os(own.os.as_str().into());
        other.set_os_version(own.os_version.clone());
        if !own.os_features.is_empty() {
            other.set_os_features(Some(own.os_features.clone()));
        }
        other.set_variant(own.variant.clone());
        other
    }
}

/// `os(version+feature+feature)` in its parts; nothing when the brackets do not fit.
fn split_os(text: &str) -> Option<(&str, Option<&str>, Vec<&str>)> {
    let Some((os, rest)) = text.split_once('(') else {
        return Some((text, None, Vec::new()));
    };
    let inner = rest.strip_suffix(')')?;
    let mut parts = inner.split('+');
    let version = parts.next().filter(|version| !version.is_empty());
    let features: Vec<&str> = parts.collect();
    let plain = |part: &&str| word(part);
    if !version.iter().all(plain) || !features.iter().all(plain) {
        return None;
    }
    Some((os, version, features))
}

fn word(part: &str) -> bool {
    !part.is_empty()
        && part
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn normalize_os(os: &str) -> String {
    match os.to_ascii_lowercase().as_str() {
        "" => std::env::consts::OS.into(),
        "macos" => "darwin".into(),
        other => other.into(),
    }
}

fn normalize_architecture(architecture: &str, variant: &str) -> (String, Option<String>) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (architecture, variant) = match architecture.as_str() {
        "i386" => ("386", ""),
        "x86_64" | "x86-64" | "amd64" => ("amd64", if variant == "v1" { "" } else { &variant }),
        "aarch64" | "arm64" => (
            "arm64",
            match variant.as_str() {
                "8" | "v8" | "v8.0" => "",
                "9" | "9.0" | "v9.0" => "v9",
                other => other,
            },
        ),
        "armhf" => ("arm", "v7"),
        "armel" => ("arm", "v6"),
        "arm" => (
            "arm",
            match variant.as_str() {
                "" | "7" => "v7",
                "5" => "v5",
                "6" => "v6",
                "8" => "v8",
                other => other,
            },
        ),
        other => (other, variant.as_str()),
    };
    (architecture.to_owned(), (!variant.is_empty()).then(|| variant.to_owned()))
}

/// Words that alone name an operating system.
const KNOWN_OS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

/// Words that alone name a processor.
const KNOWN_ARCHITECTURES: &[&str] = &[
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];
