//! The filter language of the API: which objects a list or a subscription is about.
//!
//! ```text
//! filter    := selector (',' selector)*          all of them must hold
//! selector  := fieldpath [operator value]        without operator: the field is present
//! fieldpath := field ('.' field)*
//! field     := quoted | letters, digits and '_'
//! operator  := '==' | '!=' | '~='
//! value     := quoted | visible characters without ',' and white space
//! quoted    := "…" with escapes; behind '~=' also /…/ and |…|
//! ```
//!
//! An absent field is present nowhere, equals nothing, differs from everything, and is matched as
//! empty text. White space between tokens means nothing. A request carries a list of filters, of
//! which one must hold; the empty list and the empty filter hold for everything.
//!
//! ```
//! use crated::filters::Filters;
//!
//! let filters = Filters::parse(&["namespace==moby,topic~=|^/tasks/|"])?;
//! let event = |path: &[String]| match path[0].as_str() {
//!     "namespace" => Some("moby".into()),
//!     "topic" => Some("/tasks/exit".into()),
//!     _ => None,
//! };
//! assert!(filters.matches(&event));
//! # Ok::<(), crated::filters::Error>(())
//! ```

use std::borrow::Cow;

pub use self::matching::Matcher;

mod adaptors;
mod matching;
mod parser;
mod quoted;
mod scanner;

/// Something filters can be applied to.
///
/// Closures from a path to a value implement it.
pub trait Adaptor {
    /// The text of the field at `path`, which has at least one part, or `None` when the object has
    /// no such field or the field is unset.
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>>;
}

impl<F> Adaptor for F
where
    F: Fn(&[String]) -> Option<Cow<'static, str>>,
{
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        self(path)
    }
}

/// Filters of one request: an object passes when any of them holds, or when there are none.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    any: Vec<Filter>,
}

impl Filters {
    /// Filters that everything passes.
    pub fn all() -> Self {
        Self::default()
    }

    /// Parses the filters of a request.
    ///
    /// # Errors
    ///
    /// [`Error`], for the first that is malformed, or that is more than [`SELECTORS_MAX`] selectors
    /// or [`PATTERNS_MAX`] patterns of one request. A regular expression that does not compile is
    /// not an error: it matches nothing, as clients expect.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, Error> {
        let (mut any, mut selectors, mut patterns) = (Vec::new(), 0, 0);
        for filter in filters {
            let filter = filter.as_ref();
            let parsed = parser::parse(filter)?;
            selectors += parsed.all.len().max(1);
            patterns += parsed.all.iter().filter(|all| all.matcher.is_pattern()).count();
            if selectors > SELECTORS_MAX || patterns > PATTERNS_MAX {
                return Err(parser::error(filter, 0, "more selectors than a request may have"));
            }
            any.push(parsed);
        }
        Ok(Self { any })
    }

    /// Whether `object` passes.
    pub fn matches(&self, object: &(impl Adaptor + ?Sized)) -> bool {
        self.any.is_empty() || self.any.iter().any(|filter| filter.matches(object))
    }
}

/// Selectors in all filters of one request: scripts join a few thousand ids.
pub const SELECTORS_MAX: usize = 65_536;

/// Regular expressions in all filters of one request: each may take a megabyte when compiled.
pub const PATTERNS_MAX: usize = 64;

/// One filter: selectors that must all hold.
#[derive(Clone, Debug)]
struct Filter {
    all: Vec<Selector>,
}

#[derive(Clone, Debug)]
struct Selector {
    path: Vec<String>,
    matcher: Matcher,
}

impl Filter {
    fn matches(&self, object: &(impl Adaptor + ?Sized)) -> bool {
        self.all.iter().all(|selector| selector.matcher.holds(object.field(&selector.path)))
    }
}

/// A filter that does not follow the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}: {reason} at byte {position}")]
pub struct Error {
    /// The filter, shortened if it is long.
    pub filter: String,
    /// Where parsing stopped, in bytes from the start.
    pub position: usize,
    /// What was expected there.
    pub reason: &'static str,
}

/// Looks up `path` in a map: keys may contain the separator, so the parts belong to one key.
pub(crate) fn label<'a>(
    labels: &'a std::collections::BTreeMap<String, String>,
    path: &[String],
) -> Option<Cow<'a, str>> {
    match path {
        [] => None,
        [key] => labels.get(key),
        parts => labels.get(&parts.join(".")),
    }
    .map(|value| Cow::Borrowed(value.as_str()))
}

/// A field that counts as absent while it is empty.
pub(crate) fn text(value: &str) -> Option<Cow<'_, str>> {
    (!value.is_empty()).then_some(Cow::Borrowed(value))
}

#[cfg(test)]
mod tests;
