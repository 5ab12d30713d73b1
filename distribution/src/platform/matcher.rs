//! Which platforms fit, and which of them fits best.

use std::cmp::Ordering;
use std::fmt;

use super::Platform;

/// Decides which platforms are wanted, and in which order.
pub trait Matcher: fmt::Debug + Send + Sync {
    /// Whether content for `platform` is wanted.
    fn matches(&self, platform: &Platform) -> bool;

    /// Orders two platforms, the better one first.
    fn compare(&self, a: &Platform, b: &Platform) -> Ordering;
}

/// A platform and everything its processor runs as well, best first.
#[derive(Debug, Clone)]
pub struct Only(Ordered);

impl Only {
    /// Accepts what a host of this platform can run.
    pub fn new(platform: &Platform) -> Self {
        Self(Ordered::new(&candidates(&platform.normalized())))
    }
}

/// Exactly one platform.
#[derive(Debug, Clone)]
pub struct OnlyStrict(Ordered);

impl OnlyStrict {
    /// Accepts this platform alone.
    pub fn new(platform: &Platform) -> Self {
        Self(Ordered::new(std::slice::from_ref(platform)))
    }
}

/// Any processor of one operating system, the host's own choices first.
#[derive(Debug, Clone)]
pub struct OnlyOs {
    os: String,
    preferred: Ordered,
}

impl OnlyOs {
    /// Accepts every platform with the operating system of `host`.
    pub fn new(host: &Platform) -> Self {
        let host = host.normalized();
        Self { preferred: Ordered::new(&candidates(&host)), os: host.os }
    }
}

/// Every platform; none is better than another.
#[derive(Debug, Clone, Copy, Default)]
pub struct All;

/// Any platform of a list; none is better than another.
#[derive(Debug, Clone)]
pub struct Any(Ordered);

impl Any {
    /// Accepts each of `platforms`.
    pub fn new(platforms: &[Platform]) -> Self {
        Self(Ordered::new(platforms))
    }
}

/// Any platform of a list, earlier ones preferred.
#[derive(Debug, Clone)]
pub struct Ordered(Vec<Platform>);

impl Ordered {
    /// Accepts each of `platforms`, the first one best.
    pub fn new(platforms: &[Platform]) -> Self {
        Self(platforms.iter().map(Platform::normalized).collect())
    }

    fn rank(&self, platform: &Platform) -> Option<usize> {
        self.0.iter().position(|candidate| fits(candidate, platform))
    }
}

impl Matcher for Ordered {
    fn matches(&self, platform: &Platform) -> bool {
        self.rank(&platform.normalized()).is_some()
    }

    fn compare(&self, a: &Platform, b: &Platform) -> Ordering {
        let (a, b) = (a.normalized(), b.normalized());
        let rank = |platform: &Platform| self.rank(platform).unwrap_or(usize::MAX);
        // Of two that fit the same candidate, the one that uses more of its features was built
        // for it more closely.
        rank(&a).cmp(&rank(&b)).then_with(|| b.os_features.len().cmp(&a.os_features.len()))
    }
}

impl Matcher for Only {
    fn matches(&self, platform: &Platform) -> bool {
        self.0.matches(platform)
    }

    fn compare(&self, a: &Platform, b: &Platform) -> Ordering {
        self.0.compare(a, b)
    }
}

impl Matcher for OnlyStrict {
    fn matches(&self, platform: &Platform) -> bool {
        self.0.matches(platform)
    }

    fn compare(&self, a: &Platform, b: &Platform) -> Ordering {
        self.0.compare(a, b)
    }
}

impl Matcher for OnlyOs {
    fn matches(&self, platform: &Platform) -> bool {
        platform.normalized().os == self.os
    }

    fn compare(&self, a: &Platform, b: &Platform) -> Ordering {
        self.preferred.compare(a, b)
    }
}

impl Matcher for All {
    fn matches(&self, _: &Platform) -> bool {
        true
    }

    fn compare(&self, _: &Platform, _: &Platform) -> Ordering {
        Ordering::Equal
    }
}

impl Matcher for Any {
    fn matches(&self, platform: &Platform) -> bool {
        self.0.matches(platform)
    }

    fn compare(&self, a: &Platform, b: &Platform) -> Ordering {
        // What is not in the list at all comes after everything that is.
        self.0.matches(b).cmp(&self.0.matches(a))
    }
}

/// Whether an image for `image` runs where `candidate` does; both are normalized.
fn fits(candidate: &Platform, image: &Platform) -> bool {
    candidate.os == image.os
        && candidate.architecture == image.architecture
        && candidate.variant == image.variant
        && image.os_features.iter().all(|feature| candidate.os_features.contains(feature))
        && (candidate.os != "windows" || windows_fits(candidate, image))
}

/// Windows containers share the kernel, so the build must be equal; the revision may differ.
fn windows_fits(candidate: &Platform, image: &Platform) -> bool {
    let build = |version: &str| version.splitn(4, '.').take(3).collect::<Vec<_>>().join(".");
    match (candidate.os_version.as_deref(), image.os_version.as_deref()) {
        (Some(wanted), Some(offered)) => build(wanted) == build(offered),
        _ => true,
    }
}

/// What a processor runs, best first.
fn candidates(host: &Platform) -> Vec<Platform> {
    let with = |architecture: &str, variant: Option<String>| Platform {
        architecture: architecture.into(),
        variant,
        ..host.clone()
    };
    let variant = host.variant.as_deref().unwrap_or_default();
    let mut list = vec![host.clone()];
    match host.architecture.as_str() {
        "amd64" => {
            let level = variant.strip_prefix('v').and_then(number).unwrap_or(1);
            list.extend((2..level).rev().map(|n| with("amd64", Some(format!("v{n}")))));
            if level > 1 {
                list.push(with("amd64", None));
            }
            list.push(with("386", None));
        }
        "arm" => {
            let level = variant.strip_prefix('v').and_then(number).unwrap_or(7);
            list.extend((5..level).rev().map(|n| with("arm", Some(format!("v{n}")))));
        }
        "arm64" => {
            list.extend(arm64_candidates(variant).into_iter().map(|v| with("arm64", v)));
            list.extend((5..=8).rev().map(|n| with("arm", Some(format!("v{n}")))));
        }
        _ => {}
    }
    list
}

/// The variants below `variant`: v9.k contains v8.(k+5), which contains everything down to v8.
fn arm64_candidates(variant: &str) -> Vec<Option<String>> {
    let (major, minor) = match variant.strip_prefix('v') {
        None => (8, 0),
        Some(rest) => {
            let (major, minor) = rest.split_once('.').unwrap_or((rest, "0"));
            (number(major).unwrap_or(8), number(minor).unwrap_or(0))
        }
    };
    let named = |major: u32, minor: u32| match (major, minor) {
        (8, 0) => None,
        (major, 0) => Some(format!("v{major}")),
        (major, minor) => Some(format!("v{major}.{minor}")),
    };
    let below = |major, first: u32| (0..first).rev().map(move |minor| named(major, minor));
    match major {
        9 => below(9, minor).chain(below(8, (minor + 5).min(9) + 1)).collect(),
        8 => below(8, minor).collect(),
        _ => Vec::new(),
    }
}

/// A small version number; anything longer is not one, and would make the lists endless.
fn number(text: &str) -> Option<u32> {
    (text.len() <= 2).then(|| text.parse().ok()).flatten()
}
