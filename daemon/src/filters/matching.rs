//! What a selector demands of its field.

use std::borrow::Cow;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

/// The demand of one selector.
#[derive(Clone, Debug)]
pub struct Matcher(Demand);

#[derive(Clone, Debug)]
enum Demand {
    Present,
    Equal(String),
    NotEqual(String),
    /// Found anywhere in the text; `None` for an expression that does not compile.
    Pattern(Option<Arc<Regex>>),
}

impl Matcher {
    pub(super) fn present() -> Self {
        Self(Demand::Present)
    }

    pub(super) fn equal(value: String) -> Self {
        Self(Demand::Equal(value))
    }

    pub(super) fn not_equal(value: String) -> Self {
        Self(Demand::NotEqual(value))
    }

    pub(super) fn pattern(pattern: &str) -> Self {
        let compiled = compile(pattern)
            .inspect_err(|error| tracing::debug!(%pattern, %error, "filter pattern ignored"));
        Self(Demand::Pattern(compiled.ok().map(Arc::new)))
    }

    pub(super) fn is_pattern(&self) -> bool {
        matches!(self.0, Demand::Pattern(_))
    }

    /// Whether a field of this value satisfies the demand.
    pub(super) fn holds(&self, value: Option<Cow<'_, str>>) -> bool {
        match &self.0 {
            Demand::Present => value.is_some(),
            Demand::Equal(wanted) => value.is_some_and(|value| value == *wanted),
            Demand::NotEqual(other) => value.as_deref().unwrap_or_default() != other,
            Demand::Pattern(None) => false,
            Demand::Pattern(Some(pattern)) => {
                pattern.is_match(value.as_deref().unwrap_or_default().as_bytes())
            }
        }
    }
}

/// Clients write RE2, in which `\d`, `\w` and `\s` are ASCII. The engine agrees when told not to
/// think in Unicode, but then refuses non-ASCII classes, for which it is asked again.
fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    let build = |unicode| {
        RegexBuilder::new(pattern).unicode(unicode).size_limit(PATTERN_SIZE_BYTES_MAX).build()
    };
    if pattern.is_ascii() { build(false).or_else(|_| build(true)) } else { build(true) }
}

/// Memory one compiled expression may take. Repetitions multiply, and anyone who may list may
/// send one.
const PATTERN_SIZE_BYTES_MAX: usize = 1 << 20;
